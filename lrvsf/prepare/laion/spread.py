"""Downloads grouped into product shards by jobs, which any number of processes do: the shards that one process writes.

1. A job for each downloaded file decodes its images and writes its rows to a file of its own, in batches of one
   partition each: a partition has the products whose keys begin alike (`Source.key`).
2. A job for each partition gathers its rows from all those files, without the images, sorts them by key, and tells
   which products are complete. Their sizes in turn say which products each shard holds.
3. A job for each shard reads the images of its products and writes it.

Ray Data's own shuffles would have all images in its object store, and spill them (docs/scale.md has the figures). Here
jobs are told names of files and numbers; rows and images pass from one to the next through WORK, on a disk that all
see. What a job writes is whole or absent, and depends on its input alone. So it may be done twice, and by anybody; a
run that was killed goes on with the jobs whose files are missing.

    WORK/input.json                         what it was made of
    WORK/rows/00000.arrow, 00000.json       rows of a downloaded file; what they are
    WORK/written/00000.json                 the manifest's entry of a shard
    WORK/shards/00000.parquet, ...          what becomes the data folder
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from tqdm import tqdm

from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.sharing import SharedPictures, number_of
from lrvsf.durable import publish_folder, whole_file
from lrvsf.prepare import writers
from lrvsf.prepare.laion import downloaded
from lrvsf.prepare.laion.downloaded import (
    BATCH_BYTES,
    ROW_SCHEMA,
    Source,
    UsableRows,
    by_product,
    partition_of,
    pictures_of,
    rate,
)
from lrvsf.prepare.product_counts import ProductCounts
from lrvsf.prepare.row_writer import RowWriter, parquet_writer
from lrvsf.prepare.rows import Picture, distinct, product_row, why_incomplete
from lrvsf.prepare.workers import why_bad
from lrvsf.report import as_table, write_report

FORMAT = 1  # raise it when what lies in WORK changes
OPEN_FILES = 64  # of spread rows, in a job that reads them; not tuned
FIRST_ROWS = 4  # that all processes must see alike
IMAGE = "jpg"

SPREAD_SCHEMA = pa.schema([*ROW_SCHEMA, ("bad", pa.string()), ("fetched", pa.bool_()), ("size", pa.int64())])
TEXT = [name for name in SPREAD_SCHEMA.names if name != IMAGE]

Batches = list[tuple[str, list[int]]]  # (file, its batches) of a partition, in the order of the downloaded files


class Place(NamedTuple):
    """Where an image lies, and how many bytes it has: what a picture has for `data` until it is written."""

    file: str
    batch: int
    row: int
    size: int


class Slice(NamedTuple):
    """Neighbouring complete products of a partition: the numbers of the first, and of the one after the last."""

    partition: int
    start: int
    stop: int


@dataclass
class Survey:
    """What a partition holds.

    Attributes:
        counts: of all its products.
        complete: (product id, bytes of its images, their numbers) of those that are complete, in order.
    """

    counts: ProductCounts
    complete: list[tuple[str, int, list[int]]]


def write_by_jobs(source: Source, folder: Path, work: Path, mapper: Callable) -> None:
    """Writes the shards of a source, with their manifest, to `folder`: whole or not at all.

    Args:
        folder: must not exist, or be empty.
        work: a folder on the same disk, which all processes see. What it holds of the same source is not made again.
        mapper: a `map` that keeps the order and may do a job again (see `lrvsf.scale.ray_prepare.cluster_map`).

    Raises ValueError: no product is complete.
    """
    source, work = replace(source, folder=source.folder.absolute()), work.absolute()  # jobs may have other folders
    _begin(work, source)
    spread, skipped = _spread_all(source, work, mapper)
    counts, shared, plan = ProductCounts(), SharedPictures(), ShardPlan()
    surveys = mapper(survey, spread.values())
    for partition, found in zip(spread, tqdm(surveys, desc="grouping", total=len(spread), unit="part"), strict=True):
        counts.merge(found.counts)
        for number, (product_id, size, numbers) in enumerate(found.complete):
            plan.add(partition, number, size)
            shared.add(product_id, numbers)
    report = {"seed": source.seed, **counts.report(), **shared.report(), **skipped}
    refuse_none(source, report)
    shards = [[(spread[each.partition], each.start, each.stop) for each in slices] for slices in plan.shards]
    entries = mapper(write_shard, repeat(work, len(shards)), range(len(shards)), shards)
    files = list(tqdm(entries, desc="writing", total=len(shards), unit="shard"))
    note = {"input": source.fingerprint(), "report": report}
    writers.write_products_manifest(work / "shards", counts.urls["kept"], files, note)
    publish_folder(work / "shards", folder.resolve())


def refuse_none(source: Source, report: dict[str, Any]) -> None:
    """Raises ValueError if no product is complete."""
    if not report["products"]["complete"]:
        raise ValueError(
            f"{source.folder} gives no complete product of the split {source.splits[0]!r}; download more, or name "
            f"another --split\n{as_table(report)}"
        )


def first_rows(source: Source) -> list[str]:
    """What a process sees of the source: the first rows' digests, and what it thinks of their images."""
    rows = UsableRows(source).of_file(source.files()[0], 0)
    return [f"{rate(row, row[IMAGE], why_bad(row[IMAGE]))}" for row in islice(rows, FIRST_ROWS)]


