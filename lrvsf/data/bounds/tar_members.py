"""The members of a tar that nobody vouches for: in constant memory, whatever its headers claim.

Python's tarfile reads a header's body whole, follows one header into the next, makes the holes of sparse files, and
believes a size that is beyond the end. Here a header is 512 bytes and the few that may stand before it, each bounded.
What cannot be a header, a size that is negative or beyond the end included, is passed over block by block until the
next header whose checksum is right, so one bad header costs its own member and no other.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import BinaryIO

BLOCK = 512
CHUNK = 2**18
MAX_SIZE = 2**36  # of a member, where the end of the tar is not known
MAX_HEADER_BYTES = 2**20  # of a header that stands before a member's own: a long name, or pax records
MAX_HEADERS = 16  # before one member
MAX_NAME = 4096
XZ, XZ_MEMORY = b"\xfd7zXZ\0", 2**27
# Photographs hardly compress; what unfolds a hundredfold after the first 64 MiB is no tar of them.
MAX_RATIO, RATIO_FROM = 100, 2**26

EMPTY_BLOCK = bytes(BLOCK)
RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")
WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
        regular: a file whose content is stored as it is; not a link, a device or a sparse file.
        readable: whether its headers could be read, so that `path` is its name.
    """

    path: str
    size: int
    regular: bool
    folder: bool
    readable: bool


@dataclass
class _Before:
    """What the headers before a member's own said of it."""

    path: str | None = None
    size: int | None = None
    sparse: bool = False
    unreadable: bool = False
    count: int = 0


class TarMembers:
    """Iterates over the members of an open tar, plain or compressed by gzip, bzip2 or xz; never seeks back.

    Attributes:
        whole: after the last member, whether every header was whole and the end was marked.

    Raises:
        OSError: reading fails for other reasons than the tar's bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = _Stream(file)
        self._damaged = self._ended = False
        self._unread = 0  # bytes of the present member

    @property
    def whole(self) -> bool:
        return self._ended and not self._damaged and not self._file.broken

    def content(self) -> bytes | None:
        """That of the member given last, to be called once at most; None if the tar ends before it does."""
        size, self._unread = self._unread, 0
        content = self._file.read(size)
        if len(content) == size:
            self._file.skip(-size % BLOCK)  # content is filled up to whole blocks
            return content
        self._damaged = True
        self._file.unread(content)  # other members may lie in what this one claimed
        return None

    def __iter__(self) -> Iterator[Member]:
        self._file.unfold()
        before = _Before()
        while len(block := self._file.read(BLOCK)) == BLOCK:
            self._ended = block == EMPTY_BLOCK
            header = None if self._ended else self._header(block)
            # Not a header: looked for is the next block with a right checksum, whatever lies between.
            if header is None:
                self._damaged |= not self._ended or before.count > 0
                before = _Before()
            elif header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                self._long_name(header, before)
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                self._pax(header, before)
            else:
                yield from self._member(header, block, before)
                before = _Before()
        self._damaged |= before.count > 0 or any(block)

    def _header(self, block: bytes) -> tarfile.TarInfo | None:
        """None for a block that is not a header, or one whose member cannot be there."""
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            return None
        return header if header.type in WITHOUT_CONTENT or self._can_be(header.size) else None

    def _can_be(self, size: int) -> bool:
        return 0 <= size <= (MAX_SIZE if self._file.left is None else self._file.left)

    def _member(self, header: tarfile.TarInfo, block: bytes, before: _Before) -> Iterator[Member]:
        size = header.size if before.size is None else before.size
        sparse = header.type == tarfile.GNUTYPE_SPARSE
        further = block[482] if sparse else 0  # GNU's flag that more of the map follows, at 504 in the blocks after it
        while further:  # an old sparse file's map goes on in blocks of its own
            further = (self._file.read(BLOCK) or EMPTY_BLOCK).ljust(BLOCK, b"\0")[504]
        if header.type in WITHOUT_CONTENT:
            size = 0
        elif not self._can_be(size):
            self._damaged = True
            return
        path = header.name if before.path is None else before.path
        readable = not before.unreadable and len(path) <= MAX_NAME
        regular = header.isreg() and not sparse and not before.sparse
        self._unread = size
        yield Member(path[:MAX_NAME], size, regular, header.isdir(), readable)
        self._pass_over(self._unread)

    def _body(self, header: tarfile.TarInfo, before: _Before) -> bytes | None:
        """That of a header that stands before another; None if it is too long or cut short."""
        before.count += 1
        if header.size > MAX_HEADER_BYTES or before.count > MAX_HEADERS:
            self._pass_over(header.size)
            return None
        self._unread = header.size
        return self.content()

    def _long_name(self, header: tarfile.TarInfo, before: _Before) -> None:
        body = self._body(header, before)
        if body is None:
            before.unreadable = True
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            before.path = body.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _pax(self, header: tarfile.TarInfo, before: _Before) -> None:
        body = self._body(header, before)
        records = None if body is None else _records(body)
        if header.type == tarfile.XGLTYPE:  # of all members from here on; a name or a size cannot be meant
            before.count -= 1
            self._damaged |= records is None or any(_matters(key) for key in records)
            return
        if records is None:
            before.unreadable = True
            return
        before.sparse |= any(key.startswith(b"GNU.sparse.") for key in records)
        if b"path" in records:
            before.path = records[b"path"].decode("utf-8", "surrogateescape")
        if b"size" in records:
            digits = records[b"size"]
            # One that is no number, or has more digits than any size, cannot be there either.
            before.size = int(digits) if digits.isdigit() and len(digits) < 20 else -1

    def _pass_over(self, size: int) -> None:
        self._unread = 0
        self._file.skip(size + -size % BLOCK)


def _records(body: bytes) -> dict[bytes, bytes] | None:
    """The pax records that matter here; None if one of all is malformed."""
    found, place = {}, 0
    while place < len(body):
        match = RECORD.match(body, place)
        end = place + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            return None
        if _matters(match[2]):
            found[match[2]] = body[match.end() : end - 1]
        place = end
    return found


def _matters(key: bytes) -> bool:
    return key in (b"path", b"size") or key.startswith(b"GNU.sparse.")


class _Stream:
    """An open file that is read forwards, plain or unfolded; bytes can be put back.

    Attributes:
        left: bytes to the end, None where that is not known.
        broken: whether a compressed file turned out to be damaged, which ends it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ahead = file, b""
        self._inflated: _Inflated | None = None
        self._position = 0
        self._size = _size(file)
        self.broken = False

    @property
    def left(self) -> int | None:
        return None if self._size is None else self._size - self._position

    def unfold(self) -> None:
        """From here on, gives the content of a compressed file."""
        head = self.read(6)
        self.unread(head)
        kinds = [(b"\x1f\x8b", gzip.GzipFile), (b"BZh", bz2.BZ2File), (XZ, _Xz), (b"]\0\0\x80", _Xz)]
        for magic, kind in kinds:
            if head.startswith(magic):
                self._inflated, self._size = _Inflated(self._file, self._ahead, kind), None
                self._ahead = b""

    def read(self, size: int) -> bytes:
        """Fewer bytes only at the end. No more is reserved than comes."""
        ahead, self._ahead = self._ahead[:size], self._ahead[size:]
        parts, missing = [ahead], size - len(ahead)
        while missing > 0 and (part := self._raw(min(missing, CHUNK))):
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self._position += len(data)
        return data

    def unread(self, data: bytes) -> None:
        self._ahead = data + self._ahead
        self._position -= len(data)

    def skip(self, size: int) -> None:
        if self._size is not None and size > len(self._ahead):
            size = min(size, self._size - self._position)
            self._file.seek(size - len(self._ahead), io.SEEK_CUR)
            self._ahead = b""
            self._position += size
            return
        while size > 0 and (part := self.read(min(size, CHUNK))):
            size -= len(part)

    def _raw(self, size: int) -> bytes:
        if self._inflated is None:
            return self._file.read(size)
        try:
            return b"" if self.broken else self._inflated.read(size)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            if self._inflated.failed:
                raise
            self.broken = True
            return b""


