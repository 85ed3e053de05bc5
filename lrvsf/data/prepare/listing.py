"""A catalog as its owner has it: a CSV or Parquet table, or a folder of images, read into a list without any image.

A row of the table is one image. The list of a million takes some hundred megabytes, so it can be sorted and grouped;
the images stay where they are.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from sys import intern
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lrvsf.data.images import FORMATS
from lrvsf.data.parquet import DAMAGE, open_parquet
from lrvsf.data.schema import SCENES, SIMPLE

NEEDED = ("product_id", "image", "role")
OPTIONAL = ("category", "text")
ROLES = {"product": SIMPLE, "scene": SCENES[0], **{kind.lower(): kind for kind in (SIMPLE, *SCENES)}}
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
BATCH_ROWS = 64
EXAMPLES = 3


@dataclass(slots=True)
class Entry:
    """One image of the catalog.

    Attributes:
        where: for messages: a line, a row or a path.
        row: its number in a Parquet table.
        path: its file; None if the table holds the image itself.
    """

    where: str
    row: int
    product_id: str
    type: str
    category: str | None
    captions: tuple[str, ...]
    path: str | None


class Skips:
    """Counts what was left out by reason, and keeps the first few names of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        if len(self.names[reason]) < EXAMPLES:
            self.names[reason].append(name)

    def report(self) -> dict[str, Any]:
        """Two parts of a report; empty if nothing was left out."""
        if not self.counts:
            return {}
        ranked = self.counts.most_common()
        return {
            "not used": dict(ranked),
            "not used, the first": {reason: "; ".join(self.names[reason]) for reason, _ in ranked},
        }


@dataclass
class Listing:
    """Everything that a catalog lists.

    Attributes:
        source: the table or folder.
        entries: in the order of the table, or by path.
        listed: rows of the table, or files.
        skips: of rows and files that give no entry.
        unused: columns of the table that mean nothing here.
    """

    source: Path
    entries: list[Entry] = field(default_factory=list)
    listed: int = 0
    skips: Skips = field(default_factory=Skips)
    unused: list[str] = field(default_factory=list)

    def images(self) -> Iterator[str | bytes | None]:
        """For each entry the path of its image, or its bytes, or None where the cell is empty."""
        if not self.source.is_file() or self.source.suffix.lower() == ".csv":
            yield from (entry.path for entry in self.entries)
            return
        cells = enumerate(row["image"] for row in _parquet_rows(self.source, ["image"]))
        for entry in self.entries:
            cell = next(cell for number, cell in cells if number == entry.row)
            yield entry.path or _image(cell, self.source.parent)

    def fingerprint(self, settings: dict[str, Any]) -> str:
        """A hash of what is listed, of sizes and times of all files, and of the settings."""
        digest = hashlib.sha256(json.dumps([settings, self.listed, self.skips.counts]).encode())
        if self.source.is_file():
            digest.update(json.dumps(_stat(self.source)).encode())
        for e in self.entries:
            stat = _stat(e.path) if e.path else None
            digest.update(json.dumps([e.row, e.product_id, e.type, e.category, e.captions, e.path, stat]).encode())
        return digest.hexdigest()


def read_listing(source: Path, scene_pattern: str) -> Listing:
    """Lists a table, or the folder CATEGORY/PRODUCT/IMAGE.

    Raises:
        FileNotFoundError: there is no such table or folder.
        ValueError: it is neither, or lacks a column.
        OSError: it is damaged.
    """
    listing = Listing(source)
    if source.is_dir():
        _list_folder(listing, scene_pattern)
    elif not source.is_file():
        raise FileNotFoundError(f"there is no {source}; give a .csv or .parquet table, or a folder of images")
    elif source.suffix.lower() == ".csv":
        _list_csv(listing)
    elif source.suffix.lower() == ".parquet":
        _list_parquet(listing)
    else:
        raise ValueError(f"{source} is neither .csv nor .parquet nor a folder; save the table as one of them")
    return listing


