"""A picture made of filled polygons: each with a textile that lives in the garment's own coordinates.

Because pattern and light are computed in garment coordinates, a pattern keeps its look when the garment is turned,
scaled or worn: what the eye compares between scene and product picture is really there.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from lrvsf.mini.attributes import COLORS, Garment

SUPERSAMPLING = 2  # drawn twice as large, then box-averaged: smooth edges for one reduce()


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


def star(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, radius, radius * 0.45)  # tips and notches
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)


def heart(x: float, y: float, radius: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 24)  # the usual parametric heart, some 32 units wide
    across = 16 * np.sin(t) ** 3
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x + across * radius / 16, y - up * radius / 16], 1)


def second_color_mask(pattern: str, u: np.ndarray, v: np.ndarray, period: float, middle: float) -> np.ndarray:
    """Where the pattern's second colour shows: bool, like u and v (garment coordinates). About a third of the area,
    so that red with white is not white with red."""
    if pattern == "stripes":
        return np.mod(v, period) < 0.36 * period
    if pattern == "pinstripes":
        return np.mod(u + 0.2 * period, period) < 0.36 * period
    if pattern == "checks":
        return (np.mod(v, period) < 0.24 * period) | (np.mod(u + 0.12 * period, period) < 0.24 * period)
    if pattern == "dots":
        row = np.floor(v / period)  # every other row is shifted by half a period
        du = np.mod(u + 0.5 * period * np.mod(row, 2), period) - 0.5 * period
        dv = np.mod(v, period) - 0.5 * period
        return du * du + dv * dv < (0.33 * period) ** 2
    if pattern == "zigzags":
        # A triangle wave along u, added to v: stripes that go up and down.
        slope = np.abs(np.mod(u, 1.5 * period) - 0.75 * period)
        return np.mod(v + slope, period) < 0.36 * period
    if pattern == "color block":
        return v > middle
    raise ValueError(f"unknown pattern {pattern!r}; choose one of stripes, pinstripes, checks, dots, ...")


class Canvas:
    """A picture of (height, width) pixels, drawn at twice that size. `matrix` maps drawing units to drawn pixels."""

    def __init__(self, width: int, height: int, background: tuple[int, int, int]):
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), background)
        self.draw = ImageDraw.Draw(self.image)

    def polygons(self, shapes: list[np.ndarray], matrix: np.ndarray) -> list[list[tuple[float, float]]]:
        """Drawing units -> supersampled pixels, ready for ImageDraw."""
        matrix = matrix * SUPERSAMPLING
        return [[tuple(p) for p in (s @ matrix[:, :2].T + matrix[:, 2]).tolist()] for s in shapes]

    def fill(self, shapes: list[np.ndarray], matrix: np.ndarray, color: tuple, outline: bool = True) -> None:
        """Fills shapes with one colour (0-255)."""
        edge = tuple(int(c * 0.62) for c in color) if outline else None
        for polygon in self.polygons(shapes, matrix):
            self.draw.polygon(polygon, fill=tuple(int(c) for c in color), outline=edge, width=2)

    def dress(self, shapes: list[np.ndarray], matrix: np.ndarray, garment: Garment, period: float, light: float):
        """Fills the union of shapes with the garment's textile; `light` in [-1, 1] is where the light comes from."""
        polygons = self.polygons(shapes, matrix)
        points = np.concatenate([np.asarray(p) for p in polygons])
        # Only the box around the shapes is computed, and pasted through a mask of their union: overlapping parts of a
        # garment show one textile, without seams.
        left, top = np.clip(np.floor(points.min(0)).astype(int), 0, None)
        right, bottom = np.minimum(np.ceil(points.max(0)).astype(int) + 1, self.image.size)
        if left >= right or top >= bottom:
            return  # outside the frame
        mask = Image.new("L", (int(right - left), int(bottom - top)))
        brush = ImageDraw.Draw(mask)
        for polygon in polygons:
            brush.polygon([(x - left, y - top) for x, y in polygon], fill=255)
        textile = self.textile(garment, shapes, matrix, (left, top, right, bottom), period, light)
        self.image.paste(Image.fromarray(textile), (int(left), int(top)), mask)
        # Outlines, so that white on a white wall is still a garment.
        dark = tuple(int(c * 0.45) for c in COLORS[garment.color])
        for polygon in polygons:
            self.draw.line([*polygon, polygon[0]], fill=dark, width=2)

    def textile(self, garment, shapes, matrix, box, period, light) -> np.ndarray:
        """uint8 (bottom - top, right - left, 3): colours, pattern and light over a box of supersampled pixels."""
        left, top, right, bottom = box
        # Each pixel's place in the garment: (u, v) = A^-1 (x - shift). x is (1, W), y (H, 1); u, v (H, W).
        inverse = np.linalg.inv(matrix[:, :2] * SUPERSAMPLING)
        x = np.arange(left, right, dtype=np.float32)[None] - np.float32(matrix[0, 2] * SUPERSAMPLING)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(matrix[1, 2] * SUPERSAMPLING)
        u = np.float32(inverse[0, 0]) * x + np.float32(inverse[0, 1]) * y
        v = np.float32(inverse[1, 0]) * x + np.float32(inverse[1, 1]) * y
        extent = np.concatenate(shapes)
        (u0, v0), (u1, v1) = extent.min(0), extent.max(0)
        shade = 1 + np.float32(0.16 * light / max(u1 - u0, 1e-6)) * (u - np.float32((u0 + u1) / 2))
        base = np.asarray(COLORS[garment.color], np.float32)
        out = shade[..., None] * base  # (H, W, 3)
        if garment.second is not None:
            # Patterns begin at the garment's own corner, so they are the same wherever it is worn.
            where = second_color_mask(garment.pattern, u - u0, v - v0, period, 0.52 * (v1 - v0))
            out[where] = shade[where][:, None] * np.asarray(COLORS[garment.second], np.float32)
        return np.clip(out, 0, 255).astype(np.uint8)

    def finish(self, brightness: float = 1.0) -> Image.Image:
        """The picture at its own size; brightness multiplies every channel."""
        small = self.image.reduce(SUPERSAMPLING)
        return small if brightness == 1.0 else small.point(lambda value: min(255, int(value * brightness)))
