"""Decoding images that come from the open web: one bad image never ends a run, and too many do.

A file is untrusted input. Only raster formats are tried (Pillow would start Ghostscript for a PostScript file), and its
structure and size are checked before a pixel is decoded, because a few kilobytes can unfold into gigabytes. No image
that passes takes more than 1 GB.
"""

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from lrvsf.data.bounds.image_bombs import bomb, exif_bomb

logger = logging.getLogger(__name__)

# Pixels on the longer side. The published preprocessing pads to a square, so what bounds memory is not the image's area
# but its longer side: 8192 pixels are a square of 268 MB, for Pillow stores RGB in four bytes.
MAX_SIDE = 8192
# libwebp's reader of animations, which Pillow takes for every WebP, holds four pictures of four bytes a pixel; an AVIF
# of 12 bits a channel takes six bytes a pixel besides the RGB picture.
MAX_PIXELS = dict.fromkeys(("WEBP", "AVIF"), 8192 * 6144)

MAX_IMAGE_BYTES = 64 * 2**20  # of an encoded image; photographs have a hundredth of that

JUDGE_FROM = 100  # bad images before their share is judged: one among the first ten says nothing of the data
FEW = 5  # a finished pass is judged only if it had at least this many bad images

Image.init()  # registers the formats, among which an old Pillow lacks some
FORMATS = tuple(name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN)


class BadImage(ValueError):
    """Bytes that do not give an image. `reason` is short and drawn from a small set, so that it can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class TooMuchDamage(RuntimeError):
    """So much is damaged that the data, not an image, is at fault. The message is a table of the reasons."""


def as_published(image: Image.Image) -> Image.Image:
    """RGB by a plain conversion, which drops transparency and orientation, as in the published preprocessing."""
    return image.convert("RGB")


def decode_image(data: bytes | None, to_rgb: Callable[[Image.Image], Image.Image] = as_published) -> Image.Image:
    """Encoded bytes as an RGB image in memory.

    An animation gives its first frame. Palettes, transparency, grey and CMYK go through a plain `convert("RGB")`,
    as in the published preprocessing: transparency is dropped, not blended, so that embeddings stay comparable.

    Args:
        data: the encoded file.
        to_rgb: what makes an opened image RGB; `prepare_lrvsf.py catalog` has another than the published one.

    Raises:
        BadImage: with the reason "empty", "not an image", "too large" (longer side over `MAX_SIDE` pixels, file over
            `MAX_IMAGE_BYTES`, or decoded through something larger), "too many parts" (far more scans or segments than
            programs write), "truncated", "damaged" or "out of memory".
    """
    if not data:
        raise BadImage("empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImage("too large", f"{len(data)} bytes, at most {MAX_IMAGE_BYTES}")
    if fault := bomb(data):
        raise BadImage(*fault)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if max(image.size) > MAX_SIDE:  # known from the header; nothing is decoded yet
            raise BadImage("too large", f"{image.width} x {image.height} pixels, at most {MAX_SIDE} a side")
        most = MAX_PIXELS.get(image.format, MAX_SIDE**2)
        if image.width * image.height > most:
            raise BadImage("too large", f"{image.width} x {image.height} pixels, at most {most} of {image.format}")
        if fault := exif_bomb(_exif(image)):
            raise BadImage(*fault)
        return to_rgb(image)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image", f"{len(data)} bytes that begin with {data[:12]!r}") from error
    except Image.DecompressionBombError as error:
        raise BadImage("too large", str(error)) from error
    except MemoryError as error:
        raise BadImage("out of memory", str(error)) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files, and no file may end a run
        # Only the wording tells a file that stops early from other faults.
        raise BadImage("truncated" if "truncated" in str(error).lower() else "damaged", str(error)) from error


def _exif(image: Image.Image) -> bytes | None:
    """The metadata that Pillow would read: also those of ImageMagick's PNG, as a text of hexadecimal digits."""
    digits = "".join(str(image.info.get("Raw profile type exif", "")).split("\n")[3:])
    with suppress(ValueError):
        return image.info.get("exif") or bytes.fromhex(digits)
    return None


