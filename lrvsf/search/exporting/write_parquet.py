"""A catalog as one Parquet file: `id`, `vector`, a list of fixed length, and the metadata in its own types.

Arrow's schema travels in the file, so pyarrow, polars and pandas see a list of fixed length; others see a list
(https://arrow.apache.org/docs/python/parquet.html).
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lrvsf.search.exporting.cells import fixed_lists
from lrvsf.search.exporting.databases import VECTOR
from lrvsf.search.exporting.exported_items import Batch, ExportedItems

FILE = "items.parquet"
LOADING = """\
`{file}` has a row for each item: `id`, `vector` ({dtype}), and the metadata.

```python
import pyarrow.parquet as pq

items = pq.read_table("{file}")
vectors = items["vector"].combine_chunks().flatten().to_numpy().reshape(len(items), {dim})
scores = vectors @ query  # of a unit row: cosines
```
"""


def write(items: ExportedItems, folder: Path, dtype: str) -> str:
    """Writes the file; gives what README.md says of loading it."""
    schema = vector_schema(items, dtype)
    # Neither helps vectors: their bytes are as good as random.
    packed = {name: "NONE" if name == VECTOR else "ZSTD" for name in schema.names}
    with pq.ParquetWriter(folder / FILE, schema, compression=packed, use_dictionary=items.schema.names) as file:
        for batch in items.batches():
            file.write_batch(with_vectors(batch, schema))
    return LOADING.format(file=FILE, dtype=dtype, dim=items.dim)


def vector_schema(items: ExportedItems, dtype: str) -> pa.Schema:
    """`id`, the vector, the metadata."""
    number = pa.float16() if dtype == "float16" else pa.float32()
    fields = list(items.schema)
    return pa.schema([fields[0], pa.field(VECTOR, pa.list_(number, items.dim)), *fields[1:]])


def with_vectors(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    """Some items under a `vector_schema`."""
    columns = batch.cells.combine_chunks().columns
    (cells,) = pa.table([columns[0], fixed_lists(batch.vectors), *columns[1:]], schema=schema).to_batches()
    return cells
