"""What a catalog answers: hits, and what was found under one condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrvsf.search.catalog import Catalog


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Attributes:
        score: cosine between the query and the item's stored row, exact.
        rank: from 1.
        metadata: the columns of its table, None where a cell is empty.
        row: its number in the catalog's generation.
        standing: of pictures whose thing is not in the catalog, the share that finds nothing as near, 0..1; None while
            the model is not calibrated, and without a condition.
        close: whether the score is one of a match; None likewise. Hits that are not close come after those that are.
        more: further photos of the product, or near duplicates, that stand behind this hit.
    """

    id: str
    score: float
    rank: int
    metadata: dict[str, Any]
    row: int
    standing: float | None = None
    close: bool | None = None
    more: int = 0
    _catalog: Catalog | None = field(default=None, repr=False, compare=False)

    @property
    def thumbnail(self) -> bytes:
        """A JPEG of at most 128 pixels a side."""
        return self._catalog.thumbnail(self.row)


@dataclass(frozen=True)
class Answer:
    """What was found under one condition.

    Attributes:
        presence: how likely the thing is in the picture, 0..1; None while the model is not calibrated.
        present: the verdict on it; None likewise.
    """

    hits: list[Hit]
    present: bool | None = None
    presence: float | None = None

    @property
    def close(self) -> bool | None:
        """Whether there is a close match; None where that is not told."""
        return self.hits[0].close if self.hits else None
