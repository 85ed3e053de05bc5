"""Image files whose decoding would take far more time or memory than their pixels do, found before they are opened.

A file's size in pixels says nothing of what a decoder does on the way there: a TIFF of 16 x 16 pixels may be cut from
one tile of 26,000 x 26,000, a JPEG may refine its pixels in a thousand scans, and a reader that takes markers, blocks
or directory entries one by one can be given millions. So the structure of a file is walked first, from length to
length, without a pixel being decoded. The limits are far above what cameras and programs write.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from lrvsf.data.bounds.avif import TooManyParts, avif_pixels

MAX_PARTS = 10_000  # segments before a JPEG's first scan, blocks of a GIF's comments
MAX_CHUNKS = 100_000  # of a PNG: some programs write its pixels in pieces of 1 kB
MAX_SCANS = 100  # of a JPEG; progressive ones have some ten, and each takes as long as the whole picture
MAX_FILL_BYTES = 2**16  # of a JPEG, between its segments
MAX_RUNS = 2**22  # bytes of a run-length coded BMP, which Pillow reads in Python
MAX_TILE_PIXELS = 2**22  # of a TIFF's tile, or four times its picture if that is more
MAX_TILE = 2**26
MAX_ENTRIES, MAX_VALUES = 4096, 2**18  # of a TIFF's directory, and of one of its entries
MAX_OVERLAP = 2**24
MAX_AVIF_PIXELS = 8192 * 8192  # of the frames that an AVIF's decoder holds, each of up to six bytes a pixel

TOO_LARGE, TOO_MANY_PARTS, DAMAGED = "too large", "too many parts", "damaged"

# (reason, detail) of a file that is not decoded
Fault = tuple[str, str]


def bomb(data: bytes) -> Fault | None:
    """Why a file must not be opened, or None. What is merely damaged is left to the decoder."""
    if data[4:8] == b"ftyp":
        return _avif(data)
    for magic, fault in _FAULTS.items():
        if data.startswith(magic):
            try:
                return fault(data)
            except (struct.error, IndexError):  # cut short
                return None
    return None


def exif_bomb(exif: bytes | None) -> Fault | None:
    """Why metadata must not be read, or None: they are a TIFF's directory, in which entries can share their bytes."""
    body = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    taken = 0
    try:
        for _, kind, count, _ in _entries(body) if body[:2] in (b"II", b"MM") else ():
            taken += min(_TYPES.get(kind, 1) * count, len(body))
    except struct.error:
        pass  # cut short: what came before counts
    return (TOO_MANY_PARTS, "metadata of very many values") if taken > _most(body) else None


def _most(body: bytes) -> int:
    """Bytes that the entries of a directory may hold: they may be damaged, and then overlap a little."""
    return 2 * len(body) + MAX_OVERLAP


# What follows a JPEG's segment up to the next: stuffed bytes and restart markers belong to a scan, the rest is skipped.
_SCAN = re.compile(rb"(?:[^\xff]++|\xff[\x00\xd0-\xd7])*+")
_FILL = re.compile(rb"\xff*+")
_ESCAPED = re.compile(rb"(?:\xff\x00)*+")


def _jpeg(data: bytes) -> Fault | None:
    place, scans, parts, fill, exif = 2, 0, 0, 0, []
    while place < len(data):
        if scans:
            place = _SCAN.match(data, place).end()
        else:  # Pillow itself reads up to here, and takes an escaped byte for a part of its own
            start, place = place, _ESCAPED.match(data, place).end()
            parts += (place - start) // 2
        start, place = place, _FILL.match(data, place).end()
        fill += max(place - start - 1, 0)
        parts += 1
        marker = data[place]
        scans += marker == 0xDA
        if marker == 0xDA and scans == 1 and (fault := exif_bomb(b"".join(exif))):
            return fault
        if fill > MAX_FILL_BYTES or parts > MAX_PARTS:
            return TOO_MANY_PARTS, "a JPEG of very many segments or fill bytes"
        if scans > MAX_SCANS:
            return TOO_MANY_PARTS, f"a JPEG of more than {MAX_SCANS} scans"
        if marker == 0xD9 or place == start:  # the end, or no marker
            break
        place += 1
        if marker > 0x01 and not 0xD0 <= marker <= 0xD8:
            length = int.from_bytes(data[place : place + 2], "big")
            if marker == 0xE1 and data[place + 2 : place + 8] == b"Exif\0\0":
                exif.append(data[place + 8 : place + length])
            # The directory of further pictures, which Pillow reads as it opens the file.
            further = data[place + 6 : place + length] if marker == 0xE2 else b""
            if data[place + 2 : place + 6] == b"MPF\0" and (fault := exif_bomb(further)):
                return fault
            place += max(length, 2)
    return None


