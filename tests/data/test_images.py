"""Every way in which bytes fail to be an image, under its reason; and the counter that decides when it is enough."""

import io
import logging
from contextlib import nullcontext

import numpy as np
import pytest
from made import encode, noise, plain
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from lrvsf.data import images
from lrvsf.data.images import MAX_SIDE, BadImage, BadImageCounter, Tolerance, TooMuchDamage, decode_image


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "CMYK", "1", "I;16"])
def test_modes_are_converted_plainly(mode):
    source = Image.fromarray(np.full((5, 5), 700, np.uint16)) if mode == "I;16" else noise().convert(mode)
    data = encode(source, "TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(decode_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_transparency_is_dropped_not_blended():
    assert decode_image(encode(Image.new("RGBA", (2, 2), (10, 20, 30, 0)))).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_with_alpha_gives_its_colours(form):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    image = decode_image(encode(palette, form, transparency=0))
    assert image.mode == "RGB" and [image.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_one_pixel(form):
    image = decode_image(plain("black", (1, 1), form))
    assert image.size == (1, 1) and max(image.getpixel((0, 0))) < 4


@pytest.mark.survives("EXIF that divides by zero", "read as if it had none")
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_exif_that_divides_by_zero_harms_nothing(form):
    exif = Image.Exif()
    exif[0x0128], exif[0x0112] = 2, 1  # inches, upright
    exif[0x011A] = exif[0x011B] = IFDRational(72, 0)
    exif.get_ifd(0x8769)[0x829A] = IFDRational(1, 0)  # exposure time
    data = encode(noise(), form, exif=exif)
    assert b"\x1a\x01\x05\x00" in data or b"\x01\x1a\x00\x05" in data, "the resolution is there"
    assert np.array_equal(decode_image(data), decode_image(encode(noise(), form)))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.survives(
    "an image that is empty, cut short, HTML, SVG, or a decompression bomb", "skipped, counted by reason"
)
@pytest.mark.parametrize(
    "data, reason",
    [
        (None, "empty"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # never handed to Ghostscript
        (encode(noise(), "JPEG")[:500], "truncated"),
        (encode(noise(), "PNG")[:200], "truncated"),
        (encode(Image.new("1", (MAX_SIDE + 1, 1))), "too large"),  # a small area, but padding makes a square of it
        (encode(Image.new("1", (14000, 14000))), "too large"),  # over Pillow's own limit
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_bytes(data, reason):
    with pytest.raises(BadImage) as caught:
        decode_image(data)
    assert caught.value.reason == reason and reason in str(caught.value)


@pytest.mark.survives("random damage inside image files", "an image or a counted reason, nothing else")
@pytest.mark.filterwarnings("ignore")  # Pillow comments on every broken tag
def test_flipped_bytes_never_raise_anything_else():
    draw = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = np.frombuffer(encode(noise(12, 9), form), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[draw.integers(0, min(len(data), 120), 4)] = draw.integers(0, 255, 4)
            try:
                decode_image(data.tobytes())
            except BadImage as error:
                assert error.reason in ("not an image", "truncated", "damaged", "too large", "too many parts")


def test_counter_warns_at_powers_of_ten_and_names_the_row(caplog):
    counter = BadImageCounter("products", Tolerance(1, 1000))
    with caplog.at_level(logging.WARNING):
        for row in range(120):
            counter.add_bad(f"row {row}", BadImage("truncated", "12 bytes missing"))
    assert [record.args[0] for record in caplog.records] == ["row 0", "row 9", "row 99"]
    assert "row 0 (truncated: 12 bytes missing)" in caplog.messages[0]
    assert counter.bad == 120 and counter.reasons == {"truncated": 120}


@pytest.mark.survives("more than 1 % bad images", "the run ends with a table of reasons")
def test_counter_ends_the_run_with_a_table():
    counter = BadImageCounter(tolerance=Tolerance(in_a_row=1000))
    counter.add_good(20_000)
    for i in range(150):
        counter.add_bad(i, "empty")
    for i in range(52):
        counter.add_bad(i, "truncated")  # 202 of 20,202 are just below 1 %
    with pytest.raises(
        TooMuchDamage, match=r"203 of 20203 images are bad:\n +150  empty\n +53  truncated\n.*product-7"
    ):
        counter.add_bad("product-7", "truncated")


def test_counter_does_not_judge_few():
    counter = BadImageCounter()
    for i in range(99):
        counter.add_bad(i, "empty")
    with pytest.raises(TooMuchDamage):
        counter.add_bad(99, "empty")


@pytest.mark.survives("100 bad images in a row", "the run ends with a table of reasons")
def test_counter_ends_a_long_run_of_bad_images_whatever_their_share():
    counter = BadImageCounter(tolerance=Tolerance(in_a_row=3))
    counter.add_good(100_000)
    counter.add_bad(0, "empty")
    counter.add_bad(1, "empty")
    counter.add_good()
    counter.add_bad(2, "empty")
    counter.add_bad(3, "empty")
    with pytest.raises(TooMuchDamage, match="3 in a row, the last one row 4"):
        counter.add_bad("row 4", "empty")


@pytest.mark.parametrize(("good", "bad", "refused"), [(6, 4, False), (6, 5, True), (495, 5, False), (494, 5, True)])
def test_a_whole_pass_is_judged_from_five_bad_images_on(good, bad, refused):
    counter = BadImageCounter()
    counter.add_good(good)
    for i in range(bad):
        counter.add_bad(i, "empty")
    with pytest.raises(TooMuchDamage, match="max_bad_fraction") if refused else nullcontext():
        counter.finish()


@pytest.mark.parametrize(("seed", "share"), enumerate((0.1, 0.3, 0.6, 0.9, 1)))
def test_recounting_is_counting_once_more_in_silence(seed, share, caplog):
    """The twin counts row by row: the same counts, the same end, and nothing in the log."""
    bad = [(int(row), f"reason {row % 2}") for row in np.random.default_rng(seed).permutation(60)[: int(60 * share)]]
    ranges = ((0, 7), (7, 7), (7, 40), (40, 60))
    ends = []
    for again in (False, True):
        counter, end = BadImageCounter(tolerance=Tolerance(1, 6)), None
        caplog.clear()
        try:
            for start, stop in ranges:
                of_range = sorted(entry for entry in bad if start <= entry[0] < stop)
                if again:
                    counter.recount(start, stop, of_range)
                else:
                    count_one_by_one(counter, range(start, stop), dict(of_range))
        except TooMuchDamage as error:
            end = str(error)
        ends.append((end, counter.good, counter.reasons, counter.in_a_row))
    assert ends[0] == ends[1] and (share < 0.9 or "6 in a row" in ends[0][0]) and not caplog.text


def count_one_by_one(counter, rows, bad):
    for row in rows:
        if row in bad:
            counter.add_bad(f"row {row} of the images", bad[row])
        else:
            counter.add_good()


def test_too_little_memory_has_a_reason_of_its_own(monkeypatch):
    def nothing_left(*_, **__):
        raise MemoryError

    monkeypatch.setattr(images.Image, "open", nothing_left)
    with pytest.raises(BadImage, match="out of memory"):
        decode_image(encode(noise()))
