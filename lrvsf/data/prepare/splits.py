"""Which product of a catalog is trained on, which is a query, and which is a distractor.

A product's place between 0 and 1 is a hash of the seed and its id: the first part of that line is the test set, the
next the validation set, the rest is trained on. So products that are added later move no old one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lrvsf.data.prepare.listing import Entry, Skips
from lrvsf.data.prepare.spool import Place
from lrvsf.data.products import category_of, fault
from lrvsf.data.schema import SCENES, SIMPLE

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SETS = (VALIDATION, TEST)


@dataclass(slots=True)
class Shot:
    """An image that can be used: where it waits, and the SHA-256 of its file as it came."""

    entry: Entry
    place: Place
    digest: bytes
    category: str | None = None


@dataclass(frozen=True)
class Shares:
    """How much of the products goes where.

    Attributes:
        validation, test: fractions of 1; the rest is trained on.
        seed: of the hash.
    """

    validation: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or not self.validation + self.test < 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} must be fractions, 0 or more, and leave some of 1 "
                "to train on"
            )

    def place(self, product_id: str) -> float:
        seeded = hashlib.blake2b(product_id.encode(), digest_size=8, key=str(self.seed).encode())
        return int.from_bytes(seeded.digest(), "big") / 2**64

    def split(self, product_id: str) -> str:
        place = self.place(product_id)
        return TEST if place < self.test else VALIDATION if place < self.test + self.validation else TRAIN

    def set_of_distractor(self, product_id: str) -> str | None:
        """The test set that a product serves as a distractor; None if there is no test set."""
        held_out = self.validation + self.test
        if not held_out:
            return None
        return TEST if self.place(product_id) * held_out < self.test else VALIDATION


class Splits:
    """The products of a catalog, sorted out.

    Attributes:
        complete: split -> product id -> its images, SIMPLE before scenes, in a shuffled order of products.
        distractors: test set -> SIMPLE images of products that cannot be trained on.
        borrowed: test set -> SIMPLE images of the other test set's products, where it had too few distractors.
        conditioned: whether the catalog has categories at all.
        products: counts.
        skips: of images.
    """

    def __init__(self, shots: Iterable[Shot], shares: Shares) -> None:
        self.shares, self.skips = shares, Skips()
        self.products: Counter[str] = Counter(usable=0, complete=0)
        self.complete: dict[str, dict[str, list[Shot]]] = {name: {} for name in (TRAIN, *SETS)}
        self.distractors: dict[str, list[Shot]] = {name: [] for name in SETS}
        self.borrowed: dict[str, list[Shot]] = {name: [] for name in SETS}
        products: dict[str, list[Shot]] = defaultdict(list)
        for shot in shots:
            products[shot.entry.product_id].append(shot)
        self.conditioned = any(shot.entry.category for images in products.values() for shot in images)
        for name in sorted(products, key=lambda name: (shares.place(name), name)):
            self._place(name, self._distinct(products[name]))
        for name, other in zip(SETS, reversed(SETS), strict=True):
            self._drop_answers(name, self.distractors)
            if len(self.distractors[name]) < len(self.complete[name]):
                self.borrowed[name] = [shot for images in self.complete[other].values() for shot in _simple(images)]
                self._drop_answers(name, self.borrowed)

    def _distinct(self, images: list[Shot]) -> list[Shot]:
        """The images without repeated ones, SIMPLE first; a SIMPLE image without category gets the product's."""
        first: dict[bytes, Shot] = {}
        for shot in images:
            if first.setdefault(shot.digest, shot) is not shot:
                self.skips.add("the same image twice in a product", f"{shot.entry.where} of {shot.entry.product_id}")
        kept = sorted(first.values(), key=lambda shot: (SIMPLE, *SCENES).index(shot.entry.type))
        category = next((shot.entry.category for shot in kept if shot.entry.category), None)
        for shot in kept:
            if shot.entry.type == SIMPLE:
                shot.category = shot.entry.category or category
        return kept

    def _place(self, name: str, images: list[Shot]) -> None:
        types = [shot.entry.type for shot in images]
        self.products["usable"] += 1
        if fault(types, [], None) is None and (images[0].category or not self.conditioned):
            self.products["complete"] += 1
            self.complete[self.shares.split(name)][name] = images
        elif SIMPLE in types:
            self.products["without category" if any(kind in SCENES for kind in types) else "without scene"] += 1
            if (of := self.shares.set_of_distractor(name)) is not None:
                self.distractors[of] += _simple(images)
        else:
            self.products["without product image"] += 1

    def _drop_answers(self, name: str, distractors: dict[str, list[Shot]]) -> None:
        """Leaves out distractors whose image is also an image of a query's product: they would be right answers."""
        answers = {shot.digest for images in self.complete[name].values() for shot in _simple(images)}
        kept = [shot for shot in distractors[name] if shot.digest not in answers]
        for shot in distractors[name]:
            if shot.digest in answers:
                self.skips.add("distractor that is the very image of a target", shot.entry.where)
        distractors[name] = kept

    def categories(self) -> dict[str, dict[str, int]]:
        """Category -> split -> complete products, sorted by category. Products stand under their first SIMPLE image's.

        Raises:
            ValueError: a category that the command line would take for a flag.
        """
        names = {shot.category for split in self.complete.values() for images in split.values() for shot in images}
        counts = {name: {split: 0 for split in self.complete} for name in sorted(names - {None})}
        for split, products in self.complete.items():
            for images in products.values():
                types, categories = zip(*((shot.entry.type, shot.category) for shot in images), strict=True)
                if (category := category_of(types, categories)) is not None:
                    counts[category][split] += 1
        if flags := [name for name in counts if name.startswith("-")]:
            raise ValueError(f"category {flags[0]!r} begins with a dash, like a flag; give it another name")
        return counts

    def report(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"products": dict(self.products)}
        if train := self.complete[TRAIN]:
            parts[TRAIN] = {"products": len(train), "images": sum(map(len, train.values()))}
        unused = 0
        for name in SETS:
            own, borrowed = len(self.distractors[name]), len(self.borrowed[name])
            if queries := len(self.complete[name]):
                parts[name] = {"queries": queries, "distractors": own + borrowed}
                if borrowed:
                    parts[name]["of them products of the other test set"] = borrowed
            else:
                unused += own
        if unused:
            parts["distractors without queries, not used"] = unused
        return parts


def _simple(images: list[Shot]) -> list[Shot]:
    return [shot for shot in images if shot.entry.type == SIMPLE]
