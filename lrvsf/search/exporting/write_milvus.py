"""A catalog as Milvus imports it: the body of a request that makes a collection, and a Parquet file of its fields.

    collection.json     POST /v2/vectordb/collections/create    https://milvus.io/docs/create-collection.md
    items.parquet       POST /v2/vectordb/jobs/import/create    https://milvus.io/docs/prepare-source-data.md

Milvus has texts of at most 65,535 bytes, no days and, before 2.6, no times: these are texts in ISO 8601, which compare
as they should. float16 vectors are lists of bytes, as its BulkWriter writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lrvsf.data.names import quoted
from lrvsf.search.exporting.cells import as_json, in_iso, kind_of
from lrvsf.search.exporting.databases import KEY, VECTOR
from lrvsf.search.exporting.exported_items import ID, Batch, ExportedItems

FILE = "items.parquet"
MOST_BYTES = 65_535  # of a text
DATA_TYPES = {"text": "VarChar", "whole": "Int64", "number": "Double", "truth": "Bool"}
VECTOR_TYPES = {"float32": "FloatVector", "float16": "Float16Vector"}
LOADING = """\
Milvus imports files that are in its own object storage; `mc alias set milvus http://localhost:9000 USER PASSWORD` names
that of a standalone one.

```
url=http://localhost:19530/v2/vectordb
mc cp {file} milvus/a-bucket/{file}
curl --fail -X POST "$url/collections/create" -H 'Content-Type: application/json' --data-binary @collection.json
curl --fail -X POST "$url/jobs/import/create" -H 'Content-Type: application/json' \\
  --data '{{"collectionName": "items", "files": [["{file}"]]}}'
```

A score is a cosine. The primary key is the item's key; the item's `id` is a field. Empty cells need Milvus 2.5. Days
and times are texts in ISO 8601, which compare as they should.
"""


def write(items: ExportedItems, folder: Path, dtype: str) -> str:
    """Writes the files; gives what README.md says of loading them. Raises ValueError: a text is too long."""
    body = as_json(collection(items.schema, items.dim, dtype))
    (folder / "collection.json").write_text(body + "\n", "utf-8")
    schema = _file_schema(items.schema, dtype)
    with pq.ParquetWriter(folder / FILE, schema, compression="ZSTD", use_dictionary=items.schema.names) as file:
        for batch in items.batches():
            file.write_table(_table(batch, schema))
    return LOADING.format(file=FILE)


def collection(schema: pa.Schema, dim: int, dtype: str) -> dict[str, Any]:
    """The collection `items`."""
    vector = {"fieldName": VECTOR, "dataType": VECTOR_TYPES[dtype], "elementTypeParams": {"dim": str(dim)}}
    fields = [{"fieldName": KEY, "dataType": "VarChar", "isPrimary": True, "elementTypeParams": {"max_length": "36"}}]
    for field in schema:
        about: dict[str, Any] = {"fieldName": field.name, "dataType": DATA_TYPES.get(kind_of(field.type), "VarChar")}
        if about["dataType"] == "VarChar":
            about["elementTypeParams"] = {"max_length": str(MOST_BYTES)}
        fields.append(about | ({} if field.name == ID else {"nullable": True}))
    index = {"fieldName": VECTOR, "indexName": VECTOR, "indexType": "AUTOINDEX", "metricType": "COSINE"}
    known = {"autoId": False, "enableDynamicField": False, "fields": [*fields, vector]}
    return {"collectionName": "items", "schema": known, "indexParams": [index]}


def _file_schema(schema: pa.Schema, dtype: str) -> pa.Schema:
    kinds = [(field.name, field.type if kind_of(field.type) in DATA_TYPES else pa.string()) for field in schema]
    number = pa.uint8() if dtype == "float16" else pa.float32()
    return pa.schema([(KEY, pa.string()), *kinds, (VECTOR, pa.list_(number))])


def _table(batch: Batch, schema: pa.Schema) -> pa.Table:
    columns = [in_iso(column) for column in batch.cells.columns]
    for name, column in zip(batch.cells.column_names, columns, strict=True):
        if pa.types.is_string(column.type):
            _check_length(name, column, batch.cells[ID])
    rows = batch.vectors
    if schema.field(VECTOR).type.value_type == pa.uint8():
        rows = rows.astype("<f2").view(np.uint8)  # (b, 2 dim)
    starts = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    vectors = pa.ListArray.from_arrays(pa.array(starts), pa.array(rows.ravel()))
    return pa.table([pa.array(map(str, batch.keys)), *columns, vectors], schema=schema)


def _check_length(name: str, column: pa.ChunkedArray, ids: pa.ChunkedArray) -> None:
    longest = pc.max(pc.binary_length(column)).as_py() or 0
    if longest > MOST_BYTES:
        place = pc.index(pc.binary_length(column), longest).as_py()
        raise ValueError(
            f"item {quoted(ids[place].as_py())} has {longest:,} bytes in {quoted(name)}, and milvus takes "
            f"{MOST_BYTES:,}; shorten it in the table, and `index` it anew with --switch"
        )
