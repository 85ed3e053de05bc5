"""The outline of each kind of garment, on a figure one unit tall: x from the middle, y from the crown downwards.

Each function takes a Pose and gives a Cut in a slim figure's proportions. `cut_of` makes it stout, and accessories
large, so that at 96 pixels a garment's pattern can be seen. The same cut is worn in a scene and laid out alone in a
product picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lrvsf.mini.canvas import ellipse, limb, rounded

Point = tuple[float, float]
ARM = 0.26  # length from shoulder to hand
WIDTH = 1.4  # a stout figure fills its square picture
# Not tuned: looked at, at 96 pixels.
ACCESSORY = 1.25  # how much larger than life accessories are
BOLD = 1.25  # and patterns and prints


@dataclass(frozen=True)
class Pose:
    """`arms`: degrees from hanging down, outwards, left and right. `gathered`: the hands lie side by side, as a pair
    of gloves does in a shop's picture."""

    arms: tuple[float, float] = (20.0, 20.0)
    gathered: bool = False

    def shoulder(self, side: int) -> Point:
        """side -1 is left, 1 is right."""
        return (0.125 * side, 0.36)

    def on_arm(self, side: int, share: float) -> Point:
        """The point at a share of the arm's length, 0 the shoulder, 1 the hand."""
        if self.gathered:
            return (0.085 * side, 0.36 + ARM * share)
        angle = math.radians(self.arms[(side + 1) // 2])  # side -1 -> 0, 1 -> 1
        x, y = self.shoulder(side)
        return (x + side * math.sin(angle) * ARM * share, y + math.cos(angle) * ARM * share)


@dataclass
class Cut:
    """`cloth` bears the textile; `behind` (handles) and `front` (buckles) have colours of their own; pattern and print
    begin at `middles`, one for each part that moves by itself, and repeat after `period`. All in figure units."""

    cloth: list[np.ndarray]
    period: float
    middles: list[Point]
    behind: list[np.ndarray] = field(default_factory=list)
    front: list[np.ndarray] = field(default_factory=list)

    @property
    def all_shapes(self) -> list[np.ndarray]:
        return [*self.behind, *self.cloth, *self.front]

    @property
    def pieces(self) -> list[Cut]:
        """A pair's two, each with its own middle: pattern and print lie the same on both. Else the cut itself."""
        if len(self.middles) == 1:
            return [self]
        sides = [[shape for shape in self.cloth if (shape[:, 0].mean() > 0) == right] for right in (False, True)]
        return [Cut(cloth, self.period, [middle]) for cloth, middle in zip(sides, self.middles, strict=True)]


def widened(points: np.ndarray) -> np.ndarray:
    """(n, 2) points of a slim figure -> of the stout one that is drawn."""
    return points * (WIDTH, 1.0)


def sleeves(pose: Pose, share: float, width: float, end: float) -> list[np.ndarray]:
    """Both sleeves down to a share of the arm; half widths at shoulder and end."""
    return [rounded(list(limb(pose.on_arm(s, -0.12), pose.on_arm(s, share), width, end)), 1) for s in (-1, 1)]


def torso(top_half: float, bottom_half: float, bottom: float, neckline: float = 0.33) -> np.ndarray:
    """A closed top from the shoulders to y = bottom."""
    sides = [(-top_half, 0.335), (-0.055, 0.312), (0, neckline), (0.055, 0.312), (top_half, 0.335)]
    return rounded([*sides, (bottom_half, bottom), (-bottom_half, bottom)])


def halves(top_half: float, bottom_half: float, bottom: float, gap: float) -> list[np.ndarray]:
    """An open front: left and right part with a gap that widens towards the neck."""
    right = [(0.055, 0.312), (top_half, 0.335), (bottom_half, bottom), (gap, bottom), (gap + 0.005, 0.45)]
    return [rounded([(side * x, y) for x, y in right]) for side in (-1, 1)]


def legs(bottom: float, half: float, bottom_half: float, top: float = 0.575) -> list[np.ndarray]:
    """Trousers: a yoke and two legs, half widths at hip and hem."""
    # The yoke covers where the legs part, so that trousers are one piece of cloth.
    yoke = rounded([(-0.125, top), (0.125, top), (0.135, 0.68), (-0.135, 0.68)], 1)
    return [yoke] + [
        rounded([(s * 0.005, 0.6), (s * 2 * half, 0.6), (s * (0.07 + bottom_half), bottom)]
                + [(s * (0.07 - bottom_half), bottom)], 1)
        for s in (-1, 1)
    ]  # fmt: skip


def upper_body(name: str, pose: Pose) -> Cut:
    if name == "t-shirt":
        cloth = [*sleeves(pose, 0.42, 0.052, 0.062), torso(0.135, 0.13, 0.61, 0.345)]
    elif name == "sweater":
        cloth = [*sleeves(pose, 0.95, 0.055, 0.045), torso(0.14, 0.145, 0.63, 0.315)]
    elif name == "tank top":
        straps = [(-0.1, 0.32), (-0.06, 0.318), (-0.045, 0.39), (0.045, 0.39), (0.06, 0.318), (0.1, 0.32)]
        cloth = [rounded([*straps, (0.105, 0.42), (0.13, 0.6), (-0.13, 0.6), (-0.105, 0.42)], 1)]
    else:  # blouse: puffed sleeves and a flared hem
        cloth = [*sleeves(pose, 0.6, 0.05, 0.085)]
        waist = [(0.13, 0.335), (0.1, 0.5), (0.2, 0.66), (-0.2, 0.66), (-0.1, 0.5), (-0.13, 0.335)]
        cloth.append(rounded([(-0.05, 0.312), (0, 0.36), (0.05, 0.312), *waist]))
    return Cut(cloth, 0.08, [(0, 0.47)])


def outwear(name: str, pose: Pose) -> Cut:
    if name == "coat":
        cloth = [*sleeves(pose, 0.92, 0.06, 0.058), *halves(0.145, 0.2, 0.84, 0.02)]
    elif name == "jacket":
        cloth = [*sleeves(pose, 0.92, 0.06, 0.052), *halves(0.145, 0.15, 0.59, 0.022)]
    elif name == "cape":
        return Cut([rounded([(-0.06, 0.3), (0.06, 0.3), (0.15, 0.35), (0.29, 0.68), (0, 0.74), (-0.29, 0.68)]
                            + [(-0.15, 0.35)])], 0.09, [(0, 0.5)])  # fmt: skip
    else:
        cloth = halves(0.14, 0.15, 0.66, 0.03)
    return Cut(cloth, 0.085, [(0, 0.46)])


def lower_body(name: str, pose: Pose) -> Cut:
    if name == "trousers":
        cloth = legs(0.92, 0.065, 0.05)
    elif name == "flared trousers":
        cloth = legs(0.94, 0.06, 0.1)
    elif name == "shorts":
        cloth = legs(0.76, 0.075, 0.08)
    else:
        return Cut([rounded([(-0.12, 0.57), (0.12, 0.57), (0.235, 0.84), (-0.235, 0.84)], 1)], 0.08, [(0, 0.71)])
    return Cut(cloth, 0.075, [(0, 0.7)])


def whole_body(name: str, pose: Pose) -> Cut:
    straps = [(-0.1, 0.32), (-0.06, 0.318), (-0.045, 0.38), (0.045, 0.38), (0.06, 0.318), (0.1, 0.32), (0.1, 0.55)]
    if name == "dress":
        cloth = [rounded([*straps, (0.24, 0.8), (-0.24, 0.8), (-0.1, 0.55)], 1)]
    elif name == "gown":
        wide = [(0.13, 0.335), (0.105, 0.5), (0.3, 0.97), (-0.3, 0.97), (-0.105, 0.5), (-0.13, 0.335), (-0.05, 0.312)]
        cloth = [*sleeves(pose, 0.92, 0.05, 0.04), rounded([(0.05, 0.312), *wide], 1)]
    elif name == "jumpsuit":
        cloth = [*sleeves(pose, 0.4, 0.055, 0.06), torso(0.135, 0.125, 0.62), *legs(0.9, 0.065, 0.055)]
    else:
        cloth = [*sleeves(pose, 0.6, 0.055, 0.07), torso(0.14, 0.175, 0.76, 0.35)]
    return Cut(cloth, 0.085, [(0, 0.47)])


def neck(name: str, pose: Pose) -> Cut:
    if name == "scarf":
        band = rounded([(-0.12, 0.28), (0.12, 0.28), (0.13, 0.36), (-0.13, 0.36)])
        tail = rounded([(0.0, 0.33), (0.09, 0.33), (0.11, 0.56), (0.01, 0.56)], 1)
        return Cut([tail, band], 0.06, [(0.055, 0.46)])
    if name == "shawl":
        wrap = rounded([(-0.1, 0.29), (0.1, 0.29), (0.22, 0.4), (0.16, 0.47), (-0.16, 0.47), (-0.22, 0.4)], 1)
        tails = [rounded([(s * 0.1, 0.42), (s * 0.2, 0.42), (s * 0.21, 0.6), (s * 0.11, 0.6)], 1) for s in (-1, 1)]
        return Cut([*tails, wrap], 0.065, [(0, 0.385)])
    if name == "bow tie":
        wings = [rounded([(0, 0.335), (s * 0.15, 0.265), (s * 0.16, 0.335), (s * 0.15, 0.41)], 1) for s in (-1, 1)]
        return Cut([*wings, ellipse(0, 0.337, 0.03, 0.033)], 0.05, [(0, 0.337)])
    return Cut([rounded([(-0.13, 0.285), (0.13, 0.285), (0.1, 0.36), (0, 0.48), (-0.1, 0.36)], 1)], 0.055,
               [(0, 0.37)])  # fmt: skip


def head(name: str, pose: Pose) -> Cut:
    if name == "beanie":
        dome = np.concatenate([ellipse(0, 0.15, 0.135, 0.16, 180, 360)])
        band = rounded([(-0.15, 0.115), (0.15, 0.115), (0.15, 0.175), (-0.15, 0.175)], 1)
        return Cut([ellipse(0, -0.025, 0.045, 0.045), dome, band], 0.06, [(0, 0.075)])
    if name == "cap":
        visor = rounded([(0.0, 0.11), (0.17, 0.11), (0.27, 0.165), (0.02, 0.165)], 1)
        return Cut([visor, ellipse(0, 0.15, 0.14, 0.14, 180, 360)], 0.06, [(0, 0.085)])
    if name == "wide brim hat":
        return Cut([ellipse(0, 0.135, 0.29, 0.05), ellipse(0, 0.13, 0.125, 0.15, 180, 360)], 0.06, [(0, 0.065)])
    crown = rounded([(-0.12, -0.09), (0.12, -0.09), (0.11, 0.13), (-0.11, 0.13)], 1)
    return Cut([ellipse(0, 0.135, 0.19, 0.035), crown], 0.065, [(0, 0.025)])


def waist(name: str, pose: Pose) -> Cut:
    if name == "belt":
        band = rounded([(-0.155, 0.56), (0.155, 0.56), (0.155, 0.635), (-0.155, 0.635)], 1)
        buckle = np.array([(-0.032, 0.55), (0.032, 0.55), (0.032, 0.645), (-0.032, 0.645)])
        return Cut([band], 0.045, [(0, 0.597)], front=[buckle])
    if name == "sash":
        band = rounded([(-0.155, 0.555), (0.155, 0.555), (0.155, 0.63), (-0.155, 0.63)], 1)
        tails = [rounded([(0.05, 0.6), (0.1, 0.6), (x + 0.05, 0.83), (x - 0.05, 0.83)], 1) for x in (0.03, 0.15)]
        return Cut([*tails, band], 0.05, [(-0.06, 0.593)])
    if name == "corset":
        right = [(0.145, 0.46), (0.11, 0.55), (0.16, 0.65), (0, 0.67)]
        return Cut([rounded(right + [(-x, y) for x, y in right[-2::-1]], 1)], 0.06, [(0, 0.56)])
    band = rounded([(-0.155, 0.565), (0.155, 0.565), (0.155, 0.605), (-0.155, 0.605)], 1)
    return Cut([band, ellipse(0, 0.635, 0.12, 0.075)], 0.05, [(0, 0.64)])


def feet(name: str, pose: Pose) -> Cut:
    cloth = []
    for s in (-1, 1):
        x = 0.08 * s
        toe = [(x + s * 0.1, 0.95), (x + s * 0.1, 1.0), (x - s * 0.05, 1.0)]
        if name in ("boots", "high boots"):
            top = 0.8 if name == "boots" else 0.68
            cloth.append(rounded([(x - s * 0.055, top), (x + s * 0.055, top), (x + s * 0.045, 0.92), *toe], 1))
        elif name == "sneakers":
            low = [(x - s * 0.06, 0.88), (x + s * 0.03, 0.88), (x + s * 0.12, 0.95), (x + s * 0.12, 1.0)]
            cloth.append(rounded([*low, (x - s * 0.06, 1.0)], 1))
        else:
            heel = [(x - s * 0.06, 0.95), (x - s * 0.02, 0.95), (x - s * 0.03, 1.03), (x - s * 0.06, 1.03)]
            cloth += [np.array(heel), ellipse(x + s * 0.03, 0.94, 0.095, 0.055)]
    return Cut(cloth, 0.05, [(0, 0.94)])


def hands(name: str, pose: Pose) -> Cut:
    cloth = []
    for s in (-1, 1):
        wrist, palm, tip = pose.on_arm(s, 0.82), pose.on_arm(s, 1.05), pose.on_arm(s, 1.3)
        if name == "gauntlets":
            cloth.append(limb(pose.on_arm(s, 0.5), wrist, 0.075, 0.035))
        if name == "cuffs":
            cloth.append(limb(pose.on_arm(s, 0.62), pose.on_arm(s, 0.98), 0.06, 0.06))
            continue
        if name == "gloves":
            spread = [(tip[0] + d, tip[1] - abs(d) * 0.4) for d in (-0.05, 0.0, 0.05)]
            cloth += [limb(palm, finger, 0.017, 0.014) for finger in spread]
            cloth += [limb(pose.on_arm(s, 0.72), palm, 0.045, 0.045), ellipse(*palm, 0.05, 0.05)]
        else:
            cloth += [ellipse(palm[0] - s * 0.05, palm[1] - 0.01, 0.03, 0.035), limb(wrist, palm, 0.045, 0.05)]
            cloth.append(ellipse(palm[0], palm[1] + 0.02, 0.06, 0.065))
    return Cut(cloth, 0.05, [pose.on_arm(s, 0.8 if name == "cuffs" else 1.05) for s in (-1, 1)])


def bags(name: str, pose: Pose) -> Cut:
    x, y = pose.on_arm(1, 1.08)
    half, height = {"tote bag": (0.105, 0.22), "satchel": (0.14, 0.16), "round bag": (0.11, 0.22)}.get(
        name, (0.1, 0.22)
    )
    top = y + 0.07
    handles = [limb((x, y - 0.01), (x + s * 0.6 * half, top + 0.03), 0.012, 0.012) for s in (-1, 1)]
    if name == "round bag":
        body = [ellipse(x, top + half, half, half)]
    elif name == "bucket bag":
        wide = [(x - 0.13, top), (x + 0.13, top), (x + 0.07, top + height), (x - 0.07, top + height)]
        body = [rounded(wide, 1)]
    else:
        square = [(x - half, top), (x + half, top), (x + half, top + height), (x - half, top + height)]
        body = [rounded(square, 1)]
    clasp = [np.array([(x - 0.02, top), (x + 0.02, top), (x + 0.02, top + 0.04), (x - 0.02, top + 0.04)])]
    return Cut(body, 0.065, [(x, top + 0.55 * height)], handles, clasp if name == "satchel" else [])


CUTS: dict[str, Callable[[str, Pose], Cut]] = {
    "Bags": bags,
    "Feet": feet,
    "Hands": hands,
    "Head": head,
    "Lower Body": lower_body,
    "Neck": neck,
    "Outwear": outwear,
    "Upper Body": upper_body,
    "Waist": waist,
    "Whole Body": whole_body,
}

# Where an accessory is held: it grows about this point (on each side of the body, where it has two).
HELD: dict[str, Callable[[Pose, int], Point]] = {
    "Bags": lambda pose, side: pose.on_arm(1, 1.08),
    "Feet": lambda pose, side: (0.08 * side, 1.0),
    "Hands": lambda pose, side: pose.on_arm(side, 1.0),
    "Head": lambda pose, side: (0.0, 0.16),
    "Neck": lambda pose, side: (0.0, 0.33),
    "Waist": lambda pose, side: (0.0, 0.6),
}


def cut_of(category: str, silhouette: str, pose: Pose) -> Cut:
    """The cut as it is drawn: accessories and patterns enlarged, everything widened."""
    cut = CUTS[category](silhouette, pose)
    held = HELD.get(category)

    def placed(points: np.ndarray) -> np.ndarray:
        # About the point where it is held, or a larger glove would leave the hand. Each side has its own.
        if held is not None:
            about = np.asarray(held(pose, 1 if points[:, 0].mean() > 0 else -1))
            points = about + ACCESSORY * (points - about)
        return widened(points)

    cloth, behind, front = ([placed(shape) for shape in shapes] for shapes in (cut.cloth, cut.behind, cut.front))
    middles = [tuple(placed(np.array([middle]))[0]) for middle in cut.middles]
    return Cut(cloth, BOLD * cut.period, middles, behind, front)
