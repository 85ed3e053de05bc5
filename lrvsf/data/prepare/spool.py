"""Images that wait on disk: written in the order in which they come, read in the order in which they are needed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Self

Place = tuple[int, int]  # offset and length


class Spool:
    """A context manager over one temporary file; what a killed run left under its name is overwritten.

    with Spool(out / "images.writing") as spool:
        place = spool.add(data)
        spool.read(place)
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
        self.path.unlink()

    def add(self, data: bytes) -> Place:
        place = (self._end, len(data))
        self._file.seek(self._end)
        self._file.write(data)
        self._end += len(data)
        return place

    def read(self, place: Place) -> bytes:
        self._file.seek(place[0])
        return self._file.read(place[1])
