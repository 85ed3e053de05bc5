"""Whether two items show one picture: recompressed, made smaller, or trimmed by a pixel or two.

Embeddings alone do not tell. What a model makes of a picture of a quarter of the size may be farther from the original
than another item is: on Mini, at the cosine that folds half of such copies, every sixth item has another one above it.
Thumbnails do, which a catalog keeps anyway; embeddings only say which of them are worth comparing.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from PIL import Image

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.search.segments import Thumbnails

# Cosine from which two items are compared at all. It saves work: of Mini's copies of a quarter of the size, 40 pixels
# high, it loses one in 200 at the most.
ALIKE = 0.8
CELLS = 32  # a side, of the grid of mean colours that stands for a thumbnail: fine enough to tell a dot from a stripe
# The largest difference of two grids, as a share of the larger contrast. A share, as a white shirt on white and a white
# hat on white differ little and have little contrast. docs/search.md has what other values would fold.
DIFFERENT = 0.25
KEPT = 4096  # grids in memory, 3 KB each; not tuned


class Copies:
    """Which items of a catalog show one picture. Threads may share it."""

    def __init__(self, thumbnails: Thumbnails) -> None:
        self._grid = lru_cache(KEPT)(partial(_grid_of, thumbnails))

    def first(self, row: int, others: list[int]) -> int | None:
        """The place among some other rows of the first one whose picture is that of the row; None where none is."""
        grid = self._grid(row) if others else None
        return next((place for place, other in enumerate(others) if same_picture(grid, self._grid(other))), None)


def same_picture(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two grids (CELLS, CELLS, 3) are of one picture, float32 of any scale."""
    contrast = max(np.linalg.norm(one - one.mean((0, 1))) for one in (first, second))
    return bool(np.linalg.norm(first - second) <= DIFFERENT * contrast)


def grid(image: Image.Image) -> np.ndarray:
    """(CELLS, CELLS, 3) float32 mean colours of an RGB image, whatever its size."""
    return np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX), np.float32)


def _grid_of(thumbnails: Thumbnails, row: int) -> np.ndarray:
    (data,) = thumbnails.take([row])
    return grid(decode_shown(data))
