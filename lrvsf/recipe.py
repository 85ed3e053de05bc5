"""A recipe is a YAML file of flags: `script.py recipes/NAME.yaml --flag value` reads it, then the flags override it.

Its values are text, as on the command line: `eval_strategy: no` and `categories: [Bags, No, 010]` mean what they say,
which YAML would read as false and 8. What `null` is given to keeps its default.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lrvsf.data.names import did_you_mean
from lrvsf.flags import FlagParser

DEEPEST = 4  # levels of a value: a flag takes a list, or a dict of options
LARGEST = 1 << 20  # bytes of a recipe


def read_arguments(parser: FlagParser, arguments: list[str]) -> tuple[list[str], Namespace]:
    """A recipe, if the first argument is one, and flags as flags alone, which override it; and their parsed values.

    Raises ValueError: for what the parser's flags do not take, with the file and line of a recipe.
    """
    flags: list[str] = []
    if arguments and not arguments[0].startswith("-"):
        flags, arguments = read_recipe(Path(arguments[0]), parser), arguments[1:]
    return [*flags, *arguments], parser.parse_args([*flags, *arguments])


def read_recipe(path: Path, parser: FlagParser) -> list[str]:
    """A recipe as flags of the command line, each of which the parser takes.

    Raises ValueError: with file and line.
    """
    flags: list[str] = []
    for name, (node, line) in _pairs(path).items():
        where = f"{path} line {line}"
        if name not in parser.flags:
            raise ValueError(f"{where}: there is no flag {name!r}.{did_you_mean(name, parser.flags)}")
        try:
            tokens = _tokens(name, node)
            if tokens:
                parser.parse_args(tokens)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        flags += tokens
    if not flags:
        raise ValueError(f"{path} names no flag: write `name: value` lines")
    return flags


def parse_classes(classes: Iterable[type], flags: list[str], asked: Namespace, machine: bool = False) -> list[Any]:
    """The dataclasses, from flags that `read_arguments` gave and, below them, what the machine suggests.

    Raises ValueError: what the classes refuse.
    """
    from transformers import HfArgumentParser  # and torch: not before the flags are read

    parser = HfArgumentParser(classes, allow_abbrev=False)
    parser.error = _refuse
    suggested = machine_flags(asked.fp16) if machine else []
    return list(parser.parse_args_into_dataclasses(args=[*suggested, *flags], look_for_args_file=False))


def machine_flags(fp16: bool) -> list[str]:
    """Defaults that depend on the machine: bf16 where it has it, and the CPU named where it is all there is.

    With `fp16` the user has chosen, and bf16 would contradict it.
    """
    import torch

    from lrvsf.processes import has_fast_bf16

    gpu = torch.cuda.is_available()
    fast_bf16 = has_fast_bf16(torch.device("cuda" if gpu else "cpu"))
    return [*([] if gpu else ["--use_cpu=True"]), f"--bf16={fast_bf16 and not fp16}"]


def _refuse(message: str) -> None:
    raise ValueError(message)


def _pairs(path: Path) -> dict[str, tuple[yaml.Node, int]]:
    """The value and the line of each name of a recipe's mapping."""
    text = _text(path)
    try:
        _check_shape(path, text)
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_explain(path, text, error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{path} line {line}: the character {chr(error.character)!r} has no place in YAML") from error
    if root is None:
        raise ValueError(f"{path} is empty: write `name: value` lines")
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "text"
        raise ValueError(f"{path} line {_line(root)}: a {kind}, not `name: value` lines")
    pairs: dict[str, tuple[yaml.Node, int]] = {}
    for key, value in root.value:
        name, line = _name(key, path), _line(key)
        if name in pairs:  # YAML itself takes the last of two values in silence
            raise ValueError(f"{path} line {line}: {name!r} stands in line {pairs[name][1]} too. Leave one of them")
        pairs[name] = value, line
    return pairs


def _text(path: Path) -> str:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a recipe{_there_are(path)}")
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}{_there_are(path)}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: a recipe is a short YAML file of flags")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # Windows' editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {line} is not UTF-8 (byte {data[error.start]:#x}). Save it as UTF-8") from error


def _there_are(path: Path) -> str:
    near = path if path.is_dir() else path.parent if path.parent.is_dir() else Path()
    names = sorted({str(other) for folder in (near, Path("recipes")) for other in folder.glob("*.yaml")})
    for word in () if path.is_dir() else (str(path), f"recipes/{path.name}"):
        if meant := f" Did you mean '{word}'?" if word in names else did_you_mean(word, names):
            return f".{meant}"
    return f"; there are: {', '.join(names[:20]) or 'none here'}"


def _check_shape(path: Path, text: str) -> None:
    """Refuses aliases, tags and deep nesting, before anything is built of them: a few lines can be gigabytes."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        where = f"{path} line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{where}: an alias (*{event.anchor}); write the value out, or quote a text with a star")
        if isinstance(event, yaml.NodeEvent) and (tag := getattr(event, "tag", None)):
            raise ValueError(f"{where}: a tag ({tag}); leave it out, or quote a text that begins with !")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{where}: {depth} levels of lists, where a flag takes one")


def _explain(path: Path, text: str, error: yaml.MarkedYAMLError) -> str:
    """What is wrong with a line of YAML, in this project's words where the mistake is a common one."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or str(error)
    if "could not find expected ':'" in problem and error.context_mark is not None:
        mark, problem = error.context_mark, "no colon after the name"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: max(mark.column, 0) + 1]:
        problem = "a tab, which YAML does not take there: write blanks"
    elif "mapping values are not allowed" in problem:
        problem = "a second colon, or a line that is indented too far: quote a value that has a colon in it"
    return f"{path} line {mark.line + 1}: {problem}: {line.strip()[:60]!r}"


def _name(key: yaml.Node, path: Path) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise ValueError(f"{path} line {_line(key)}: a name is expected before the colon")
    return key.value.lstrip("-").replace("-", "_")


def _tokens(name: str, node: yaml.Node) -> list[str]:
    """The flag as the command line has it; [] for null."""
    if isinstance(node, yaml.SequenceNode):
        if not node.value:
            raise ValueError(f"{name!r} is an empty list; leave it out")
        values = [_scalar(name, item) for item in node.value]
        if dashed := [value for value in values if value.startswith("--")]:
            raise ValueError(f"{dashed[0]!r} among the values of {name!r} looks like a flag")
        return [f"--{name}", *values]
    if isinstance(node, yaml.MappingNode):
        options = yaml.SafeLoader("").construct_object(node, deep=True)
        return [f"--{name}={json.dumps(options)}"]  # one word, in JSON, as transformers reads a dict
    if node.tag == "tag:yaml.org,2002:null":
        return []
    return [f"--{name}={_scalar(name, node)}"]


def _scalar(name: str, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{name!r} has a list within its list")
    return node.value


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
