"""Parquet files that hold images: read in bounded memory, whatever a file claims to hold, and what damage raises."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lrvsf.data.bounds.parquet_pages import Unfolded, unfolded
from lrvsf.data.bounds.remote_file import RemoteFile, Unreachable
from lrvsf.data.folders import Address

# Text that is not UTF-8 is noticed only where it becomes Python's, and Python says so in its own way. What a file
# unfolds to can be more memory than there is.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError)

BUFFER_BYTES = 2**20
BATCH_BYTES = 2**27  # of a column's cells in memory at a time
MAX_PAGE_BYTES = 2**29  # a page is read as a whole, whoever reads; pandas writes up to 1,024 images into one
MAX_BYTES = 2**30  # of a column that is read as a whole, and of what a dictionary makes of a few rows
AHEAD_BYTES = 2**23  # of a remote file, fetched at once: its row groups may be small (not tuned)
MAX_EMPTY_VALUES = 2**18  # of a column in a row group, beyond a value for each byte, or 64 in the list of each row
FEW_ROWS = 16


class ParquetBomb(OSError):
    """A file holds, or claims to hold, far more than its bytes can mean."""


class BoundedFile(pq.ParquetFile):
    """A Parquet file of which no row group is in memory at once, and whose pages are looked at before they are read.

    Attributes:
        source: its path or address, or an open file.
    """

    def __init__(self, source: str | Path | Address | BinaryIO, **options: Any) -> None:
        opened = source.open() if isinstance(source, Address) else None
        super().__init__(opened or source, **options)
        self.source, self._opened = source, opened
        columns = [self.schema.column(i) for i in range(len(self.schema))]
        self._in_lists = {column.path: column.max_repetition_level > 0 for column in columns}
        self._size = self._file().seek(0, io.SEEK_END)

    def iter_batches(
        self,
        batch_size: int = 64,
        row_groups: Sequence[int] | None = None,
        columns: list[str] | None = None,
        use_threads: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of at most `batch_size` rows, fewer where cells are large.

        Raises:
            ParquetBomb: a page over `MAX_PAGE_BYTES`, lists of very many values, or a dictionary that stands for more
                than `MAX_BYTES` in a few rows.
        """
        # Row group by row group, as each has cells of another size, and so another number of rows that fit.
        for group in range(self.metadata.num_row_groups) if row_groups is None else row_groups:
            self._fetch(group, columns)
            size = min(batch_size, self._rows_in_memory(group, columns))
            yield from super().iter_batches(size, [group], columns, use_threads=use_threads)

    @cached_property
    def starts(self) -> list[int]:
        """The row where each row group begins, and the number of rows."""
        sizes = (self.metadata.row_group(group).num_rows for group in range(self.num_row_groups))
        return list(accumulate(sizes, initial=0))

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """A few small columns as a whole. Raises ParquetBomb as `iter_batches`, and for more than `MAX_BYTES`."""
        batches, size = [], 0  # of what is in memory, not of what the footer claims
        for batch in self.iter_batches(2**16, columns=columns):
            batches.append(batch)
            size += batch.nbytes
            if size > MAX_BYTES:
                raise ParquetBomb(f"{', '.join(columns or ['its columns'])} take more than {MAX_BYTES >> 30} GiB")
        table = pa.Table.from_batches(batches) if batches else self.schema_arrow.empty_table()
        return table if columns is None else table.select(columns)

    def close(self, force: bool = False) -> None:
        if self._opened:
            self._opened.close()
        super().close(force=force)

    def check_whole(self, group: int, columns: list[str]) -> None:
        """For a reader that takes a row group at once: refuses one that unfolds to far more than it stores.

        Raises:
            ParquetBomb: to more than `MAX_BYTES` and four times what it stores.
        """
        chunks = self._chunks(group, columns)
        limit, size = max(MAX_BYTES, 4 * sum(chunk.total_compressed_size for chunk in chunks)), 0
        for chunk in chunks:
            pages = self._pages(group, chunk)
            size += pages.plain + pages.prefixed
            # What a dictionary stands for is counted only where the guess, each value the largest, is above the limit.
            size += pages.indexed if pages.indexed <= limit else sum(self._indexed(group, chunk))
        if size > limit:
            raise ParquetBomb(f"row group {group} unfolds to {size} bytes, at most {limit} at once")

    def check_footer(self, group: int, columns: list[str]) -> None:
        """What `check_whole` refuses, as far as the footer tells, which is quick for remote files too."""
        chunks = self._chunks(group, columns)
        stored, size = sum(c.total_compressed_size for c in chunks), sum(c.total_uncompressed_size for c in chunks)
        if size > max(MAX_BYTES, 4 * stored):
            raise ParquetBomb(f"row group {group} unfolds from {stored} to {size} bytes")

    def _rows_in_memory(self, group: int, columns: list[str] | None) -> int:
        """How many rows of a row group may be in memory at a time."""
        largest = max([self._pages(group, chunk).value for chunk in self._chunks(group, columns)], default=1)
        return max(1, BATCH_BYTES // max(largest, 1))

    def _pages(self, group: int, chunk: pq.ColumnChunkMetaData) -> Unfolded:
        """A column's pages, if they are not too large for any reader."""
        rows, path = self.metadata.row_group(group).num_rows, chunk.path_in_schema
        pages, in_lists = unfolded(self._file(), chunk), self._in_lists.get(path, True)
        most = MAX_EMPTY_VALUES + 64 * rows if in_lists else max(MAX_EMPTY_VALUES, self._size)
        where = f"column {path} of row group {group}"
        if pages.largest_page > MAX_PAGE_BYTES:
            raise ParquetBomb(f"{where} has a page of {pages.largest_page} bytes, at most {MAX_PAGE_BYTES}")
        if rows > max(MAX_EMPTY_VALUES, self._size) or pages.values > most:
            raise ParquetBomb(f"{where} has {max(rows, pages.values)} values in a file of {self._size} bytes")
        # A row of lists is read as a whole, however many values it has.
        if in_lists and pages.prefixed > MAX_BYTES:
            raise ParquetBomb(f"{where} is encoded as DELTA_BYTE_ARRAY; write it plain")
        if in_lists and pages.indexed > MAX_BYTES and max(self._indexed(group, chunk)) > MAX_BYTES:
            raise ParquetBomb(
                f"{where} has a dictionary that stands for more than {MAX_BYTES} bytes in {FEW_ROWS} rows"
            )
        return pages

    def _indexed(self, group: int, chunk: pq.ColumnChunkMetaData) -> Iterator[int]:
        """Bytes of the values of every few rows of a column, its dictionary's repeated; none is unfolded."""
        path, source = chunk.path_in_schema, self._file() if isinstance(self.source, Address) else self.source
        with pq.ParquetFile(source, read_dictionary=[path], pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            for batch in file.iter_batches(FEW_ROWS, [group], [path], use_threads=False):
                column = batch.column(0)
                while not pa.types.is_dictionary(column.type):
                    column = column.field(0) if pa.types.is_struct(column.type) else column.flatten()
                lengths = pc.binary_length(column.dictionary)
                yield pc.sum(lengths.take(column.indices)).as_py() or 0

    def _fetch(self, group: int, columns: list[str] | None) -> None:
        """Of a remote file, fetches all that is read of a row group, and of the next ones while they are small."""
        if not isinstance(file := self._file(), RemoteFile):
            return
        spans: list[tuple[int, int]] = []
        for following in range(group, self.num_row_groups):
            own = [_span(chunk) for chunk in self._chunks(following, columns)]
            if spans and sum(stop - start for start, stop in [*spans, *own]) > AHEAD_BYTES:
                break
            spans += own
        file.keep(spans)

    def _chunks(self, group: int, columns: list[str] | None) -> list[pq.ColumnChunkMetaData]:
        row_group = self.metadata.row_group(group)
        chunks = [row_group.column(i) for i in range(row_group.num_columns)]
        return [
            chunk
            for chunk in chunks
            if columns is None or any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns)
        ]

    def _file(self) -> BinaryIO:
        if hasattr(self.source, "read"):
            return self.source
        self._opened = self._opened or open(self.source, "rb")  # noqa: SIM115 - closed with this
        return self._opened


def _span(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < start:
        start = chunk.dictionary_page_offset
    return start, start + chunk.total_compressed_size


def open_parquet(path: str | Path | Address) -> BoundedFile:
    """The file, read page by page. pyarrow's default reads whole row groups, and pandas writes a file as one.

    Raises:
        Unreachable: it is behind an address, and cannot be read.
        one of DAMAGE: it is not a whole Parquet file.
    """
    return BoundedFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)


def check_columns(file: BoundedFile, needed: Iterable[str], remedy: str) -> None:
    """Raises ValueError, which ends with the remedy, if the file lacks a column."""
    present = file.schema_arrow.names
    if missing := [name for name in needed if name not in present]:
        raise ValueError(
            f"{file.source} lacks the column(s) {', '.join(missing)}; it has {', '.join(present)}. {remedy}"
        )


@contextmanager
def opened(path: str | Path | Address, remedy: str, needed: Iterable[str] = ()) -> Iterator[BoundedFile]:
    """The file, for a reader whom damage stops.

    Args:
        remedy: a sentence, with which all messages end.
        needed: columns that it must have.

    Raises:
        Unreachable: it is behind an address, and cannot be read.
        OSError: it is not a whole Parquet file, or the block came upon damage.
        ValueError: it lacks a column.
    """
    try:
        file = open_parquet(path)
    except Unreachable:
        raise
    except DAMAGE as error:
        raise OSError(f"{path} is not a readable Parquet file: {error}. {remedy}") from error
    with file:
        check_columns(file, needed, remedy)
        try:
            yield file
        except Unreachable:
            raise
        except DAMAGE as error:
            raise OSError(f"{path} is damaged: {error}. {remedy}") from error


def read_rows(
    file: BoundedFile, columns: list[str] | None, batch_rows: int, groups: Iterable[int] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a file, or of some of its row groups, `batch_rows` of them in memory, fewer where cells are large.

    Raises OSError: damage, with the row near which it is. A damaged page takes its neighbours with it.
    """
    for group in range(file.num_row_groups) if groups is None else groups:
        row = file.starts[group]
        try:
            # In this thread: those who read many files read them side by side.
            for batch in file.iter_batches(batch_rows, [group], columns, use_threads=False):
                for cells in rows_of(batch):
                    yield cells
                    row += 1
        except Unreachable:
            raise
        except DAMAGE as error:
            raise OSError(f"near row {row}: {error}") from error


def wrong_types(parquet: pq.ParquetFile, texts: Iterable[str], images: Collection[str]) -> str | None:
    """Why some leaf columns cannot hold texts, or encoded images, or None if they can; texts may be missing.

    A flipped bit of a footer can make the one the other. A column of nothing but nulls may be of any type.
    """
    columns = [parquet.schema.column(i) for i in range(len(parquet.schema))]
    kinds = dict.fromkeys(texts, "text") | dict.fromkeys(images, "encoded images")
    if inner := [name for name in images if name not in {column.path for column in columns}]:
        return f"has something else in {inner[0]}, where encoded images must be"
    for column in columns:
        kind, logical = kinds.get(column.path), column.logical_type.type
        if kind is None or logical == "UNKNOWN":  # pyarrow's word for Parquet's NULL; what has no logical type is NONE
            continue
        is_text = logical in ("STRING", "ENUM", "JSON")
        if not column.physical_type.endswith("BYTE_ARRAY") or (kind == "text") != is_text:
            found = "text" if is_text else f"{column.physical_type} ({logical})"
            return f"has {found} in {column.path}, where {kind} must be"
    return None


def describe_files(files: Iterable[Path | Address]) -> str:
    """Number, bytes and footers of Parquet files. A footer lists the rows, sizes and statistics of all column parts.

    Raises OSError: one cannot be read.
    """
    footers = hashlib.sha256()
    count = size = 0
    for path in files:
        with path.open("rb") as file:
            count += 1
            size += file.seek(0, io.SEEK_END)
            file.seek(-8, io.SEEK_END)  # the last eight bytes: the footer's length, and PAR1
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, io.SEEK_END)
            footers.update(file.read())
    return f"{count} files of {size} bytes, footers {footers.hexdigest()[:16]}"


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """`batch.to_pylist()`, but that of a float32 or float16 column gives numpy's numbers.

    Python has one float, which does not tell that 16777217 became 16777216 in the file (see `names.identifier`).
    """
    columns = []
    for column in batch.columns:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_float32(kind) or pa.types.is_float16(kind):
            columns.append(list(column.cast(kind).to_numpy(zero_copy_only=False)))
        else:
            columns.append(column.to_pylist())
    names = batch.schema.names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
