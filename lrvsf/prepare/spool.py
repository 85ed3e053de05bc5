"""Images that wait on disk: written in the order in which they come, read in the order in which they are needed."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

Span = tuple[int, int]  # offset and length


class Spool:
    """A context manager over one temporary file; what a killed run left under its name is overwritten.

    with Spool(out / "images.writing") as spool:
        span = spool.add(data)
        spool.read(span)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w+b")
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a full disk, which closing finds once more and would hide the first failure
            self._file.close()
        self.path.unlink()  # of no use to another run, which reads its images again

    def add(self, data: bytes) -> Span:
        span = (self._end, len(data))
        self._file.seek(self._end)  # reads in between have moved it
        self._file.write(data)
        self._end += len(data)
        return span

    def read(self, span: Span) -> bytes:
        self._file.seek(span[0])
        return self._file.read(span[1])


class Waiting(Spool):
    """Rows that wait on disk until they are read in the order of their places; memory holds 24 bytes of each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.unplaced = 0
        self._places, self._starts, self._sizes = array("q"), array("q"), array("q")

    def add(self, place: int | None, row: dict[str, Any], images: tuple[str, ...]) -> None:
        """Keeps a row, whose cells named in `images` are bytes; rows without a place come last, as they were added."""
        # Images stay bytes: as text in the JSON they would take a third more.
        text = {name: cell for name, cell in row.items() if name not in images}
        # A line of JSON, then the images one after another; JSON writes no line break of its own.
        head = json.dumps([text, {name: len(row[name]) for name in images}]).encode()
        start, size = super().add(b"".join([head, b"\n", *(row[name] for name in images)]))
        self.unplaced += place is None
        # Three arrays of 8 bytes a row, where tuples of Python's numbers would take several times that.
        self._places.append(np.iinfo(np.int64).max if place is None else place)
        self._starts.append(start)
        self._sizes.append(size)

    def in_order(self) -> Iterator[dict[str, Any]]:
        """All rows, by place."""
        # Stable: a place that two rows share, and the rows without one, keep the order in which they came.
        for index in np.argsort(np.frombuffer(self._places, np.int64), kind="stable") if self._places else ():
            head, _, data = self.read((self._starts[index], self._sizes[index])).partition(b"\n")
            row, sizes = json.loads(head)  # the sizes in the order in which the images follow
            for name, size in sizes.items():
                row[name], data = data[:size], data[size:]
            yield row
