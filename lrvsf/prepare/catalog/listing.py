"""A catalog as its owner has it: a CSV or Parquet table, or a folder of images, read into a list without any image.

A row of the table is one image. The list of a million takes some hundred megabytes, so it can be sorted and grouped;
the images stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from sys import intern
from typing import Any

from lrvsf.data.folders import files_below
from lrvsf.data.foreign.picture_files import NO_SUFFIX, SUFFIXES, URL, is_url, picture_of
from lrvsf.data.foreign.tables import TEXT, CsvTable, check_columns, image_column, parquet_rows
from lrvsf.data.names import UnusableCell, identifier, identifiers, lists_of_others, lookalikes, quoted, texts
from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.prepare.spool import Span
from lrvsf.report import EXAMPLES, Ledger

NEEDED = ("product_id", "image", "role")
OPTIONAL = ("category", "text")
# People write "product" and "scene"; who knows LRVS-F writes its types.
ROLES = {"product": SIMPLE, "scene": SCENES[0], **{kind.lower(): kind for kind in (SIMPLE, *SCENES)}}


@dataclass(slots=True)  # as a million of them are in memory at once
class ListedImage:
    """One image of the catalog.

    Attributes:
        where: for messages: a line, a row or a path.
        row: its number in a Parquet table.
        path: its file; None if the table holds the image itself.
        span, digest: of one that was found usable, where it waits and the SHA-256 of its file as it came.
    """

    where: str
    row: int
    product_id: str
    type: str
    category: str | None
    captions: tuple[str, ...]
    path: str | None
    span: Span | None = None
    digest: bytes = b""


@dataclass
class Listing:
    """Everything that a catalog lists.

    Attributes:
        source: the table or folder.
        images_folder: what paths in a table start from and may not leave.
        entries: in the order of the table, or by path.
        listed: rows of the table, or files.
        skips: rows and files that give no image.
        changes: of images that are not kept as they came, but for their size.
        unused: columns of the table that mean nothing here.
    """

    source: Path
    images_folder: Path
    entries: list[ListedImage] = field(default_factory=list)
    listed: int = 0
    skips: Ledger = field(default_factory=Ledger)
    changes: Ledger = field(default_factory=Ledger)
    unused: list[str] = field(default_factory=list)

    def images(self) -> Iterator[str | bytes | None]:
        """For each of `entries` the path of its image, or its bytes, or None where the cell is empty."""
        if not self.source.is_file() or self.source.suffix.lower() in TEXT:
            yield from (listed.path for listed in self.entries)
            return
        # Both are in the order of the table, so one pass over its images finds the cell of each entry.
        cells = enumerate(row["image"] for row in parquet_rows(self.source, ["image"]))
        for listed in self.entries:
            cell = next(cell for number, cell in cells if number == listed.row)
            yield listed.path or picture_of(cell, self.images_folder)

    def fingerprint(self, settings: dict[str, Any]) -> str:
        """A hash of what is listed, of sizes and times of all files, and of the settings."""
        # Times and sizes in place of contents: reading a million images to find that nothing changed takes hours.
        digest = hashlib.sha256(json.dumps([settings, self.listed, self.skips.counts]).encode())
        if self.source.is_file():
            digest.update(json.dumps(_stat(self.source)).encode())
        for e in self.entries:
            stat = _stat(e.path) if e.path else None
            digest.update(json.dumps([e.row, e.product_id, e.type, e.category, e.captions, e.path, stat]).encode())
        return digest.hexdigest()


def read_listing(source: Path, scene_pattern: str, images: Path | None = None) -> Listing:
    """Lists a table, or the folder CATEGORY/PRODUCT/IMAGE.

    Args:
        scene_pattern: of a folder: which file names are scenes.
        images: the folder that paths in a table start from; the table's own if None.

    Raises:
        FileNotFoundError: there is no such table or folder.
        ValueError: it is neither, or lacks a column, or has names that a reader takes for one.
        OSError: it is damaged.
    """
    if images and source.is_dir():
        raise ValueError(f"{source} is a folder, which names its images itself; --images goes with a table only")
    listing = Listing(source, source if source.is_dir() else images or source.parent)
    if source.is_dir():
        _list_folder(listing, scene_pattern)
    elif not source.is_file():
        raise FileNotFoundError(f"there is no {source}; give a .csv, .tsv or .parquet table, or a folder of images")
    elif source.suffix.lower() in TEXT:
        _list_csv(listing)
    elif source.suffix.lower() == ".parquet":
        _list_parquet(listing)
    else:
        raise ValueError(f"{source} is neither .csv, .tsv nor .parquet nor a folder; save the table as one of them")
    _refuse_lookalikes(listing)
    return listing


def _list_folder(listing: Listing, scene_pattern: str) -> None:
    """The product's id is CATEGORY/PRODUCT, because products of two categories may have one number."""

    def skip(reason: str, where: str) -> None:
        listing.listed += 1
        listing.skips.add(reason, where)

    for path in files_below(listing.source, skip):
        parts = path.relative_to(listing.source).parts
        where = "/".join(parts)
        if path.suffix.lower() not in SUFFIXES:
            skip(NO_SUFFIX, where)
        elif len(parts) != 3:
            skip("not in a folder CATEGORY/PRODUCT", where)
        else:
            # Both in small letters: `fnmatch` would heed them on one system and not on another.
            kind = SCENES[0] if fnmatchcase(parts[2].lower(), scene_pattern.lower()) else SIMPLE
            try:
                category, product = map(identifier, parts[:2])
            except UnusableCell as error:
                skip(f"folder's name is {error.reason}", where)
                continue
            if category is None or product is None:
                skip("folder's name is blank", where)
                continue
            listing.listed += 1
            product_id = intern(f"{category}/{product}")  # once in memory for all images of the product
            listing.entries.append(ListedImage(where, 0, product_id, kind, intern(category), (), str(path)))


