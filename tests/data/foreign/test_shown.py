"""A catalog's pictures as a browser shows them: EXIF, transparency, 16 bits."""

import io

import numpy as np
import pytest
from made import encode, rows_of, write_csv, write_file
from PIL import Image, ImageOps

from lrvsf.data.foreign.shown import ON_WHITE, SCALED, UPRIGHT, as_shown, decode_shown, is_shown_as_stored
from lrvsf.data.images import decode_image
from lrvsf.prepare.catalog.write_catalog import catalog, fetch


def shown(data):
    changes = []
    return np.asarray(decode_image(data, lambda image: as_shown(image, changes))), changes


def corner(orientation, kind="PNG", size=(8, 4)):
    """A picture whose upper left is red, with an EXIF tag."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif)


# Where the red corner of the stored picture is on the screen, by the EXIF standard: (bottom, right), and the shape.
@pytest.mark.parametrize(
    "orientation, place, height",
    [
        *((2, (0, 1), 4), (3, (1, 1), 4), (4, (1, 0), 4)),
        *((5, (0, 0), 8), (6, (0, 1), 8), (7, (1, 1), 8), (8, (1, 0), 8)),
    ],
)
def test_every_orientation_is_turned_upright(orientation, place, height):
    pixels, changes = shown(corner(orientation))
    assert changes == [UPRIGHT] and len(pixels) == height
    red = np.argwhere(pixels[..., 0] == 255).mean(axis=0) > np.array(pixels.shape[:2]) / 2
    assert tuple(red.astype(int)) == place
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(corner(orientation))))
    assert np.array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_format_is_turned_once(kind):
    pixels, _ = shown(corner(6, kind, (64, 32)))
    assert pixels.shape == (64, 32, 3)
    assert pixels[8, 24, 0] > 200 > 60 > pixels[56, 24, 0], "red is at the upper right"


@pytest.mark.parametrize("orientation", [0, 1, 9, 300])
def test_what_stands_upright_keeps_its_bytes(orientation, tmp_path):
    data = corner(orientation)
    assert fetch(data, 256, tmp_path)[0] == data and fetch(data, 256, tmp_path)[2] == []


def test_broken_exif_harms_nothing():
    data = corner(6, "JPEG").replace(b"MM\x00*", b"XX\x00*").replace(b"II*\x00", b"XX*\x00")
    pixels, changes = shown(data)
    assert pixels.shape == (4, 8, 3) and changes == []


def test_transparency_is_put_on_white():
    cutout = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    cutout.paste((0, 0, 0, 255), (0, 0, 2, 4))
    cutout.putpixel((3, 0), (255, 0, 0, 51))  # a fifth of red on white
    expected = np.full((4, 4, 3), 255)
    expected[:, :2] = 0
    expected[0, 3] = 255, 204, 204
    for data in (encode(cutout, "PNG"), encode(cutout, "WEBP", lossless=True, exact=True)):
        pixels, changes = shown(data)
        assert np.array_equal(pixels, expected) and changes == [ON_WHITE]
    assert np.asarray(decode_image(encode(cutout, "PNG")))[0, 2].tolist() == [0, 0, 0], "published: black"
    flat = Image.new("L", (4, 4), 0)
    for data in (encode(flat, "PNG", transparency=0), encode(flat.convert("P"), "GIF", transparency=0)):
        pixels, changes = shown(data)
        assert (pixels == 255).all() and changes == [ON_WHITE]


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    data = encode(Image.new("RGBA", (4, 4), (9, 8, 7, 255)), "PNG")
    assert fetch(data, 256, tmp_path)[0] == data and fetch(data, 256, tmp_path)[2] == []


def test_the_transparent_shade_of_16_bits_is_put_on_white():
    pixels, changes = shown(encode(Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), "PNG", transparency=0))
    assert pixels[0, :, 0].tolist() == [255, 1, 255] and changes == [ON_WHITE, SCALED]


def test_16_bits_are_scaled():
    """A ramp of all 65,536 levels becomes all 256, 257 levels in 1, and not one white field."""
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(np.arange(2**16) / 257).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(ramp), kind)
        pixels, changes = shown(data)
        assert changes == [SCALED] and np.array_equal(pixels, np.repeat(expected[..., None], 3, 2))
        assert (np.asarray(decode_image(data)) == 255).mean() > 0.99, "published"
    dark = encode(Image.fromarray(np.full((2, 2), 2570, np.uint16)), "PNG")
    assert shown(dark)[0].tolist() == [[[10] * 3] * 2] * 2, "dark stays dark"


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 0.5, 1, np.nan]], np.float32), [0, 128, 255, 0]),
        (np.array([[0, 0.5, np.inf, -np.inf]], np.float32), [0, 128, 255, 0]),
        (np.array([[0, 51, 255, -3]], np.float32), [0, 51, 255, 0]),
        (np.array([[0, 257, 65535, 1]], np.int32), [0, 1, 255, 0]),
        (np.array([[0, 100_000, 200_000, 50_000]], np.int32), [0, 128, 255, 64]),
        (np.zeros((1, 4), np.float32), [0, 0, 0, 0]),
    ],
)
def test_wider_grey_has_the_smallest_range_that_holds_it(values, expected):
    pixels, changes = shown(encode(Image.fromarray(values), "TIFF"))
    assert pixels[0, :, 1].tolist() == expected and changes == [SCALED]


@pytest.mark.survives(
    "catalog: pictures on their side by EXIF, transparent cut-outs, 16-bit grey",
    "are turned upright, put on white and scaled when they are prepared; counted and named",
)
def test_a_catalog_is_put_right_and_says_so(tmp_path):
    cutout = Image.new("RGBA", (600, 300), (0, 0, 0, 0))
    cutout.paste((0, 0, 0, 255), (0, 0, 300, 300))
    images = {"a.jpg": corner(6, "JPEG", (640, 320)), "b.png": corner(3), "c.png": encode(cutout, "PNG")}
    images["d.png"] = encode(Image.fromarray(np.full((9, 9), 25700, np.uint16)), "PNG")
    for name, data in images.items():
        write_file(tmp_path / name, data)
    rows = [(f"p{i}", name, "product", "Bags", "") for i, name in enumerate(images)]
    for i in range(4):
        write_file(tmp_path / f"scene{i}.png", encode(Image.new("RGB", (9, 9 + i)), "PNG"))
        rows.append((f"p{i}", f"scene{i}.png", "scene", "", ""))
    report = catalog(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", validation=0, test=0, processes=1)
    assert report["images written anew"] == {UPRIGHT: 2, ON_WHITE: 1, SCALED: 1}
    assert "d.png" in report["images written anew, the first"][SCALED]
    found = {row["product_id"]: row["images"][0]["image"]["bytes"] for row in rows_of(tmp_path / "out/train")}
    large, small, white, grey = (np.asarray(decode_image(found[f"p{i}"])) for i in range(4))
    assert large.shape == (512, 256, 3) and large[64, 192, 0] > 200 and large[448, 192, 0] < 60, "upright, then smaller"
    assert small.shape == (4, 8, 3) and small[3, 7, 0] > small[0, 0, 0]
    assert white[:, :200].max() < 10 and white[:, 300:].min() > 245
    assert (np.abs(grey.astype(int) - 100) <= 1).all()
    assert all(Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) == 1 for data in found.values())


def with_alpha(kind, clear):
    image = Image.new("RGBA", (8, 4), (200, 30, 30, 255))
    image.putpixel((1, 1), (0, 0, 0, 0 if clear else 255))
    return encode(image, kind)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        *((corner(turn, kind), turn == 1) for turn in (1, 3, 6) for kind in ("PNG", "JPEG", "WEBP", "TIFF")),
        *((with_alpha(kind, clear), False) for kind in ("PNG", "TIFF") for clear in (False, True)),
        *((encode(Image.new(mode, (8, 4))), False) for mode in ("LA", "I;16")),
        (encode(Image.new("I", (8, 4)), "TIFF"), False),
        *((encode(Image.new(mode, (8, 4)), kind), True) for mode in ("L", "P", "1") for kind in ("PNG", "TIFF")),
        *((encode(Image.new("CMYK", (8, 4)), kind), True) for kind in ("JPEG", "TIFF")),
        (encode(Image.new("P", (8, 4)), "GIF", transparency=0), False),
        (encode(Image.new("P", (8, 4)), "PNG", transparency=0), False),
    ],
)
def test_the_head_tells_what_is_shown_as_it_is_stored(data, told):
    assert is_shown_as_stored(data) == told
    if told:
        assert np.array_equal(np.asarray(decode_shown(data)), np.asarray(decode_image(data)))
