"""What img2dataset downloaded, product by product, shuffled, in bounded memory: a sort of 17 GB or more on disk.

1. Every row goes to one of at most `PARTITIONS` Arrow files, chosen by the leading bits of a seeded hash of its product
   id.
2. File after file is mapped into memory: worker processes decode its images, its rows are sorted by hash and grouped.

The sorted files in turn are one sorted sequence, so the products come in an order that the seed and their ids decide,
whatever files they were downloaded in. Memory holds a few hundred kilobytes for each partition in the first pass, and
in the second the text of one partition and the images of one product. Disk holds the images a second time until the
step is done. A step killed in the second pass finds the partitions where they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from lrvsf.command import allow_open_files
from lrvsf.data.folders import matching_below
from lrvsf.data.names import UnusableCell, identifiers, texts
from lrvsf.data.parquet import DAMAGE, check_columns, open_parquet, read_rows, wrong_types
from lrvsf.prepare.laion.url_lists import PLACE
from lrvsf.prepare.row_writer import RowWriter
from lrvsf.prepare.rows import TYPES, Picture, type_rank
from lrvsf.prepare.workers import why_bad
from lrvsf.prepare.writers import FolderWriter
from lrvsf.report import write_report

logger = logging.getLogger(__name__)

PARTITIONS = 128  # fewer where so many files may not be open at once; the products and their order are the same
OTHER_FILES = 32  # that are open besides
BATCH_ROWS = 64
BATCH_BYTES = 2**20  # of images that wait for their batch, in each partition
FORMAT = 3  # raise it when the partitions or what is made of them change
DISTRACTORS = "_distractors"  # ends the name of a split in which rows need not belong to a product

REMEDY = "Give the folder that `prepare_lrvsf.py download` wrote."
NEEDED = ("url", "status", "jpg", "product_id", "type", "split")
OPTIONAL = ("category", "captions", "sha256", PLACE)

_TEXT = ("product_id", "split", "type", "category", "url", "status", "sha256")
_SCHEMA = pa.schema(
    [("key", pa.uint64()), ("round", pa.int32()), (PLACE, pa.int64())]
    + [(name, pa.string()) for name in _TEXT]
    + [("captions", pa.list_(pa.string())), ("jpg", pa.binary())]
)


@dataclass(frozen=True)
class Source:
    """A folder of img2dataset's Parquet files, the splits wanted of it, and the seed of the order."""

    folder: Path
    splits: tuple[str, ...]
    seed: int

    def files(self) -> list[Path]:
        """All Parquet files, at any depth, sorted by path."""
        if not (files := matching_below(self.folder, "*.parquet")):
            raise FileNotFoundError(f"no *.parquet in {self.folder}; fill it with `prepare_lrvsf.py download`")
        return files

    def fingerprint(self) -> str:
        """Names, sizes and times of the files, with the settings: another one means other products."""
        stats = [(str(file.relative_to(self.folder)), file.stat()) for file in self.files()]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return hashlib.sha256(json.dumps([FORMAT, self.splits, self.seed, files]).encode()).hexdigest()

    def key(self, product_id: str) -> int:
        """Where the product stands in the order: 64 bits."""
        seeded = hashlib.blake2b(product_id.encode(), digest_size=8, key=str(self.seed).encode())
        return int.from_bytes(seeded.digest(), "big")


