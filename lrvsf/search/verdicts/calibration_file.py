"""What `calibrate` learns of a model, as files in the model's folder: safetensors, whole or absent, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lrvsf.durable import write_whole

FORMAT = "1"
Kind = TypeVar("Kind")
Tensors = dict[str, torch.Tensor]


def write_calibration(path: Path, conditions: Sequence[str], model: str, tensors: Tensors) -> None:
    """Writes what was learned.

    Args:
        model: the digest of the model that it is of.
    """
    write_whole(path, save(tensors, {"format": FORMAT, "conditions": json.dumps(list(conditions)), "model": model}))


def read_calibration(path: Path, parse: Callable[[tuple[str, ...], str, Tensors], Kind]) -> Kind | None:
    """What `parse` makes of the conditions, the model's digest and the tensors; None where there is no file.

    Raises ValueError: the file is damaged, `parse` finds that it cannot be, or it is a newer program's.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        return parse(tuple(json.loads(about["conditions"])), about["model"], tensors)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or of another version ({error}). Calibrate again.") from error
