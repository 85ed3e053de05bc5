"""Reading product tars, LRVS-F's published training layout, member by member in constant memory.

    ID.0.jpg, ID.1.jpg, ...     the images of a product, in any raster format
    ID.json                     {"0": {"TYPE": "SIMPLE", "CATEGORY": "Bags", "blip2_caption1": ..., ...}, "1": {...}}

and, for validation distractors, `ID.jpg` next to an `ID.json` that holds the image's metadata itself.

What is read is a pure function of the tar's bytes. The members of a product need not be adjacent: a product is finished
when `SPREAD` others have begun after it, or `HELD_BYTES` wait. A member that comes later than that is on its own, and
so is lost: an image is then a product without JSON, a JSON a product without images. Products come in the order of
their first members.

No fault ends a tar. After damaged blocks, or a member that claims more than is left, the next whole member is looked
for; of a tar cut in the middle everything before the cut is used. Headers, names, JSON and members have bounds, so what
is held does not depend on what a tar claims (`lrvsf.data.bounds.tar_members`). What is lost is counted by reason in the
caller's counter and named in the log at the 1st, 10th, 100th, ... time.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from lrvsf.data.bounds.tar_members import MAX_HEADER_BYTES, TarMembers
from lrvsf.data.images import MAX_IMAGE_BYTES
from lrvsf.data.names import UnusableCell, captions, identifier, identifiers, printable
from lrvsf.data.schema import MAX_IMAGES, SCENES, SIMPLE

logger = logging.getLogger(__name__)

SPREAD = 16  # not tuned
HELD_BYTES = 256 * 2**20
MAX_MEMBER_BYTES = MAX_IMAGE_BYTES
MAX_JSON_BYTES = 2**20  # as Python's objects, 30 times that
MEMBER_OVERHEAD = 1024  # bytes that a member which waits takes besides its content, at least

DAMAGED = "damaged or cut tars"
NO_JSON = "products without JSON"
BAD_JSON = "products whose JSON cannot be read"
NO_IMAGES = "products without a usable image"
NOT_IN_JSON = "images that the JSON does not describe"
NOT_IN_TAR = "images that only the JSON has"
NO_TYPE = "images of unknown TYPE"
EMPTY = "empty images"
ODD = "members that are neither image nor JSON"
TOO_LARGE = f"members over {MAX_MEMBER_BYTES >> 20} MiB"
LONG_JSON = f"JSON over {MAX_JSON_BYTES >> 20} MiB"
UNREADABLE = f"members whose headers are damaged or over {MAX_HEADER_BYTES >> 20} MiB"
TWICE = "members that are there twice"
TOO_MANY = f"products of more than {MAX_IMAGES:,} images"

RASTER = "jpe?g|png|webp|gif|bmp|tiff?|avif"
MEMBER = re.compile(rf"(?P<name>[^.]+)\.(?P<part>json|(?:(?P<number>\d{{1,9}})\.)?(?:{RASTER}))", re.IGNORECASE)
NAMES = ("PRODUCT_ID", "TYPE", "CATEGORY")

Source = str | Path | BinaryIO


def read_products(source: Source, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """The products of a tar: rows of PRODUCT_FEATURES, images undecoded and in the order of their numbers.

    A product may lack a SIMPLE or a scene image: `lrvsf.data.products.why_no_pair` tells.

    Args:
        source: path, URL that fsspec knows, or open binary file, which is read from where it stands and left open.
        skipped: gets one more under its reason for everything that is lost.

    Raises:
        OSError: the tar cannot be opened, or the reading fails for other reasons than its bytes.
    """
    for name, members in _grouped(source, skipped):
        if (row := _product(name, members, skipped)) is not None:
            yield row


def read_distractors(source: Source, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """The images of a distractor tar: `jpg`, and PRODUCT_ID, TYPE, CATEGORY and blip2_caption1, None where unknown.

    Arguments and errors are those of `read_products`. An image without JSON is a distractor all the same.
    """
    for name, members in _grouped(source, skipped):
        metadata = _metadata(members.pop("json", b"{}"))
        if metadata is None:
            _skip(skipped, BAD_JSON, name)
        images = [data for number, data in sorted(members.items()) if number == ""]
        for number in members.keys() - {""}:
            _skip(skipped, ODD, f"{name}.{number}")
        if not images:
            _skip(skipped, NO_IMAGES, name)
        elif not images[0]:
            _skip(skipped, EMPTY, name)
        else:
            first = {name: cell for name, cell in (metadata or {}).items() if name == "blip2_caption1"}
            caption = captions(first, partial(_skip, skipped, name=name))
            try:
                known = dict(zip(NAMES, identifiers(metadata or {}, NAMES), strict=True))
            except UnusableCell as error:
                _skip(skipped, f"images whose {error.reason}", name)
                continue
            yield {**known, "blip2_caption1": next(iter(caption), None), "jpg": images[0]}


@contextmanager
def open_tar(source: Source) -> Iterator[BinaryIO]:
    """An open file: the one given, left open, or that of a path or URL, closed at the end."""
    if hasattr(source, "read"):
        yield source
    else:
        with fsspec.open(str(source), "rb") as file:
            yield file


def _product(name: str, members: dict[str, bytes], skipped: Counter[str]) -> dict[str, Any] | None:
    """A row, or None if nothing of the product can be used."""
    try:
        product_id = identifier(name)
    except UnusableCell as error:
        return _skip(skipped, f"products whose name is {error.reason}", name)
    if product_id is None:
        return _skip(skipped, "products whose name is blank", name)
    if "json" not in members:
        return _skip(skipped, NO_JSON, name)
    metadata = _metadata(members.pop("json"))
    if metadata is None:
        return _skip(skipped, BAD_JSON, name)
    if len(members) > MAX_IMAGES:
        return _skip(skipped, TOO_MANY, name)
    images = []
    # Both sides, so that each loss is counted: an image that the JSON lacks, and one that only the JSON has.
    numbers = members.keys() | {key for key in metadata if key.isascii() and key.isdigit()}
    for number in sorted(numbers, key=lambda text: (len(text), text)):  # 2 before 10
        described, path = metadata.get(number), f"{name}.{number}.jpg"
        if number not in members:
            _skip(skipped, NOT_IN_TAR, path)
        elif not isinstance(described, dict):
            _skip(skipped, NOT_IN_JSON, path)
        elif described.get("TYPE") not in (SIMPLE, *SCENES):
            _skip(skipped, NO_TYPE, path)
        elif not members[number]:
            _skip(skipped, EMPTY, path)
        else:
            try:
                (category,) = identifiers(described, ["CATEGORY"])
            except UnusableCell as error:
                _skip(skipped, f"images whose {error.reason}", path)
                continue
            image = {"image": {"bytes": members[number], "path": path}, "type": described["TYPE"]}
            texts = captions(described, partial(_skip, skipped, name=path))
            images.append(image | {"category": category, "captions": texts})
    if not images:
        return _skip(skipped, NO_IMAGES, name)
    return {"product_id": product_id, "images": images}


def _grouped(source: Source, skipped: Counter[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, members) of each product: "json", an image's number, or "" for an image without one -> content."""
    held: dict[str, dict[str, bytes]] = {}  # in the order of their first members
    waiting = 0
    for path, match, data in _members(source, skipped):
        folder = path.removeprefix("./").rpartition("/")[0]
        members = held.setdefault(f"{folder}/{match['name']}", {})  # one id in two folders: two products
        part = "json" if match["part"].lower() == "json" else match["number"] or ""
        if part in members:
            _skip(skipped, TWICE, path)
        else:
            members[part] = data
            waiting += len(data) + MEMBER_OVERHEAD
        # Bounds by count and by bytes alone, never by time or memory left: the same tar gives the same products.
        while len(held) > SPREAD or waiting > HELD_BYTES:
            name, members = next(iter(held.items()))
            del held[name]
            waiting -= sum(map(len, members.values())) + MEMBER_OVERHEAD * len(members)
            yield name.rpartition("/")[2], members
    for name, members in held.items():
        yield name.rpartition("/")[2], members


