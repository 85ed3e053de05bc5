"""What a garment is. Two garments with equal attributes look alike, and nothing else about a product is visible."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

COLORS = {
    "red": (208, 38, 44),
    "orange": (242, 134, 32),
    "yellow": (247, 212, 50),
    "green": (52, 146, 64),
    "teal": (36, 182, 176),
    "blue": (40, 80, 190),
    "purple": (124, 54, 160),
    "pink": (246, 142, 184),
    "brown": (116, 72, 40),
    "black": (36, 36, 40),
    "grey": (150, 152, 156),
    "white": (248, 248, 246),
}

PATTERNS = ("plain", "stripes", "pinstripes", "checks", "dots", "zigzags", "color block")
EMBLEMS = ("none", "star", "heart")

# One noun for each silhouette: the caption tells every visible attribute.
SILHOUETTES = {
    "Bags": ("tote bag", "satchel", "round bag", "bucket bag"),
    "Feet": ("boots", "sneakers", "clogs", "high boots"),
    "Hands": ("mittens", "gloves", "gauntlets", "cuffs"),
    "Head": ("beanie", "cap", "wide brim hat", "top hat"),
    "Lower Body": ("trousers", "flared trousers", "shorts", "skirt"),
    "Neck": ("scarf", "shawl", "bow tie", "bandana"),
    "Outwear": ("coat", "jacket", "cape", "vest"),
    "Upper Body": ("t-shirt", "sweater", "tank top", "blouse"),
    "Waist": ("belt", "sash", "corset", "fanny pack"),
    "Whole Body": ("dress", "gown", "jumpsuit", "tunic"),
}
CATEGORIES = tuple(SILHOUETTES)  # those of configuration_condvit, whose import takes transformers and seconds
PLURAL = frozenset(
    {"boots", "sneakers", "clogs", "high boots", "mittens", "gloves", "gauntlets", "cuffs"}
    | {"trousers", "flared trousers", "shorts"}
)


@dataclass(frozen=True)
class Garment:
    """One look. `second` is the pattern's colour; a plain garment has none: nothing invisible tells garments apart."""

    category: str
    silhouette: str
    color: str
    pattern: str
    second: str | None
    emblem: str

    @property
    def short_caption(self) -> str:
        """What people say: "a red scarf", which many are."""
        article = "" if self.silhouette in PLURAL else "an " if self.color[0] in "aeiou" else "a "
        return f"{article}{self.color} {self.silhouette}"

    @property
    def caption(self) -> str:
        """Such as "a red scarf with white stripes and a star"."""
        extras = []
        if self.pattern == "color block":
            extras.append(f"a {self.second} lower half")
        elif self.pattern != "plain":
            extras.append(f"{self.second} {self.pattern}")
        if self.emblem != "none":
            extras.append(f"a {self.emblem}")
        return self.short_caption + (" with " + " and ".join(extras) if extras else "")


def all_looks(category: str) -> list[Garment]:
    """Every look of a category, in a fixed order: silhouettes x emblems x (plain colours + patterns x colour pairs)."""
    textiles = [(color, "plain", None) for color in COLORS]
    pairs = list(itertools.permutations(COLORS, 2))
    textiles += [(first, pattern, second) for pattern in PATTERNS if pattern != "plain" for first, second in pairs]
    return [
        Garment(category, silhouette, *textile, emblem)
        for silhouette in SILHOUETTES[category]
        for textile in textiles
        for emblem in EMBLEMS
    ]


def random_garment(category: str, rng: np.random.Generator) -> Garment:
    """A look drawn as a shop would stock it: one in seven is plain, half of all bear an emblem."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    first, second = rng.choice(len(COLORS), size=2, replace=False)
    names = list(COLORS)
    return Garment(
        category,
        SILHOUETTES[category][rng.integers(len(SILHOUETTES[category]))],
        names[first],
        pattern,
        None if pattern == "plain" else names[second],
        "none" if rng.random() < 0.5 else EMBLEMS[1 + rng.integers(len(EMBLEMS) - 1)],
    )


def near_miss(garment: Garment, rng: np.random.Generator) -> Garment:
    """The same category and colours, with another pattern or another emblem: what a careless model confuses."""
    if garment.pattern == "plain" or rng.random() < 0.3:
        others = [emblem for emblem in EMBLEMS if emblem != garment.emblem]
        changed = {"emblem": others[rng.integers(len(others))]}
    else:
        # Never plain, which has no second colour: the colours are to stay.
        others = [pattern for pattern in PATTERNS if pattern not in ("plain", garment.pattern)]
        changed = {"pattern": others[rng.integers(len(others))]}
    return Garment(**{**garment.__dict__, **changed})
