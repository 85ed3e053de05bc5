"""Which files a folder holds: no name is taken for a pattern, links are followed, and nothing is passed over unsaid."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from lrvsf.data.names import printable

logger = logging.getLogger(__name__)

# macOS writes one beside each file that it copies to a foreign disk or archive: its attributes, nothing of its content.
COMPANION = "._"


def files_in(folder: Path, pattern: str) -> list[Path]:
    """The entries right in a folder whose names match, by name; none if there is no such folder.

    Links that lead nowhere are among them, so that whoever reads them says so. Companions of macOS are left out and
    named in the log.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    return [folder / name for name in content_names(os.listdir(folder), str(folder)) if fnmatchcase(name, pattern)]


def content_names(names: list[str], folder: str) -> list[str]:
    """The names sorted, without macOS's companions of other files, which are named in the log."""
    companions = [name for name in names if name.startswith(COMPANION)]
    if companions:
        logger.warning(
            "Passed over %d files of macOS in %s, such as %s.", len(companions), folder, printable(min(companions))
        )
    return sorted(set(names) - set(companions))


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
        skip("folder that cannot be read", where)
        return
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        skip("link to a folder that it is in", where)
        return
    for name in names:
        path, place = folder / name, f"{where}/{name}" if where else name
        if path.is_dir():
            yield from _below(path, place, (*above, here), skip)
        elif name.startswith(COMPANION):
            skip("companion file of macOS, without content", place)
        elif path.is_file():
            yield path
        elif path.is_symlink():
            skip("link that leads nowhere", place)
        else:
            skip("neither file nor folder", place)
