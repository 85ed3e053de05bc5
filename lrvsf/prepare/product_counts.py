"""What became of the URLs and products of a download, counted for the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from lrvsf.data.schema import SIMPLE
from lrvsf.prepare.rows import NO_CATEGORY, TWICE, Picture, why_incomplete
from lrvsf.report import Ledger


class ProductCounts:
    """What became of URLs and products; every URL is either kept or counted under one reason."""

    def __init__(self) -> None:
        self.urls: Counter[str] = Counter(listed=0, fetched=0, decodable=0, kept=0)
        self.products: Counter[str] = Counter(listed=0, complete=0)
        self.categories: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.lost = Ledger()

    def complete(self, pictures: list[Picture], usable: list[Picture]) -> bool:
        """Counts one product; whether it is complete. `usable`: the distinct pictures that can be decoded."""
        decodable = sum(picture.data is not None for picture in pictures)
        self.urls.update(listed=len(pictures), fetched=sum(p.fetched for p in pictures), decodable=decodable)
        self.lost.counts.update(picture.failure for picture in pictures if picture.failure is not None)
        self.lost.counts[TWICE] += decodable - len(usable)
        lacks = why_incomplete(usable)
        if lacks is None:
            self.urls["kept"] += len(usable)
        else:
            self.lost.counts["readable, but of an incomplete product"] += len(usable)
        outcome = lacks or "complete"
        self.products.update(["listed", outcome])
        # A product that lost its SIMPLE image is still known by its category in the list of URLs.
        category = next((name for part in (usable, pictures) if (name := _category(part))), NO_CATEGORY)
        self.categories[category][outcome] += 1
        return lacks is None

    def merge(self, other: ProductCounts) -> None:
        """Adds what was counted of further products, by another process."""
        # In the order of the products: the report then names everything in the order in which one process does.
        self.urls.update(other.urls)
        self.products.update(other.products)
        self.lost.merge(other.lost)
        for category, outcomes in other.categories.items():
            self.categories[category].update(outcomes)

    def report(self) -> dict[str, Any]:
        return {
            "URLs": dict(self.urls),
            "images not kept": self.lost.table(),
            "products": dict(self.products),
            "categories": {name: dict(self.categories[name]) for name in sorted(self.categories)},
        }


def _category(pictures: list[Picture]) -> str | None:
    return next((picture.category for picture in pictures if picture.type == SIMPLE), None)
