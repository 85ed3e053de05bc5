"""Stand-in: exact scores of all rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np

from lrvsf.search.vectors import Selection, Vectors


class VectorIndex:
    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors

    @classmethod
    def build(cls, vectors: Vectors, factory=None, storage=None, seed=0, progress=None) -> Self:
        return cls(vectors)

    def add(self, vectors: Vectors, first_row: int) -> None:
        self.vectors = vectors

    def save(self, folder: Path) -> None:
        (folder / "index.json").write_text(json.dumps(self.about()))

    @classmethod
    def load(cls, folder: Path, vectors: Vectors) -> Self:
        return cls(vectors)

    def about(self) -> dict[str, Any]:
        return {"factory": "Flat", "storage": "float16", "items": len(self.vectors)}

    def search(self, queries: np.ndarray, k: int, allowed: Selection | None = None) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.vectors.take(np.arange(len(self.vectors))).T
        if allowed is not None:
            scores[:, ~allowed.mask] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, rows, 1)
        return scores, np.where(np.isfinite(scores), rows, -1)
