"""A file behind an address, read by ranges: what is not asked for is not fetched, and memory is bounded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate

import fsspec

TAIL = 2**16  # fetched at first: a Parquet file's footer is mostly within it, and costs one request
KEPT = 2**29  # bytes that are kept at once; what is more is fetched piece by piece, as it is read

Span = tuple[int, int]  # first byte, and the one behind the last


class Unreachable(ConnectionError):
    """What is behind an address cannot be read: it is not there, may not be read, or was not reached."""


class RemoteFile(io.RawIOBase):
    """A file that can be read from any place on. It never asks for a byte twice that it was told to `keep`.

    Args:
        path: in the file system.
        url: what the user calls it, for messages.

    Raises Unreachable, also whenever it is read.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str, url: str) -> None:
        super().__init__()
        self._filesystem, self._path, self._url, self._place = filesystem, path, url, 0
        self._kept: list[tuple[int, bytes]] = []  # first byte, bytes
        try:
            self.size = filesystem.size(path)
        except Exception as error:  # each file system raises its own
            raise unreachable(url, error) from error
        if self.size is None:
            raise Unreachable(f"{url}: the server does not say how long it is, so no part can be read; download it")
        self._tail = (max(self.size - TAIL, 0), self.size)
        self._tail_bytes = self._fetched([self._tail])[0]

    def keep(self, spans: Sequence[Span]) -> None:
        """Fetches some ranges, side by side, and forgets those before; the first ones, of `KEPT` bytes together."""
        within = [(max(start, 0), min(stop, self.size)) for start, stop in spans]  # a damaged footer says anything
        wanted = [span for span, most in zip(within, accumulate(b - a for a, b in within), strict=True) if most <= KEPT]
        wanted = [(start, stop) for start, stop in wanted if start < stop]
        if not all(self._holder(start, stop) for start, stop in wanted):
            self._kept = []  # before the others come: not both at once
            self._kept = [(span[0], data) for span, data in zip(wanted, self._fetched(wanted), strict=True)]

    def read(self, size: int | None = -1) -> bytes:
        stop = self.size if size is None or size < 0 else min(self._place + size, self.size)
        start, self._place = self._place, max(stop, self._place)
        if start >= stop:
            return b""
        if held := self._holder(start, stop):
            first, data = held
            return data[start - first : stop - first]
        return self._fetched([(start, stop)])[0]

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _holder(self, start: int, stop: int) -> tuple[int, bytes] | None:
        """What is in memory and has a range as a whole."""
        held = [(self._tail[0], self._tail_bytes), *self._kept]
        return next((one for one in held if one[0] <= start and stop <= one[0] + len(one[1])), None)

    def _fetched(self, spans: Sequence[Span]) -> list[bytes]:
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        try:
            found = self._filesystem.cat_ranges([self._path] * len(spans), starts, stops, on_error="raise")
        except Exception as error:
            raise unreachable(self._url, error) from error
        # A server that knows no ranges sends the whole file for each, and one that is gone a page that says so.
        if [len(data) for data in found] != [stop - start for start, stop in spans]:
            raise Unreachable(f"{self._url}: the server gives no parts of a file; download it")
        return found


def unreachable(url: str, error: Exception) -> Unreachable:
    """What is said of an address, with the remedy. (fsspec says of all that goes wrong at first: no such file.)"""
    cause = error.__cause__ or error
    told, status = " ".join(f"{cause or type(cause).__name__}".split()).rstrip("."), getattr(cause, "status", None)
    if isinstance(cause, PermissionError) or status in (401, 403) or "Credentials" in type(cause).__name__:
        return Unreachable(
            f"{url} may not be read ({told}); give this machine the credentials, where the store's own tools look for "
            "them, or an address that is signed"
        )
    if isinstance(cause, FileNotFoundError) or status in (404, 410):
        return Unreachable(f"there is nothing at {url}; look at the address")
    return Unreachable(f"{url} was not reached ({told}). The same command goes on after what was read")
