"""A data set of `datasets`, on the Hub or in a folder: streamed once, its pictures kept until they are embedded.

What streams cannot be read from the middle, and may be another one tomorrow. So rows go to Parquet files in a spool,
each whole or absent: a killed build goes on after the last of them, and embeds from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import RepositoryNotFoundError
from tqdm import tqdm

from lrvsf.command import REACH
from lrvsf.data.folders import files_in
from lrvsf.data.foreign.picture_files import read_file
from lrvsf.data.images import MAX_IMAGE_BYTES, BadImage
from lrvsf.data.names import quoted
from lrvsf.durable import write_whole
from lrvsf.search.sources.lister import Lister, Source
from lrvsf.search.sources.shop_tables import list_parquet

HUB = "hf://datasets/"
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
SPOOL_ROWS = 512  # of a file: some 50 MB of photographs, in memory once
WHOLE = "whole.json"  # in a spool: it has everything


def is_dataset(name: str) -> bool:
    """Whether a name is one of the Hub: an address, or OWNER/NAME where there is no such path and no folder OWNER."""
    # A relative path looks the same: whoever has a folder OWNER means it.
    named = ON_HUB.fullmatch(name) and not Path(name).exists() and not Path(name).parent.is_dir()
    return name.startswith("hf://") or bool(named)


def is_dataset_folder(folder: Path) -> bool:
    """Whether `datasets` knows more of a folder than its pictures: Parquet files in data/, or a table of metadata.

    Raises ValueError: `save_to_disk` wrote it.
    """
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        raise ValueError(f"{folder} was written by save_to_disk; load it and write a table with to_parquet")
    metadata = any((folder / f"metadata.{kind}").is_file() for kind in ("csv", "jsonl", "parquet"))
    return metadata or bool(files_in(folder / "data", "*.parquet"))


def list_dataset(name: str, split: str | None, spool: Path | None) -> Source:
    """The rows of a split, whose pictures are brought into the spool."""
    if spool is None:
        raise ValueError(f"{name} is a data set, whose pictures need a folder to be kept in")
    with _hub_errors(name):
        builder = _builder(name)
        streams = builder.as_streaming_dataset()  # which reads the first file's schema
    if split is None and len(streams) > 1:
        raise ValueError(f"{name} has the splits {', '.join(streams)}; name one with --split")
    split = split or next(iter(streams))
    if split not in streams:
        raise ValueError(f"{name} has no split {quoted(split)}; it has {', '.join(streams)}")
    identity = {"name": name, "split": split, "files": builder.hash}
    folder = spool / f"stream-{builder.hash}-{split}"
    if not (folder / WHOLE).is_file():
        with _hub_errors(name):
            unused = _fill(streams[split], name, folder)
        write_whole(folder / WHOLE, json.dumps(identity | {"unused": unused}).encode())
    lister = Lister(name, folder)
    lister.identify(identity)
    lister.unused = json.loads((folder / WHOLE).read_text())["unused"]
    return list_parquet(lister, files_in(folder, "pictures-*.parquet"), spooled=True)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Says in one line what to do where the Hub does not give a data set. (Libraries have tried again by then.)"""
    try:
        yield
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        # The Hub tells nobody whether a data set is there that he may not read, so the two cannot be told apart here.
        raise FileNotFoundError(
            f"there is no data set {name} on the Hub that you may read. Look at its name; if it is private or gated, "
            "ask for access on its page and log in with `hf auth login`"
        ) from error
    except ConnectionError as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise ConnectionError(
            f"the Hub was not reached for {name} ({told}). The same command goes on after what was read. {REACH}"
        ) from error


def _builder(name: str) -> datasets.DatasetBuilder:
    if not name.startswith("hf://"):
        return datasets.load_dataset_builder(name)
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, inner = rest.partition("/")
    if not name.startswith(HUB) or not owner or not repository:
        raise ValueError(
            f"{name} is no data set; write {HUB}OWNER/NAME, with a folder or file of it after that if need be"
        )
    where = {"data_files" if Path(inner).suffix else "data_dir": inner} if inner else {}
    return datasets.load_dataset_builder(f"{owner}/{repository}", **where)


def _fill(stream: datasets.IterableDataset, name: str, folder: Path) -> list[str]:
    """Writes what the spool lacks. The columns that are not kept."""
    column = _image_column(stream.features, name)
    stream = stream.cast_column(column, datasets.Image(decode=False))  # bytes as they came: ours are the bounds
    labels = {key: kind for key, kind in stream.features.items() if isinstance(kind, datasets.ClassLabel)}
    others = {key: kind for key, kind in stream.features.items() if isinstance(kind, datasets.Image) and key != column}
    schema = {key: kind for key, kind in stream.features.items() if key not in (column, *others)}
    schema |= {key: datasets.Value("string") for key in labels}
    arrow = datasets.Features({"image": datasets.Image(), **schema}).arrow_schema.remove_metadata()
    folder.mkdir(parents=True, exist_ok=True)
    # Streams go forward only: what a killed build has in files is passed over, not decoded.
    there = len(files_in(folder, "pictures-*.parquet"))
    rows = iter(stream.skip(there * SPOOL_ROWS))  # every file but the last is full, so their number is the place
    with tqdm(desc="fetching", unit="row", initial=there * SPOOL_ROWS) as bar:
        while chunk := [_row(row, column, labels, schema, name) for row in islice(rows, SPOOL_ROWS)]:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(chunk, schema=arrow), sink)
            write_whole(folder / f"pictures-{there:06d}.parquet", sink.getvalue())
            there += 1
            bar.update(len(chunk))
            # Otherwise the stream would be asked once more, which may fetch a file to say that there is none.
            if len(chunk) < SPOOL_ROWS:
                break
    if not there:
        raise ValueError(f"{name} has no rows; choose another split with --split")
    return list(others)


def _image_column(features: datasets.Features, name: str) -> str:
    """The column of pictures: `image`, or the only one that there is."""
    found = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(found) != 1 and "image" not in found:
        has = f"several: {', '.join(found)}" if found else f"none among {', '.join(features)}"
        raise ValueError(f"{name} has no column `image` of pictures, and {has}; rename the one that is meant to image")
    return "image" if "image" in found else found[0]


def _row(row: dict[str, Any], column: str, labels: dict, schema: dict, name: str) -> dict[str, Any]:
    cell = row[column] or {}
    data = cell.get("bytes") or (_fetched(cell["path"], name) if cell.get("path") else None)
    known = {key: row[key] for key in schema}
    known |= {key: None if row[key] is None else kind.int2str(row[key]) for key, kind in labels.items()}
    return {"image": {"bytes": data, "path": None}, **known}


def _fetched(path: str, name: str) -> bytes | None:
    """A picture that a data set names by its path, which must lie in the data set; None where it cannot be had."""
    try:
        if "://" not in path:
            return read_file(path, Path(name))
        if not path.startswith("hf://"):  # no other address is ever fetched
            return None
        with fsspec.open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (BadImage, FileNotFoundError):
        return None