@dataclass
class Partitions:
    """The rows of a source, spread over files by product.

    Attributes:
        files: in the order of the products.
        rows: how many rows they hold.
        skipped: {"other splits": {split: rows}, "unusable": {reason: rows or files}} of what they do not hold.
    """

    files: list[Path]
    rows: int
    skipped: dict[str, dict[str, int]]

    @classmethod
    def of(cls, source: Source, work: Path) -> Partitions:
        """Those that an earlier run left in `work`, if the source is still the same, or new ones."""
        described = work / "partitions.json"
        numbers = json.loads(described.read_text()) if described.is_file() else {}
        there = {path.name: path.stat().st_size for path in work.glob("*.arrow")}
        if (numbers.get("input"), numbers.get("files")) != (source.fingerprint(), there):
            if numbers:
                rmtree(work)
            with _PartitionWriter(work, source) as writer:
                writer.add_files()
            numbers = json.loads(described.read_text())
        # Absolute, as what decodes may work in another folder.
        return cls(sorted(work.absolute().glob("*.arrow")), numbers["rows"], numbers["skipped"])

    def products(self, mapper: Callable) -> Iterator[tuple[str, list[Picture]]]:
        """(product id, its pictures: SIMPLE first, then by type and URL) of every product, in order.

        Args:
            mapper: a `map` that keeps the order (see worker_map).
        """
        # The verdicts on all batches of all partitions come in one stream, in the order of the jobs; `_rated` takes one
        # a batch. So workers are ahead in the next partition while this process still groups and writes this one.
        jobs = [(str(file), number) for file in self.files for number in range(_batches(file))]
        verdicts = iter(mapper(_judge, *zip(*jobs, strict=True)) if jobs else ())
        with tqdm(total=self.rows, desc="grouping", unit="row") as bar:
            for file in self.files:
                # Mapped, not read: what is in memory of the images is one product's, and what the kernel keeps.
                with pa.memory_map(str(file)) as mapped:
                    for (_, product_id), group in groupby(
                        _rated(mapped, verdicts), key=itemgetter("key", "product_id")
                    ):
                        rows = list(group)
                        bar.update(len(rows))
                        # The rows of a product are sorted by split and URL, so the rounds of one URL are neighbours.
                        urls = groupby(rows, key=itemgetter("split", "url"))
                        pictures = [_downloaded_picture(list(rounds)) for _, rounds in urls]
                        yield product_id, sorted(pictures, key=lambda picture: (type_rank(picture.type), picture.url))


class _PartitionWriter(FolderWriter):
    """Writes WORK/000.arrow, ... (those that get rows) and WORK/partitions.json."""

    def __init__(self, work: Path, source: Source) -> None:
        super().__init__(work)
        self.source = source
        self.input = source.fingerprint()
        self.rows = 0
        self.other_splits: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self.count = max(1, allow_open_files(PARTITIONS + OTHER_FILES) - OTHER_FILES)
        self._parts: dict[int, RowWriter] = {}

    def add_files(self) -> None:
        files = self.source.files()
        for number, file in enumerate(tqdm(files, desc="partitioning", unit="file")):
            for row in self._read(file):
                self._partition(row, number)

    def _partition(self, row: dict[str, Any], number: int) -> None:
        if row["split"] not in self.source.splits:
            self.other_splits[str(row["split"])] += 1
            return
        loose = row["split"].endswith(DISTRACTORS)
        try:
            product_id, category = identifiers(row, ("product_id", "category"))
        except UnusableCell as error:
            self.unusable[f"rows whose {error.reason}"] += 1
            return
        product_id = product_id or (row["url"] if loose else None)  # a distractor of no product is one by itself
        if row["url"] is None or not product_id:
            self.unusable["rows without URL or product id"] += 1
        elif row["type"] not in TYPES and not loose:
            self.unusable["rows of unknown type"] += 1
        else:
            key = self.source.key(product_id)
            index = key * self.count >> 64  # 0 <= key < 2^64: the files in turn hold ascending ranges of keys
            if index not in self._parts:
                file = pa.ipc.new_file(str(self.writing / f"{index:03d}.arrow"), _SCHEMA)
                self._parts[index] = RowWriter(file, _SCHEMA, BATCH_ROWS, BATCH_BYTES)
            kept = {name: row.get(name) for name in _SCHEMA.names}
            captions = texts(_caption_cells(row.get("captions")), lambda reason: self.unusable.update([reason]))
            names = {"product_id": product_id, "category": category, "captions": captions}
            row = kept | names | {"key": key, "round": number}
            self._parts[index].add(row, len(row["jpg"] or b""))
            self.rows += 1

    def _read(self, file: Path) -> Iterator[dict[str, Any]]:
        """The readable rows of a file; what is damaged is counted and named in the log."""
        try:
            parquet = open_parquet(file)
        except DAMAGE as error:
            self.unusable["files without a readable footer"] += 1
            logger.warning("Skipped %s, which is not a whole Parquet file: %s", file, error)
            return
        with parquet:
            present = parquet.schema_arrow.names
            check_columns(parquet, NEEDED, REMEDY)
            if why := wrong_types(parquet, ("url", "status", "type", "split", "sha256"), ["jpg"]):
                raise ValueError(f"{file} {why}. {REMEDY}")
            columns = [name for name in (*NEEDED, *OPTIONAL) if name in present]
            for group, (first, last) in enumerate(pairwise(parquet.starts)):
                left = last - first
                try:
                    for row in read_rows(parquet, columns, BATCH_ROWS, [group]):
                        left -= 1
                        yield row
                except DAMAGE as error:  # a damaged page takes its neighbours with it
                    self.unusable["rows in a damaged row group"] += left
                    logger.warning("Skipped %d rows of %s, row group %d: %s", left, file, group, error)

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def finish(self) -> None:
        skipped = {"other splits": dict(self.other_splits), "unusable": dict(self.unusable)}
        # What a later run compares: a partition that a full disk cut short is noticed by its size.
        files = {path.name: path.stat().st_size for path in self.writing.iterdir()}
        described = {"input": self.input, "rows": self.rows, "skipped": skipped, "files": files}
        write_report(self.writing / "partitions.json", described)


