"""A catalog as an index's body and requests to Elasticsearch's `_bulk`.

    index.json              PUT /NAME             https://www.elastic.co/docs/reference/elasticsearch/mapping-reference/dense-vector
    bulk/00000.ndjson, ...  POST /NAME/_bulk      https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk

Similarity is `dot_product`, which wants unit rows and has them. Elasticsearch quantises by itself: it is sent float32 rows,
whatever its index keeps.
"""  # noqa: E501 - addresses

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lrvsf.search.exporting.cells import as_json, kind_of, plain_rows, vectors_as_json
from lrvsf.search.exporting.databases import VECTOR
from lrvsf.search.exporting.exported_items import ID, ExportedItems
from lrvsf.search.exporting.write_qdrant import parts_of

ITEMS, BYTES = 5_000, 2**23  # of a request at most; Elasticsearch refuses more than 100 MB, and advises a tenth
MOST_LETTERS = 8_191  # of a text that filters find, as Lucene refuses terms of more than 32,766 bytes
TOO_LONG = f"texts over {MOST_LETTERS:,} letters, kept, but not filtered by"
TEXT = {"type": "keyword", "ignore_above": MOST_LETTERS}
MAPPED: dict[str, dict[str, Any]] = {  # kind of a column -> its mapping
    **{"text": TEXT, "whole": {"type": "long"}, "number": {"type": "double"}, "truth": {"type": "boolean"}},
    **dict.fromkeys(["day", "time", "time with zone"], {"type": "date", "format": "strict_date_optional_time_nanos"}),
}
INDEXED = {"float32": "hnsw", "int8": "int8_hnsw"}  # by default it would be one of the coarser kinds
LOADING = """\
```
url=http://localhost:9200/items
curl --fail -X PUT "$url" -H 'Content-Type: application/json' --data-binary @index.json
for file in bulk/*.ndjson; do
  curl --fail --silent "$url/_bulk" -H 'Content-Type: application/x-ndjson' --data-binary @"$file" |
    grep -q '"errors":false' || echo "$file was not taken whole"
done
```

A score is (1 + cosine) / 2. A document's `_id` is the item's key; the item's `id` is a field. Texts are keywords, for
filters.
"""


def write(items: ExportedItems, folder: Path, dtype: str) -> str:
    """Writes the files; gives what README.md says of loading them."""
    (folder / "index.json").write_text(as_json({"mappings": mappings(items.schema, items.dim, dtype)}) + "\n", "utf-8")
    (folder / "bulk").mkdir()
    for number, lines in enumerate(parts_of(_lines(items), ITEMS, BYTES)):
        (folder / f"bulk/{number:05d}.ndjson").write_text("".join(lines), "utf-8")
    return LOADING


def mappings(schema: pa.Schema, dim: int, dtype: str) -> dict[str, Any]:
    """The fields and their types."""
    vector = {
        "type": "dense_vector",
        "dims": dim,
        "similarity": "dot_product",
        "index_options": {"type": INDEXED[dtype]},
    }
    fields = {field.name: MAPPED[kind_of(field.type)] for field in schema}
    return {"dynamic": "strict", "properties": {VECTOR: vector} | fields}


def _lines(items: ExportedItems) -> Iterator[str]:
    """An item's two lines: what is to be done, and the document."""
    for batch in items.batches():
        for column in batch.cells.columns:
            if kind_of(column.type) == "text":
                too_long = pc.greater(pc.utf8_length(column), MOST_LETTERS)
                items.changed.add_all(TOO_LONG, batch.cells[ID].filter(too_long).to_pylist())
        rows, vectors = plain_rows(batch.cells), vectors_as_json(batch.vectors)
        for key, row, vector in zip(batch.keys, rows, vectors, strict=True):
            yield f'{{"index":{{"_id":"{key}"}}}}\n{{"{VECTOR}":{vector},{as_json(row)[1:]}\n'
