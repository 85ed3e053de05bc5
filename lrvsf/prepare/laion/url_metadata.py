"""What LRVS-F's metadata says of a picture, found by its URL: product, type, category and captions.

The metadata is some Parquet files, at any depth, of one row a URL and split. They are read through as often as
somebody asks; memory holds the text of the rows that were asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from lrvsf.data.names import UnusableCell, captions, identifiers
from lrvsf.data.parquet import opened, rows_of

ROWS = 8192  # read at a time
COLUMNS = ("URL", "PRODUCT_ID", "TYPE", "SPLIT", "CATEGORY")
_TEXTS = ("URL", "PRODUCT_ID", "TYPE", "CATEGORY", "blip2_caption1")
FACTS = pa.schema([*((name, pa.string()) for name in _TEXTS), ("rank", pa.uint8())])


@dataclass
class UrlMetadata:
    """Metadata files, which are read when they are asked.

    Attributes:
        unusable: counts rows, and captions, among those asked for that were left out, by reason.
    """

    files: list[Path]
    unusable: Counter[str]

    def rows(self, urls: pa.Array) -> Iterator[dict[str, Any]]:
        """The rows of these URLs: COLUMNS as text or None (a URL as it is), and `captions`."""
        for batch in self._batches():
            # Filtered in Arrow first: only the rows that were asked for become Python's.
            batch = batch.filter(pc.is_in(_text(batch["URL"]), urls))
            for url, row in zip(_text(batch["URL"]).to_pylist(), rows_of(batch), strict=True):
                try:
                    names = dict(zip(COLUMNS, identifiers(row, COLUMNS), strict=True))
                except UnusableCell as error:
                    self.unusable[f"metadata whose {error.reason}"] += 1
                    continue
                yield names | {"URL": url, "captions": captions(row, lambda reason: self.unusable.update([reason]))}

    def facts(self, urls: pa.Array) -> pa.Table:
        """FACTS of these URLs; what the test set's rows say of a URL stands before what other splits' rows say."""
        found, tables = self.rows(urls), [FACTS.empty_table()]
        while rows := list(islice(found, ROWS)):  # dicts take far more memory than a table
            for row in rows:
                split = row["SPLIT"] or ""
                row["rank"] = 0 if split == "test_distractors" else 1 if not split or split.startswith("test") else 2
                row["blip2_caption1"] = next(iter(row["captions"]), None)
            tables.append(pa.Table.from_pylist(rows, schema=FACTS))
        # Stable: a reader who takes a URL's first row takes the best, and of equal ones the first in the metadata.
        return pa.concat_tables(tables).sort_by("rank")

    def without_file(self, urls: pa.Array) -> Iterator[str]:
        """The URLs of the test set's rows for which there is no file, which are `urls`."""
        for batch in self._batches():
            if "SPLIT" in batch.schema.names:
                tested = pc.fill_null(pc.starts_with(_text(batch["SPLIT"]), "test"), False)
                missing = pc.invert(pc.is_in(_text(batch["URL"]), urls))
                yield from map(str, batch.filter(pc.and_(tested, missing))["URL"].to_pylist())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for file in tqdm(self.files, desc="metadata", unit="file"):
            with opened(file, "Fetch it again.") as parquet:
                names = parquet.schema_arrow.names
                if "URL" in names:
                    columns = [name for name in names if name in COLUMNS or name.startswith("blip2_caption")]
                    yield from parquet.iter_batches(ROWS, columns=columns)


def _text(column: pa.Array) -> pa.Array:
    """pandas and polars write other types of text."""
    return column.cast(pa.string())
