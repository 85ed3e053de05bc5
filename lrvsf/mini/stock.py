"""What is in the data set: which garment each row shows, and which rows are alike.

A catalog is not a list of independent things. It has the same shirt in five colours, the same shirt twice under two
ids, and more shirts than belts; so has this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lrvsf.mini.attributes import CATEGORIES, Garment, near_miss, random_garment, variant


@dataclass(frozen=True)
class Mix:
    """How wild the data set is, in shares. No number was tuned; each says what it is there for."""

    variants: float = 0.2  # of rows show another row's garment in another colour: shops sell families
    copies: float = 0.02  # of rows show another row's very garment: false negatives, as any crawl has them
    near_misses: float = 0.1  # of distractors have a product's description and another print: only the picture tells
    companions: float = 0.15  # of scenes show a second figure in a thing of the same category: only words tell which
    portraits: float = 0.4  # of scenes with one figure are narrower than high, as photographs of people are
    cropped: float = 0.25  # of these move in on the target
    overlays: float = 0.1  # of pictures bear a price, a sticker or a watermark
    grain: float = 0.3  # of scenes have a sensor's noise; product pictures come from a studio
    quality: tuple[int, int] = (65, 92)  # of JPEG: what shops and social networks write
    careless: float = 0.1  # of training captions lack the colour or tell a wrong one, as generated captions do
    # Zipf's law, flattened at its head: a tenth-ranked category has a fifth of the first one's products. The order is a
    # guess at a shop's; LRVS-F's own shares were not to be had.
    ranking: tuple[str, ...] = (
        *("Upper Body", "Whole Body", "Feet", "Lower Body", "Outwear"),
        *("Bags", "Neck", "Head", "Waist", "Hands"),
    )

    @property
    def shares(self) -> dict[str, float]:
        """Category -> share of the products."""
        weights = {name: 1 / (rank + 2) for rank, name in enumerate(self.ranking)}
        return {name: weights[name] / sum(weights.values()) for name in CATEGORIES}


MIX = Mix()


COPY, VARIANT, NEAR_MISS = "copies", "variants", "near-misses"


@dataclass
class Split:
    """The looks of a split's rows, in order.

    Attributes:
        kin: row -> (COPY, VARIANT or NEAR_MISS, the row that it is one of). For distractors that is a row of the
            products of their set, else an earlier row of the same split.
    """

    looks: list[Garment] = field(default_factory=list)
    kin: dict[int, tuple[str, int]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[int, int]:
        """Row -> row, of one kind of kin."""
        return {row: origin for row, (found, origin) in self.kin.items() if found == kind}


class Stock:
    """Looks, one after the other; copies aside, no two are the same."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.taken: set[Garment] = set()
        self.categories, self.shares = zip(*MIX.shares.items(), strict=True)

    def new(self) -> Garment:
        while (garment := random_garment(self.rng.choice(self.categories, p=self.shares), self.rng)) in self.taken:
            pass
        self.taken.add(garment)
        return garment

    def akin(self, kind: str, garment: Garment) -> Garment | None:
        """A copy, a variant or a near-miss; None where the one that was drawn is taken."""
        if kind == COPY:
            return garment
        other = (variant if kind == VARIANT else near_miss)(garment, self.rng)
        if other in self.taken:
            return None
        self.taken.add(other)
        return other

    def split(self, count: int, kinds: dict[str, float], products: list[Garment] | None = None) -> Split:
        """`kinds`: the share of rows that are kin of others: of `products` or, without, of the split's earlier rows."""
        split = Split()
        for row in range(count):
            origins = split.looks if products is None else products
            garment = None
            if (kind := self._kind(kinds)) and origins:
                origin = int(self.rng.integers(len(origins)))
                if garment := self.akin(kind, origins[origin]):
                    split.kin[row] = kind, origin
            split.looks.append(garment or self.new())
        return split

    def _kind(self, kinds: dict[str, float]) -> str | None:
        dice = self.rng.random()
        for kind, share in kinds.items():
            if dice < share:
                return kind
            dice -= share
        return None


def draw_stock(seed: int, tests: dict[str, tuple[int, int]], products: int) -> dict[str, Split]:
    """Which garment each row shows: of each test set NAME and its NAME_distractors, and of "train".

    A product of a test set has its copies among the distractors only, so that no other query asks for it.

    Args:
        tests: name -> how many products and distractors.
    """
    stock = Stock(np.random.default_rng([seed, 0]))  # one stream: who is taken depends on who came before
    # Test sets first: they stay the same when more training products are asked for.
    splits = {name: stock.split(count, {VARIANT: MIX.variants}) for name, (count, _) in tests.items()}
    akin = {COPY: MIX.copies, VARIANT: MIX.variants, NEAR_MISS: MIX.near_misses}
    for name, (_, count) in tests.items():
        splits[f"{name}_distractors"] = stock.split(count, akin, splits[name].looks)
    return splits | {"train": stock.split(products, {COPY: MIX.copies, VARIANT: MIX.variants})}


def pairs(looks: list[Garment]) -> list[tuple[int, int]]:
    """The rows of two products each that have one category and captions that differ; a row without a partner is in
    none."""
    waiting: dict[str, list[int]] = {}
    found = []
    for row, garment in enumerate(looks):
        alone = waiting.setdefault(garment.category, [])
        partner = next((other for other in alone if looks[other].caption != garment.caption), None)
        if partner is None:
            alone.append(row)
        else:
            alone.remove(partner)
            found.append((partner, row))
    return found


def wardrobes(looks: list[Garment], rng: np.random.Generator) -> list[dict[str, int]]:
    """For each row, category -> a row of that category: what its figure may wear besides."""
    rows: dict[str, list[int]] = {}
    for row, garment in enumerate(looks):
        rows.setdefault(garment.category, []).append(row)
    return [{category: known[rng.integers(len(known))] for category, known in rows.items()} for _ in looks]


def companion(garment: Garment, rng: np.random.Generator, first: Garment | None = None) -> Garment:
    """Another thing of the category, which words can tell from the garment; `first`, if it is one."""
    while first is None or first.caption == garment.caption:
        first = random_garment(garment.category, rng)
    return first
