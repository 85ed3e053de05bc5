"""The two kinds of picture: a garment alone on white, and figures that wear several in a cluttered place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lrvsf.mini.attributes import CATEGORIES, COLORS, Garment, random_garment
from lrvsf.mini.canvas import Canvas, affine, ellipse, limb, placed, rounded, shaded
from lrvsf.mini.prints import Points, pattern_shapes
from lrvsf.mini.silhouettes import Cut, Pose, cut_of, widened

Frame = tuple[int, int]  # width and height in pixels

SKINS = ((247, 214, 184), (229, 184, 143), (198, 144, 102), (148, 98, 66), (98, 64, 46))
HAIRS = ((40, 30, 26), (92, 58, 34), (168, 116, 60), (214, 178, 108), (128, 128, 132), (150, 62, 36))
METAL = (222, 190, 96)
CORES = (("Upper Body", "Lower Body"), ("Outwear", "Lower Body"), ("Whole Body",))
EXTRAS = ("Bags", "Feet", "Hands", "Head", "Neck", "Waist")
# Later ones cover earlier ones, as clothes do.
DRESSING_ORDER = ("Feet", "Lower Body", "Whole Body", "Upper Body", "Outwear", "Waist", "Neck", "Head", "Hands", "Bags")
# Not tuned, looked at: two figures fit into the frame, and prints can be seen at 96 pixels.
SMALLER, APART = 0.86, 0.23
RIPPLE = 0.012  # how far cloth moves a print aside, in figure units


def marks_of(garment: Garment, cut: Cut, middle: Points, mirrored: bool, rng: np.random.Generator) -> list:
    """The polygons of a garment's pattern and print about a middle, in figure units, each with its colour.

    Cloth is never laid twice in the same way: everything on it is pushed aside along gentle waves.
    """
    points = np.concatenate(cut.cloth)
    low, high = points.min(0) - middle, points.max(0) - middle
    shapes, colors = [], []
    if garment.second is not None:
        shapes += pattern_shapes(garment.pattern, cut.period, low, high)
        colors += len(shapes) * [COLORS[garment.second]]
    # A figure may stand mirrored, but no one wears a print as in a mirror.
    scale = cut.period * np.array([-1.0 if mirrored else 1.0, 1.0])
    corners = np.sort([low / scale, high / scale], 0)
    printed, which = garment.print.shapes(*corners)
    shapes += list(scale * printed)
    colors += [COLORS[garment.inks[ink]] for ink in which]
    if not shapes:
        return []
    flat = np.concatenate(shapes)
    waves = np.sin(flat[:, ::-1] * rng.uniform(9, 22, 2) + rng.uniform(0, 2 * np.pi, 2))
    flat = flat + middle + rng.uniform(0.3, 1, 2) * RIPPLE * waves
    ends = np.cumsum([len(shape) for shape in shapes]).tolist()
    return [(flat[end - len(shape) : end], color) for shape, end, color in zip(shapes, ends, colors, strict=True)]


def creases_of(cloth: list[Points], rng: np.random.Generator) -> list[Points]:
    """Where cloth is folded: a few lines that mostly hang down."""
    points = np.concatenate(cloth)
    low, high = points.min(0), points.max(0)
    count = int(rng.integers(2, 6))
    starts = low + rng.uniform((0.12, 0.05), (0.88, 0.6), (count, 2)) * (high - low)
    steps = rng.uniform((-0.05, 0.06), (0.05, 0.16), (count, 3, 2)) * (high - low)
    return list(starts[:, None] + np.cumsum(steps, 1))


def put_on(canvas: Canvas, garment: Garment, cut: Cut, matrix: np.ndarray, light: float, rng) -> None:
    """Draws one garment: handles, cloth, buckles."""
    mirrored = bool(np.linalg.det(matrix[:, :2]) < 0)
    ground = tuple(channel + more for channel, more in zip(COLORS[garment.color], garment.print.tint, strict=True))
    canvas.fill(cut.behind, matrix, (70, 62, 58))
    for piece in cut.pieces:
        marks = marks_of(garment, piece, np.array(piece.middles[0]), mirrored, rng)
        canvas.dress(piece.cloth, matrix, ground, marks, creases_of(piece.cloth, rng), -light if mirrored else light)
    canvas.fill(cut.front, matrix, METAL)


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
    canvas = Canvas(Image.new("RGB", (width, size), (255, 255, 255)))
    put_on(canvas, garment, cut, matrix, rng.uniform(-1, 1), rng)
    return canvas.finish()


def outfit(target: Garment, rng: np.random.Generator, wardrobe: Mapping[str, Garment] | None = None) -> list[Garment]:
    """Three to five garments of different categories, the target among them.

    Args:
        wardrobe: category -> what is worn of it; what it lacks is drawn by chance.
    """
    wardrobe = wardrobe or {}
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
    return [
        target if category == target.category else wardrobe.get(category) or random_garment(category, rng)
        for category in CATEGORIES
        if category in worn
    ]


def backdrop(frame: Frame, feet: Sequence[Points], rng: np.random.Generator) -> Image.Image:
    """A room or a street out of focus, in muted colours: a place that is never the same twice.

    Args:
        feet: where figures stand, in pixels: they throw a shadow there.
    """
    width, height = frame

    def muted(low: float = 80, high: float = 225) -> tuple[int, int, int]:
        # Mostly one grey for the three channels, and a little colour: garments stand out.
        return shaded(0.8 * rng.uniform(low, high) + 0.2 * rng.uniform(0, 255, 3), 1)

    horizon = height * rng.uniform(0.62, 0.86)
    image = Image.new("RGB", frame, muted(120, 235))
    brush = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 9))):
        x, y = rng.uniform(0, width), rng.uniform(0, horizon)
        rx, ry = rng.uniform(0.05, 0.22, 2) * height
        kind = rng.integers(4)
        if kind == 0:  # a lamp, a tree's crown
            brush.ellipse((x - rx, y - ry, x + rx, y + ry), fill=muted())
        elif kind == 1:  # a picture, a window
            brush.rectangle((x - rx, y - ry, x + rx, y + ry), fill=muted(), outline=muted(), width=3)
        elif kind == 2:  # a house, a cupboard
            brush.rectangle((x - rx, y, x + rx, horizon), fill=muted())
        else:  # shelves, blinds
            color = muted()
            for level in np.arange(y - ry, y + ry, 9):
                brush.rectangle((x - rx, level, x + rx, level + 4), fill=color)
    brush.rectangle((0, horizon, width, height), fill=muted())
    for x, y in feet:
        rx, ry = 0.22 * height, 0.035 * height
        brush.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(52, 48, 54))
    return image.filter(ImageFilter.BoxBlur(int(rng.integers(1, 4))))


def body_parts(pose: Pose) -> dict[str, list[np.ndarray]]:
    """A figure's parts, in figure units, in the order of drawing."""
    parts = {
        "legs": [limb((s * 0.07, 0.58), (s * 0.08, 0.95), 0.05, 0.035) for s in (-1, 1)],
        "feet": [ellipse(s * 0.1, 0.965, 0.06, 0.03) for s in (-1, 1)],
        "neck": [limb((0, 0.29), (0, 0.36), 0.04, 0.045)],
        "torso": [rounded([(-0.12, 0.335), (0.12, 0.335), (0.115, 0.66), (-0.115, 0.66)], 1)],
        "arms": [limb(pose.shoulder(s), pose.on_arm(s, 1.0), 0.038, 0.03) for s in (-1, 1)],
        "hands": [ellipse(*pose.on_arm(s, 1.05), 0.04, 0.04) for s in (-1, 1)],
        "head": [ellipse(0, 0.19, 0.125, 0.125)],
    }
    return {name: [widened(shape) for shape in shapes] for name, shapes in parts.items()}


