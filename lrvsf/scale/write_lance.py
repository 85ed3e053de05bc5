"""`search_catalog.py lance`: the generation of a catalog that answers becomes a version of a Lance table.

A table that is there is changed by what differs alone. Rows are the same if their id, metadata and picture are; others
are deleted, or appended. A model that is new to the table gets a column of vectors, which are put to the rows by these
same keys: what was written before, images above all, is not written again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lrvsf.command import Command, called
from lrvsf.data.names import quoted
from lrvsf.durable import locked, whole_folder
from lrvsf.paths import table_of
from lrvsf.scale.lance_index import index_of, keep_index
from lrvsf.scale.lance_table import (
    ANSWERS,
    MANIFEST_KEY,
    TableGenerations,
    check_files,
    lance,
    manifest_of,
    open_latest,
    vector_column,
)
from lrvsf.search.generations import FORMAT, Generation, Generations, is_catalog
from lrvsf.search.opening.opened import read_metadata
from lrvsf.search.segments import DIGEST, THUMBNAIL, digests_of, kept_items
from lrvsf.search.sources.metadata import INTERNAL
from lrvsf.search.vectors import Vectors

FRAGMENT = 2**16  # rows of a fragment, of which a cluster's worker indexes some at a time (not tuned)
WRITTEN = 4096  # vectors written at a time
Key = tuple[Any, ...]  # what tells a row from others: id, metadata, the picture's digest, and a number among equals


class Rows:
    """The rows of a generation that are left, to be written.

    Raises ValueError: an earlier program has made the catalog, and kept no digests of its pictures.
    """

    def __init__(self, generation: Generation) -> None:
        digests = [digests_of(segment) for segment in generation.segments]
        if not all(column and all(column) for column in digests):
            raise ValueError(f"{generation.catalog} knows no digests of its pictures; index them anew, and --switch")
        self._generation = generation
        self._vectors = Vectors.open([segment.folder for segment in generation.segments])
        self.rows = np.setdiff1d(np.arange(generation.total), generation.removed)
        metadata = read_metadata(generation).replace_schema_metadata(None)
        column = pa.array([digest for column in digests for digest in column], pa.binary())
        self.metadata = metadata.append_column(DIGEST, column).take(pa.array(self.rows))
        self.vector = pa.field(vector_column(generation.manifest), pa.list_(pa.float16(), self._vectors.shape[1]))
        self.stored = [*self.metadata.schema, pa.field(THUMBNAIL, pa.binary())]

    def reader(self, kept: np.ndarray, vectors: bool = True) -> pa.RecordBatchReader:
        """Some of the rows, in order, to be written; `kept` counts among those that are left, and ascends."""
        schema = pa.schema([*self.stored, *([self.vector] if vectors else [])])
        return pa.RecordBatchReader.from_batches(schema, self._batches(self.rows[kept], schema))

    def vector_reader(self, order: np.ndarray) -> pa.RecordBatchReader:
        """The vectors alone, in any order of the rows that are left."""
        batches = (
            pa.record_batch([self._vectors_of(self.rows[order[start : start + WRITTEN]])], [self.vector.name])
            for start in range(0, len(order), WRITTEN)
        )
        return pa.RecordBatchReader.from_batches(pa.schema([self.vector]), batches)

    def _batches(self, rows: np.ndarray, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        keep = np.zeros(self._generation.total, bool)
        keep[rows] = True
        done = 0
        for table in kept_items(self._generation.segments, keep):
            if not len(table):
                continue
            columns = {name: table[name] for name in schema.names if name != self.vector.name}
            if self.vector.name in schema.names:
                columns[self.vector.name] = self._vectors_of(rows[done : done + len(table)])
            yield from pa.table(columns, schema=schema).combine_chunks().to_batches()
            done += len(table)

    def _vectors_of(self, rows: np.ndarray) -> pa.Array:
        stored = self._vectors.stored(rows).numpy()
        return pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), stored.shape[1])


def write_lance(out: Path, path: Path, address: str | None) -> dict[str, Any]:
    """Makes a table of the generation of a catalog that answers, or a version more of the table that is there.

    Args:
        address: of the Ray cluster that builds the table's index; None builds it in this process.

    Raises:
        InUse: a build is at work in the catalog, or another run writes its table.
        ValueError: the table is another catalog's, or damaged; a column has another type in it.
    """
    with locked(out, "search_catalog.py lance"):
        generation = Generations(out).answering()
        rows = Rows(generation)
        manifest = json.dumps(generation.manifest | {"format": FORMAT, "catalog": str(out.resolve())}, sort_keys=True)
        if table_of(path):
            told = _update(path, rows, manifest, out, address)
        else:
            with whole_folder(path) as folder:
                _finish(_created(folder, rows, manifest), rows, generation.name, address)
            told = {"appended": len(rows.rows), "deleted": 0}
    current = TableGenerations(path).answering()
    there = index_of(current.table, current.column)
    report = {"table": str(path), "generation": generation.name, "version": current.table.version}
    report |= {"items": len(current), **told, "index": there.index_type if there else "none: every row is looked at"}
    return report | {"ask it": Command([*called("search"), "query", path, "--image", "photo.jpg"])}


def _created(folder: Path, rows: Rows, manifest: str) -> lance.LanceDataset:
    reader = rows.reader(np.arange(len(rows.rows)))
    schema = reader.schema.with_metadata({MANIFEST_KEY: manifest})
    return lance.write_dataset(reader.cast(schema), folder, schema=schema, max_rows_per_file=FRAGMENT)


def _update(path: Path, rows: Rows, manifest: str, out: Path, address: str | None) -> dict[str, int]:
    """Whatever a run that was killed has left, the table becomes what the generation is: what differs is written."""
    table = open_latest(path)
    check_files(path, table)
    other = Path(manifest_of(table)["catalog"])
    if other != out.resolve() and is_catalog(other):
        raise ValueError(f"{path} is the table of {other}, and not of {out}; name another one")
    _align_columns(path, table, rows)
    deleted, appended = _change_rows(table, rows)
    table = open_latest(path)
    _complete_vectors(table, rows)
    if table.schema.metadata[MANIFEST_KEY.encode()].decode() != manifest:
        table.update_schema_metadata({MANIFEST_KEY: manifest})
    _finish(table, rows, json.loads(manifest)["name"], address)
    return {"appended": appended, "deleted": deleted}


def _align_columns(path: Path, table: lance.LanceDataset, rows: Rows) -> None:
    """Columns of the metadata that the catalog has and no others; neither writes a row."""
    there = {field.name: field for field in table.schema}
    for field in rows.metadata.schema:
        if field.name in there and there[field.name].type != field.type:
            raise ValueError(
                f"{path} has {there[field.name].type} in the column {quoted(field.name)}, and the catalog "
                f"{field.type}; write another table"
            )
    wanted = {field.name for field in rows.stored}
    if gone := [name for name in there if name not in wanted and not name.startswith(INTERNAL)]:
        table.drop_columns(gone)
    if new := [field for field in rows.metadata.schema if field.name not in there]:
        table.add_columns(new)


def _change_rows(table: lance.LanceDataset, rows: Rows) -> tuple[int, int]:
    """Deletes rows that the generation has not, and appends those that the table has not; how many of each."""
    names = rows.metadata.column_names
    found = table.to_table(columns=names, with_row_id=True)
    there, wanted = keys_of(found.select(names)), keys_of(rows.metadata)
    known, left = set(there), set(wanted)
    gone = [row for row, key in zip(found["_rowid"].to_pylist(), there, strict=True) if key not in left]
    new = np.array([place for place, key in enumerate(wanted) if key not in known], np.int64)
    if gone:
        table.delete(f"_rowid in ({', '.join(map(str, gone))})")
    if len(new):
        reader = rows.reader(new, vectors=rows.vector.name in table.schema.names)
        lance.write_dataset(reader, table, mode="append", max_rows_per_file=FRAGMENT)
    return len(gone), len(new)


def _complete_vectors(table: lance.LanceDataset, rows: Rows) -> None:
    """Writes the model's column where it is missing, or lacks rows that came while another model answered."""
    name = rows.vector.name
    if name in table.schema.names:
        if not table.count_rows(filter=f"{name} is null"):
            return
        table.drop_columns([name])
    place_of = {key: place for place, key in enumerate(keys_of(rows.metadata))}
    keys = keys_of(table.to_table(columns=rows.metadata.column_names))
    table.add_columns(rows.vector_reader(np.array([place_of[key] for key in keys], np.int64)))


def keys_of(rows: pa.Table) -> list[Key]:
    """What tells each row of a table from the others. Rows that have all alike are numbered."""
    met: Counter[Key] = Counter()
    keys = []
    for cells in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        keys.append((*cells, met[cells]))
        met[cells] += 1
    return keys


def _finish(table: lance.LanceDataset, rows: Rows, generation: str, address: str | None) -> None:
    """Indexes what is not, and only then lets the version answer."""
    version = keep_index(table, rows.vector.name, address).latest_version
    for tag in (generation, ANSWERS):
        _tagged(table, tag, version)


def _tagged(table: lance.LanceDataset, tag: str, version: int) -> None:
    there = table.tags.list().get(tag)
    if there is None:
        table.tags.create(tag, version)
    elif there["version"] != version:
        table.tags.update(tag, version)
