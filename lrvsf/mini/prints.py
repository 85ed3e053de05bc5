"""The print of a garment: shapes whose places, sizes, turns and inks all come from one number, the garment's `seed`.

Two garments of one description ("a red scarf with green stars") differ by their prints, as two products of a shop do.
A print lives in cells: its middle is the garment's, and a cell is about as large as a badge on it, so that one to three
dozen shapes lie on a shirt and half a dozen on a shoe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # (n, 2), x to the right and y down
Color = tuple[int, int, int]

# Not tuned: looked at, at 96 pixels.
CELLS = (4, 5)  # columns and rows on each side of the middle: a gown's, and all that is smaller
BANDS = 0.22  # share of prints that are bands; the others are scattered motifs
SIZES = (0.95, 1.25, 1.6)  # cells of a print's grid: many small motifs or few large ones
FILLED = (0.6, 0.95)  # share of the grid's cells that hold a motif
INKS = 2


def polar(radii: np.ndarray, turn: float = -90) -> Points:
    """The polygon with these radii at equal angles, from the top on."""
    angles = np.radians(np.arange(len(radii)) * 360 / len(radii) + turn)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)  # the usual parametric heart, some 32 units wide
    across = 16 * np.sin(t) ** 3
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([across, -up], 1) / 16


def crescent() -> Points:
    outer, inner = np.radians(np.linspace(40, 320, 14)), np.radians(np.linspace(305, 55, 10))
    return np.concatenate([
        np.stack([np.cos(outer), np.sin(outer)], 1),
        np.stack([0.42 + 0.72 * np.cos(inner), 0.72 * np.sin(inner)], 1),
    ])  # fmt: skip


# From -1 to 1 along x, from 0 to 1 along y: many points, so that a band follows the ripples of its cloth.
BAND = np.concatenate([np.stack([np.linspace(-1, 1, 12), np.full(12, y)], 1)[::step] for y, step in ((0, 1), (1, -1))])
ANGLES = np.arange(30) * 12
MOTIFS: dict[str, Points] = {
    "discs": polar(np.full(16, 0.85)),
    "stars": polar(np.tile([1.1, 0.48], 5)),
    "hearts": heart(),
    "triangles": polar(np.full(3, 1.1)),
    "diamonds": np.array([(0, -1.15), (0.7, 0), (0, 1.15), (-0.7, 0)]),
    "crosses": np.array([(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)]
                        + [(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)]),
    "moons": crescent(),
    "flowers": polar(0.78 + 0.34 * np.cos(np.radians(5 * ANGLES))),
    "leaves": np.array([(0, -1.2), (0.42, -0.6), (0.5, 0), (0.32, 0.6)]
                       + [(0, 1.2), (-0.32, 0.6), (-0.5, 0), (-0.42, -0.6)]),
    "bolts": np.array([(0.25, -1.2), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1.2)]
                      + [(0.6, -0.25), (0.05, -0.25), (0.6, -1.2)]),
    "bars": np.array([(-1.1, -0.32), (1.1, -0.32), (1.1, 0.32), (-1.1, 0.32)]),
    "blots": polar(np.full(14, 1.0)),  # each is bent in its own way
}  # fmt: skip
NAMES = ("bands", *MOTIFS)


@dataclass(frozen=True)
class Print:
    """What is printed, in cells about the garment's middle.

    Attributes:
        name: of the motif, in the plural, or "bands".
        places: (n, 3), x, y and reach of each shape.
        outlines: (n or 1, m, 2), the shapes before they are turned and moved; (n, 2, 2) `turns`, which also size them.
        which: (n,), the ink of each, 0 or 1.
        order: the twelve colours' numbers in the order in which they are preferred as inks.
        tint: added to the cloth's colour: two red things are not of one red.
    """

    name: str
    places: np.ndarray
    outlines: np.ndarray
    turns: np.ndarray
    which: np.ndarray
    order: tuple[int, ...]
    tint: tuple[float, float, float]

    def shapes(self, low: Points, high: Points) -> tuple[Points, list[int]]:
        """The (k, m, 2) shapes that reach between two corners, and their inks."""
        centres, reach = self.places[:, :2], self.places[:, 2:]
        near = np.flatnonzero(((centres + reach > low) & (centres - reach < high)).all(1))
        outlines = self.outlines if len(self.outlines) == 1 else self.outlines[near]
        return outlines @ self.turns[near] + centres[near, None], self.which[near].tolist()


def print_of(seed: int, colors: int) -> Print:
    """The print of a garment whose number is `seed`, in inks out of `colors`."""
    rng = np.random.default_rng(seed)
    order = tuple(rng.permutation(colors).tolist())
    tint = tuple(rng.uniform(-18, 18, 3).tolist())
    name = "bands" if rng.random() < BANDS else list(MOTIFS)[rng.integers(len(MOTIFS))]
    return Print(name, *(bands(rng) if name == "bands" else scattered(name, rng)), order, tint)


def scattered(name: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Motifs in the cells of a grid that begins anywhere, each pushed aside, turned and sized by chance: places,
    outlines, turns and inks."""
    cell = SIZES[rng.integers(len(SIZES))]
    filled, second = rng.uniform(*FILLED), rng.uniform(0.15, 0.5)  # shares: of the cells, of the second ink
    columns, rows = (int(np.ceil(reach / cell)) for reach in CELLS)
    grid = np.indices((2 * columns + 1, 2 * rows + 1)).reshape(2, -1).T - (columns, rows)
    grid = grid[rng.random(len(grid)) < filled]
    count = len(grid)
    centres = cell * (grid + rng.uniform(-0.5, 0.5, 2) + rng.uniform(-0.24, 0.24, (count, 2)))
    sizes = cell * rng.uniform(0.3, 0.54, count)
    angles = rng.uniform(0, 2 * np.pi, count)
    which = (rng.random(count) < second).astype(int)
    outlines = MOTIFS[name][None]
    if name == "blots":
        around = np.arange(outlines.shape[1]) * 2 * np.pi / outlines.shape[1]
        waves = rng.uniform(0, 2 * np.pi, (2, count, 1))
        bent = 1.25 + 0.35 * np.sin(2 * around + waves[0]) + 0.25 * np.sin(3 * around + waves[1])
        outlines = bent[..., None] * outlines
    places = np.concatenate([centres, 1.9 * sizes[:, None]], 1)  # a blot reaches furthest
    return places, outlines, turned(angles, sizes), which


