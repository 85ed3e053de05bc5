"""The two kinds of picture: a garment alone on white, and figures that wear several in a cluttered place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from lrvsf.mini.attributes import CATEGORIES, Garment, random_garment
from lrvsf.mini.canvas import Canvas, affine, ellipse, heart, limb, star
from lrvsf.mini.silhouettes import Cut, Pose, cut_of, widened

SKINS = ((247, 214, 184), (229, 184, 143), (198, 144, 102), (148, 98, 66), (98, 64, 46))
HAIRS = ((40, 30, 26), (92, 58, 34), (168, 116, 60), (214, 178, 108), (128, 128, 132), (150, 62, 36))
METAL = (222, 190, 96)
PALE = frozenset({"white", "yellow", "grey", "pink", "teal", "orange"})  # a dark emblem shows on these
CORES = (("Upper Body", "Lower Body"), ("Outwear", "Lower Body"), ("Whole Body",))
EXTRAS = ("Bags", "Feet", "Hands", "Head", "Neck", "Waist")
# Later ones cover earlier ones, as clothes do.
DRESSING_ORDER = ("Feet", "Lower Body", "Whole Body", "Upper Body", "Outwear", "Waist", "Neck", "Head", "Hands", "Bags")


def put_on(canvas: Canvas, garment: Garment, cut: Cut, matrix: np.ndarray, light: float) -> None:
    """Draws one garment: handles, cloth, buckles, emblems."""
    canvas.fill(cut.behind, matrix, (70, 62, 58))
    canvas.dress(cut.cloth, matrix, garment, cut.period, light)
    canvas.fill(cut.front, matrix, METAL)
    if garment.emblem != "none":
        color = (24, 24, 30) if garment.color in PALE else (255, 255, 250)
        shape = star if garment.emblem == "star" else heart
        canvas.fill([shape(*emblem) for emblem in cut.emblems], matrix, color)


def simple_picture(garment: Garment, size: int, rng: np.random.Generator) -> Image.Image:
    """The garment alone on white: `size` pixels high, up to a fifth narrower; turned, stretched and lit a little."""
    # The arms are the outline of sleeves, gloves and bags, so they move in product pictures too.
    pose = Pose(tuple(rng.uniform(14, 40, 2)), gathered=garment.category == "Hands")
    cut = cut_of(garment.category, garment.silhouette, pose)
    points = np.concatenate([*cut.cloth, *cut.behind])
    low, high = points.min(0), points.max(0)
    width = int(size * rng.uniform(0.8, 1.0))
    scale = rng.uniform(0.78, 0.92) * min(width / (high[0] - low[0]), size / (high[1] - low[1]))
    stretch = rng.uniform(0.95, 1.05)
    matrix = affine((scale * stretch, scale / stretch), rng.uniform(-9, 9), (0, 0))
    # The shift that puts the middle of the garment into the middle of the picture, after turning.
    matrix[:, 2] = np.array([width / 2, size / 2]) - matrix[:, :2] @ ((low + high) / 2)
    canvas = Canvas(width, size, (255, 255, 255))
    put_on(canvas, garment, cut, matrix, rng.uniform(-1, 1))
    return canvas.finish()


def outfit(target: Garment, rng: np.random.Generator) -> list[Garment]:
    """Three to five garments of different categories, the target among them."""
    # A dress is worn without trousers; any other category goes with each of the three.
    cores = [core for core in CORES if target.category in core] or list(CORES)
    worn = list(cores[rng.integers(len(cores))])
    if target.category not in worn:
        worn.append(target.category)
    count = int(rng.integers(3, 6))
    for index in rng.permutation(len(EXTRAS)):
        if len(worn) < count and EXTRAS[index] not in worn:
            worn.append(EXTRAS[index])
    # In the order of the categories: the place in the list says nothing about the target.
    return [target if c == target.category else random_garment(c, rng) for c in CATEGORIES if c in worn]


def clutter(canvas: Canvas, rng: np.random.Generator) -> None:
    """A wall, a floor and some things, in muted colours: a place that is never the same twice."""
    width, height = canvas.size
    to_pixels = affine((1.0, 1.0), 0, (0, 0))

    def muted() -> np.ndarray:
        # Mostly one grey for the three channels, and a little colour: garments stand out.
        return 0.72 * rng.uniform(90, 235) + 0.28 * rng.uniform(0, 255, 3)

    floor = height * rng.uniform(0.66, 0.9)
    canvas.fill([np.array([(0, 0), (width, 0), (width, floor), (0, floor)])], to_pixels, muted(), outline=False)
    canvas.fill([np.array([(0, floor), (width, floor), (width, height), (0, height)])], to_pixels, muted())
    for _ in range(int(rng.integers(5, 11))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        rx, ry = rng.uniform(0.04, 0.17, 2) * width
        kind = rng.integers(4)
        if kind == 0:
            shape = [ellipse(x, y, rx, ry)]
        elif kind == 1:
            shape = [np.array([(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)])]
        elif kind == 2:  # shelves, blinds
            shape = [
                np.array([(x - rx, y + d), (x + rx, y + d), (x + rx, y + d + 4), (x - rx, y + d + 4)])
                for d in np.arange(-ry, ry, 9)
            ]
        else:  # a plant
            shape = [limb((x, y), (x + d * rx, y - ry * 2), 3, 1) for d in (-1, -0.4, 0.3, 1)]
        canvas.fill(shape, to_pixels, muted())


def body_parts(pose: Pose) -> dict[str, list[np.ndarray]]:
    """A figure's parts, in figure units, in the order of drawing."""
    parts = {
        "legs": [limb((s * 0.07, 0.58), (s * 0.08, 0.95), 0.05, 0.035) for s in (-1, 1)],
        "feet": [ellipse(s * 0.1, 0.965, 0.06, 0.03) for s in (-1, 1)],
        "neck": [limb((0, 0.29), (0, 0.36), 0.04, 0.045)],
        "torso": [np.array([(-0.12, 0.335), (0.12, 0.335), (0.115, 0.66), (-0.115, 0.66)])],
        "arms": [limb(pose.shoulder(s), pose.on_arm(s, 1.0), 0.038, 0.03) for s in (-1, 1)],
        "hands": [ellipse(*pose.on_arm(s, 1.05), 0.04, 0.04) for s in (-1, 1)],
        "head": [ellipse(0, 0.19, 0.125, 0.125)],
    }
    return {name: [widened(shape) for shape in shapes] for name, shapes in parts.items()}


