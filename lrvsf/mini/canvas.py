"""A picture made of filled polygons: cloth with marks on it, its folds and its roundness, and plain things.

Patterns and prints are polygons in the garment's own coordinates, so they keep their look when the garment is turned,
scaled or worn: what the eye compares between scene and product picture is really there. Light and shadow are computed
at a quarter of the drawing's size, where a blur costs little, and are soft for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color = tuple[int, int, int]
SUPERSAMPLING = 2  # drawn twice as large, then box-averaged: smooth edges for one reduce()
RELIEF = 2  # pixels of the picture along one in which light is computed
NEUTRAL = 127  # the light that changes no colour
BLUR = ImageFilter.BoxBlur(1)
# Not tuned: looked at.
MARGIN = 6  # pixels around a cloth's box: where the relief falls off, and the shadow falls
CREASE, SEAM = 120, 175  # how deep a fold and a seam lie, 255 being the cloth
SHADOW = 45  # the light in the shadow that a thing throws on what is behind it,
HALF = [value * 55 // 100 for value in range(256)]  # and how dense that is


def affine(scale: tuple[float, float], degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """(2, 3) matrix: scale, then rotate, then shift; drawing units to pixels."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c * scale[0], -s * scale[1], shift[0]], [s * scale[0], c * scale[1], shift[1]]])


def rounded(points: list[tuple[float, float]], rounds: int = 2) -> np.ndarray:
    """Chaikin's corner cutting of a closed polygon, (n, 2) -> (n * 2 ** rounds, 2): cloth has no sharp corners."""
    polygon = np.asarray(points, dtype=float)
    for _ in range(rounds):
        # (n, 2) -> (n, 2, 2) -> (2 n, 2): two points on each edge, a fifth from its ends (Chaikin's own are a quarter)
        following = np.roll(polygon, -1, axis=0)
        polygon = np.stack([0.8 * polygon + 0.2 * following, 0.2 * polygon + 0.8 * following], 1).reshape(-1, 2)
    return polygon


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    """(24, 2) points of an ellipse or of its arc, in degrees clockwise from the right (y points down)."""
    angles = np.radians(np.linspace(start, stop, 24))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1)


