"""A shop's table of pictures, CSV or Parquet: a column `image` of paths or bytes, and whatever else is known of each.

The table that `prepare_lrvsf.py catalog` reads will do: what its column `role` calls a scene asks and is not found.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lrvsf.data.folders import Address
from lrvsf.data.foreign.picture_files import SUFFIXES, URL, is_url, picture_of
from lrvsf.data.foreign.tables import TEXT, CsvTable, check_columns, image_column, parquet_rows
from lrvsf.data.parquet import DAMAGE, Unreachable, describe_files, open_parquet
from lrvsf.data.schema import SCENES
from lrvsf.data.testset import image_bytes
from lrvsf.search.sources.lister import Lister, Picture, Source, by_file, by_path, stat_of
from lrvsf.search.sources.metadata import check_names, comparable

IDS = ("id", "product_id")
SCENE_ROLES = {"scene", *(kind.lower() for kind in SCENES)}
SCENE = "scene, which asks and is not found"
NO_IMAGE = "no image"


def list_table(lister: Lister, files: list[Path]) -> Source:
    """The rows of a table: one CSV file, or Parquet files of the same columns."""
    if files[0].suffix.lower() in TEXT:
        return _list_csv(lister, files[0])
    return list_parquet(lister, files)


def _list_csv(lister: Lister, path: Path) -> Source:
    table = CsvTable(path, ("image", *IDS))
    named = _id_column(lister, path, table.columns)
    lister.columns = [name for name in table.columns if name not in ("image", named) and name.strip()]
    paths: list[str] = []
    for line, cells in table:
        where = f"line {line}"
        if cells is None:
            lister.skip("row of more or fewer cells than columns", where)
            continue
        # A quote that is not closed makes one cell of all lines up to the next quote, and nobody would miss them.
        folded = (cell for cell in cells.values() if "\n" in cell or "\r" in cell)
        if any(table.rows_in(cell, "image", _is_picture) for cell in folded):
            raise ValueError(
                f"{path}, up to line {line}: a quoted cell holds further rows, so a quote before them is not closed; "
                'correct it (a quote within a quoted cell is written "")'
            )
        image = cells["image"].strip()
        # Blanks around a cell are a spreadsheet's, and a filter would not match "Ada ".
        known = [cells[name].strip() for name in lister.columns]
        found = _path(lister, where, cells, image)
        if found and lister.add(f"{where} ({image})", cells[named] if named else image, known):
            lister.identify(stat_of(found))
            paths.append(found)
    return lister.source(by_path(lister, paths), typed=True)


def list_parquet(lister: Lister, files: list[Path] | list[Address], spooled: bool = False) -> Source:
    """The rows of Parquet files.

    Args:
        spooled: whether they are a spool, whose rows have the numbers of a data set's.
    """
    counts, tables = [], []
    for path in files:
        present, paths = image_column(path)
        if paths and isinstance(path, Address):
            raise ValueError(
                f"{path} has paths in image, which lead nowhere from here; write the pictures' bytes there"
            )
        named = _id_column(lister, path, present)
        wanted = [name for name in (named, "role") if name in present] + ["image"] * paths
        kept, row = [], -1
        for row, cells in enumerate(parquet_rows(path, wanted) if wanted else _blank_rows(path)):
            where = f"{path.name}, row {row}" if len(files) > 1 and not spooled else f"row {lister.listed}"
            if _add(lister, where, cells, named, paths):
                kept.append(row)
        counts.append(row + 1)
        tables.append(_metadata(lister, path, [name for name in present if name not in ("image", named)], kept))
    if not spooled:  # a spool is written anew each time; its data set has an identity of its own
        lister.identify(describe_files(files))

    folder = lister.folder  # not the lister itself: a reader may be sent to another process

    def pictures(path: Path | Address, start: int) -> Iterator[Picture]:
        for cells in parquet_rows(path, ["image"], start):
            if isinstance(path, Address):  # whatever path stands in a cell there, none is opened here
                yield image_bytes(cells["image"])
                continue
            picture = picture_of(cells["image"], folder)
            yield os.path.join(folder, picture.strip()) if isinstance(picture, str) else picture

    try:
        metadata = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"the files of {lister.name} have columns of one name and several types: {error}") from error
    return lister.source(by_file(files, counts, pictures), extra=metadata)


def _add(lister: Lister, where: str, cells: dict[str, Any], named: str | None, paths: bool) -> bool:
    """Lists a row of a Parquet table, under its id, or its path, or its number in all files. Whether it was listed."""
    if not paths:
        return not _is_scene(lister, where, cells) and lister.add(where, cells[named] if named else str(lister.listed))
    image = (cells["image"] or "").strip()
    if (found := _path(lister, where, cells, image)) is None:
        return False
    lister.identify(stat_of(found))
    return lister.add(f"{where} ({image})", cells[named] if named else image)


def _id_column(lister: Lister, path: Path | Address, present: list[str]) -> str | None:
    """Which column has the ids; None where there is none."""
    check_columns(path, present, ["image"], IDS)
    check_names(str(path), [name for name in present if name.strip()])
    named = next((name for name in IDS if name in present), None)
    # A table with both has photos with ids of their own, and `product_id` groups them as a column does.
    # A path is an id as it stands; one that differs in capitals is another file.
    lister.products, lister.by_path = named == "product_id", named is None
    return named


def _is_scene(lister: Lister, where: str, cells: dict[str, Any]) -> bool:
    scene = str(cells.get("role")).strip().lower() in SCENE_ROLES
    if scene:
        lister.skip(SCENE, where)
    return scene


def _path(lister: Lister, where: str, cells: dict[str, Any], image: str) -> str | None:
    """The path of a row's picture, or None for a row that was left out."""
    if _is_scene(lister, where, cells):
        return None
    if not image:
        return lister.skip(NO_IMAGE, where)
    if is_url(image):
        return lister.skip(URL, f"{where} ({image})")
    return os.path.join(lister.folder, image)


def _is_picture(cell: str) -> bool:
    return os.path.splitext(cell)[1] in SUFFIXES


def _blank_rows(path: Path | Address) -> Iterator[dict[str, Any]]:
    with open_parquet(path) as file:
        yield from itertools.repeat({}, file.metadata.num_rows)


def _metadata(lister: Lister, path: Path | Address, names: list[str], kept: list[int]) -> pa.Table:
    """The columns of a file that can be kept, of the rows that are."""
    columns = {}
    try:
        with open_parquet(path) as file:
            for name in names:
                kind = file.schema_arrow.field(name).type
                # Asked of an empty column first: one of pictures or vectors need not be read to be left out.
                if comparable(pa.chunked_array([[]], kind)) is not None:
                    columns[name] = comparable(file.read([name])[name].take(pa.array(kept, pa.int64())))
                elif name not in lister.unused:
                    lister.unused.append(name)
    except Unreachable:
        raise
    except DAMAGE as error:
        raise OSError(f"{path} is damaged: {error}. Write it again.") from error
    return pa.table(columns) if columns else pa.table({"": pa.nulls(len(kept))}).select([])
