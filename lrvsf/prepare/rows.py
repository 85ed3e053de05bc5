"""Pictures of a product, and the rows that are made of them: the same for every source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lrvsf.data.schema import SCENES, SIMPLE

TYPES = (SIMPLE, *SCENES)
NO_SIMPLE, NO_SCENE, NEITHER = "without SIMPLE image", "without scene image", "without either"
NO_CATEGORY = "without category"
TWICE = "the same image twice in a product"


@dataclass
class Picture:
    """One picture of a product. A download has one for each URL, whether or not its image arrived.

    Attributes:
        data: the encoded image; None if it is not there or not readable.
        sha256: of what was downloaded or drawn, in hexadecimal; empty if nothing was.
        url: where it came from.
        split: that the metadata names; empty where there is none.
        failure: why there is no data, such as "failed_to_download" or "truncated".
        fetched: whether bytes arrived, readable or not.
        metadata_row: its number in the metadata; None if the download does not say it.
    """

    type: str | None
    category: str | None
    captions: list[str]
    data: bytes | None
    sha256: str = ""
    url: str = ""
    split: str = ""
    failure: str | None = None
    fetched: bool = True
    metadata_row: int | None = None


def type_rank(kind: str | None) -> int:
    """SIMPLE before COMPLEX before PARTIAL_COMPLEX before what is unknown: the order of a product's pictures."""
    return TYPES.index(kind) if kind in TYPES else len(TYPES)


def distinct(pictures: list[Picture]) -> list[Picture]:
    """The pictures that have data, without those whose image came before under another URL."""
    first: dict[str, Picture] = {}  # by content, not by URL: shops serve one photo under several
    for picture in pictures:
        if picture.data is not None:
            first.setdefault(picture.sha256, picture)
    return list(first.values())


def why_incomplete(pictures: list[Picture]) -> str | None:
    """What a product lacks to be trained on or asked about, or None if it has a SIMPLE and a scene image."""
    types = {picture.type for picture in pictures}
    simple, scene = SIMPLE in types, not types.isdisjoint(SCENES)
    if simple and scene:
        return None
    return NO_SCENE if simple else NO_SIMPLE if scene else NEITHER


def product_row(product_id: str, pictures: list[Picture]) -> dict[str, Any]:
    """A row of PRODUCT_FEATURES."""
    images = [
        {
            # The path is a name for people; no file of that name is there. Bytes need not be a JPEG's.
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
    if lacks := why_incomplete(pictures):
        return lacks
    # The first of each kind: the caller's order decides, which is the same for the same input.
    target = next(picture for picture in pictures if picture.type == SIMPLE)
    scene = next(picture for picture in pictures if picture.type in SCENES)
    # The query is asked with the product's category, even if it stands at another SIMPLE image than the target.
    category = next((picture.category for picture in pictures if picture.type == SIMPLE and picture.category), None)
    if category is None:
        return NO_CATEGORY
    row = _described(product_id, scene.type, category, target)
    return row | {"SIMPLE_IMG": target.data, "COMPLEX_IMG": scene.data}


def distractor_row(product_id: str | None, picture: Picture) -> dict[str, Any]:
    """A row of DISTRACTOR_SCHEMA."""
    return _described(product_id, picture.type, picture.category, picture) | {"jpg": picture.data}


def _described(product_id: str | None, kind: str | None, category: str | None, picture: Picture) -> dict[str, Any]:
    """The columns that queries and distractors share; a test set keeps one caption, of the picture of the product."""
    caption = next(iter(picture.captions), None)
    return {"PRODUCT_ID": product_id, "TYPE": kind, "CATEGORY": category, "blip2_caption1": caption}


def unjoined_categories(queries: Counter[str | None], distractors: Counter[str | None]) -> dict[str, Any]:
    """Parts of a report: categories, with their counts, that only the queries or only the distractors have."""

    # Without None, which is no name: two pictures without a category do not join by it.
    def only(these: Counter[str | None], others: Counter[str | None]) -> dict[str, int]:
        return {name: these[name] for name in sorted(these.keys() - others.keys() - {None})}

    parts: dict[str, Any] = {
        "categories of queries without a distractor": only(queries, distractors),
        "categories of distractors without a query": only(distractors, queries),
        "distractors without a category": distractors[None],
    }
    return {title: found for title, found in parts.items() if found}
