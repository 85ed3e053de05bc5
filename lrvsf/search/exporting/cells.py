"""Cells of a catalog's metadata as databases take them: of which kind a column is, and days and times in ISO 8601."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa

Kind = Literal["text", "whole", "number", "truth", "day", "time", "time with zone"]


def kind_of(kind: pa.DataType) -> Kind:
    """What a column holds; a catalog has no others (`lrvsf/search/sources/metadata.py`)."""
    if pa.types.is_integer(kind):
        return "whole"
    if pa.types.is_floating(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "truth"
    if pa.types.is_date(kind):
        return "day"
    if pa.types.is_timestamp(kind):
        return "time" if kind.tz is None else "time with zone"
    return "text"


def in_iso(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Days as 2024-01-03, times as 2024-01-03T12:30:00.000000, in UTC and with a Z where the column has a zone."""
    kind = kind_of(column.type)
    if kind == "day":
        return column.cast(pa.date32()).cast(pa.string())
    if kind in ("time", "time with zone"):
        zone = "UTC" if kind == "time with zone" else None
        texts = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.string())  # nanoseconds are cut
        return pa.compute.replace_substring(texts, " ", "T")
    return column


def plain_rows(cells: pa.Table) -> list[dict[str, Any]]:
    """Rows in JSON's types; None where a cell is empty."""
    return pa.table([in_iso(column) for column in cells.columns], names=cells.column_names).to_pylist()


def as_json(value: Any) -> str:
    """One line, in the letters that texts have."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def vectors_as_json(vectors: np.ndarray) -> list[str]:
    """(b, dim) float32 -> b lists in JSON. Nine digits are enough to read the same float32 back."""
    form = "[" + ",".join(["%.9g"] * vectors.shape[1]) + "]"  # one format is several times faster than json.dumps
    return [form % tuple(row) for row in vectors.tolist()]


def fixed_lists(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """(b, dim) rows as an Arrow column of lists of this length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