def _begin(work: Path, source: Source) -> None:
    """Empties `work`, unless it holds what was made of this source by these rules."""
    made_of = [FORMAT, source.fingerprint(), downloaded.PARTITIONS, writers.SHARD_BYTES]
    described = work / "input.json"
    if not described.is_file() or json.loads(described.read_text()) != made_of:
        shutil.rmtree(work, ignore_errors=True)
        write_report(described, made_of)
    for name in ("rows", "written", "shards"):
        (work / name).mkdir(exist_ok=True)


def _spread_all(source: Source, work: Path, mapper: Callable) -> tuple[dict[int, Batches], dict[str, Any]]:
    """Partition -> its batches, in the order of the partitions; and what was skipped."""
    files = source.files()
    every = [repeat(each, len(files)) for each in (source, work, downloaded.PARTITIONS)]
    jobs = mapper(spread_file, *every, files, range(len(files)))
    parts: dict[int, Batches] = defaultdict(list)
    skipped: dict[str, Counter[str]] = defaultdict(Counter)
    for number, made in enumerate(tqdm(jobs, desc="spreading", total=len(files), unit="file")):
        batches: dict[int, list[int]] = defaultdict(list)
        for batch, partition in enumerate(made["partitions"]):
            batches[partition].append(batch)
        for partition, numbers in batches.items():
            parts[partition].append((str(_rows_file(work, number)), numbers))
        for what, counted in made["skipped"].items():
            skipped[what].update(counted)
    return dict(sorted(parts.items())), {what: dict(counted) for what, counted in skipped.items()}


class ShardPlan:
    """Which products each shard holds: cut where `ProductShardWriter` would close its file.

    Attributes:
        shards: for each, the slices that it is made of.
    """

    def __init__(self) -> None:
        self.shards: list[list[Slice]] = []
        self._full, self._bytes = True, 0

    def add(self, partition: int, number: int, size: int) -> None:
        """Adds the next product: the `number`-th complete one of a partition, with images of `size` bytes."""
        if self._full:
            self.shards.append([])
            self._bytes = 0
        slices = self.shards[-1]
        if slices and slices[-1].partition == partition:
            slices[-1] = slices[-1]._replace(stop=number + 1)
        else:
            slices.append(Slice(partition, number, number + 1))
        self._bytes += size
        self._full = self._bytes >= writers.SHARD_BYTES


# --- Jobs


