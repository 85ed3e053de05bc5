"""Pictures of a product, and the rows that are made of them, whatever the source."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from lrvsf.data.names import (
    printable,
)
from lrvsf.data.products import category_of
from lrvsf.data.schema import SCENES, SIMPLE

TYPES = (SIMPLE, *SCENES)


@dataclass
class Picture:
    """One URL of a product, after all rounds of downloading.

    Attributes:
        sha256: of what was downloaded, in hexadecimal; empty if nothing was.
        data: the encoded image; None if it is not there or not readable.
        failure: why there is no data, such as "failed_to_download" or "truncated".
        fetched: whether bytes arrived, readable or not.
        place: of its row in the metadata; None if the download does not say it.
    """

    split: str
    type: str | None
    category: str | None
    captions: list[str]
    url: str
    sha256: str
    data: bytes | None
    failure: str | None
    fetched: bool
    place: int | None = None


def distinct(pictures: list[Picture]) -> list[Picture]:
    """The pictures that have data, without those whose image came before under another URL."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        if picture.data is not None:
            first.setdefault(picture.sha256, picture)
    return list(first.values())


NO_SIMPLE, NO_SCENE, NEITHER = "without SIMPLE image", "without scene image", "without either"


def _category(pictures: list[Picture]) -> str | None:
    return category_of([picture.type for picture in pictures], [picture.category for picture in pictures])


def product_row(product_id: str, pictures: list[Picture]) -> dict[str, Any]:
    """A row of PRODUCT_FEATURES."""
    images = [
        {
            "image": {"bytes": picture.data, "path": f"{product_id}.{number}.jpg"},
            "type": picture.type,
            "category": picture.category,
            "captions": picture.captions,
        }
        for number, picture in enumerate(pictures)
    ]
    return {"product_id": product_id, "images": images}


def query_row(product_id: str, pictures: list[Picture]) -> dict[str, Any] | str:
    """A row of QUERY_SCHEMA from a product's distinct readable pictures, or why there is none."""
    simple = next((p for p in pictures if p.type == SIMPLE), None)
    scene = next((p for p in pictures if p.type != SIMPLE), None)
    if simple is None or scene is None:
        return NEITHER if simple is scene else NO_SIMPLE if simple is None else NO_SCENE
    category = next((p.category for p in pictures if p.type == SIMPLE and p.category), None)
    if category is None:
        return "without category"
    return {
        "PRODUCT_ID": product_id,
        "TYPE": scene.type,
        "CATEGORY": category,
        "blip2_caption1": next(iter(simple.captions), None),
        "SIMPLE_IMG": simple.data,
        "COMPLEX_IMG": scene.data,
    }


EXAMPLES = 3


class Skips:
    """Counts what was left out by reason, and keeps the first few names of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        if len(self.names[reason]) < EXAMPLES:
            self.names[reason].append(printable(name))

    def report(self, title: str = "not used") -> dict[str, Any]:
        """Two parts of a report; empty if nothing was left out."""
        if not self.counts:
            return {}
        ranked = self.counts.most_common()
        first = {reason: "; ".join(self.names[reason]) for reason, _ in ranked}
        return {title: dict(ranked), f"{title}, the first": first}


def unjoined_categories(queries: Counter[str | None], distractors: Counter[str | None]) -> dict[str, Any]:
    """Parts of a report: which of the categories, of which there are so many, the other side does not have."""
    parts: dict[str, Any] = {
        "categories of queries without a distractor": {
            name: queries[name] for name in sorted(queries.keys() - distractors.keys() - {None})
        },
        "categories of distractors without a query": {
            name: distractors[name] for name in sorted(distractors.keys() - queries.keys() - {None})
        },
        "distractors without a category": distractors[None],
    }
    return {title: found for title, found in parts.items() if found}
