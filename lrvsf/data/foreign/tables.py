"""Tables as their owners save them: the rows of a CSV or Parquet file, nothing lost between its head and its end.

A CSV may be separated by commas, semicolons (as spreadsheets of half of Europe do), tabs or bars. What would lose cells
or rows is refused with the line: a column that is there twice, a quote that never closes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from lrvsf.data.folders import Address
from lrvsf.data.names import appearance, did_you_mean, quoted
from lrvsf.data.parquet import DAMAGE, Unreachable, open_parquet, opened, read_rows

TEXT = (".csv", ".tsv")
SEPARATORS = ",;\t|"
BATCH_ROWS = 64


def check_columns(path: Path, present: list[str], needed: Collection[str], optional: Collection[str]) -> None:
    """Refuses a table that lacks a column, or has one twice, or one whose name is nearly right.

    Raises:
        ValueError: it does.
    """
    known = (*needed, *optional)
    shown = ", ".join(map(quoted, present))
    if twice := [name for name in known if present.count(name) > 1]:
        raise ValueError(f"{path} has the column {twice[0]} twice, of which one would be lost; remove or rename one")
    # "Product ID" for product_id: not taken silently, for two such columns may mean two things.
    for name in present:
        meant = next((k for k in known if k not in present and appearance(k) == appearance(name)), None)
        if meant:
            raise ValueError(f"{path} has a column {quoted(name)}; write its name as {meant}")
    if missing := [name for name in needed if name not in present]:
        near = "".join(did_you_mean(name, present) for name in missing)
        raise ValueError(
            f"{path} lacks the column(s) {', '.join(missing)}; it has {shown or 'none'}. It needs {', '.join(needed)} "
            f"and may have {' and '.join(optional)}.{near}"
        )


class CsvTable:
    """A CSV file. Iterating gives (line, cells by column), with None for a row of more or fewer cells than columns.

    Args:
        needed: columns by which the separator is recognised.

    Attributes:
        columns: the names in the head.

    Raises:
        ValueError: it is not UTF-8, or a quote is not closed.
    """

    def __init__(self, path: Path, needed: Collection[str]) -> None:
        self.path = path
        with self._open() as file:
            lines = _Lines(self, file)
            head = next(lines, "")
            # Excel's own first line, "sep=;", which it does not show.
            self._first = 2 if (hint := head.lower().startswith("sep=")) else 1
            if hint:
                head = next(lines, "")
        # The separator is the one that finds most of the known columns, and among equals most columns at all.
        heads = {separator: next(csv.reader([head], delimiter=separator), []) for separator in SEPARATORS}
        self.separator = max(
            SEPARATORS, key=lambda s: (len(set(needed) & {h.strip() for h in heads[s]}), len(heads[s]))
        )
        self.columns = heads[self.separator]

    def __iter__(self) -> Iterator[tuple[int, dict[str, str] | None]]:
        with self._open() as file:
            lines = _Lines(self, file)
            for _ in range(self._first):
                next(lines, "")
            # Otherwise a quote that is open at the end of the file is taken for closed there.
            reader = csv.reader(lines, delimiter=self.separator, strict=True)
            while True:
                start = lines.number + 1
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise ValueError(
                        f"{self.path}, from line {start} on: {error}; correct the quotes there (within a quoted cell, "
                        'a quote is written "")'
                    ) from error
                if cells is None:
                    return
                if cells:  # an empty line is no row
                    fits = len(cells) == len(self.columns)
                    yield lines.number, dict(zip(self.columns, cells, strict=True)) if fits else None

    def rows_in(self, cell: str, column: str, is_value: Callable[[str], bool]) -> bool:
        """Whether a cell holds further rows: a quote that was not meant as one opened before them, another closed it.

        Args:
            column, is_value: what tells a row, such as the role and whether a text in small letters is one.
        """
        place = self.columns.index(column)
        found = (next(csv.reader([line], delimiter=self.separator), []) for line in cell.splitlines()[1:])
        return any(len(cells) > place and is_value(cells[place].strip().lower()) for cells in found)

    def _open(self) -> TextIO:
        # utf-8-sig: spreadsheets put a byte order mark first, which would become part of the first column's name
        return self.path.open(newline="", encoding="utf-8-sig")


class _Lines:
    """The lines of a file, counted, and its encoding checked."""

    def __init__(self, table: CsvTable, file: TextIO) -> None:
        self.table, self.file, self.number = table, file, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self.file.readline()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.table.path} is not UTF-8 ({error}); save it as UTF-8") from error
        if not line:
            raise StopIteration
        self.number += 1  # lines of the file, as an editor counts them, not rows of the table
        return line


def image_column(path: Path | Address) -> tuple[list[str], bool]:
    """(the columns of a Parquet table, whether its `image` holds paths and not images).

    Raises:
        OSError: it is not a Parquet file, or cannot be read.
        ValueError: `image` holds something else.
    """
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
    except Unreachable:
        raise
    except DAMAGE as error:
        raise OSError(f"{path} is not a readable Parquet file: {error}") from error
    if schema.names.count("image") != 1:  # `check_columns` says so, with the other columns
        return schema.names, False
    kind = schema.field("image").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # pandas' categories
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return schema.names, True
    structs = pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
    plain = kind in (pa.binary(), pa.large_binary(), pa.binary_view()) or pa.types.is_fixed_size_binary(kind)
    if structs or plain:
        return schema.names, False
    raise ValueError(
        f"{path}: image is {kind}; it must hold paths as text, or encoded images as binary, or structs of the fields "
        "bytes and path"
    )


def parquet_rows(path: Path | Address, columns: list[str], start: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a table from row `start` on, a few at a time. Row groups before it are not touched."""
    with opened(path, "Write it again.") as file:
        groups = [group for group, first in enumerate(file.starts[1:]) if first > start]
        skip = start - file.starts[groups[0]] if groups else 0
        yield from islice(read_rows(file, columns, BATCH_ROWS, groups), skip, None)