def _list_csv(listing: Listing) -> None:
    table = CsvTable(listing.source, NEEDED)
    _check_columns(listing, table.columns)
    for line, cells in table:
        if cells is None:
            listing.listed += 1
            listing.skips.add("row of more or fewer cells than columns", f"line {line}")
            continue
        folded = (cell for cell in cells.values() if "\n" in cell or "\r" in cell)
        if any(table.rows_in(cell, "role", ROLES.__contains__) for cell in folded):
            raise ValueError(
                f"{listing.source}, up to line {line}: a quoted cell holds further rows, so a quote before them is not "
                'closed; correct it (a quote within a quoted cell is written "")'
            )
        _list_row(listing, f"line {line}", 0, cells, cells["image"].strip())


def _list_parquet(listing: Listing) -> None:
    present, paths = image_column(listing.source)
    _check_columns(listing, present)
    # Images are read in a second pass (`Listing.images`), so that the list is known before anything is decoded.
    columns = [name for name in (*NEEDED, *OPTIONAL) if name in present and (name != "image" or paths)]
    for row, cells in enumerate(parquet_rows(listing.source, columns)):
        _list_row(listing, f"row {row}", row, cells, (cells["image"] or "").strip() if paths else None)


def _check_columns(listing: Listing, present: list[str]) -> None:
    check_columns(listing.source, present, NEEDED, OPTIONAL)
    listing.unused = [name for name in present if name not in (*NEEDED, *OPTIONAL)]


def _list_row(listing: Listing, where: str, row: int, cells: dict[str, Any], image: str | None) -> None:
    """Lists one row, or counts why not. `image`: what its cell says; None if that is bytes, which are read later."""
    listing.listed += 1
    try:
        product_id, role, category = identifiers(cells, ("product_id", "role", "category"))
    except UnusableCell as error:
        listing.skips.add(error.reason, where)
        return
    if product_id is None:
        listing.skips.add("no product_id", where)
    elif role is None or role.lower() not in ROLES:
        listing.skips.add(f"role that is none of {', '.join(ROLES)}", f"{where} ({role})")
    elif image == "":
        listing.skips.add("no image", f"{where} (product {product_id})")
    elif image is not None and is_url(image):
        listing.skips.add(URL, f"{where} ({image})")
    else:
        # An absolute path stays one here, and `read_file` refuses it where it lies outside.
        path = os.path.join(listing.images_folder, image) if image else None
        name = f"{where} ({image})" if image else where
        words = cells.get("text")
        captions = tuple(texts(words if isinstance(words, list) else [words], partial(listing.skips.add, name=where)))
        category = intern(category) if category else None
        listing.entries.append(
            ListedImage(name, row, intern(product_id), ROLES[role.lower()], category, captions, path)
        )


def _refuse_lookalikes(listing: Listing) -> None:
    """Refuses ids and categories that a reader takes for one: they would be two products, or two conditions. And a
    category that is a list of others, for a picture has one.

    Raises:
        ValueError: with the names, in which what cannot be seen is written out, and how many rows have them.
    """
    for what, case in (("category", False), ("product_id", True)):
        counts = Counter(name for listed in listing.entries if (name := getattr(listed, what)))
        if groups := lookalikes(counts, case):
            shown = "; ".join(
                " and ".join(f"{quoted(name)} ({counts[name]:,} images)" for name in group)
                for group in groups[:EXAMPLES]
            )
            raise ValueError(
                f"{listing.source} writes {len(groups):,} {what} names in several ways, which would be told apart: "
                f"{shown}. Write each in one way"
            )
        if what == "category" and (lists := lists_of_others(counts)):
            raise ValueError(
                f"{listing.source} has {len(lists):,} categories that are lists of others, such as {quoted(lists[0])} "
                f"({counts[lists[0]]:,} images); give each picture the one that a query will name"
            )


def _stat(path: str | Path) -> list[int] | None:
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]
