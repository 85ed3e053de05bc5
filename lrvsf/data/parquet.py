"""Parquet files that hold images: opened so that a row group is never in memory at once, and what damage raises."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Text that is not UTF-8 is noticed only where it becomes Python's, and Python says so in its own way.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)

BUFFER_BYTES = 2**20


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """The file, read page by page. pyarrow's default reads whole row groups, and pandas writes a file as one.

    Raises:
        one of DAMAGE: it is not a whole Parquet file.
    """
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
