"""Files of kilobytes that would take gigabytes are refused before they are decoded; what programs write is not."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from made import encode, noise
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lrvsf.data.bounds.avif import avif_pixels
from lrvsf.data.images import FORMATS, BadImage, decode_image


def tiff(entries, order="<", large=False, body=b""):
    """A TIFF of one directory, [(tag, type, count, value)], behind 8 or 16 bytes of head and the body."""
    head = struct.pack(order + "2sH", b"II" if order == "<" else b"MM", 43 if large else 42)
    start = (16 if large else 8) + len(body)
    head += struct.pack(order + ("HHQ" if large else "I"), *((8, 0, start) if large else (start,)))
    short = {3: "H"}
    rows = b""
    for tag, kind, count, value in entries:
        number = short.get(kind, "Q" if large else "I")
        rows += struct.pack(order + ("HHQ" if large else "HHI"), tag, kind, count)
        rows += struct.pack(order + number, value).ljust(8 if large else 4, b"\0")
    return head + body + struct.pack(order + ("Q" if large else "H"), len(entries)) + rows + bytes(8)


def picture(width=16, height=16, tile=(), further=()):
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    entries += [(322 + i, 4, 1, side) for i, side in enumerate(tile)]
    return [*entries, *further]


def segment(marker, content):
    return b"\xff" + marker + struct.pack(">H", len(content) + 2) + content


def before_scan(data, insert):
    """A JPEG with something before its first scan."""
    place = data.index(b"\xff\xda")
    return data[:place] + insert + data[place:]


def chunks(data, count, kind=b"teSt"):
    """A PNG with further chunks before its end."""
    return data[:-12] + (struct.pack(">I4s", 0, kind) + bytes(4)) * count + data[-12:]


def overlapping_exif(entries, size):
    """A directory whose entries all hold the same bytes."""
    return b"Exif\0\0" + tiff([(1000 + i, 7, size, 8) for i in range(entries)], body=bytes(size))


def hexadecimal_exif(entries, size):
    """A PNG with metadata as ImageMagick writes them."""
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n 9\n" + overlapping_exif(entries, size).hex(), zip=True)
    return encode(noise(), pnginfo=info)


FRAME = b"\x32\x00"  # the head of a unit of an AV1 stream, and its length


def avif_stream(width, height, whole=False):
    """A sequence header by the AV1 specification, and one frame, which is empty."""
    fields = [(0, 3), (1, 1), (0, 1)] if whole else [(0, 3), (1, 1), (1, 1), (8, 5)]
    if whole:  # with timing and a decoder model, of one operating point
        fields += [(1, 1), (1, 32), (25, 32), (1, 1), (0b00101, 5), (1, 1), (9, 5), (1, 32), (9, 5), (9, 5)]
        fields += [(1, 1), (0, 5), (0, 12), (8, 5), (0, 1), (1, 1), (3, 10), (3, 10), (0, 1), (1, 1), (9, 4)]
    sides = [max((side - 1).bit_length(), 1) for side in (width, height)]
    fields += [(sides[0] - 1, 4), (sides[1] - 1, 4), (width - 1, sides[0]), (height - 1, sides[1])]
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    header = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return b"\x0a" + bytes([len(header)]) + header + FRAME


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def avif(width, height, more=b"", whole=False, item=None, items=None):
    """A container whose item, and another one if given, is in its `idat`; all else that a picture needs is missing."""
    parts = [avif_stream(width, height, whole) + more, *([] if item is None else [item])]
    places = [sum(map(len, parts[:number])) for number in range(len(parts))]
    located = [struct.pack(">4H2I", n, 1, 0, 1, *at) for n, at in enumerate(zip(places, map(len, parts), strict=True))]
    iloc = box(b"iloc", struct.pack(">B3xHH", 1, 0x4400, items or len(parts)) + b"".join(located))
    return box(b"ftyp", b"avif" + bytes(4) + b"avif") + box(b"meta", bytes(4) + iloc + box(b"idat", b"".join(parts)))


JPEG, PNG, GIF = encode(noise(), "JPEG"), encode(noise()), encode(noise().quantize(16), "GIF")
EMPTY_SCAN = segment(b"\xda", b"\x01\x01\x00\x01\x3f\x10")  # one more bit of each frequency, of which there are none
BOMBS = {
    "a tile of 26,000 x 26,000": (tiff(picture(tile=(26000, 26000))), "too large"),
    "a tile of 26,000 x 26,000, from the other end": (tiff(picture(tile=(26000, 26000)), ">"), "too large"),
    "the same in a BigTIFF": (tiff(picture(tile=(26000, 26000)), large=True), "too large"),
    "the same for 8,000 x 8,000": (tiff(picture(8000, 8000, (26000, 26000))), "too large"),
    "a tile of 16 x 40,000,000": (tiff(picture(tile=(16, 40_000_000))), "too large"),
    "a tile that only one reader sees": (tiff(picture(tile=(26000, 26000), further=[(322, 4, 1, 16)])), "damaged"),
    "a width that only one reader sees": (tiff(picture(further=[(256, 4, 1, 60000)])), "damaged"),
    "16 million strips": (tiff(picture(further=[(273, 4, 2**24, 8)])), "too many parts"),
    "5,000 entries": (tiff([(i, 3, 1, 0) for i in range(5000)]), "too many parts"),
    "entries that share their bytes": (
        tiff([(i, 7, 2**20, 8) for i in range(100)], body=bytes(2**20)),
        "too many parts",
    ),
    "200 scans": (JPEG[:-2] + EMPTY_SCAN * 200 + JPEG[-2:], "too many parts"),
    "200 scans with restarts": (JPEG[:-2] + (EMPTY_SCAN + b"\xff\xd0\xff\x00") * 200, "too many parts"),
    "fill bytes before the scan": (before_scan(JPEG, b"\xff" * 100_000), "too many parts"),
    "fill bytes within the scan": (JPEG[:-2] + b"\xff" * 100_000 + JPEG[-2:], "too many parts"),
    "escaped bytes before the scan": (before_scan(JPEG, b"\xff\x00" * 20_000), "too many parts"),
    "20,000 segments": (JPEG[:2] + segment(b"\xfe", b"") * 20_000 + JPEG[2:], "too many parts"),
    "EXIF that shares its bytes": (
        JPEG[:2] + segment(b"\xe1", overlapping_exif(2500, 30_000)) + JPEG[2:],
        "too many parts",
    ),
    "150,000 chunks": (chunks(PNG, 150_000), "too many parts"),
    "a GIF of 20,000 comments": (GIF[: 13 + 48] + b"!\xfe\x01x\x00" * 20_000 + GIF[13 + 48 :], "too many parts"),
    "a GIF of one comment in 20,000 blocks": (
        GIF[: 13 + 48] + b"!\xfe" + b"\x01x" * 20_000 + b"\0" + GIF[13 + 48 :],
        "too many parts",
    ),
    "a GIF of 20,000 empty bytes": (GIF[: 13 + 48] + b"\0" * 20_000 + GIF[13 + 48 :], "too many parts"),
    "a run-length coded BMP": (
        struct.pack("<2sIIIIiiHHII", b"BM", 0, 0, 54, 40, 9, 9, 1, 8, 1, 0) + bytes(2**23),
        "too large",
    ),
    "65 MiB": (PNG + bytes(2**26), "too large"),
    "a JPEG's list of pictures whose entries share their bytes": (
        JPEG[:2] + segment(b"\xe2", b"MPF\0" + overlapping_exif(2500, 30_000)[6:]) + JPEG[2:],
        "too many parts",
    ),
    "a PNG whose EXIF, in hexadecimal digits, share their bytes": (hexadecimal_exif(2500, 30_000), "too many parts"),
    "AVIF of 16 x 16, from a frame of 16384 x 16384": (avif(16384, 16384), "too large"),
    "the same in a file without its end": (avif(16384, 16384)[:-1], "too large"),
    "the same behind a small one": (avif(16, 16, avif_stream(16384, 16384)), "too large"),
    "an AVIF of four frames that are kept": (avif(8192, 4096, FRAME * 3), "too large"),
    "an AVIF whose frames have sizes of their own": (avif(8192, 8193, whole=True), "too large"),
    "an AVIF whose tiles make 16384 x 16384": (
        avif(16, 16, item=struct.pack(">4B2H", 0, 0, 9, 9, 16384, 16384)),
        "too large",
    ),
    "an AVIF of 20,000 boxes": (avif(16, 16) + box(b"free", b"") * 20_000, "too many parts"),
    "an AVIF of 20,000 units": (avif(16, 16, b"\x12\0" * 20_000), "too many parts"),
    "an AVIF whose list of items is cut": (avif(16, 16, items=9), "damaged"),
    "WebP of 8192 x 8192": (
        b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x07\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0",
        "too large",
    ),
}


@pytest.mark.survives(
    "a TIFF of huge tiles, a JPEG of a thousand scans, metadata that repeat their bytes, files of a million parts",
    "skipped before decoding, counted by reason",
)
@pytest.mark.parametrize("fault", BOMBS)
def test_bombs(fault):
    data, reason = BOMBS[fault]
    with pytest.raises(BadImage) as error:
        decode_image(data)
    assert error.value.reason == reason, error.value


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow was built without AVIF")
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 300), (1000, 3), (3, 1025), (257, 255)])
def test_the_frames_of_an_avif_are_as_large_as_its_picture(size):
    for mode, channels in (("RGB", "4:2:0"), ("RGB", "4:4:4"), ("L", "4:0:0"), ("RGBA", "4:2:0")):
        picture = noise(*size).convert(mode)
        if mode == "RGBA":
            picture.putalpha(noise(*size).convert("L"))
        data = encode(picture, "AVIF", subsampling=channels, speed=10)
        assert avif_pixels(data) == size[0] * size[1] * (2 if mode == "RGBA" else 1)  # alpha is a stream of its own
        assert decode_image(data).size == size
    moving = encode(noise(*size), "AVIF", save_all=True, append_images=[noise(*size).rotate(180)] * 12, speed=10)
    sides = [2 ** max((side - 1).bit_length(), 1) for side in size]
    assert avif_pixels(moving) == 2 * sides[0] * sides[1]  # the picture, and the first sample of its track
    assert decode_image(moving).size == size


def test_what_programs_write_is_no_bomb():
    """The limits are for files that nobody writes: the pixels are those of Pillow alone."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker" * 1000
    large = noise(700, 500)
    files = [encode(large, "JPEG", progressive=True, exif=exif, comment=b"c" * 60_000, icc_profile=bytes(200_000))]
    files += [encode(large, "JPEG", restart_marker_blocks=1), before_scan(JPEG, b"\xff" * 1000)]
    files += [encode(large, "TIFF", compression=how) for how in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    files += [encode(large, "TIFF", big_tiff=True), encode(large, "PNG", exif=exif), chunks(PNG, 5000)]
    files += [encode(large.quantize(256), "GIF", save_all=True, append_images=[large.quantize(9)], comment=b"c" * 9000)]
    files += [encode(large, "BMP"), encode(large, "WEBP", exif=exif, lossless=True)]
    for data in files:
        assert np.array_equal(decode_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of memory are Linux's here")
def test_the_largest_images_take_less_than_a_gigabyte():
    """In a process that may take 1 GB more than its imports."""
    code = (
        "import io, resource; from PIL import Image; from lrvsf.data.images import *\n"
        "from lrvsf.data.foreign.shown import as_shown\n"
        "def encoded(size, form, mode='RGB', **options):\n"
        "    out = io.BytesIO(); Image.new(mode, size).save(out, form, **options); return out.getvalue()\n"
        "files = [encoded((MAX_SIDE, 6144), 'WEBP', lossless=True, quality=0, method=0)]\n"
        "files += [encoded((MAX_SIDE, MAX_SIDE), 'TIFF', compression='tiff_deflate')]\n"
        "shown = [encoded((MAX_SIDE, MAX_SIDE), 'PNG', mode, compress_level=1) for mode in ('LA', 'I;16')]\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, used + 10**9))\n"
        "for data in files: decode_image(data).load()\n"
        "for data in shown: decode_image(data, lambda image: as_shown(image, [])).load()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode == 0
