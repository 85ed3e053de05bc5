"""Stand-in until filters are checked."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa


def rows_where(metadata: pa.Table, where: str) -> np.ndarray:
    """(n,) whether each row fulfils the condition."""
    with duckdb.connect() as connection:
        connection.register("items", metadata)
        found = connection.sql(f"select ({where}) from items").fetchall()
    return np.array([cell is True for (cell,) in found], dtype=bool)