def body(canvas: Canvas, pose: Pose, matrix: np.ndarray, light: float, rng: np.random.Generator) -> None:
    """The figure, in plain undergarments of its own tone, so that what is not worn is not a garment."""
    skin = SKINS[rng.integers(len(SKINS))]
    hair = HAIRS[rng.integers(len(HAIRS))]
    if rng.random() < 0.5:  # long hair, which falls behind the shoulders
        canvas.dress([widened(ellipse(0, 0.22, 0.155, 0.17))], matrix, hair, light=light)
    parts = body_parts(pose)
    head = parts.pop("head")
    under = [(shape, shaded(skin, 0.86)) for shape in parts["torso"]]
    canvas.dress([shape for shapes in parts.values() for shape in shapes], matrix, skin, under, light=light)
    canvas.dress(head, matrix, skin, light=light)
    canvas.fill([widened(ellipse(s * 0.07, 0.235, 0.026, 0.017)) for s in (-1, 1)], matrix, blend(skin), outline=False)
    face = [([ellipse(s * 0.047, 0.205, 0.013, 0.017) for s in (-1, 1)], (40, 34, 34))]
    face.append(([ellipse(s * 0.047 + 0.004, 0.2, 0.004, 0.005) for s in (-1, 1)], (250, 250, 250)))
    face.append(([ellipse(0, 0.25, 0.032, 0.018, 0, 180)], (176, 70, 70)))
    for shapes, color in face:
        canvas.fill([widened(shape) for shape in shapes], matrix, color, outline=False)
    canvas.dress([widened(ellipse(0, 0.165, 0.132, 0.115, 180, 360))], matrix, hair, light=light)


def blend(skin: tuple[int, int, int]) -> tuple[float, ...]:
    """Rosy cheeks."""
    return tuple(0.72 * channel + 0.28 * rose for channel, rose in zip(skin, (226, 96, 96), strict=True))


