"""A Lance table that holds a catalog, and its versions. Lance keeps what it wrote: each commit is a version more.

    id, metadata, __thumbnail, __digest     as in a segment's items.parquet
    __vector_1a2b3c4d5e6f                   float16 rows by the model of this digest; a column for each model

A version's schema carries the manifest of the generation that it was written from. Tags name versions: "answers" the
one that is opened, "g-000002" the last one that was written from that generation. The tag moves when all commits of a
run have been made, so a reader sees what was there before the run or what is there after it, whenever it was killed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("LANCE_LOG", "error")  # read as it is imported; it would warn of every list that stays empty

try:
    import lance
except ImportError as error:
    raise ImportError('a Lance table needs Lance: pip install "lrvsf[ray]"') from error  # others import it from here
import numpy as np

from lrvsf.data.names import did_you_mean, quoted
from lrvsf.paths import table_of
from lrvsf.search.generations import FORMAT, Generation
from lrvsf.search.sources.metadata import INTERNAL

ANSWERS = "answers"  # the tag of the version that is opened
MANIFEST_KEY = "lrvsf"  # of the schema's metadata
FAULTS = (OSError, ValueError, RuntimeError)  # what Lance raises of files


@dataclass(frozen=True)
class TableGeneration(Generation):
    """What one version of a table answers with. Rows are those that are left, in the table's order.

    Attributes:
        table: the version, which stays as it is.
    """

    table: lance.LanceDataset

    @property
    def catalog(self) -> Path:
        return self.folder

    @property
    def total(self) -> int:
        return self.manifest["items"]

    @property
    def column(self) -> str:
        """The column of the vectors."""
        return vector_column(self.manifest)

    def columns(self) -> dict[str, str]:
        return {one.name: str(one.type) for one in self.table.schema if not one.name.startswith(INTERNAL)}


class TableGenerations:
    """The generations of TABLE or TABLE@VERSION, as those of a catalog's folder: one answers."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self._version = table_of(folder)

    def current_name(self) -> str:
        return self.answering().name

    def answering(self) -> TableGeneration:
        """The version that answers, or the one that was named.

        Raises ValueError: it is damaged, or `search_catalog.py lance` has not written it.
        """
        table = self._opened()
        manifest = manifest_of(table)
        check_files(self.folder, table)
        return TableGeneration(manifest["name"], self.folder, manifest, (), np.empty(0, np.int64), table)

    def describe(self) -> dict[str, Any]:
        """A report of the version that answers, and of the others by their tags."""
        current = self.answering()
        report = {"table": str(self.folder), "version": current.table.version, "items": len(current)}
        report["model"] = {name: current.manifest["model"][name] for name in ("name", "digest")}
        report["dimensions"] = current.manifest["dims"]
        indices = [one for one in current.table.describe_indices() if current.column in one.field_names]
        report["index"] = indices[0].index_type if indices else "none: every row is looked at"
        report["columns"] = current.columns()
        tags = {name: about["version"] for name, about in current.table.tags.list().items() if name != ANSWERS}
        report["generations"] = {name: f"version {version}" for name, version in sorted(tags.items())}
        stats = (path.stat() for path in self.folder.rglob("*") if path.is_file())
        return report | {"megabytes": round(sum(stat.st_size for stat in stats) / 1e6, 1)}

    def _opened(self) -> lance.LanceDataset:
        latest = open_latest(self.folder)
        tags = latest.tags.list()
        if ANSWERS not in tags:
            raise ValueError(f"{self.folder} is a Lance table that search_catalog.py lance has not written; name one")
        asked = self._version or ANSWERS
        if asked in tags:
            version = tags[asked]["version"]
        elif asked.isdecimal() and int(asked) in {one["version"] for one in latest.versions()}:
            version = int(asked)
        else:
            names = [name for name in sorted(tags) if name != ANSWERS]
            raise FileNotFoundError(
                f"{self.folder} has no version {quoted(asked)}; it has {', '.join(names)}, and numbers up to "
                f"{latest.version}.{did_you_mean(asked, names)}"
            )
        try:
            return latest.checkout_version(version)
        except FAULTS as error:
            raise damaged_table(self.folder, error) from error


def open_latest(path: Path) -> lance.LanceDataset:
    """The newest version, whether it answers or not. Raises ValueError: the table is damaged."""
    try:
        return lance.dataset(path)
    except FAULTS as error:
        raise damaged_table(path, error) from error


def manifest_of(table: lance.LanceDataset) -> dict[str, Any]:
    """The manifest that a version carries. Raises ValueError: it has none, or a newer program's."""
    text = (table.schema.metadata or {}).get(MANIFEST_KEY.encode())
    if text is None:
        raise ValueError(
            f"version {table.version} of {table.uri} was not written by search_catalog.py lance; name another one"
        )
    manifest = json.loads(text)
    if manifest["format"] > FORMAT:
        raise ValueError(f"{table.uri} is of format {manifest['format']}, and this program reads {FORMAT}. Update it.")
    return manifest


def vector_column(manifest: dict[str, Any]) -> str:
    """The name of the column of a model's vectors."""
    return f"{INTERNAL}vector_{manifest['model']['digest']}"


def damaged_table(path: Path, error: Exception) -> ValueError:
    """What is said of a table that cannot be read."""
    told = " ".join(str(error).split()).partition(", /")[0]  # without places in Lance's source
    return ValueError(f"{path} is damaged ({told}). Copy it from a backup, or write another one of its catalog.")


def check_files(folder: Path, table: lance.LanceDataset) -> None:
    """Refuses a version of which a file is gone or cut short, as Lance would find it while it answers."""
    for fragment in table.get_fragments():
        for file in fragment.data_files():
            path = folder / "data" / file.path
            size = path.stat().st_size if path.is_file() else None
            if size is None or file.file_size_bytes not in (None, size):
                told = "it is gone" if size is None else f"{size:,} bytes of {file.file_size_bytes:,}"
                raise damaged_table(folder, ValueError(f"{file.path}: {told}"))