def limb(start: tuple[float, float], end: tuple[float, float], width: float, end_width: float) -> np.ndarray:
    """(4, 2) tapered bar from start to end."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    along = (b - a) / np.hypot(*(b - a))
    across = np.array([-along[1], along[0]])  # a quarter turn
    return np.stack([a + across * width, b + across * end_width, b - across * end_width, a - across * width])


def shaded(color: Sequence[float], factor: float) -> Color:
    """A colour made darker or lighter."""
    return tuple(min(255, max(0, int(channel * factor))) for channel in color)


class Canvas:
    """A picture of (height, width) pixels, drawn at twice that size. `matrix` maps drawing units to picture pixels.

    Light is painted into a small picture of its own, `relief`, and laid on all colours at the end.
    """

    def __init__(self, backdrop: Image.Image, dim: float = 0):
        """The backdrop has the picture's own size; `dim` is how much darker its foot is than its head."""
        self.size = backdrop.size
        # By repetition, which the averaging at the end takes back.
        self.image = backdrop.resize((backdrop.width * SUPERSAMPLING, backdrop.height * SUPERSAMPLING), Image.NEAREST)
        self.draw = ImageDraw.Draw(self.image)
        width, height = (-(-length // RELIEF) for length in backdrop.size)
        fall = NEUTRAL + dim * np.linspace(0.4, -0.6, height)
        self.relief = Image.fromarray(np.repeat(fall.astype(np.uint8)[:, None], width, 1))

    def fill(self, shapes: list[np.ndarray], matrix: np.ndarray, color: Sequence[float], outline: bool = True) -> None:
        """Fills shapes with one colour (0-255)."""
        edge = shaded(color, 0.7) if outline else None
        for polygon in placed(shapes, matrix * SUPERSAMPLING):
            self.draw.polygon(polygon, fill=shaded(color, 1), outline=edge)

    def dress(
        self,
        shapes: list[np.ndarray],
        matrix: np.ndarray,
        color: Sequence[float],
        marks: Sequence[tuple[np.ndarray, Color]] = (),
        creases: Sequence[np.ndarray] = (),
        light: float = 0.0,
    ) -> None:
        """Lays the union of shapes, in one cloth without steps, on the picture.

        Args:
            marks: polygons and their colours, drawn on the cloth in this order.
            creases: polylines along which the cloth is folded.
            light: in [-1, 1], the side that the light comes from.
        """
        points = np.concatenate(shapes) @ matrix[:, :2].T + matrix[:, 2]
        # Only the box around the shapes is drawn, and pasted through a mask of their union: overlapping parts of a
        # garment show one textile. Its corners are whole pixels of the relief.
        low, high = points.min(0) - MARGIN, np.minimum(points.max(0) + MARGIN, self.size)
        left, top = (RELIEF * max(0, int(edge) // RELIEF) for edge in low)
        width, height = (RELIEF * -(-int(edge) // RELIEF) for edge in high - (left, top))
        if width <= 0 or height <= 0:
            return  # outside the frame
        matrix = matrix - np.array([[0, 0, left], [0, 0, top]])
        large, size = matrix * SUPERSAMPLING, (width * SUPERSAMPLING, height * SUPERSAMPLING)
        outlines = placed(shapes, large)
        mask = Image.new("L", size)
        brush = ImageDraw.Draw(mask)
        for polygon in outlines:
            brush.polygon(polygon, fill=255)
        cloth = Image.new("RGB", size, shaded(color, 1))
        brush = ImageDraw.Draw(cloth)
        for polygon, (_, mark) in zip(placed([shape for shape, _ in marks], large), marks, strict=True):
            brush.polygon(polygon, fill=mark)
        edge = shaded(color, 0.62)
        for polygon in outlines:
            brush.line([*polygon, polygon[0]], fill=edge, width=1)
        self.image.paste(cloth, (left * SUPERSAMPLING, top * SUPERSAMPLING), mask)
        lines = placed([*shapes, *creases], matrix / RELIEF)
        self._shade(mask.reduce(SUPERSAMPLING * RELIEF), (left // RELIEF, top // RELIEF), lines, len(shapes), light)

    def _shade(self, mask: Image.Image, corner: tuple[int, int], lines: list, seams: int, light: float) -> None:
        """The roundness of a cloth, its seams (the first lines) and creases, and the shadow that it throws."""
        aside = 1 if light > 0 else -1
        self.relief.paste(SHADOW, corner, ImageChops.offset(mask.filter(BLUR), -aside, 1).point(HALF))
        height = mask.copy()
        brush = ImageDraw.Draw(height)
        for place, line in enumerate(lines):
            if place < seams:
                brush.line([*line, line[0]], fill=SEAM)
            else:
                brush.line(line, fill=CREASE)
        height = height.filter(BLUR).filter(BLUR)
        # An embossing: what falls off towards the light is bright, what falls off behind it is dark.
        bright = ImageChops.subtract(height, ImageChops.offset(height, 2 * aside, 1), scale=3.2, offset=NEUTRAL - 9)
        self.relief.paste(bright, corner, mask)

    def finish(self) -> Image.Image:
        """The picture at its own size."""
        return ImageChops.hard_light(
            self.image.reduce(SUPERSAMPLING), self.relief.resize(self.size, Image.BILINEAR).convert("RGB")
        )


def placed(shapes: Sequence[np.ndarray], matrix: np.ndarray) -> list[list[tuple[float, float]]]:
    """Shapes in drawing units -> polygons in pixels, ready for ImageDraw."""
    if not len(shapes):
        return []
    # All points at once: a shape has few, and each call into NumPy costs as much as fifty points.
    points = np.concatenate(shapes) @ matrix[:, :2].T + matrix[:, 2]
    flat, start, polygons = list(map(tuple, points.tolist())), 0, []
    for shape in shapes:
        polygons.append(flat[start : start + len(shape)])
        start += len(shape)
    return polygons
