"""A recipe is a YAML file of flags: `script.py recipes/NAME.yaml --flag value` reads it, then the flags override it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser


def machine_flags() -> list[str]:
    """Defaults that depend on the machine: bf16 where it has it, and the CPU named where it is all there is."""
    if torch.cuda.is_available():
        return ["--bf16", str(torch.cuda.is_bf16_supported(including_emulation=False))]
    fast_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False) or torch.cpu.get_capabilities().get("amx_bf16")
    return ["--use_cpu", "True", "--bf16", str(bool(fast_bf16))]


def parse_recipe(parser: HfArgumentParser, arguments: list[str]) -> tuple[Any, ...]:
    """The parser's dataclasses, filled from an optional leading recipe file and from flags.

    First comes what the machine suggests, then the file, then the flags; later ones win. The file becomes flags itself,
    so that one parser checks names and types of both and errors read alike.
    """
    parser.allow_abbrev = False  # else a misspelt `learning_rat` is silently taken for another flag
    flags: list[str] = []
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        path, arguments = Path(arguments[0]), arguments[1:]
        if not path.is_file():
            sys.exit(
                f"no recipe {path}; there are: {', '.join(sorted(map(str, Path('recipes').glob('*.yaml')))) or 'none'}"
            )
        recipe = yaml.safe_load(path.read_text()) or {}
        if not isinstance(recipe, dict):
            sys.exit(f"{path} holds a {type(recipe).__name__}, not `name: value` lines")
        for name, value in recipe.items():
            if value is None:
                continue
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            flags += [f"--{name}", *map(str, values)]
    return parser.parse_args_into_dataclasses(args=[*machine_flags(), *flags, *arguments], look_for_args_file=False)
