"""A catalog as bodies of Qdrant's requests: a collection, indexes of its payload, and points.

    collection.json         PUT /collections/NAME       https://qdrant.tech/documentation/concepts/collections/
    indexes/00000.json      PUT /collections/NAME/index https://qdrant.tech/documentation/concepts/indexing/
    points/00000.json, ...  PUT /collections/NAME/points https://qdrant.tech/documentation/concepts/points/

A point's id must be a whole number or a UUID: it is the item's key, and the id stands in the payload. Qdrant quantises
by itself: it is sent float32 rows, whatever it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrvsf.search.exporting.cells import as_json, kind_of, plain_rows, vectors_as_json
from lrvsf.search.exporting.exported_items import ExportedItems

POINTS, BYTES = 1_000, 2**24  # of a request at most; Qdrant refuses more than 32 MB
INDEXED = {  # kind of a column -> of its index
    **{"text": "keyword", "whole": "integer", "number": "float", "truth": "bool"},
    **{"day": "datetime", "time": "datetime", "time with zone": "datetime"},
}
LOADING = """\
```
url=http://localhost:6333/collections/items
put() { curl --fail --silent --show-error -X PUT "$1" -H 'Content-Type: application/json' --data-binary @"$2"; }
put "$url" collection.json
for file in indexes/*.json; do put "$url/index" "$file"; done
for file in points/*.json; do put "$url/points?wait=true" "$file"; done
```

A score is a cosine. A point's id is the item's key; the item's `id` is in its payload.
"""


def write(items: ExportedItems, folder: Path, dtype: str) -> str:
    """Writes the files; gives what README.md says of loading them."""
    (folder / "collection.json").write_text(as_json(collection(items.dim, dtype)) + "\n", "utf-8")
    for place in ("indexes", "points"):
        (folder / place).mkdir()
    for number, field in enumerate(items.schema):
        index = {"field_name": field.name, "field_schema": INDEXED[kind_of(field.type)]}
        (folder / f"indexes/{number:05d}.json").write_text(as_json(index) + "\n", "utf-8")
    for number, points in enumerate(parts_of(_points(items), POINTS, BYTES)):
        body = '{"points":[\n' + ",\n".join(points) + "\n]}\n"
        (folder / f"points/{number:05d}.json").write_text(body, "utf-8")
    return LOADING


def collection(dim: int, dtype: str) -> dict[str, Any]:
    """How Qdrant is to keep the vectors."""
    vectors = {"size": dim, "distance": "Cosine"}
    if dtype == "float16":
        return {"vectors": vectors | {"datatype": "float16"}}
    if dtype == "int8":  # beside the float32 rows, which score the candidates
        return {"vectors": vectors, "quantization_config": {"scalar": {"type": "int8", "always_ram": True}}}
    return {"vectors": vectors}


def _points(items: ExportedItems) -> Iterator[str]:
    for batch in items.batches():
        rows, vectors = plain_rows(batch.cells), vectors_as_json(batch.vectors)
        for key, row, vector in zip(batch.keys, rows, vectors, strict=True):
            yield f'{{"id":"{key}","vector":{vector},"payload":{as_json(row)}}}'


def parts_of(texts: Iterator[str], most: int, most_bytes: int) -> Iterator[list[str]]:
    """Texts in lists of a limited length and size; one that is larger alone is a list of its own."""
    part, size = [], 0
    for text in texts:
        longer = len(text.encode())
        if part and (len(part) == most or size + longer > most_bytes):
            yield part
            part, size = [], 0
        part.append(text)
        size += longer
    if part:
        yield part
