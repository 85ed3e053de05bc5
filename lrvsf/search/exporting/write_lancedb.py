"""A catalog as a table of LanceDB, written by its own client: the export is the database's folder.

A table is created from batches as they come (https://docs.lancedb.com/tables/create), and asked by cosine
(https://docs.lancedb.com/search/vector-search): the metric is the query's, and the index's where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lancedb
import pyarrow as pa

from lrvsf.search.exporting.exported_items import ExportedItems
from lrvsf.search.exporting.write_parquet import vector_schema, with_vectors

LOADING = """\
This folder is a database; nothing is to be loaded.

```python
import lancedb

table = lancedb.connect("{folder}").open_table("items")
found = table.search(query).distance_type("cosine").limit(10).to_list()
```

`_distance` is 1 - cosine. Every row is looked at until there is an index; above some 100,000 items make one, of the
same metric: `table.create_index(metric="cosine", vector_column_name="vector")`.
"""


def write(items: ExportedItems, folder: Path, dtype: str) -> str:
    """Writes the table; gives what README.md says of asking it. Raises ValueError: a file of the catalog is damaged."""
    schema = vector_schema(items, dtype)
    refused: list[ValueError] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from (with_vectors(batch, schema) for batch in items.batches())
        except ValueError as error:
            refused.append(error)
            raise

    try:
        lancedb.connect(folder).create_table("items", batches(), schema=schema)
    except Exception:
        if refused:  # LanceDB has made a RuntimeError of it, with all tracebacks in its text
            raise refused[0] from None
        raise
    return LOADING.format(folder=folder.name.removesuffix(".writing"))
