"""A shop's picture as a browser shows it: upright, on white, in 8 bits.

The published preprocessing does none of this, and training and evaluation read a file as it does: EXIF ignored, what is
transparent mostly black, 16-bit grey nearly all white. So a catalog's pictures are put right once, when they are
prepared; what the published routes write stays as it came.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from lrvsf.data.images import FORMATS, decode_image

UPRIGHT = "turned upright, as EXIF says"
ON_WHITE = "transparent, put on white"
SCALED = "grey of 16 bits or more, scaled to 8"

BAND = 256  # rows that are worked on at a time

ORIENTATION = 0x0112
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def as_shown(image: Image.Image, changes: list[str]) -> Image.Image:
    """RGB; `changes` gets one of the three names above for each thing that a plain conversion would have got wrong."""
    image.load()  # before EXIF is asked: Pillow turns a TIFF itself, and takes the tag away
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        changes.append(UPRIGHT)
    if _has_many_bits(image):
        grey = _to_8_bits(image)  # a plain conversion clips: all from 256 on would be white
        if isinstance(clear := image.info.get("transparency"), int):  # the shade that a PNG shows nothing for
            grey = np.where(np.asarray(image) == clear, np.uint8(255), grey)
            changes.append(ON_WHITE)
        image = Image.fromarray(grey)
        changes.append(SCALED)
    elif image.has_transparency_data and _shines_through(image):
        image = _on_white(image)
        changes.append(ON_WHITE)
    # Turned last, as three bytes a pixel.
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def decode_shown(data: bytes | None) -> Image.Image:
    """Encoded bytes as an RGB image in memory, as a browser shows it. Raises BadImage."""
    return decode_image(data, lambda image: as_shown(image, []))


def is_shown_as_stored(data: bytes) -> bool:
    """Whether `decode_shown` gives what the published, plain conversion gives, told by the head of a whole file.

    Where the head does not tell, as of an alpha channel that may be opaque, the answer is no.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    return not (_has_many_bits(image) or image.has_transparency_data or _orientation(image) in TURNS)


def _has_many_bits(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # as with pixels, damaged EXIF raises nearly anything; the picture is there all the same
        return None


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, picture) of its parts, from the top: whole copies of a large one would be a gigabyte together."""
    for top in range(0, image.height, BAND):
        yield top, image.crop((0, top, image.width, min(top + BAND, image.height)))


def _shines_through(image: Image.Image) -> bool:
    # Most pictures with an alpha channel are opaque all over: they keep the bytes that they came with.
    return any(band.convert("RGBA").getchannel("A").getextrema()[0] < 255 for _, band in _bands(image))


def _on_white(image: Image.Image) -> Image.Image:
    shown = Image.new("RGB", image.size)
    for top, band in _bands(image):
        layers = Image.new("RGBA", band.size, "white"), band.convert("RGBA")
        shown.paste(Image.alpha_composite(*layers).convert("RGB"), (0, top))
    return shown


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """uint8 (height, width). 16 bits are 0 to 65535, whatever a picture uses of them, so that two stay comparable.

    Floats and integers of 32 bits have no such range: white is the smallest of 1 (of floats), 255 (of floats) and 65535
    that holds the picture, or its own largest finite value. What is not a number is black, what is infinite white.
    """

    def values(band: Image.Image) -> np.ndarray:
        return np.asarray(band).astype(np.float64)

    largest = max(v.max(initial=0.0, where=np.isfinite(v)) for v in (values(band) for _, band in _bands(image)))
    ranges = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((top for top in ranges if largest <= top), largest)
    scaled = np.empty((image.height, image.width), np.uint8)
    for top, band in _bands(image):
        finite = np.nan_to_num(values(band), nan=0.0, posinf=white, neginf=0.0)
        scaled[top : top + BAND] = np.rint(np.clip(finite / white, 0, 1) * 255)
    return scaled
