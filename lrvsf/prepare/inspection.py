"""What one row group of a prepared file holds and what is wrong with it. Damage is returned, never raised."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lrvsf.data.images import BadImage, decode_image
from lrvsf.data.names import identified
from lrvsf.data.parquet import DAMAGE, open_parquet, read_rows
from lrvsf.data.products import IMAGE_BYTES, STRUCTURE, why_no_pair, wrong_columns
from lrvsf.data.schema import SIMPLE
from lrvsf.data.sharing import number_of
from lrvsf.data.testset import DISTRACTOR_COLUMNS, PRODUCT_COLUMNS, image_bytes, wrong_cells
from lrvsf.prepare.writers import row_digest
from lrvsf.report import Ledger

SHARD, QUERIES, DISTRACTORS = "products", "queries", "distractors"
NO_BYTES = "no bytes"
BATCH_ROWS = 64  # not tuned

# By kind: what must be there, what holds images, what else is read where it is there.
_NEEDED = {SHARD: (*STRUCTURE, IMAGE_BYTES), QUERIES: PRODUCT_COLUMNS, DISTRACTORS: DISTRACTOR_COLUMNS}
_IMAGES = {SHARD: (IMAGE_BYTES,), QUERIES: PRODUCT_COLUMNS[:2], DISTRACTORS: DISTRACTOR_COLUMNS}
_FURTHER = ("PRODUCT_ID", "TYPE", "CATEGORY")

Cell = bytes | dict[str, Any] | None


class DamagedFile(ValueError):
    """A file that cannot be read at all. `reason` is one of a few, so that it can be counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class RowGroup:
    """The rows of one row group.

    Attributes:
        rows: how many were read.
        products: their product ids, of shards and queries.
        owners: numbers of the product ids of queries, and of each distractor, None where it has none.
        unusable: rows that cannot be used whatever their images, by product id.
        images: (type, category) -> how many.
        image_bytes: of all images; in a quick look, with the few bytes of Parquet's own.
        shorter, longer: pixels of a side -> how many images; empty after a quick look.
        pictures: (product id or place, numbers of its pictures, a query's target first), without names of distractors,
            which can be millions; empty after a quick look.
        bad: images that cannot be decoded, by product id or place; after a quick look, missing ones.
        digests: of the rows, of shards; empty after a quick look.
        damage: why the rest of the row group could not be read, or None.
    """

    rows: int = 0
    products: list[str] = field(default_factory=list)
    owners: list[int | None] = field(default_factory=list)
    unusable: Ledger = field(default_factory=Ledger)
    images: Counter = field(default_factory=Counter)
    image_bytes: int = 0
    shorter: Counter[int] = field(default_factory=Counter)
    longer: Counter[int] = field(default_factory=Counter)
    pictures: list[tuple[str, list[int]]] = field(default_factory=list)
    bad: Ledger = field(default_factory=Ledger)
    digests: bytes = b""
    damage: str | None = None


def row_groups(kind: str, file: Path) -> int:
    """How many row groups a file has.

    Raises:
        DamagedFile: it is not a whole Parquet file, or lacks a column.
    """
    try:
        with open_parquet(file) as parquet:
            if missing := [name for name in _NEEDED[kind] if not _under(parquet.metadata, name)]:
                raise DamagedFile("files that lack a column", "no " + ", ".join(missing))
            if kind == SHARD:
                why = wrong_columns(parquet)
            else:
                why = wrong_cells(parquet, [*_NEEDED[kind], "TYPE", "CATEGORY"])
            if why:
                raise DamagedFile("files whose columns hold something else", why)
            return parquet.num_row_groups
    except DAMAGE as error:
        raise DamagedFile("files that are not whole Parquet files", str(error)) from error


