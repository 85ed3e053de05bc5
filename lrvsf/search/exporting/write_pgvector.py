r"""A catalog as a table of PostgreSQL with pgvector: statements for psql, and rows for COPY in its binary form.

    load.sql        the extension, the table, `\copy`, an HNSW index: https://github.com/pgvector/pgvector#loading
    items.copy      https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"

In that form a value is what its type's `recv` function reads: a vector is its dimension and 0, both of 16 bits, and its
numbers of 32 bits (of 16, of a halfvec), the first byte first.

The operators are those of cosines, though inner products are a little faster for unit rows: they are right for the
stored float16 rows, too, whose lengths are nearly 1, and 1 - distance is the score.
"""

from __future__ import annotations

import struct
from datetime import date
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from lrvsf.search.exporting.cells import kind_of
from lrvsf.search.exporting.databases import KEY, VECTOR
from lrvsf.search.exporting.exported_items import ID, Batch, ExportedItems

HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)  # no flags, nothing more before the rows
EMPTY = struct.pack(">i", -1)
TYPES = {
    **{"text": "text", "whole": "bigint", "number": "double precision", "truth": "boolean"},
    **{"day": "date", "time": "timestamp", "time with zone": "timestamptz"},
}
VECTOR_TYPES = {"float32": "vector", "float16": "halfvec"}
DAYS = (date(2000, 1, 1) - date(1970, 1, 1)).days  # PostgreSQL's days and times begin then, Arrow's in 1970
MICROSECONDS = DAYS * 24 * 3600 * 10**6
FORMS = {  # kind of a column -> bytes of a value, its form for `struct`, what is 0 there
    **{"whole": (8, "q", 0), "number": (8, "d", 0), "truth": (1, "?", 0), "day": (4, "i", DAYS)},
    **dict.fromkeys(["time", "time with zone"], (8, "q", MICROSECONDS)),
}
NUL, REPLACED = "\0", "\ufffd"  # no text of PostgreSQL has the former
LOADING = """\
```
psql DATABASE -f load.sql       # in this folder
```

makes the table `items`, fills it and indexes it; it needs the extension `vector`, 0.7 or later.
`1 - (vector <=> query)` is the cosine.
"""
WITHOUT_NUL = "texts with a NUL, now U+FFFD"


def write(items: ExportedItems, folder: Path, dtype: str) -> str:
    """Writes the files; gives what README.md says of loading them."""
    (folder / "load.sql").write_text(statements(items.schema, items.dim, VECTOR_TYPES[dtype]), "utf-8")
    with open(folder / "items.copy", "wb") as file:
        file.write(HEAD)
        for batch in items.batches():
            _write_batch(file, batch)
            for column in batch.cells.columns:
                if kind_of(column.type) == "text":
                    with_nul = batch.cells[ID].filter(pc.match_substring(column, NUL))
                    items.changed.add_all(WITHOUT_NUL, with_nul.to_pylist())
        file.write(struct.pack(">h", -1))
    return LOADING


def statements(schema: pa.Schema, dim: int, kind: str) -> str:
    """What psql runs: all of it, or up to the first error."""
    fields = [f"{_name(KEY)} uuid PRIMARY KEY"]
    fields += [f"{_name(one.name)} {TYPES[kind_of(one.type)]}{' NOT NULL' * (one.name == ID)}" for one in schema]
    fields += [f"{_name(VECTOR)} {kind}({dim}) NOT NULL"]
    return "\n".join(
        [
            r"\set ON_ERROR_STOP on",
            "SET client_encoding = 'UTF8';",
            "CREATE EXTENSION IF NOT EXISTS vector;",
            "BEGIN;",
            "CREATE TABLE items (\n    " + ",\n    ".join(fields) + "\n);",
            r"\copy items FROM 'items.copy' WITH (FORMAT binary)",
            "COMMIT;",
            f"CREATE INDEX ON items ({_name(ID)});",
            f"CREATE INDEX ON items USING hnsw ({_name(VECTOR)} {kind}_cosine_ops);",
            "ANALYZE items;\n",
        ]
    )


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _write_batch(file: BinaryIO, batch: Batch) -> None:
    columns = [_packed(column) for column in batch.cells.columns]
    vectors = batch.vectors.astype(batch.vectors.dtype.newbyteorder(">"))
    head = struct.pack(">ihh", 4 + vectors.strides[0], vectors.shape[1], 0)
    count = struct.pack(">h", len(columns) + 2)
    for key, vector, *cells in zip(batch.keys, vectors, *columns, strict=True):
        file.write(b"".join([count, struct.pack(">i", 16), key.bytes, *cells, head, vector.tobytes()]))


def _packed(column: pa.ChunkedArray) -> list[bytes]:
    """Each cell with its length before it."""
    kind = kind_of(column.type)
    if kind == "text":
        return [EMPTY if text is None else _text(text) for text in column.to_pylist()]
    length, form, first = FORMS[kind]
    pack = struct.Struct(f">i{form}").pack
    if kind == "day":
        column = column.cast(pa.date32()).cast(pa.int32())
    elif kind in ("time", "time with zone"):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())  # nanoseconds are cut
    return [EMPTY if cell is None else pack(length, cell - first if first else cell) for cell in column.to_pylist()]


def _text(text: str) -> bytes:
    data = text.replace(NUL, REPLACED).encode()
    return struct.pack(">i", len(data)) + data