def bands(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Bands of uneven width and distance across the cloth, level, upright or slanting: as `scattered`."""
    angle = np.radians((0, 90, 35, -35)[rng.integers(4)])
    reach = max(CELLS) + 1.0
    widths, gaps = rng.uniform(0.14, 0.75, 18), rng.uniform(0.22, 1.0, 18)
    ends = np.cumsum(widths + gaps) - reach  # 18 bands of these widths and gaps span twice the reach, nearly always
    places = np.stack([-np.sin(angle) * ends, np.cos(angle) * ends, np.full(18, 2 * reach)], 1)
    outlines = BAND * np.stack([np.full(18, reach), widths], 1)[:, None]
    return places, outlines, turned(np.full(18, angle), np.ones(18)), (rng.random(18) < 0.4).astype(int)


def turned(angles: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(n, 2, 2) matrices that turn and size rows of points."""
    c, s = sizes * np.cos(angles), sizes * np.sin(angles)
    return np.array([[c, s], [-s, c]]).transpose(2, 0, 1)


def distant(first: Color, second: Color) -> bool:
    """Whether a colour shows on another."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 190  # not tuned: looked at


def inks_on(
    grounds: list[tuple[int, int, int]], order: tuple[int, ...], palette: list[tuple[int, int, int]]
) -> list[int]:
    """The numbers of the first two colours in `order` that show on all grounds, or of those that show on most."""
    seen = [sum(distant(palette[number], ground) for ground in grounds) for number in order]
    best = sorted(range(len(order)), key=lambda place: -seen[place])  # a stable sort: the order decides among equals
    return [order[place] for place in best[:INKS]]


def pattern_shapes(pattern: str, period: float, low: Points, high: Points) -> list[Points]:
    """Where a pattern's second colour shows between two corners, about its origin: some third of the area, so that red
    with white is not white with red."""
    (left, top), (right, bottom) = low, high
    rows = np.arange(np.floor(top / period) - 1, bottom / period + 1)
    columns = np.arange(np.floor(left / period) - 1, right / period + 1)
    found: list[Points] = []
    if pattern == "color block":
        return [level_bands(left, right, np.array([top + 0.52 * (bottom - top)]), bottom - top)[0]]
    if pattern in ("stripes", "checks"):
        width = 0.36 if pattern == "stripes" else 0.24
        found += list(level_bands(left, right, rows * period, width * period))
    if pattern in ("pinstripes", "checks"):
        width = 0.36 if pattern == "pinstripes" else 0.24
        found += list(level_bands(top, bottom, columns * period, width * period)[..., ::-1])
    if pattern == "dots":
        x, y = (grid.reshape(-1) for grid in np.meshgrid(columns, rows))
        x = x + 0.5 * (y % 2)  # every other row is shifted by half a period
        found += list(period * (0.39 * MOTIFS["discs"] + np.stack([x, y], 1)[:, None]))
    if pattern == "zigzags":
        teeth = np.arange(np.floor(left / period) - 1, right / period + 2, 0.75)  # half a wave each
        upper = np.stack([teeth, 0.75 * (np.arange(len(teeth)) % 2)], 1)
        one = np.concatenate([upper, upper[::-1] + (0, 0.4)])
        found += list(period * (one + np.stack([0 * rows, rows], 1)[:, None]))
    return found


def level_bands(left: float, right: float, tops: np.ndarray, width: float) -> np.ndarray:
    """(n, 24, 2), level bands of one width that begin at these heights."""
    middle, half = (left + right) / 2, (right - left) / 2
    one = BAND * (half, width) + (middle, 0)
    return one + np.stack([0 * tops, tops], 1)[:, None]
