"""Picture files that a folder or somebody's table names: which there are, and how one is read without a surprise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from lrvsf.data.images import FORMATS, MAX_IMAGE_BYTES, BadImage

# Pillow opens an MPO as the JPEG that it begins as, and so does not list it among what it can open.
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
NO_SUFFIX = "file of no image format"
OUTSIDE = "path out of the folder of images; name that folder with --images"
URL = "URL in place of a file; download it first"


def is_url(cell: str) -> bool:
    """Whether a cell has an address where a path is needed. No address is ever fetched."""
    return cell.lower().startswith(("http://", "https://"))


def picture_of(cell: Any, folder: Path) -> str | bytes | None:
    """A cell of images: bytes, or a struct of bytes and, where there are none, a path."""
    if isinstance(cell, dict):
        path = cell.get("path")
        return cell.get("bytes") or (os.path.join(folder, path) if path else None)
    return cell


def read_file(path: str, folder: Path) -> bytes:
    """An image's file, which must lie in the folder; links within it are followed.

    A table may come from somebody else, and what it names ends in shards that may be published.

    Raises:
        BadImage: it lies elsewhere, is none, is too large, or cannot be opened.
    """
    # From here on without "..", which after a link leads elsewhere than it seems to.
    root, path = os.path.abspath(folder), os.path.abspath(path)
    # Not `realpath`: a shop's images/ may be a link to another disk, which its owner has set.
    if os.path.commonpath([root, path]) != root:
        raise BadImage(OUTSIDE)
    try:
        if not os.path.lexists(path):
            raise BadImage("missing file")
        if not os.path.exists(path):
            raise BadImage("link that leads nowhere")
        if not os.path.isfile(path):
            raise BadImage("no file, but a folder or device")
        if os.path.getsize(path) > MAX_IMAGE_BYTES:
            raise BadImage(f"file over {MAX_IMAGE_BYTES >> 20} MiB")
        with open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES)  # and no more, if it grows meanwhile
    except BadImage:
        raise
    except (OSError, ValueError) as error:  # no permission; a name that cannot be one
        raise BadImage("file that cannot be opened", str(error)) from error
