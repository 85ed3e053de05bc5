"""A version of a Lance table as a catalog that answers: Lance names candidates, and the rules of search are the same.

Rows are numbered by their place in the version, deleted ones left out. Scores come from the table's float16 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lrvsf.scale.lance_index import METRIC, index_of
from lrvsf.scale.lance_table import FAULTS, TableGeneration, TableGenerations, damaged_table, lance
from lrvsf.search.index import EXACT, VectorIndex, probed_lists
from lrvsf.search.opening.opened import Parts
from lrvsf.search.segments import THUMBNAIL
from lrvsf.search.vectors import Vectors

READ = 8192  # rows that are read at a time in a scan: 8 MB at 512 dimensions (not tuned)


def open_table(folder: str | Path) -> tuple[TableGeneration, Parts]:
    """The version that answers, or the one that TABLE@VERSION names.

    Raises ValueError, FileNotFoundError as `TableGenerations.answering` does.
    """
    generation = TableGenerations(folder).answering()
    table, column = generation.table, generation.column
    vectors = TableVectors(table, column, len(generation))
    try:
        metadata = table.to_table(columns=list(generation.columns())).combine_chunks()
        found = index_of(table, column)
        index = TableIndex(vectors, table, column, found) if found else VectorIndex(vectors, EXACT, None)
    except FAULTS as error:
        raise damaged_table(generation.folder, error) from error
    return generation, Parts(metadata.replace_schema_metadata(None), vectors, index, TableThumbnails(table))


class TableVectors(Vectors):
    """The vectors of one version: read from the table when they are needed, as others are from their shards."""

    def __init__(self, table: lance.LanceDataset, column: str, rows: int) -> None:
        self._table, self._column = table, column
        self.shape = (rows, table.schema.field(column).type.list_size)

    def _picked(self, rows: np.ndarray) -> Tensor:
        if not len(rows):
            return torch.empty(0, self.shape[1], dtype=torch.float16)
        taken = self._table.take(pa.array(rows), columns=[self._column])
        return self._tensor(taken[self._column].combine_chunks())

    def _scan(self, size: int, first_row: int = 0) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for batch in self._table.to_batches(columns=[self._column], batch_size=READ):
            rows = self._tensor(batch.column(0))
            for place in range(max(first_row - start, 0), len(rows), size):
                yield start + place, rows[place : place + size]
            start += len(rows)

    def _tensor(self, column: pa.FixedSizeListArray) -> Tensor:
        return torch.from_dlpack(column.flatten()).view(-1, self.shape[1])  # no copy, and no warning that it is not one


class TableIndex(VectorIndex):
    """The IVF of one version: Lance names candidates in place of faiss."""

    def __init__(self, vectors: TableVectors, table: lance.LanceDataset, column: str, about: Any) -> None:
        """
        Args:
            about: Lance's description of the index.
        """
        super().__init__(vectors, f"Lance {about.index_type}", about)
        self._table, self._column = table, column
        self._lists = len(table.get_ivf_model(about.name).centroids)
        addresses = table.scanner(columns=[], with_row_id=True).to_table()["_rowid"].to_numpy()
        self._order = np.argsort(addresses, kind="stable")  # compacted fragments keep their place and get new numbers
        self._addresses = addresses[self._order]

    def _nearest_codes(self, queries: np.ndarray, depth: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        lists = probed_lists(self._lists, depth)
        nearest: dict[str, Any] = {"column": self._column, "q": queries, "k": count, "metric": METRIC}
        # Both: between the two Lance looks on where it has found too little, which the caller judges better.
        nearest |= {"minimum_nprobes": lists, "maximum_nprobes": lists}
        found = self._table.scanner(columns=["_distance"], nearest=nearest, with_row_id=True).to_table()
        query, distance = found["query_index"].to_numpy(), found["_distance"].to_numpy()
        rows = self._order[np.searchsorted(self._addresses, found["_rowid"].to_numpy())]
        order = np.lexsort((distance, query))
        place = np.arange(len(order)) - np.searchsorted(query[order], query[order])  # of each among its query's
        scores = np.full((len(queries), count), -np.inf, dtype=np.float32)
        named = np.full((len(queries), count), -1, dtype=np.int64)
        scores[query[order], place], named[query[order], place] = 1 - distance[order], rows[order]  # as Lance has it
        return scores, named


class TableThumbnails:
    """The JPEGs of the rows of one version."""

    def __init__(self, table: lance.LanceDataset) -> None:
        self._table = table

    def take(self, rows: Sequence[int]) -> list[bytes]:
        """Those of some rows, in any order."""
        numbers = pa.array(np.asarray(rows, np.int64))
        return self._table.take(numbers, columns=[THUMBNAIL])[THUMBNAIL].to_pylist() if len(numbers) else []
