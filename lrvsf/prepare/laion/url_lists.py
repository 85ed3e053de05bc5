"""Lists of URLs: what `urls` writes, `download` reads, and `download` writes again for what failed.

A list is a folder of Parquet files, each small enough to be read whole. img2dataset carries every column but `url`
through to its output unread, nulls and lists of strings included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from lrvsf.data.folders import files_in
from lrvsf.data.parquet import opened
from lrvsf.durable import whole_folder
from lrvsf.prepare.row_writer import NumberedFiles, RowWriter

# The order in which overlap is resolved: what a split holds, no later one gets.
SPLITS = ("test", "test_distractors", "validation", "validation_distractors", "train")
FILE_ROWS = 100_000  # read and shuffled as a whole; not tuned
PLACE = "metadata_row"  # lists written by earlier versions lack it

URL_SCHEMA = pa.schema(
    {
        "url": pa.string(),
        "product_id": pa.string(),  # null for a distractor of no known product
        "type": pa.string(),
        "split": pa.string(),
        "category": pa.string(),
        "captions": pa.list_(pa.string()),
        PLACE: pa.int64(),  # of the row in the metadata, whose files count one after another
    }
)


@contextmanager
def write_list(folder: Path, shuffle: bool = False) -> Iterator[NumberedFiles]:
    """Gives what rows of URL_SCHEMA are added to; FOLDER/00000.parquet, ... are there, whole, when the block has ended.

    Args:
        folder: one that is there before is replaced.
        shuffle: whether the rows of one file are put into a fixed random order. Neighbours in the metadata come from
            one shop, and a shop that is asked for 100,000 pictures in a row answers with errors.
    """

    def writer(path: Path) -> RowWriter:
        # One batch a file, shuffled by the file's number. URLs, unlike pictures, compress.
        file = pq.ParquetWriter(path, URL_SCHEMA, compression="snappy")
        return RowWriter(file, URL_SCHEMA, FILE_ROWS, shuffle=int(path.stem) if shuffle else None)

    with whole_folder(folder) as writing:
        files = NumberedFiles(writing, writer, FILE_ROWS)
        yield files
        files.close()


def list_files(folder: Path) -> list[Path]:
    """The files of a list in the order in which img2dataset reads them: FOLDER/*.parquet, or those of FOLDER/urls.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file lacks a column.
    """
    files = files_in(folder, "*.parquet") or files_in(folder / "urls", "*.parquet")
    if not files:
        raise FileNotFoundError(f"{folder} has no *.parquet and no urls/*.parquet; give what the step `urls` wrote")
    needed = [name for name in URL_SCHEMA.names if name != PLACE]  # earlier lists have no places
    for file in files:
        with opened(file, "Run the step `urls` again, or give the folder that it wrote.", needed):
            pass
    return files


def is_web(url: str | None) -> bool:
    """Whether a URL is of a web server: http or https, and a host."""
    try:
        parts = urlsplit(url or "")
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # an unclosed bracket
        return False