def _members(source: Source, skipped: Counter[str]) -> Iterator[tuple[str, re.Match, bytes]]:
    """(path, its parsed file name, content) of every image and JSON."""
    with open_tar(source) as file:
        members = TarMembers(file)
        for member in members:
            match = MEMBER.fullmatch(member.path.rpartition("/")[2])
            if member.folder:
                continue
            if not member.readable:
                _skip(skipped, UNREADABLE, member.path)
            elif not member.regular or match is None:
                _skip(skipped, ODD, member.path)
            elif member.size > MAX_MEMBER_BYTES:
                _skip(skipped, TOO_LARGE, member.path)
            elif member.size > MAX_JSON_BYTES and match["part"].lower() == "json":
                _skip(skipped, LONG_JSON, member.path)
            elif (content := members.content()) is not None:
                yield member.path, match, content
        if not members.whole:
            _skip(skipped, DAMAGED, source)


def _metadata(content: bytes) -> dict[str, Any] | None:
    """A JSON object, or None."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # a megabyte of opening brackets
        return None
    return found if isinstance(found, dict) else None


def _skip(skipped: Counter[str], reason: str, name: object) -> None:
    skipped[reason] += 1
    if str(skipped[reason]).strip("0") == "1":  # 1, 10, 100, ...: a large tar says what happens without drowning in it
        logger.warning("Skipped %s: %s (%d so far)", printable(str(name)), reason, skipped[reason])