def body(canvas: Canvas, pose: Pose, matrix: np.ndarray, rng: np.random.Generator) -> None:
    """The figure, in plain undergarments of its own tone, so that what is not worn is not a garment."""
    skin = np.array(SKINS[rng.integers(len(SKINS))], float)
    hair = HAIRS[rng.integers(len(HAIRS))]
    under = 0.88 * skin
    if rng.random() < 0.5:  # long hair, which falls behind the shoulders
        canvas.fill([widened(ellipse(0, 0.22, 0.155, 0.17))], matrix, hair)
    for name, shapes in body_parts(pose).items():
        canvas.fill(shapes, matrix, under if name == "torso" else skin)
    face = [([ellipse(0, 0.165, 0.132, 0.115, 180, 360)], hair)]
    face.append(([ellipse(s * 0.045, 0.205, 0.013, 0.016) for s in (-1, 1)], (40, 34, 34)))
    face.append(([ellipse(0, 0.255, 0.03, 0.012, 0, 180)], (176, 70, 70)))
    for shapes, color in face:
        canvas.fill([widened(shape) for shape in shapes], matrix, color, outline=False)


@dataclass(frozen=True)
class Stage:
    """Where everything is in a scene of (size, size) pixels, before it is drawn.

    Attributes:
        worn: the garments in the order of dressing: later ones cover earlier ones.
        cuts: category -> the garment's shapes, in the figure's coordinates.
        matrix: (2, 3), the figure's coordinates to pixels.
    """

    worn: list[Garment]
    cuts: dict[str, Cut]
    pose: Pose
    matrix: np.ndarray
    size: int

    def shown(self, target: Garment, in_front: Sequence[Stage] = ()) -> float:
        """How much of the target can be seen, 0..1: of its cloth or, if that is less, of its emblems.

        `in_front` are the figures of the same scene that are drawn after this one.
        """
        place = self.worn.index(target)
        cut = self.cuts[target.category]
        emblem = star if target.emblem == "star" else heart
        parts = [cut.cloth] if target.emblem == "none" else [cut.cloth, [emblem(*where) for where in cut.emblems]]
        covering = [shape for garment in self.worn[place + 1 :] for shape in self.cuts[garment.category].all_shapes]
        # Another figure's shapes, brought from its coordinates into this one's.
        inverse = np.linalg.inv(self.matrix[:, :2])
        for other in in_front:
            shift = other.matrix[:, 2] - self.matrix[:, 2]
            covering += [(shape @ other.matrix[:, :2].T + shift) @ inverse.T for shape in other.all_shapes]
        return min(visible_share(shapes, covering, self.matrix, self.size) for shapes in parts)

    @property
    def all_shapes(self) -> list[np.ndarray]:
        """The figure's body and everything that it wears."""
        worn = [shape for cut in self.cuts.values() for shape in cut.all_shapes]
        return [shape for part in body_parts(self.pose).values() for shape in part] + worn


