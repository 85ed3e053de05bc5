"""How many pixels an AVIF makes its decoder hold, which its picture's size does not tell.

An AVIF says how large its picture is, and the AV1 streams that it is decoded from say how large their frames are: a
picture of 16 x 16 pixels may be scaled down from a frame of 16384 x 16384. So the streams are found, as libavif finds
them: the items of a still picture by their extents, the first sample of each track of an animation.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from itertools import product

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # types of an AV1 stream's units
HEADER_BYTES = 512  # of a sequence header, up to the size of its frames
MAX_PARTS = 10_000  # boxes in a row, fields of the list of items, units of a stream
MAX_FRAMES = 9  # a decoder holds eight that others refer to, and the one under way
TRACKS = {b"trak", b"mdia", b"minf", b"stbl"}  # boxes that lead to where a track's samples are


class TooManyParts(ValueError):
    """Far more of something than programs write."""


Stream = tuple[int, int]  # pixels of the largest frame, 0 where it does not say; frames


def avif_pixels(data: bytes) -> int:
    """Pixels of all frames that may be held at once, or of the largest grid that tiles are put together to.

    Raises:
        struct.error, IndexError: the file is cut short or damaged.
        TooManyParts.
    """
    streams, grids = [], [0]
    for item in _items(data):
        if len(item) in (8, 12) and item[0] == 0:  # no stream begins with 0
            grids.append(math.prod(struct.unpack_from(">HH" if len(item) == 8 else ">II", item, 4)))
        else:
            streams.append(_stream(item))
    largest = max((pixels for pixels, _ in streams), default=0)  # one decoder may be given one stream after another
    return max(*grids, sum((pixels or largest) * min(frames, MAX_FRAMES) for pixels, frames in streams))


def _items(data: bytes) -> Iterator[bytes]:
    for kind, body in _boxes(data):
        if kind == b"meta":
            inner = list(_boxes(body[4:]))
            stored = next((content for name, content in inner if name == b"idat"), b"")
            for name, content in inner:
                if name == b"iloc":
                    yield from _located(content, data, stored)
        elif kind == b"moov":
            yield from _first_samples(body, data)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the boxes that follow each other."""
    place = 0
    for _ in _few():
        if place + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, place)
        start = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, place + 8)
            start = 16
        size = size or len(data) - place  # 0: up to the end
        if size < start:
            return
        yield kind, data[place + start : place + size]
        place += size


def _few() -> Iterator[int]:
    yield from range(MAX_PARTS)
    raise TooManyParts(f"an AVIF of more than {MAX_PARTS} parts in a row")


def _located(iloc: bytes, data: bytes, stored: bytes) -> Iterator[bytes]:
    """The items, each put together from its extents, which are in the file or in its `idat`."""
    version, sizes = iloc[0], struct.unpack_from(">H", iloc, 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    number = 4 if version == 2 else 2
    place, left, few = 6 + number, 2 * len(data), _few()

    def take(size: int) -> int:
        nonlocal place
        next(few)
        place += size
        if place > len(iloc):
            raise IndexError("the list of items is cut short")
        return int.from_bytes(iloc[place - size : place], "big")

    for _ in range(int.from_bytes(iloc[6:place], "big")):
        take(number)
        method = take(2) & 15 if version else 0
        take(2)
        base, parts = take(base_size), []
        for _ in range(take(2)):
            take(index_size)
            start, length = base + take(offset_size), take(length_size)
            parts.append((stored if method == 1 else data)[start:][: length or None])
            left -= len(parts[-1])
            if left < 0:
                raise IndexError("items that overlap")
        yield b"".join(parts)


def _first_samples(box: bytes, data: bytes) -> Iterator[bytes]:
    """Of each track, which a chunk begins with."""
    places, sizes = [], []
    for kind, body in _boxes(box):
        if kind in TRACKS:
            yield from _first_samples(body, data)
        elif kind in (b"stco", b"co64") and struct.unpack_from(">I", body, 4)[0]:
            places += struct.unpack_from(">I" if kind == b"stco" else ">Q", body, 8)
        elif kind == b"stsz" and struct.unpack_from(">I", body, 8)[0]:
            sizes.append(struct.unpack_from(">I", body, 4)[0] or struct.unpack_from(">I", body, 12)[0])
    for (place, size), _ in zip(product(places, sizes), _few(), strict=False):
        yield data[place : place + size]


def _stream(data: bytes) -> Stream:
    place, pixels, frames = 0, 0, 0
    for _ in _few():
        if place >= len(data):
            break
        head = data[place]
        place += 2 if head & 4 else 1
        size = len(data) - place
        if head & 2:
            size, place = _leb128(data, place)
        kind = head >> 3 & 15
        if kind == SEQUENCE_HEADER:
            pixels = max(pixels, _frame_pixels(data[place : place + min(size, HEADER_BYTES)]))
        frames += kind in (FRAME_HEADER, FRAME)
        place += size
    return pixels, frames


def _leb128(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first."""
    number = shift = 0
    for byte in data[place : place + 8]:
        number, shift, place = number | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            break
    return number, place


def _frame_pixels(header: bytes) -> int:
    """The largest frame that a sequence header admits."""
    bits, place = int.from_bytes(header, "big"), 8 * len(header)

    def take(count: int) -> int:
        nonlocal place
        place -= count
        if place < 0:
            raise IndexError("a sequence header that is cut short")
        return bits >> place & (1 << count) - 1

    take(4)
    still = take(1)  # a header without what a single picture does not need, whose frame is as large as it says
    if still:
        take(5)
    else:
        _pass_operating_points(take)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    width, height = take(width_bits) + 1, take(height_bits) + 1
    # A frame of a whole header may have a size of its own, within these bits.
    return width * height if still else 1 << width_bits + height_bits


def _pass_operating_points(take: Callable[[int], int]) -> None:
    delay_bits = 0
    if take(1):  # timing
        take(64)
        if take(1):
            zeros = 0
            while zeros < 32 and not take(1):
                zeros += 1
            take(zeros)
        if take(1):  # decoder model
            delay_bits = take(5) + 1
            take(42)
    display_delay = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if delay_bits and take(1):
            take(2 * delay_bits + 1)
        if display_delay and take(1):
            take(4)