def inspect(kind: str, file: Path, group: int, quick: bool) -> RowGroup:
    """Reads one row group: all of it, or without its images."""
    found = RowGroup()
    place = f"{file.name}, row group {group}"
    try:
        with open_parquet(file) as parquet:
            names = parquet.schema_arrow.names
            further = [name for name in _FURTHER if name in names and kind != SHARD]
            columns = [name for name in _NEEDED[kind] if name not in _IMAGES[kind]] + further
            if not quick:
                columns = ["product_id", "images"] if kind == SHARD else [*columns, *_IMAGES[kind]]
            for row in read_rows(parquet, list(dict.fromkeys(columns)), BATCH_ROWS, [group]):
                _look(kind, row, found, place, quick)
            # A footer knows how many values of a column are missing, and what the others take.
            if quick:
                _count_from_footer(kind, parquet.metadata, group, found, place)
    except DAMAGE as error:
        # What was read before stays in `found`: one damaged page does not hide what is wrong with the other rows.
        found.damage = str(error)
    return found


def _look(kind: str, row: dict[str, Any], found: RowGroup, place: str, quick: bool) -> None:
    found.rows += 1
    if kind == SHARD:
        name = row["product_id"]
        images = [(i["type"], i["category"], i.get("image")) for i in row["images"] or () if i is not None]
        why = why_no_pair([kind for kind, _, _ in images], [category for _, category, _ in images], None)
    elif kind == QUERIES:
        category, why = _category(row)
        target = (SIMPLE, category, row.get("SIMPLE_IMG"))
        name, images = row.get("PRODUCT_ID"), [target, (row.get("TYPE"), None, row.get("COMPLEX_IMG"))]
    else:
        category, why = _category(row)[0], None
        name, images = None, [(row.get("TYPE"), category, row.get("jpg"))]
        owner, _ = identified(row.get("PRODUCT_ID"))
        found.owners.append(None if owner is None else number_of(owner))
    name, unusable = identified(name)
    if unusable:
        why = f"product id that is {unusable}"
    elif name is None and kind == SHARD:
        why = "no product id"
    if name is not None:
        found.products.append(name)
        found.owners += [number_of(name)] * (kind == QUERIES)
    name = f"{place}, row {found.rows - 1}" if name is None else name  # what a person can look for
    if why:
        found.unusable.add(why, name)
    found.images.update((kind, category) for kind, category, _ in images)
    if quick:
        return
    for _, _, cell in images:
        _look_at_image(cell, found, name)
    data = (image_bytes(cell) for _, _, cell in images)
    found.pictures.append(
        ("" if kind == DISTRACTORS else name, [number_of(hashlib.sha256(d).digest()) for d in data if d])
    )
    # A row that lacks an image has no digest; it is at fault already.
    if kind == SHARD and all(i is not None and i["image"] is not None for i in row["images"] or ()):
        found.digests += row_digest(row)


def _category(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """A test set's category, and why there is none."""
    name, unusable = identified(row.get("CATEGORY"))
    return name, f"category that is {unusable}" if unusable else "no category" if name is None else None


def _look_at_image(cell: Cell, found: RowGroup, name: str) -> None:
    data = image_bytes(cell)
    if data is None:
        found.bad.add(NO_BYTES, name)  # even where there is a path, which is never opened
        return
    found.image_bytes += len(data)
    try:
        size = decode_image(data).size
    except BadImage as error:
        found.bad.add(error.reason, name)
        return
    found.shorter[min(size)] += 1
    found.longer[max(size)] += 1


def _count_from_footer(kind: str, metadata: pq.FileMetaData, group: int, found: RowGroup, place: str) -> None:
    """Bytes of images, and how many are missing, without reading them."""
    # In a test set two columns hold images, and each row counted one of each.
    expected = found.images.total() // len(_IMAGES[kind])
    for name in _IMAGES[kind]:
        # A cell is bytes, or a struct of bytes and path: of the leaves under the column, the one that is no path.
        leaves = map(metadata.row_group(group).column, _under(metadata, name))
        column = next(leaf for leaf in leaves if not leaf.path_in_schema.endswith(".path"))
        found.image_bytes += column.total_uncompressed_size
        if column.statistics is not None:  # some writers leave them out; then a full check finds the gaps
            present = column.num_values - column.statistics.null_count
            found.bad.add_all(NO_BYTES, [place] * (expected - present))


def _under(metadata: pq.FileMetaData, name: str) -> list[int]:
    """The numbers of the leaf columns of a column: of {bytes, path} there are two."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return [i for i, path in enumerate(paths) if path == name or path.startswith(name + ".")]