def _caption_cells(cell: list[Any] | str | None) -> list[Any]:
    """A list, or a JSON list in a string for writers that know no lists; a string that is no JSON is one caption."""
    if isinstance(cell, str):
        try:
            found = json.loads(cell)
        except ValueError:
            found = cell
        cell = found if isinstance(found, list) else [cell]
    return list(cell or ())


def _batches(file: Path) -> int:
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_file(mapped).num_record_batches


def _judge(file: str, number: int) -> list[str | None]:
    """For each row of a batch: None if its image can be decoded, or why not. Runs in the workers."""
    with pa.memory_map(file) as mapped:
        images = pa.ipc.open_file(mapped).get_batch(number).column("jpg")
        return [why_bad(image.as_py()) for image in images]


def _rated(mapped: pa.MemoryMappedFile, verdicts: Iterator[list[str | None]]) -> list[dict[str, Any]]:
    """The rows of a partition in order, each with `bad` (why its image cannot be used, or None) and `image`, which
    reads the bytes only when it is called."""
    reader = pa.ipc.open_file(mapped)
    rows = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        images = batch.column("jpg")
        texts = batch.select([name for name in _SCHEMA.names if name != "jpg"]).to_pylist()
        for index, (row, bad) in enumerate(zip(texts, next(verdicts), strict=True)):
            fetched = len(images[index].as_buffer() or b"") > 0
            if not fetched and row["status"] != "success":
                bad = str(row["status"])
            if fetched and not row["sha256"]:  # downloaded by other means than ours
                row["sha256"] = hashlib.sha256(images[index].as_buffer()).hexdigest()
            # `as_py` is bound, not called: it copies the bytes out of the map when the picture is made.
            rows.append(row | {"bad": bad, "fetched": fetched, "image": images[index].as_py})
    return sorted(rows, key=_total_order)


def _total_order(row: dict[str, Any]) -> tuple:
    """Total, so that the files in which the rows came do not show."""
    return row["key"], row["product_id"], row["split"], row["url"], type_rank(row["type"]), row["sha256"] or ""


def _downloaded_picture(rounds: list[dict[str, Any]]) -> Picture:
    """What the rounds of downloading gave for one URL: the image of any of them, or the failure of the last."""
    row = next((row for row in rounds if row["bad"] is None), None) or max(rounds, key=itemgetter("round"))
    return Picture(
        split=row["split"],
        type=row["type"],
        category=row["category"],
        captions=row["captions"],
        url=row["url"],
        sha256=row["sha256"] or "",
        data=row["image"]() if row["bad"] is None else None,
        failure=row["bad"],
        fetched=any(row["fetched"] for row in rounds),
        metadata_row=min((row[PLACE] for row in rounds if row[PLACE] is not None), default=None),
    )