@dataclass(frozen=True)
class Tolerance:
    """How many bad images, products or files a run puts up with; the flags are max_bad_fraction and max_bad_in_a_row.

    Attributes:
        fraction: the largest share of bad ones, 0..1.
        in_a_row: this many bad ones one after another are too many, whatever their share.

    Raises:
        ValueError: a number out of its range.
    """

    fraction: float = 0.01
    in_a_row: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1 or self.in_a_row < 1:
            raise ValueError(
                f"max_bad_fraction={self.fraction} must be in 0..1, and max_bad_in_a_row={self.in_a_row} 1 or more"
            )


USUAL = Tolerance()


class BadImageCounter:
    """Counts good and bad images of one process, names bad ones in the log, and ends the run when they are too many.

    The log gets a warning at the 1st, 10th, 100th, ... bad image, so that a large run says what happens without
    drowning in it.

    Args:
        what: what is counted, in the plural, for the messages: "products", "distractors".
        tolerance: what ends the run.
    """

    def __init__(self, what: str = "images", tolerance: Tolerance = USUAL) -> None:
        self.what, self.tolerance = what, tolerance
        self.good = self.in_a_row = 0
        self.reasons: Counter[str] = Counter()
        self._warn_at = 1

    @property
    def bad(self) -> int:
        return self.reasons.total()

    def add_good(self, count: int = 1) -> None:
        """Counts images that were decoded."""
        self.good += count
        self.in_a_row = 0

    def add_bad(self, name: object, reason: str | BadImage) -> None:
        """Counts one bad image. `name` is what someone needs to find it, such as a product id or a file with its row.

        Raises:
            TooMuchDamage: the tolerance is exceeded, in a row or, from `JUDGE_FROM` bad ones on, by their share.
        """
        self.reasons[reason.reason if isinstance(reason, BadImage) else reason] += 1
        if self.bad >= self._warn_at:
            self._warn_at *= 10
            logger.warning(
                "Skipped %s (%s); %d of %d %s so far.", name, reason, self.bad, self.bad + self.good, self.what
            )
        self._judge_one_more(name)

    def count(self, start: int, stop: int, bad: Iterable[tuple[int, str]]) -> None:
        """Counts the rows start to stop (excluded), with their bad ones as (row, reason), ascending.

        Raises TooMuchDamage as `add_bad` does.
        """
        self._count(start, stop, bad, self.add_bad)

    def recount(self, start: int, stop: int, bad: Iterable[tuple[int, str]]) -> None:
        """Likewise, once more: the log has named the bad ones before and stays silent."""
        self._count(start, stop, bad, self._add_named)

    def _count(
        self, start: int, stop: int, bad: Iterable[tuple[int, str]], add_bad: Callable[[object, str], None]
    ) -> None:
        for row, reason in bad:
            if row > start:
                self.add_good(row - start)
            start = row + 1
            add_bad(f"row {row} of the {self.what}", reason)
        if stop > start:
            self.add_good(stop - start)

    def _add_named(self, name: object, reason: str) -> None:
        self.reasons[reason] += 1
        self._judge_one_more(name)

    def _judge_one_more(self, name: object) -> None:
        # A series says that a source has ended (a disk, a login), long before its share of a large run is too large.
        self.in_a_row += 1
        if self.in_a_row >= self.tolerance.in_a_row:
            raise TooMuchDamage(
                f"{self.summary()}\n{self.in_a_row} in a row, the last one {name}. Repair the data, or allow more with "
                "--max_bad_in_a_row."
            )
        if self.bad >= JUDGE_FROM:
            self.judge(f", the last one {name}")

    def finish(self) -> None:
        """Judges a whole pass, in which few bad ones count too. Raises TooMuchDamage."""
        if self.bad >= FEW:
            self.judge()

    def judge(self, last: str = "") -> None:
        if self.bad > self.tolerance.fraction * (self.bad + self.good):
            raise TooMuchDamage(
                f"{self.summary()}\nThat is more than {self.tolerance.fraction:.1%}{last}. Repair the data, or allow "
                "more with --max_bad_fraction."
            )

    def summary(self) -> str:
        """A table of the reasons, most frequent first."""
        return f"{self.bad} of {self.bad + self.good} {self.what} are bad:\n{reasons_table(self.reasons)}"


def reasons_table(reasons: Counter[str]) -> str:
    """One indented line a reason, most frequent first."""
    return "\n".join(f"  {count:>8}  {reason}" for reason, count in reasons.most_common())
