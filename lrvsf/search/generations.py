"""A catalog's folder: generations that are whole or absent, of which one answers.

    OUT/CURRENT                     the generation that answers, one line; replaced by one rename
    OUT/PREVIOUS                    the one that answered before it, to which `rollback` returns
    OUT/segments/s-1a2b3c4d5e6f/    embeddings, metadata and thumbnails of some items; never changed
    OUT/generations/g-000001/       which segments, without which rows, under which model; and the index
    OUT/building/                   what a killed build left, and the next one goes on from

Whoever reads opens everything at once and holds it: files that `compact` removes stay readable to those who have them
open. Between reading CURRENT and opening, a reader is safe because `compact` keeps the generation that answered before.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrvsf.data.names import did_you_mean, quoted
from lrvsf.data.parquet import DAMAGE
from lrvsf.durable import locked, whole_folder, write_whole
from lrvsf.paths import near, table_of
from lrvsf.search.sources.metadata import INTERNAL

CURRENT, PREVIOUS = "CURRENT", "PREVIOUS"
SEGMENTS, GENERATIONS, BUILDING = "segments", "generations", "building"
MANIFEST, REMOVED = "manifest.json", "removed.npy"
FORMAT = 1  # raise it when older programs can no longer read a catalog
NAME = re.compile(r"g-(\d{6,})")  # not g-000002.writing, which a killed build leaves
SOURCE = f"{INTERNAL}source"  # a column of items.parquet: which of the manifest's sources


@dataclass(frozen=True)
class Segment:
    """Some items of a catalog, in the order of their rows."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def items(self) -> Path:
        return self.folder / "items.parquet"

    def __len__(self) -> int:
        return self.manifest["items"]

    def metadata(self) -> pa.Table:
        """`id` and the metadata of its rows. Raises ValueError: the file is damaged."""
        try:
            names = [name for name in pq.read_schema(self.items).names if not name.startswith(INTERNAL)]
            return pq.read_table(self.items, columns=names)
        except FileNotFoundError:
            raise
        except DAMAGE as error:
            raise damaged(self.items, error) from error


@dataclass(frozen=True)
class Generation:
    """What a catalog answers with. A row number is the item's place in the segments, one after the other.

    Attributes:
        manifest: `model` (name, digest, facts), `dims`, `index`, `segments`, `items`, `removed`.
        segments: in the order of the rows.
        removed: rows that are no longer there, ascending.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]
    segments: tuple[Segment, ...]
    removed: np.ndarray

    @property
    def catalog(self) -> Path:
        """The catalog's folder."""
        return self.folder.parents[1]

    @property
    def total(self) -> int:
        """How many rows there are, removed ones included."""
        return sum(map(len, self.segments))

    def __len__(self) -> int:
        return self.total - len(self.removed)

    def sources(self) -> dict[str, int]:
        """Where the items are from -> how many are left of each."""
        counts: Counter[str] = Counter()
        left = np.ones(self.total, bool)
        left[self.removed] = False
        # A segment that `compact` made has items of several sources.
        for segment, own in zip(self.segments, np.split(left, np.cumsum([*map(len, self.segments)])[:-1]), strict=True):
            numbers = pq.read_table(segment.items, columns=[SOURCE])[SOURCE].to_numpy()[own]
            counts.update(segment.manifest["sources"][number]["name"] for number in numbers.tolist())
        return dict(counts)

    def columns(self) -> dict[str, str]:
        """Column -> type, of the metadata."""
        schemas = [pq.read_schema(segment.items) for segment in self.segments]
        return {field.name: str(field.type) for one in schemas for field in one if not field.name.startswith(INTERNAL)}


