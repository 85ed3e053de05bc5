"""Files that are whole or absent, whatever ends the process or the machine; folders in which one run works alone."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

LOCK = ".lock"
_HELD: set[Path] = set()  # the locks of this process


class InUse(ValueError):
    """Another run works in the folder."""


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lets one run at a time work in a folder. Within one process it may be nested.

    A folder that is not there is made, and removed if nothing came into it.

    The lock is the kernel's, of the process that asked for it: it ends with that process, however that ends, and
    processes that were forked from it hold nothing. A file system without locks lets every run in, with a warning.

    Args:
        what: what the run does there, for the message that another one gets: "a training".

    Raises:
        InUse: another run works there; the message names its process, machine, command and start.
        OSError: the folder cannot be written.
    """
    made = not folder.exists()  # else a refused run would leave an empty folder behind
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if path in _HELD:
        yield
        return
    with _lock_file(path) as file:
        _HELD.add(path)
        words = takewhile(lambda word: not word.startswith("-"), sys.argv)  # flags may hold a token
        about = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(words)}
        file.truncate(0)  # what a killed run said of itself
        file.write(json.dumps({**about, "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is still locked: see `_lock_file`
            _HELD.remove(path)
            if made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def _lock_file(path: Path) -> TextIO:
    """The file, open and locked."""
    while True:
        file = path.open("a+")
        try:
            # Not flock, which a forked worker would share and keep when its parent has died. (This one would go if the
            # process opened and closed the file once more: nobody else should.)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                raise InUse(_in_use(path.parent, file)) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): see to it that no other run writes there.", path.parent, error.strerror
            )
            return file
        # A run that ends removes its file: one that was opened just before is locked for nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()


def _in_use(folder: Path, file: TextIO) -> str:
    """The message, from what the other run wrote into its lock."""
    file.seek(0)
    try:
        other = json.loads(file.read())
        by = "{what}: {command}, process {pid} on {host}, since {since}.".format(**other)
    except (ValueError, KeyError, TypeError):  # it has only just begun
        by = "another run."
    return f"{folder} is in use by {by} Wait until it has ended, end it, or take another folder."


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a place beside a file; what is written there gets the file's name, flushed, when the block has ended well.

    Whatever else happens, what was there before stays. The file's folder is made.

    Raises OSError: the disk is full, the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")  # the same each time, so a killed writer's is overwritten
    try:
        yield part
        flush(part)  # before the name: else a power cut may leave a name without bytes
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # the first error counts
            part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes a file, whole or not at all. Raises OSError as `whole_file` does."""
    with whole_file(path) as part:
        part.write_bytes(data)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which takes its place when the block has ended well, and goes if it has not.

    A link is followed: what it leads to is written beside its place there.

    Raises OSError: as `publish_folder` does, the new folder is then kept.
    """
    folder = Path(path).resolve()
    writing = writing_place(folder)
    shutil.rmtree(writing, ignore_errors=True)  # a killed writer's
    writing.mkdir(parents=True)
    try:
        yield writing
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    publish_folder(writing, folder)


def writing_place(folder: Path) -> Path:
    """Where a folder is written before it has its name: the same each time, so a killed writer's is thrown away."""
    return folder.with_name(f"{folder.name}.writing")


def publish_folder(finished: Path, folder: Path) -> None:
    """Flushes all that a folder holds, and gives it its name, in place of one that was there.

    Raises OSError: it cannot be renamed, as from one disk to another, or to a mount point.
    """
    # All of it before the name: a journal may keep a rename and lose what was written just before.
    for place, _, names in os.walk(finished):
        for path in (*(Path(place, name) for name in names), Path(place)):
            if path.is_file() or path.is_dir():  # not a link to nowhere
                flush(path)
    shutil.rmtree(folder, ignore_errors=True)  # from here to the next line there is none: no folder is half a new one
    try:
        os.replace(finished, folder)
    except OSError as error:
        raise OSError(
            f"{finished} is whole, but cannot be renamed to {folder} ({error.strerror}); rename it"
        ) from error
    flush(folder.parent)


def check_one_disk(work: Path, folder: Path) -> None:
    """Finds out before hours of work whether a folder can be renamed from `work` into another one. Makes `work`.

    Raises:
        ValueError: it cannot.
    """
    probe = work / "probe"
    probe.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(probe, folder / "probe")  # two mounts of one disk have one device number: only trying tells
    except OSError as error:
        raise ValueError(
            f"what is written in {work} cannot be moved to {folder} ({error.strerror}), as into a mount point it "
            "cannot; name a folder within it"
        ) from error
    (folder / "probe").rmdir()


def follow_umask(folder: Path) -> None:
    """Gives a saved model's weights the rights of its config.json: safetensors 0.8 lets nobody else read them."""
    # config.json was made under the user's umask; there is no way to ask for the umask that does not change it.
    rights = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(rights)


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