def visible_share(shapes: list[np.ndarray], covering: list[np.ndarray], matrix: np.ndarray, size: int) -> float:
    """The share of the shapes' area that lies in the frame and under none of the covering shapes."""
    margin = size  # what lies outside the frame counts as hidden
    matrix = matrix + np.array([[0, 0, margin], [0, 0, margin]])
    # One bit a pixel, the frame in the middle; at the size of the picture, which is exact enough for a share.
    mask = Image.new("1", (3 * size, 3 * size))
    brush = ImageDraw.Draw(mask)

    def fill(polygons: list[np.ndarray], value: int) -> None:
        for polygon in polygons:
            brush.polygon([tuple(point) for point in (polygon @ matrix[:, :2].T + matrix[:, 2]).tolist()], fill=value)

    fill(shapes, 1)
    whole = np.count_nonzero(mask)
    fill(covering, 0)
    frame = slice(margin, margin + size)
    return np.count_nonzero(np.asarray(mask)[frame, frame]) / max(whole, 1)


def stage(garments: list[Garment], target: Garment, size: int, rng: np.random.Generator, cropped: bool) -> Stage:
    """Poses a figure that wears `garments` in a frame; `cropped` moves the frame in on the target."""
    pose = Pose((rng.uniform(14, 45), rng.uniform(14, 32)))  # the bag hangs on the second arm and stays in the frame
    cuts = {garment.category: cut_of(garment.category, garment.silhouette, pose) for garment in garments}
    mirrored = -1 if rng.random() < 0.5 else 1
    scale = size * rng.uniform(0.8, 0.93)
    middle = np.array([0.0, 0.47])
    if cropped:
        points = np.concatenate(cuts[target.category].cloth)
        focus = (points.min(0) + points.max(0)) / 2
        extent = (points.max(0) - points.min(0)).max()
        scale *= min(rng.uniform(1.15, 1.5), 0.95 / extent)  # the target itself stays in the frame
        middle = middle + rng.uniform(0.6, 0.9) * (focus - middle)
    matrix = affine((mirrored * scale, scale), rng.uniform(-8, 8), (0, 0))
    matrix[:, 2] = size / 2 + rng.uniform(-0.04, 0.04, 2) * size - matrix[:, :2] @ middle
    return Stage(sorted(garments, key=lambda g: DRESSING_ORDER.index(g.category)), cuts, pose, matrix, size)


def scene_picture(figures: Sequence[Stage], rng: np.random.Generator) -> Image.Image:
    """Figures among clutter; later ones stand in front."""
    canvas = Canvas(figures[0].size, figures[0].size, (200, 200, 200))
    clutter(canvas, rng)
    for figure in figures:
        body(canvas, figure.pose, figure.matrix, rng)
        light = rng.uniform(-1, 1)
        for garment in figure.worn:
            put_on(canvas, garment, figure.cuts[garment.category], figure.matrix, light)
    return canvas.finish(rng.uniform(0.85, 1.1))