@dataclass(frozen=True)
class Stage:
    """Where everything is in a scene, before it is drawn.

    Attributes:
        worn: the garments in the order of dressing: later ones cover earlier ones.
        cuts: category -> the garment's shapes, in the figure's coordinates.
        matrix: (2, 3), the figure's coordinates to pixels.
        frame: the scene's.
        cropped: whether the frame moved in on the target.
    """

    worn: list[Garment]
    cuts: dict[str, Cut]
    pose: Pose
    matrix: np.ndarray
    frame: Frame
    cropped: bool = False

    def shown(self, target: Garment, in_front: Sequence[Stage] = ()) -> float:
        """How much of the target's cloth can be seen, 0..1.

        `in_front` are the figures of the same scene that are drawn after this one.
        """
        place = self.worn.index(target)
        covering = [shape for garment in self.worn[place + 1 :] for shape in self.cuts[garment.category].all_shapes]
        # Another figure's shapes, brought from its coordinates into this one's.
        inverse = np.linalg.inv(self.matrix[:, :2])
        for other in in_front:
            shift = other.matrix[:, 2] - self.matrix[:, 2]
            covering += [(shape @ other.matrix[:, :2].T + shift) @ inverse.T for shape in other.all_shapes]
        return visible_share(self.cuts[target.category].cloth, covering, self.matrix, self.frame)

    @property
    def all_shapes(self) -> list[np.ndarray]:
        """The figure's body and everything that it wears."""
        worn = [shape for cut in self.cuts.values() for shape in cut.all_shapes]
        return [shape for part in body_parts(self.pose).values() for shape in part] + worn


def visible_share(shapes: list[np.ndarray], covering: list[np.ndarray], matrix: np.ndarray, frame: Frame) -> float:
    """The share of the shapes' area that lies in the frame and under none of the covering shapes."""
    width, height = frame  # margins of this size: what lies outside the frame counts as hidden
    matrix = matrix + np.array([[0, 0, width], [0, 0, height]])
    # One bit a pixel, the frame in the middle; at the size of the picture, which is exact enough for a share.
    mask = Image.new("1", (3 * width, 3 * height))
    brush = ImageDraw.Draw(mask)

    def fill(polygons: list[np.ndarray], value: int) -> None:
        for polygon in placed(polygons, matrix):
            brush.polygon(polygon, fill=value)

    fill(shapes, 1)
    whole = np.count_nonzero(mask)
    fill(covering, 0)
    return np.count_nonzero(np.asarray(mask)[height : 2 * height, width : 2 * width]) / max(whole, 1)


def stage(garments: list[Garment], target: Garment, frame: Frame, rng: np.random.Generator, cropped: bool) -> Stage:
    """Poses a figure that wears `garments` in a frame; `cropped` moves the frame in on the target."""
    width, height = frame
    # The bag hangs on the second arm and stays in the frame; a narrow frame wants arms that hang.
    widest = 45 if width == height else 26
    pose = Pose((rng.uniform(14, widest), rng.uniform(14, min(32, widest))))
    cuts = {garment.category: cut_of(garment.category, garment.silhouette, pose) for garment in garments}
    mirrored = -1 if rng.random() < 0.5 else 1
    scale = height * rng.uniform(0.8, 0.93)
    middle = np.array([0.0, 0.47])
    if cropped:
        points = np.concatenate(cuts[target.category].cloth)
        focus = (points.min(0) + points.max(0)) / 2
        extent = (points.max(0) - points.min(0)).max()
        # The target itself stays in the frame.
        scale *= min(rng.uniform(1.15, 1.5), 0.95 * width / height / extent)
        middle = middle + rng.uniform(0.6, 0.9) * (focus - middle)
    matrix = affine((mirrored * scale, scale), rng.uniform(-8, 8), (0, 0))
    matrix[:, 2] = np.array(frame) * (0.5 + rng.uniform(-0.04, 0.04, 2)) - matrix[:, :2] @ middle
    return Stage(sorted(garments, key=lambda g: DRESSING_ORDER.index(g.category)), cuts, pose, matrix, frame, cropped)


def stage_two(
    targets: Sequence[Garment], size: int, rng: np.random.Generator, wardrobe: Mapping[str, Garment] | None = None
) -> tuple[list[Stage], float]:
    """Poses two figures that wear a target each; and how much is in sight, 0..1, of the target that is hidden more.

    The wardrobe, as for `outfit`, is the second figure's.
    """
    figures = []
    for side, target, clothes in zip((-1, 1), targets, (None, wardrobe), strict=True):
        alone = stage(outfit(target, rng, clothes), target, (size, size), rng, cropped=False)
        matrix = SMALLER * alone.matrix
        matrix[:, 2] += size * np.array([(1 - SMALLER) / 2 + side * APART, (1 - SMALLER) / 2])
        figures.append(replace(alone, matrix=matrix))
    behind, before = figures
    return figures, min(behind.shown(targets[0], [before]), before.shown(targets[1]))


def scene_picture(figures: Sequence[Stage], rng: np.random.Generator) -> Image.Image:
    """Figures among clutter; later ones stand in front."""
    feet = [figure.matrix @ (0.0, 0.985, 1.0) for figure in figures]
    canvas = Canvas(backdrop(figures[0].frame, feet, rng), dim=rng.uniform(5, 50))  # light falls from above
    light = rng.uniform(-1, 1)
    for figure in figures:
        body(canvas, figure.pose, figure.matrix, light, rng)
        for garment in figure.worn:
            put_on(canvas, garment, figure.cuts[garment.category], figure.matrix, light, rng)
    return canvas.finish()