def spread_file(source: Source, work: Path, count: int, file: Path, number: int) -> dict[str, Any]:
    """Job 1: {"partitions": the partition of each batch, "skipped": what of the file is not in them}.

    Args:
        count: of the partitions.
        number: of the file, among all.
    """
    path = _rows_file(work, number)
    described = path.with_suffix(".json")
    if described.is_file() and path.is_file():
        return json.loads(described.read_text())
    usable, partitions = UsableRows(source), []
    with whole_file(path) as part, pa.ipc.new_file(str(part), SPREAD_SCHEMA) as arrow:
        waiting: dict[int, RowWriter] = {}
        for row in usable.of_file(file, number):
            partition = partition_of(row["key"], count)
            if partition not in waiting:
                shared = _SharedFile(arrow, partition, partitions)
                waiting[partition] = RowWriter(shared, SPREAD_SCHEMA, downloaded.BATCH_ROWS, BATCH_BYTES)
            image = row[IMAGE] or b""
            rated = rate(row, image, why_bad(row[IMAGE]))
            waiting[partition].add(row | rated | {"size": len(image)}, len(image))
        for partition in sorted(waiting):
            waiting[partition].close()
    made = {"partitions": partitions, "skipped": usable.skipped()}
    write_report(described, made)  # after the rows: where it is, they are whole
    return made


class _SharedFile:
    """One partition's end of a file that all partitions write their batches to."""

    def __init__(self, file: pa.RecordBatchFileWriter, partition: int, partitions: list[int]) -> None:
        self._file, self._partition, self._partitions = file, partition, partitions

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self._file.write_batch(batch)
        self._partitions.append(self._partition)

    def close(self) -> None:
        """Nothing: other partitions write on."""


def survey(batches: Batches) -> Survey:
    """Job 2: what a partition holds."""
    counts, complete = ProductCounts(), []
    for product_id, pictures in _products(batches, SpreadRows()):
        usable = distinct(pictures)
        if counts.complete(pictures, usable):
            size = sum(picture.data.size for picture in usable)
            complete.append((product_id, size, [number_of(picture.sha256) for picture in usable]))
    return Survey(counts, complete)


def write_shard(work: Path, number: int, slices: list[tuple[Batches, int, int]]) -> dict[str, Any]:
    """Job 3: writes shard `number` and gives the manifest's entry of it.

    Args:
        slices: (batches of a partition, its first complete product, the one after the last) in turn.
    """
    path, written = work / f"shards/{number:05d}.parquet", work / f"written/{number:05d}.json"
    if written.is_file() and path.is_file():  # the shards of a finished run have been moved away
        return json.loads(written.read_text())
    digest, rows = hashlib.sha256(), SpreadRows()
    with whole_file(path) as part:
        shard = parquet_writer(part, PRODUCT_FEATURES.arrow_schema)
        for batches, start, stop in slices:
            usable = ((product_id, distinct(pictures)) for product_id, pictures in _products(batches, rows))
            complete = (product for product in usable if why_incomplete(product[1]) is None)
            for product_id, pictures in islice(complete, start, stop):
                row = product_row(product_id, [replace(each, data=rows.image(each.data)) for each in pictures])
                digest.update(writers.row_digest(row))
                shard.add(row, writers.row_bytes(row))
        shard.close()
    entry = writers.shard_entry(path, shard, digest.hexdigest())
    write_report(written, entry)  # after the shard: where it is, that is whole
    return entry


class SpreadRows:
    """Reads what `spread_file` wrote, with few files open at a time."""

    def __init__(self) -> None:
        self._reader = lru_cache(OPEN_FILES)(_opened)

    def texts(self, batches: Batches) -> Iterator[dict[str, Any]]:
        """The rows of batches without their images, and `image`, which tells where that lies."""
        for file, numbers in batches:
            for number in numbers:
                for index, row in enumerate(self._reader(file).get_batch(number).select(TEXT).to_pylist()):
                    yield row | {"image": partial(Place, file, number, index, row["size"])}

    def image(self, place: Place) -> bytes:
        return self._reader(place.file).get_batch(place.batch).column(IMAGE)[place.row].as_py()


def _opened(file: str) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(file))  # mapped: a batch without its images is read without them


def _products(batches: Batches, rows: SpreadRows) -> Iterator[tuple[str, list[Picture]]]:
    """(product id, its pictures, which have a `Place` for data) of a partition, in order."""
    return ((product_id, pictures_of(found)) for product_id, found in by_product(list(rows.texts(batches))))


def _rows_file(work: Path, number: int) -> Path:
    return work / f"rows/{number:05d}.arrow"
