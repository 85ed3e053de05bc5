"""Where a catalog's pictures come from, whatever it is: listed first, read after.

Every kind is listed first, without a picture: ids, metadata, and how many were left out and why. Then pictures are read
in that order, from any row on, so a build that was killed reads no picture twice. Each kind is a function that fills
a `Lister`; a row's number is its place among all pictures of the source, used or not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from lrvsf.data.names import UnusableCell, identifier, lookalikes, quoted
from lrvsf.report import EXAMPLES, Ledger
from lrvsf.search.sources.metadata import INTERNAL, as_numbers

Picture = str | bytes | None  # a file's path, its encoded bytes, or an empty cell
Read = Callable[[int, int], Iterable[Picture]]  # the pictures of some numbers, start to stop (excluded)

WHERE = f"{INTERNAL}where"
KINDS = (
    "a folder of pictures, a .csv, .tsv or .parquet table with a column `image`, product shards or a test set of "
    "prepare_lrvsf.py, tars in the published layout, a data set as OWNER/NAME or hf://datasets/OWNER/NAME, or the "
    "address of Parquet files, as s3://... or https://..."
)


@dataclass
class Source:
    """Pictures in a fixed order, each with an id and metadata.

    Attributes:
        name: what the user called it.
        items: a row for each picture: `id`, `__where` (for messages), and the metadata.
        numbers: (n,) the number of each of them among all pictures of the source, ascending.
        folder: what the paths of pictures may not leave.
        skips: pictures and rows that were left out.
        unused: columns that are not kept.
        fingerprint: of what is listed, and of sizes and times of all files.
    """

    name: str
    items: pa.Table
    numbers: np.ndarray
    folder: Path
    skips: Ledger
    unused: list[str]
    fingerprint: str
    read: Read

    def __len__(self) -> int:
        return self.items.num_rows

    def only(self, rows: np.ndarray) -> Source:
        """The same source with some of its rows, ascending."""
        # Not the ids, of which a product has one for all photos.
        kept = hashlib.sha256(self.numbers[rows].tobytes()).hexdigest()
        return replace(
            self,
            items=self.items.take(pa.array(rows)),
            numbers=self.numbers[rows],
            fingerprint=self.fingerprint if len(rows) == len(self) else f"{self.fingerprint} {kept}",
        )

    def pictures(self, start: int, stop: int) -> Iterator[Picture]:
        """The pictures of the rows start to stop (excluded).

        Raises:
            OSError: a file cannot be read, or the source has changed since it was listed.
        """
        wanted = self.numbers[start:stop]
        if not len(wanted):
            return
        place = 0
        # Pictures that were not listed are read, too, and passed over.
        for number, picture in enumerate(self.read(int(wanted[0]), int(wanted[-1]) + 1), int(wanted[0])):
            if number == wanted[place]:
                yield picture
                place += 1
                if place == len(wanted):
                    return
        raise OSError(f"{self.name} has fewer pictures than when it was listed; run the same command again")


@dataclass
class Lister:
    """Collects what a source lists.

    Attributes:
        columns: of the metadata, in order; lists of cells go to `add`.
        products: whether ids are those of products, of which one may have several pictures.
        by_path: whether ids are paths, which the file system tells apart and nobody types.
        listed: how many pictures there are, used or not.
        unused: columns that are not kept.
        digest: of everything that tells this source from another one.
    """

    name: str
    folder: Path
    columns: list[str] = field(default_factory=list)
    products: bool = False
    by_path: bool = False
    skips: Ledger = field(default_factory=Ledger)
    listed: int = 0
    unused: list[str] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self._numbers: list[int] = []
        self._chunks: list[list[pa.Array]] = []
        self._rows: list[tuple] = []
        self._places: dict[str, str] = {}
        self._bar = tqdm(desc="listing", unit="picture", delay=1)  # seconds: short lists need no bar

    def skip(self, reason: str, where: str) -> None:
        """Counts a picture that is left out."""
        self._count()
        self.skips.add(reason, where)

    def add(self, where: str, name: Any, cells: Iterable[str | None] = ()) -> bool:
        """Lists a picture under the id that a cell says, or counts why it has none. Whether it was listed."""
        try:
            item = identifier(name)
        except UnusableCell as error:
            self.skip(f"id is {error.reason}", where)
            return False
        if item is None:
            self.skip("no id", where)
            return False
        self._numbers.append(self.listed)
        self._rows.append((item, where, *cells))
        self._count()
        if len(self._rows) >= 10_000:  # Arrow's texts take a fifth of Python's
            self._flush()
        return True

    def _count(self) -> None:
        self.listed += 1
        self._bar.update()

    def once(self, product: str | None, where: str) -> None:
        """Refuses a product that is there twice: its pictures stand together. Raises ValueError."""
        if product is not None and (other := self._places.setdefault(product, where)) != where:
            twice = f"{quoted(product)} twice, at {other} and at {where}"
            raise ValueError(f"{self.name} has the product {twice}; remove one")

    def identify(self, *facts: Any) -> None:
        """Adds to what tells this source from another one."""
        self.digest.update(json.dumps(facts).encode())

    def source(self, read: Read, typed: bool = False, extra: pa.Table | None = None) -> Source:
        """The source that was listed.

        Args:
            typed: whether cells that look like numbers are numbers.
            extra: columns with types, a row for each picture that was listed.

        Raises:
            ValueError: ids repeat, or look alike; there is no picture.
        """
        self._flush()
        self._bar.close()
        names = ["id", WHERE, *self.columns]
        columns = [
            pa.chunked_array([chunk[place] for chunk in self._chunks], pa.string()) for place in range(len(names))
        ]
        if typed:
            columns[2:] = [as_numbers(column) for column in columns[2:]]
        items = pa.table(columns, names=names)
        for column in extra.column_names if extra is not None else ():
            items = items.append_column(column, extra[column])
        if not len(items):
            raise ValueError(f"{self.name} gives no item{self.skips_in_words()}. IMAGES is {KINDS}")
        self._check_ids(items)
        numbers = np.array(self._numbers, dtype=np.int64)
        # Values too, not only the files: a shop that changes a price changes no picture.
        self.identify(self.listed, items.column_names)
        # As bytes: there may be millions of them, and JSON would write each out.
        self.digest.update(numbers)
        for column in ("id", *self.columns):
            for value in items[column].cast(pa.string()).to_pylist():
                self.digest.update(repr(value).encode())
        found = self.digest.hexdigest()
        return Source(self.name, items, numbers, self.folder, self.skips, self.unused, found, read)

    def skips_in_words(self) -> str:
        """ ": 3 x no image; 1 x no id", for a message."""
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in self.skips.counts.most_common(EXAMPLES))
        return f": {reasons}" if reasons else ""

    def _flush(self) -> None:
        if self._rows or not self._chunks:
            texts = zip(*self._rows, strict=True) if self._rows else [()] * (2 + len(self.columns))
            self._chunks.append([pa.array(column, pa.string()) for column in texts])
            self._rows.clear()

    def _check_ids(self, items: pa.Table) -> None:
        ids, places = items["id"].to_pylist(), items[WHERE]
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if (other := first.setdefault(name, row)) != row and not self.products:
                raise ValueError(
                    f"{self.name} has the id {quoted(name)} twice, at {places[other]} and at {places[row]}; give each "
                    "its own, or name the column product_id if they are photos of one product"
                )
        # Spelled in two ways, one item would be two, and `--replace` would leave the old one.
        if groups := [] if self.by_path else lookalikes(first, case=True):
            shown = "; ".join(" and ".join(map(quoted, group)) for group in groups[:EXAMPLES])
            raise ValueError(
                f"{self.name} writes {len(groups):,} ids in several ways, which would be told apart: {shown}. Write "
                "each in one way"
            )


def stat_of(path: str | Path) -> list[int] | None:
    """[bytes, time] of a file, by which another one is noticed; None if there is none."""
    # A name with a null byte is a ValueError; the picture is counted as bad when it is read.
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]


def by_path(lister: Lister, paths: list[str]) -> Read:
    """Reads listed pictures by their paths, which are given in the order of the rows."""
    numbers = lister._numbers

    def read(start: int, stop: int) -> Iterator[Picture]:
        place = int(np.searchsorted(numbers, start))
        for number in range(start, stop):
            if place < len(numbers) and numbers[place] == number:
                yield paths[place]
                place += 1
            else:
                yield None  # it was not listed, and nobody asks for it

    return read


def by_file(files: list[Any], counts: list[int], pictures: Callable[[Any, int], Iterator[Picture]]) -> Read:
    """Reads pictures file by file; those before the first one that is wanted are not opened.

    Args:
        counts: how many pictures each file has.
        pictures: (file, number within it) -> its pictures from that one on.
    """

    def read(start: int, stop: int) -> Iterator[Picture]:
        first = 0
        for file, count in zip(files, counts, strict=True):
            # Counts say where each file begins, so a build that goes on opens none of those before.
            if first < stop and first + count > start:
                begin = max(start - first, 0)
                yield from itertools.islice(pictures(file, begin), min(stop - first, count) - begin)
            first += count

    return read
