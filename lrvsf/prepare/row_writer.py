"""Rows into files in bounded memory: one buffered writer for shards, test sets, lists of URLs and what waits on disk.

A batch of rows becomes one row group, so these are what a reader later has in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 64
GROUP_BYTES = 32 * 2**20  # of images that wait for their row group; large photographs make smaller groups


class RowWriter:
    """One file, to which rows go in batches of bounded rows and bytes.

    Args:
        file: takes batches: a writer of Parquet or of Arrow.
        batch_rows, batch_bytes: a batch is written when it has this many of either.
        shuffle: seed of the order of the rows within a batch; None keeps it.

    Attributes:
        rows: how many were added.
        bytes: of their images.
    """

    def __init__(
        self,
        file: pq.ParquetWriter | pa.RecordBatchFileWriter,
        schema: pa.Schema,
        batch_rows: int,
        batch_bytes: int | None = None,
        shuffle: int | None = None,
    ) -> None:
        self.schema, self.shuffle, self.batch_rows = schema, shuffle, batch_rows
        self.batch_bytes = GROUP_BYTES if batch_bytes is None else batch_bytes
        self.rows = self.bytes = 0
        self._file = file
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, row: dict[str, Any], image_bytes: int = 0) -> None:
        self._waiting.append(row)
        self._waiting_bytes += image_bytes
        self.rows += 1
        self.bytes += image_bytes
        # Bytes too: 64 photographs of 20 MB each would be a row group that no reader has room for.
        if len(self._waiting) == self.batch_rows or self._waiting_bytes >= self.batch_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            # By the schema, not by what the rows hold: a column of nothing but None would have no type.
            batch = pa.RecordBatch.from_pylist(self._waiting, schema=self.schema)
            if self.shuffle is not None:
                batch = batch.take(pa.array(np.random.default_rng(self.shuffle).permutation(len(batch))))
            self._file.write_batch(batch)
            self._waiting, self._waiting_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._file.close()


def parquet_writer(path: Path, schema: pa.Schema, dictionary: bool = False) -> RowWriter:
    """A Parquet file of images, which do not compress further.

    Args:
        dictionary: whether equal cells are stored once. Of pictures, pyarrow would hold all in memory to find that each
            is there once.
    """
    return RowWriter(pq.ParquetWriter(path, schema, compression="none", use_dictionary=dictionary), schema, GROUP_ROWS)


class NumberedFiles:
    """FOLDER/00000.parquet, 00001.parquet, ...: a row goes to the last file, and a full file is closed.

    Args:
        writer: opens a file.
        file_rows, file_bytes: a file is full when it has this many rows, or images of this many bytes.

    Attributes:
        files: how many were begun.
        rows: how many were added.
    """

    def __init__(
        self,
        folder: Path,
        writer: Callable[[Path], RowWriter],
        file_rows: int | None = None,
        file_bytes: int | None = None,
    ) -> None:
        self.folder, self.file_rows, self.file_bytes = folder, file_rows, file_bytes
        self.files = self.rows = 0
        self._writer = writer
        self.open: RowWriter | None = None

    def begin(self) -> None:
        """Opens the next file, which is there even if no row follows."""
        self.open = self._writer(self.folder / f"{self.files:05d}.parquet")
        self.files += 1

    def add(self, row: dict[str, Any], image_bytes: int = 0) -> RowWriter | None:
        """Writes a row. If that fills the file, closes it and gives it back."""
        if self.open is None:  # not before a row comes: no file is empty, unless `begin` was called
            self.begin()
        self.rows += 1
        self.open.add(row, image_bytes)
        full = self.open.rows == self.file_rows or (self.file_bytes is not None and self.open.bytes >= self.file_bytes)
        return self.close() if full else None

    def close(self) -> RowWriter | None:
        """Closes the open file and gives it back, if there is one."""
        closed, self.open = self.open, None
        if closed is not None:
            closed.close()
        return closed
