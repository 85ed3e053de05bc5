"""Parquet files that hold images: opened so that a row group is never in memory at once, and what damage raises."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def wrong_types(parquet: pq.ParquetFile, texts: Iterable[str], images: Iterable[str]) -> str | None:
    """Why some leaf columns cannot hold texts, or encoded images, or None if they can; those not there are passed over.

    A flipped bit of a footer can make the one the other. A column of nothing but nulls may be of any type.
    """
    columns = [parquet.schema.column(i) for i in range(len(parquet.schema))]
    kinds = dict.fromkeys(texts, "text") | dict.fromkeys(images, "encoded images")
    for column in columns:
        kind, logical = kinds.get(column.path), column.logical_type.type
        if kind is None or logical == "UNKNOWN":  # pyarrow's word for Parquet's NULL; what has no logical type is NONE
            continue
        is_text = logical in ("STRING", "ENUM", "JSON")
        if not column.physical_type.endswith("BYTE_ARRAY") or (kind == "text") != is_text:
            found = "text" if is_text else f"{column.physical_type} ({logical})"
            return f"has {found} in {column.path}, where {kind} must be"
    return None


def rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """`batch.to_pylist()`, but that of a float32 or float16 column gives numpy's numbers.

    Python has one float, which does not tell that 16777217 became 16777216 in the file (see `names.identifier`).
    """
    columns = []
    for column in batch.columns:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_float32(kind) or pa.types.is_float16(kind):
            columns.append(list(column.cast(kind).to_numpy(zero_copy_only=False)))
        else:
            columns.append(column.to_pylist())
    names = batch.schema.names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
