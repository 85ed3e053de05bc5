"""Stand-in: all rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.numpy import load_file


class Selection:
    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask


class Vectors:
    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    @classmethod
    def open(cls, segments: Sequence[Path]) -> Self:
        paths = [path for segment in segments for path in sorted(segment.glob("item-*.safetensors"))]
        return cls(np.concatenate([load_file(path)["embeds"] for path in paths]))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        found = self.rows[rows].astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)