def _list_folder(listing: Listing, scene_pattern: str) -> None:
    """The product's id is CATEGORY/PRODUCT, for products of two categories may be numbered alike."""
    for path in sorted(path for path in listing.source.rglob("*") if path.is_file()):
        listing.listed += 1
        parts = path.relative_to(listing.source).parts
        where = "/".join(parts)
        if path.suffix.lower() not in SUFFIXES:
            listing.skips.add("file of no image format", where)
        elif len(parts) != 3:
            listing.skips.add("not in a folder CATEGORY/PRODUCT", where)
        else:
            category, product, name = parts
            kind = SCENES[0] if fnmatchcase(name.lower(), scene_pattern.lower()) else SIMPLE
            product_id = f"{_text(category)}/{_text(product)}"
            listing.entries.append(Entry(where, 0, intern(product_id), kind, _text(category), (), str(path)))


def _list_csv(listing: Listing) -> None:
    # utf-8-sig: spreadsheets put a byte order mark first, which would become part of the first column's name
    with listing.source.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            _check_columns(listing, list(reader.fieldnames or ()))
            for cells in reader:
                where = f"line {reader.line_num}"
                if None in cells or None in cells.values():
                    listing.listed += 1
                    listing.skips.add("row of more or fewer cells than columns", where)
                else:
                    _add(listing, where, 0, cells, cells["image"].strip())
        except csv.Error as error:
            raise ValueError(f"{listing.source}, line {reader.line_num}: {error}; correct the quotes there") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{listing.source} is not UTF-8 ({error}); save it as UTF-8") from error


def _list_parquet(listing: Listing) -> None:
    try:
        schema = pq.read_schema(listing.source)
    except DAMAGE as error:
        raise OSError(f"{listing.source} is not a readable Parquet file: {error}") from error
    _check_columns(listing, schema.names)
    kind = schema.field("image").type
    paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (paths or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)):
        raise ValueError(
            f"{listing.source}: image is {kind}; it must hold paths, or bytes, or structs of bytes and path"
        )
    columns = [name for name in (*NEEDED, *OPTIONAL) if name in schema.names and (name != "image" or paths)]
    for row, cells in enumerate(_parquet_rows(listing.source, columns)):
        image = (_text(cells["image"]) or "") if paths else None
        _add(listing, f"row {row}", row, cells, image)


def _check_columns(listing: Listing, present: list[str]) -> None:
    if missing := [name for name in NEEDED if name not in present]:
        raise ValueError(
            f"{listing.source} lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, present))}. It "
            f"needs {', '.join(NEEDED)} and may have {' and '.join(OPTIONAL)}"
        )
    listing.unused = [name for name in present if name not in (*NEEDED, *OPTIONAL)]


def _add(listing: Listing, where: str, row: int, cells: dict[str, Any], image: str | None) -> None:
    """Lists one row, or counts why not. `image`: what its cell says; None if that is bytes, which are read later."""
    listing.listed += 1
    product_id, role = _text(cells["product_id"]), _text(cells["role"])
    if product_id is None:
        listing.skips.add("no product_id", where)
    elif role is None or role.lower() not in ROLES:
        listing.skips.add(f"role that is none of {', '.join(ROLES)}", f"{where} ({role})")
    elif image == "":
        listing.skips.add("no image", f"{where} (product {product_id})")
    elif image is not None and image.lower().startswith(("http://", "https://")):
        listing.skips.add("URL in place of a file; download it first", f"{where} ({image})")
    else:
        category, texts = _text(cells.get("category")), cells.get("text")
        captions = tuple(text for cell in (texts if isinstance(texts, list) else [texts]) if (text := _text(cell)))
        path = os.path.join(listing.source.parent, image) if image else None
        name = f"{where} ({image})" if image else where
        category = intern(category) if category else None
        listing.entries.append(Entry(name, row, intern(product_id), ROLES[role.lower()], category, captions, path))


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table, a few at a time."""
    try:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
    except DAMAGE as error:
        raise OSError(f"{path} is damaged: {error}. Write it again.") from error


def _image(cell: Any, folder: Path) -> str | bytes | None:
    """An image cell: bytes, or a struct of bytes and, where there are none, a path."""
    if isinstance(cell, dict):
        path = cell.get("path")
        return cell.get("bytes") or (os.path.join(folder, path) if path else None)
    return cell


def _text(value: Any) -> str | None:
    """A cell as text. pandas writes 12.0 for 12 where a column has gaps, and NaN in the gaps."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # Names of files need not be UTF-8; what is written to Parquet must.
    return str(value).encode(errors="replace").decode().strip() or None


def _stat(path: str | Path) -> list[int] | None:
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]
