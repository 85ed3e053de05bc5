"""What a garment is: what words tell, and the seed of its print, which only the eye tells.

Two garments with equal attributes look alike, and nothing else about a product is visible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lrvsf.mini.prints import Print, inks_on, print_of

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
PLAIN = 0.5  # share of garments without a pattern below the print; not tuned, looked at

# One noun for each silhouette.
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
    """One look. `second` is the pattern's colour; a plain garment has none: nothing invisible tells garments apart.

    `seed` is the print's. Colourways of one garment share it: the print's shapes stay, and its inks follow the ground.
    """

    category: str
    silhouette: str
    color: str
    pattern: str
    second: str | None
    seed: int

    @cached_property
    def print(self) -> Print:
        return print_of(self.seed, len(COLORS))

    @cached_property
    def inks(self) -> list[str]:
        """The names of the print's colours, the more frequent one first."""
        grounds = [COLORS[name] for name in (self.color, self.second) if name is not None]
        return [list(COLORS)[number] for number in inks_on(grounds, self.print.order, list(COLORS.values()))]

    @property
    def caption(self) -> str:
        """What people say: "a red scarf", which many are."""
        return with_article(f"{self.color} {self.silhouette}", self.silhouette)

    @property
    def full_caption(self) -> str:
        """What words can tell, such as "a red scarf with white stripes and green stars"; many are this, too."""
        extras = f"{self.inks[0]} {self.print.name}"
        if self.pattern == "color block":
            extras = f"{with_article(f'{self.second} lower half')} and {extras}"
        elif self.pattern != "plain":
            extras = f"{self.second} {self.pattern} and {extras}"
        return f"{self.caption} with {extras}"


def with_article(words: str, noun: str = "") -> str:
    """A red cap, an orange cap; red boots."""
    return words if noun in PLURAL else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def careless_caption(garment: Garment, rng: np.random.Generator) -> str:
    """A caption without the colour, or with a wrong one."""
    if rng.random() < 0.5:
        return with_article(garment.silhouette, garment.silhouette)
    return replace(garment, color=_other_color(garment, rng)).caption


def random_garment(category: str, rng: np.random.Generator) -> Garment:
    """A look drawn as a shop would stock it."""
    pattern = "plain" if rng.random() < PLAIN else PATTERNS[1 + rng.integers(len(PATTERNS) - 1)]
    first, second = rng.choice(len(COLORS), size=2, replace=False)
    names = list(COLORS)
    return Garment(
        category,
        SILHOUETTES[category][rng.integers(len(SILHOUETTES[category]))],
        names[first],
        pattern,
        None if pattern == "plain" else names[second],
        int(rng.integers(2**32)),
    )


def variant(garment: Garment, rng: np.random.Generator) -> Garment:
    """The same garment in another colour, which a shop sells as another product."""
    return replace(garment, color=_other_color(garment, rng))


def near_miss(garment: Garment, rng: np.random.Generator) -> Garment:
    """Another print on a garment of the same description: what a careless model, and any text, confuses."""
    return replace(garment, seed=int(rng.integers(2**32)))


def _other_color(garment: Garment, rng: np.random.Generator) -> str:
    others = [name for name in COLORS if name not in (garment.color, garment.second)]
    return others[rng.integers(len(others))]