class Generations:
    """The generations of a catalog's folder, which may not be there yet."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Whole generations, oldest first."""
        # By number, as text would put g-1000000 before g-999999.
        there = (self.folder / GENERATIONS).glob(f"g-*/{MANIFEST}")
        return sorted((path.parent.name for path in there if NAME.fullmatch(path.parent.name)), key=_number)

    def current_name(self) -> str | None:
        """The name of the one that answers, which may be looked at often; None where none does yet."""
        return self._read(CURRENT)

    def current(self) -> Generation | None:
        """The one that answers; None where none does yet.

        Raises FileNotFoundError: CURRENT names none that is there.
        """
        if (name := self.current_name()) is None:
            return None
        if name not in (there := self.names()):
            raise FileNotFoundError(
                f"{self.folder / CURRENT} names {quoted(name)}, and there is {', '.join(there) or 'no generation'}; "
                "let one answer with search_catalog.py switch"
            )
        return self.open(name)

    def answering(self) -> Generation:
        """The one that answers. Raises FileNotFoundError: this is no catalog, or its first build has not ended."""
        if (found := self.current()) is None:
            begun = (self.folder / BUILDING).is_dir() or (self.folder / SEGMENTS).is_dir()
            what = "has no generation yet: its build has not ended; run the same index command again"
            if table_of(self.folder):
                what = "is a Lance table: change its catalog, and then the table with search_catalog.py lance"
                raise ValueError(f"{self.folder} {what}")
            what = what if begun else f"is no catalog{near(self.folder)}; make one with search_catalog.py index"
            raise FileNotFoundError(f"{self.folder} {what}")
        return found

    def previous(self) -> str | None:
        """The one that answered before; None where there was none or it is gone."""
        name = self._read(PREVIOUS)
        # A death between the two writes of `switch` leaves PREVIOUS and CURRENT the same.
        return name if name in self.names() and name != self._read(CURRENT) else None

    def open(self, name: str) -> Generation:
        """Reads what a generation consists of.

        Raises:
            FileNotFoundError: there is none of that name.
            ValueError: it is damaged, or of a newer program.
        """
        folder = self.folder / GENERATIONS / name
        if name not in self.names():
            there = ", ".join(self.names()) or "none"
            raise FileNotFoundError(
                f"{self.folder} has no generation {quoted(name)}; it has {there}.{did_you_mean(name, self.names())}"
            )
        manifest = read_manifest(folder / MANIFEST)
        paths = [self.folder / SEGMENTS / segment for segment in manifest["segments"]]
        segments = tuple(Segment(path, read_manifest(path / MANIFEST)) for path in paths)
        try:
            removed = np.load(folder / REMOVED, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise damaged(folder / REMOVED, error) from error
        return Generation(name, folder, manifest, segments, removed)

    @contextmanager
    def writing(self, manifest: dict[str, Any], segments: Sequence[Segment], removed: np.ndarray) -> Iterator[Path]:
        """Gives a folder for a new generation's index; whole when the block succeeds. Its name is manifest["name"]."""
        # `sweep` keeps the last one, so no name is given twice: a reader that looks for one that is gone finds none.
        manifest["name"] = name = f"g-{max(map(_number, self.names()), default=0) + 1:06d}"
        with whole_folder(self.folder / GENERATIONS / name) as folder:
            yield folder
            np.save(folder / REMOVED, removed.astype(np.int64))
            facts = {"format": FORMAT, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **manifest}
            facts |= {"segments": [segment.folder.name for segment in segments]}
            facts |= {"items": sum(map(len, segments)) - len(removed), "removed": len(removed)}
            (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n")

    def same(self, segments: Sequence[Segment], removed: np.ndarray, asked: dict[str, Any]) -> str | None:
        """The last generation of these segments without these rows and of such an index, if there is one.

        A build that was killed before its generation answered leaves one.
        """
        names = [segment.folder.name for segment in segments]
        # The newest first: a build that was killed left the last one.
        for name in reversed(self.names()):
            one = self.open(name)
            made = one.manifest["segments"], one.manifest["index"]["asked"]
            if made == (names, asked) and np.array_equal(one.removed, removed):
                return name
        return None

    def segment(self, name: str) -> Segment | None:
        """A whole segment, or None."""
        folder = self.folder / SEGMENTS / name
        return Segment(folder, read_manifest(folder / MANIFEST)) if (folder / MANIFEST).is_file() else None

    def switch(self, name: str) -> str | None:
        """Lets a generation answer from now on; which one did before. Readers see the one or the other."""
        # What is damaged is refused while another one answers.
        self.open(name)
        before = self._read(CURRENT)
        if before != name:
            if before is not None:
                # First: a death in between loses the way back, not the answer, and `switch` takes any name.
                write_whole(self.folder / PREVIOUS, f"{before}\n".encode())
            write_whole(self.folder / CURRENT, f"{name}\n".encode())
        return before

    def switch_alone(self, name: str | None) -> str | None:
        """`switch` while no build is at work, or `rollback` for None. What answered before, or what answers now."""
        with locked(self.folder, "search_catalog.py switch"):
            return self.rollback() if name is None else self.switch(name)

    def rollback(self) -> str:
        """Lets the generation answer that did before; called twice, things are as they were. Its name."""
        if (name := self.previous()) is None:
            raise ValueError(
                f"{self.folder} has no generation that answered before; it has {', '.join(self.names()) or 'none'}, "
                "of which `switch` takes any"
            )
        self.switch(name)
        return name

    def sweep(self, keep_previous: bool = True) -> list[str]:
        """Removes generations that will not answer again, segments that no other has, and what builds left.

        Kept are the one that answers, those made after it, which may be about to, and the one before it.

        Returns: the names of what was removed.
        """
        current, names = self._read(CURRENT), self.names()
        # A later one waits to be switched to, such as a new model's; an earlier one was passed over.
        kept = set(names[names.index(current) :]) if current in names else set(names)
        if keep_previous and (before := self.previous()):
            kept.add(before)
        used = {name for one in kept for name in read_manifest(self.folder / GENERATIONS / one / MANIFEST)["segments"]}
        gone = [path for path in sorted((self.folder / GENERATIONS).glob("*")) if path.name not in kept]
        gone += [path for path in sorted((self.folder / SEGMENTS).glob("*")) if path.name not in used]
        gone += sorted((self.folder / BUILDING).glob("*"))
        for path in gone:  # generations first, so that none is left which names a segment that is gone
            (path / MANIFEST).unlink(missing_ok=True)  # what is half removed is not taken for whole
            shutil.rmtree(path)
        return [path.name for path in gone if path.parent.name != BUILDING]

    def describe(self) -> dict[str, Any]:
        """A report of the generation that answers, and of the others by name."""
        current = self.answering()
        report = {"catalog": str(self.folder), "items": len(current), "removed, until compact": len(current.removed)}
        report["model"] = {name: current.manifest["model"][name] for name in ("name", "digest")}
        report["dimensions"] = current.manifest["dims"]
        report["index"] = {name: value for name, value in current.manifest["index"].items() if name != "asked"}
        report["columns"] = current.columns()
        report["sources"] = current.sources()
        report["generations"] = {name: self._in_words(name, current.name) for name in self.names()}
        return report | {"megabytes": round(self.bytes() / 1e6, 1)}

    def bytes(self) -> int:
        """What the folder takes on the disk; a file of several names counts once."""
        # Generations of one index, and a segment and what it was built from, share files by hard links.
        stats = (path.stat() for path in self.folder.rglob("*") if path.is_file())
        return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())

    def _in_words(self, name: str, current: str) -> str:
        one = self.open(name)
        role = {current: ", answers", self.previous(): ", answered before"}.get(name, "")
        return f"{len(one):,} items by {Path(one.manifest['model']['name']).name}, {one.manifest['made']}{role}"

    def _read(self, file: str) -> str | None:
        try:
            return (self.folder / file).read_text("utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None


def is_catalog(folder: Path) -> bool:
    """Whether a folder is a catalog's, even one of which nothing is whole yet."""
    return any((folder / name).exists() for name in (CURRENT, SEGMENTS, GENERATIONS, BUILDING))


def generations_in(folder: str | Path) -> Generations:
    """The generations of a catalog's folder, or of a Lance table, which can be asked but not be changed."""
    if table_of(folder):
        from lrvsf.scale.lance_table import TableGenerations  # here, as few have Lance

        return TableGenerations(folder)
    return Generations(folder)


def _number(name: str) -> int:
    return int(name[2:])


def damaged(path: Path, error: Exception) -> ValueError:
    """What is said of a file that cannot be read.

    The same build would not make it anew, as it takes for whole what has its name.
    """
    told = " ".join(str(error).split())
    return ValueError(f"{path} is damaged ({told}). Copy it from a backup, or index into another folder.")


def read_manifest(path: Path) -> dict[str, Any]:
    """Raises ValueError: it is damaged, or a newer program's."""
    try:
        manifest = json.loads(path.read_text("utf-8"))
        made = manifest["format"]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if made > FORMAT:
        raise ValueError(f"{path} is of format {made}, and this program reads {FORMAT}. Update it.")
    return manifest