class _Inflated:
    """What a compressed file unfolds to, up to a hundred times its length.

    Attributes:
        failed: whether the file itself, not its bytes, ended the reading.
    """

    def __init__(self, file: BinaryIO, ahead: bytes, kind: type) -> None:
        self._file, self._ahead = file, ahead
        self._taken = self._given = 0
        self.failed = False
        source = SimpleNamespace(read=self._take)  # all that the decoders ask for
        decoder = kind(fileobj=source) if kind is gzip.GzipFile else kind(source)
        self._read = getattr(decoder, "read1", decoder.read)  # read1 gives what there is before a cut

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self._given += len(data)
        if self._given > RATIO_FROM + MAX_RATIO * self._taken:
            raise ValueError("unfolds to far more than photographs do")
        return data

    def _take(self, size: int = CHUNK) -> bytes:
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if not data:
            try:
                data = self._file.read(size)
            except OSError:
                self.failed = True
                raise
        self._taken += len(data)
        return data


class _Xz:
    """A reader of xz whose dictionary cannot grow beyond `XZ_MEMORY`, as that of Python's LZMAFile can.

    A file may be several streams, as parallel compressors write them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ahead = file, b""
        self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder.eof and not self._next_stream():
                return b""
            data = b""
            if self._decoder.needs_input:
                data, self._ahead = self._ahead or self._file.read(CHUNK), b""
            if self._decoder.needs_input and not data:
                raise EOFError("the compressed file is cut short")
            if found := self._decoder.decompress(data, size):
                return found

    def _next_stream(self) -> bool:
        """Whether another one follows; what else follows is nothing of the tar's."""
        ahead = self._decoder.unused_data.lstrip(b"\0")
        while len(ahead) < len(XZ) and (more := self._file.read(CHUNK)):
            ahead = (ahead + more).lstrip(b"\0")
        if not ahead.startswith(XZ):
            return False
        self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        self._ahead = ahead
        return True


def _size(file: BinaryIO) -> int | None:
    """Bytes from where a file stands to its end; None for a pipe."""
    try:
        here = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError, ValueError):
        return None
    return end - here
