"""Several looks at one query: its picture whole, the middle of it, its mirror image. Their embeddings are averaged.

Each look is embedded under the same condition; the mean of the unit rows, made a unit row again, asks. A gallery is
embedded as ever. No published protocol asks so, and a query costs as much as it has views.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from lrvsf.data.names import did_you_mean, quoted

Picture, Condition = TypeVar("Picture"), TypeVar("Condition")


@dataclass(frozen=True)
class View:
    """One look at a picture.

    Attributes:
        share: of each side that is kept, around the middle, 0..1.
        mirrored: left and right change places.
    """

    share: float = 1.0
    mirrored: bool = False

    @property
    def name(self) -> str:
        """As it is asked for."""
        return "flip" if self.mirrored else "whole" if self.share == 1 else f"center{self.share!r}"

    def of(self, image: Image.Image) -> Image.Image:
        """The look at a decoded image, before it is padded and resized. The whole of it is the image itself."""
        if self.share < 1:
            width, height = (max(1, round(self.share * side)) for side in image.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return ImageOps.mirror(image) if self.mirrored else image


WHOLE, FLIP = View(), View(mirrored=True)
Views = tuple[View, ...]
ONCE: Views = (WHOLE,)  # how a query is looked at unless more is asked for
KINDS = "whole, center0.8 (or another share of each side) and flip"


def read_views(asked: str | None) -> Views:
    """Views by their names, with commas between; None is the picture as a whole. Their order means nothing.

    >>> [view.name for view in read_views("flip, whole, center0.80")]
    ['whole', 'center0.8', 'flip']

    Raises ValueError: a view that there is not, one that is named twice, none at all.
    """
    if asked is None:
        return ONCE
    views: list[View] = []
    for name in map(str.strip, asked.split(",")):
        view = _read_view(name, asked)
        if view in views:
            raise ValueError(f"query_views={quoted(asked)} has a view twice, then as {quoted(name)}; name each once")
        views.append(view)
    # In one order: the last bits of a sum depend on it, and stored embeddings are known by these names.
    return tuple(sorted(views, key=lambda view: (view.mirrored, -view.share)))


def names_of(views: Views) -> str:
    """What `read_views` reads."""
    return ",".join(view.name for view in views)


def _read_view(name: str, asked: str) -> View:
    if not name:
        raise ValueError(f"query_views={quoted(asked)} lacks a view; name one or several of {KINDS}, commas between")
    if name in ("whole", "flip"):
        return FLIP if name == "flip" else WHOLE
    if not (found := re.fullmatch(r"center([-+.0-9]\S*)?", name)):
        near = did_you_mean(name, ["whole", "center0.8", "flip"])
        raise ValueError(f"query_views={quoted(asked)}: there is no view {quoted(name)}; there are {KINDS}.{near}")
    try:
        share = float(found[1] or "")
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(
            f"query_views={quoted(asked)}: {quoted(name)} names no share of each side above 0 and up to 1; "
            "write it as center0.8"
        )
    return View(share)


def each_asked(
    pictures: Sequence[Sequence[Picture]], conditions: Sequence[Condition]
) -> tuple[list[Picture], list[Condition]]:
    """Pictures by their views, and conditions -> every view under every condition, as two lists of one length: all
    views of the first picture under the first condition, then under the second, ..., then those of the second picture.
    """
    looks = [look for views in pictures for _ in conditions for look in views]
    return looks, [condition for views in pictures for condition in conditions for _ in views]


def averaged(rows: np.ndarray) -> np.ndarray:
    """Unit rows (..., V, dim) of V views -> their mean (..., dim), of length 1 again. One view's rows stay as they are.

    (Views whose rows cancel out have no mean, and give what is not a number; no two looks at one picture do.)
    """
    if rows.shape[-2] == 1:
        return rows[..., 0, :]
    mean = rows.mean(-2)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
