"""Which files a folder holds: no name is taken for a pattern, links are followed, and nothing is passed over unsaid."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import fsspec

from lrvsf.data.bounds.remote_file import RemoteFile, unreachable
from lrvsf.data.names import printable

logger = logging.getLogger(__name__)

# macOS writes one next to each file that it copies to a foreign disk or archive: its attributes alone.
COMPANION = "._"

# Why `files_below` passes something over.
UNREADABLE = "folder that cannot be read"
LOOP = "link to a folder that it is in"
NOWHERE = "link that leads nowhere"
ATTRIBUTES = "companion file of macOS, without content"
DEVICE = "neither file nor folder"


def place_of(name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(file system, path) of a path or URL.

    Raises:
        ValueError: a local name has two colons in a row, by which fsspec chains URLs.
    """
    if "::" in name and os.path.lexists(name):
        raise ValueError(f"{name} has '::' in its name, which is read as two places; rename it")
    return fsspec.url_to_fs(name)


def names_and_sizes(folder: str, names: Collection[str]) -> str:
    """Number, bytes and a digest of names and sizes of some files of a folder or URL, by one listing."""
    filesystem, path = place_of(folder)
    sizes = {about["name"].rpartition("/")[2]: about["size"] for about in filesystem.ls(path, detail=True)}
    sizes = sorted((name, size) for name, size in sizes.items() if name in names)
    digest = hashlib.sha256(repr(sizes).encode()).hexdigest()[:8]
    count = f"{len(sizes)} file{'s' * (len(sizes) != 1)}"
    return f"{count} of {sum(size for _, size in sizes):,} bytes ({digest})"


@dataclass(frozen=True)
class Address:
    """A file that is not on a disk; it is opened as a `Path` is. It can be sent to another process."""

    url: str

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str = "rb") -> RemoteFile:
        """To be read, by ranges. Raises Unreachable."""
        return RemoteFile(*_remote_place(self.url), self.url)


def addresses_at(url: str, suffix: str) -> list[Address]:
    """The file behind an address or, of a folder, all files of that suffix right in it, by name.

    Raises:
        Unreachable: it cannot be listed.
        ImportError: no package reads such addresses here.
        ValueError: nobody knows such addresses.
    """
    if Address(url).name.lower().endswith(suffix):
        return [Address(url)]
    filesystem, path = _remote_place(url)
    try:
        there = filesystem.ls(path, detail=False)
    except Exception as error:  # each file system raises its own
        raise unreachable(url, error) from error
    found = [Address(filesystem.unstrip_protocol(place)) for place in there]
    names = set(content_names([one.name for one in found], url))
    return sorted((one for one in found if one.name in names and one.name.lower().endswith(suffix)), key=str)


def _remote_place(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return place_of(url)
    except ImportError as error:
        raise ImportError(f"{url} needs a package that is not here: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{url} is of no store that is known ({error}); download it, or name a folder") from error


def files_in(folder: Path, pattern: str) -> list[Path]:
    """The entries right in a folder whose names match, by name; none if there is no such folder.

    Links that lead nowhere are among them, so that whoever reads them says so. Companions of macOS are left out and
    named in the log.

    Raises:
        OSError: the folder cannot be read, or an entry is a pipe or device, at which a reader would wait for ever.
    """
    # Listed, and matched one by one: as a pattern for glob, the brackets of "data [spring]" would mean a letter.
    if not folder.is_dir():
        return []
    names = content_names(os.listdir(folder), str(folder))
    found = [folder / name for name in names if fnmatchcase(name, pattern)]
    if odd := [path for path in found if path.exists() and not path.is_file() and not path.is_dir()]:
        raise OSError(f"{odd[0]} is {DEVICE}; remove it")
    return found


def content_names(names: list[str], folder: str) -> list[str]:
    """The names sorted, without macOS's companions of other files, which are named in the log."""
    companions = [name for name in names if name.startswith(COMPANION)]
    if companions:
        logger.warning(
            "Passed over companion files of macOS in %s: %d, such as %s.",
            *(printable(folder), len(companions), printable(min(companions))),
        )
    return sorted(set(names) - set(companions))


def matching_below(folder: Path, pattern: str) -> list[Path]:
    """The files at any depth whose names match, by path; none if there is no such folder. What is passed over is
    named in the log.

    Raises:
        OSError: a folder, or a link to such a file, cannot be read.
    """

    def skip(reason: str, where: str) -> None:
        if reason == UNREADABLE or (reason in (NOWHERE, DEVICE) and fnmatchcase(Path(where).name, pattern)):
            raise OSError(f"{folder / where}: {reason}; repair or remove it")
        logger.warning("Passed over %s: %s.", printable(str(folder / where)), reason)

    if not folder.exists():
        return []
    return sorted(path for path in files_below(folder, skip) if fnmatchcase(path.name, pattern))


def files_below(folder: Path, skip: Callable[[str, str], None]) -> Iterator[Path]:
    """Every file at any depth, in the order of the names.

    Args:
        skip: is called with the reason and the path below `folder` of whatever is passed over.
    """
    yield from _below(folder, "", (), skip)


def _below(folder: Path, where: str, above: tuple[tuple[int, int], ...], skip: Callable) -> Iterator[Path]:
    """`above`: the folders that lead here, for one that is its own ancestor has no end."""
    try:
        stat = folder.stat()
        names = sorted(os.listdir(folder))
    except OSError:
        skip(UNREADABLE, where)
        return
    here = (stat.st_dev, stat.st_ino)  # not the path: a link to a folder above has another path at each turn
    if here in above:
        skip(LOOP, where)
        return
    for name in names:
        path, place = folder / name, f"{where}/{name}" if where else name
        if path.is_dir():
            yield from _below(path, place, (*above, here), skip)
        elif name.startswith(COMPANION):
            skip(ATTRIBUTES, place)
        elif path.is_file():
            yield path
        elif path.is_symlink():
            skip(NOWHERE, place)
        else:
            skip(DEVICE, place)