def _png(data: bytes) -> Fault | None:
    place = 8
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return None
        if kind == b"eXIf" and (fault := exif_bomb(data[place + 8 : place + 8 + length])):
            return fault
        place += 12 + length
    return TOO_MANY_PARTS, f"a PNG of more than {MAX_CHUNKS} chunks"


def _gif(data: bytes) -> Fault | None:
    colors = 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0  # bytes of their table
    place, blocks = 13 + colors, 0
    # Up to the first picture; Pillow passes over bytes that begin neither it nor an extension.
    while data[place] != 0x2C:
        extension = data[place] == 0x21
        place, blocks = place + (2 if extension else 1), blocks + 1
        while extension and (length := data[place]):
            place, blocks = place + 1 + length, blocks + 1
        place += extension
        if blocks > MAX_PARTS:
            return TOO_MANY_PARTS, f"a GIF of more than {MAX_PARTS} blocks before its picture"
    return None


def _avif(data: bytes) -> Fault | None:
    try:
        pixels = avif_pixels(data)
    except TooManyParts as error:
        return TOO_MANY_PARTS, str(error)
    except (struct.error, IndexError) as error:  # libavif may be content with what could not be followed here
        return DAMAGED, f"an AVIF whose streams are not found ({error})"
    return (TOO_LARGE, f"an AVIF with frames of {pixels} pixels") if pixels > MAX_AVIF_PIXELS else None


def _bmp(data: bytes) -> Fault | None:
    if len(data) > MAX_RUNS and struct.unpack_from("<I", data, 14)[0] >= 40:
        compression = struct.unpack_from("<I", data, 30)[0]
        if compression in (1, 2):
            return TOO_LARGE, f"a run-length coded BMP of {len(data)} bytes"
    return None


# Bytes of a value by its type, in TIFF and EXIF.
_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323


def _tiff(data: bytes) -> Fault | None:
    found, taken = {}, 0
    for number, (tag, kind, count, value) in enumerate(_entries(data)):
        size = _TYPES.get(kind, 1)
        taken += min(size * count, len(data))
        if number >= MAX_ENTRIES or taken > _most(data) or (size > 1 and count > MAX_VALUES):
            return TOO_MANY_PARTS, "a directory of very many values"
        if tag in found:  # Pillow takes the last, libtiff the first
            return DAMAGED, f"a directory with tag {tag} twice"
        found[tag] = value
    if _TILE_WIDTH in found or _TILE_HEIGHT in found:
        tile = found.get(_TILE_WIDTH, 1) * found.get(_TILE_HEIGHT, 1)
        pixels = found.get(_WIDTH, 0) * found.get(_HEIGHT, 0)
        if tile > min(MAX_TILE, max(MAX_TILE_PIXELS, 4 * pixels)):
            return TOO_LARGE, f"a TIFF with a tile of {found.get(_TILE_WIDTH)} x {found.get(_TILE_HEIGHT)} pixels"
    return None


def _entries(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, value of a single number) of a TIFF's first directory, of either size of its offsets."""
    order = "<" if data[:2] == b"II" else ">"
    large = struct.unpack_from(order + "H", data, 2)[0] == 43
    place = struct.unpack_from(order + ("Q" if large else "I"), data, 8 if large else 4)[0]
    (count,) = struct.unpack_from(order + ("Q" if large else "H"), data, place)
    place += 8 if large else 2
    for start in range(place, place + count * (20 if large else 12), 20 if large else 12):
        tag, kind, values = struct.unpack_from(order + ("HHQ" if large else "HHI"), data, start)
        number = {3: "H", 4: "I", 16: "Q"}.get(kind, "B")
        yield tag, kind, values, struct.unpack_from(order + number, data, start + (12 if large else 8))[0]


_FAULTS: dict[bytes, Callable[[bytes], Fault | None]] = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG": _png,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"II": _tiff,
    b"MM": _tiff,
}
