"""The items of a catalog as they leave it: those that are there, in batches, whatever database they go to.

Memory does not hold the catalog: rows are read as they are written. What grows with it are a few numbers an item, by
which photos with one id are counted.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from lrvsf.data.parquet import DAMAGE
from lrvsf.report import Ledger
from lrvsf.search.generations import Generation, damaged
from lrvsf.search.sources.metadata import INTERNAL
from lrvsf.search.vectors import Vectors

BATCH = 1024  # items read and written at a time; not tuned
ID = "id"
LOW = 2**62 - 1  # bits of a UUID that are all of its hash


@dataclass(frozen=True)
class Batch:
    """Some items.

    Attributes:
        keys: (b,) what tells each from all others, see `key_of`.
        cells: b rows, `id` and the metadata, under the names that they have in the database.
        vectors: (b, dim), float32 unit rows, or float16 as the catalog stores them, whose lengths are nearly 1.
    """

    keys: list[uuid.UUID]
    cells: pa.Table
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


class ExportedItems:
    """The items of a generation that are left. All files are open from now on, so that `compact` may remove them.

    Args:
        stored: give the float16 rows that the catalog stores, bit for bit, in place of float32 unit rows.

    Attributes:
        dim: of the vectors.
        schema: of `Batch.cells`.
        changed: what a database could not take as it was, counted by what became of it, with the first ids.

    Raises:
        FileNotFoundError: a file is gone.
        ValueError: a file is damaged.
    """

    def __init__(self, generation: Generation, stored: bool = False) -> None:
        self._stored, self._left = stored, np.ones(generation.total, bool)
        self._left[generation.removed] = False
        self.vectors = Vectors.open([segment.folder for segment in generation.segments])
        self.dim = self.vectors.shape[1]
        self._files = {segment.items: _opened(segment.items) for segment in generation.segments}
        schemas = [file.schema_arrow for file in self._files.values()]
        found = pa.unify_schemas(schemas, promote_options="permissive")
        fields = [field for field in found if not field.name.startswith(INTERNAL) and field.name != ID]
        self.columns = pa.schema([found.field(ID), *fields])  # as the catalog names them
        self.schema, self.changed = self.columns, Ledger()

    def __len__(self) -> int:
        return int(np.count_nonzero(self._left))

    def rename(self, names: dict[str, str]) -> None:
        """Gives columns the names that they have in a database."""
        self.schema = pa.schema([field.with_name(names[field.name]) for field in self.columns])

    def batches(self) -> Iterator[Batch]:
        """All items, in the catalog's order, at most BATCH at a time. Raises ValueError: a file is damaged."""
        done, numbers = 0, self._numbers()
        with tqdm(desc="export", total=len(self), unit="item", delay=1) as bar:
            for first, table in self._tables(self.columns.names):
                rows = first + np.flatnonzero(self._left[first : first + len(table)])
                if not len(rows):
                    continue
                cells = pa.table(table.take(rows - first).columns, schema=self.schema)
                own = numbers[done : done + len(rows)].tolist()
                keys = [key_of(name, number) for name, number in zip(cells[ID].to_pylist(), own, strict=True)]
                vectors = self.vectors.stored(rows).numpy() if self._stored else self.vectors.take(rows)
                yield Batch(keys, cells, vectors)
                done += len(rows)
                bar.update(len(rows))

    def _numbers(self) -> np.ndarray:
        """(items,) which of the photos with its id each item is, from 0, in the catalog's order."""
        # Part of the key stands for an id, as a dictionary of all ids would be the catalog in memory. Should two ids
        # have the same part, one of them is numbered 1 instead of 0, and their keys differ all the same.
        short, done = np.empty(len(self), np.int64), 0
        for first, table in self._tables([ID]):
            names = table[ID].filter(pa.array(self._left[first : first + len(table)])).to_pylist()
            short[done : done + len(names)] = [key_of(name).int & LOW for name in names]
            done += len(names)
        order = np.argsort(short, kind="stable")  # of equal ids the earlier item is the first
        short = short[order]
        starts = np.flatnonzero(np.append(True, short[1:] != short[:-1]))
        numbers = np.empty(len(self), np.int64)
        numbers[order] = np.arange(len(self)) - np.repeat(starts, np.diff(np.append(starts, len(self))))
        return numbers

    def _tables(self, names: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """The number of the first row, and columns of all rows, removed ones included, some at a time."""
        first, schema = 0, pa.schema([self.columns.field(name) for name in names])
        for path, file in self._files.items():
            there = [name for name in names if name in file.schema_arrow.names]
            try:
                for batch in file.iter_batches(BATCH, columns=there):
                    yield first, _completed(batch, schema)
                    first += len(batch)
            except DAMAGE as error:
                raise damaged(path, error) from error


def key_of(name: str, number: int = 0) -> uuid.UUID:
    """The key of an item, where a database wants a UUID: of its id, and of further photos with that id their number.

    It is the same in every export, so a later one takes an item's place.
    """
    # No id has a NUL: no path has one, and tables are refused with it.
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{name}\0{number}" if number else name)


def _completed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """With empty cells where the segment lacks a column."""
    there = set(batch.schema.names)
    columns = [batch[field.name] if field.name in there else pa.nulls(len(batch), field.type) for field in schema]
    return pa.table(columns, names=schema.names).cast(schema)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise damaged(path, error) from error
