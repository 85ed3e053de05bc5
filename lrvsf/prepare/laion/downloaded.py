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
ROW_SCHEMA = pa.schema(
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
                    for product_id, rows in by_product(_rated(mapped, verdicts)):
                        bar.update(len(rows))
                        yield product_id, pictures_of(rows)


class UsableRows:
    """Reads the rows of a source that can be put to a product, and counts those that cannot.

    Attributes:
        other_splits: split -> rows of it that are not wanted.
        unusable: reason -> rows or files.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.other_splits: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()

    def of_file(self, file: Path, number: int) -> Iterator[dict[str, Any]]:
        """The rows of one file as `ROW_SCHEMA` has them; `number` is the file's among all, and so that of its round."""
        for row in self._read(file):
            if row["split"] not in self.source.splits:
                self.other_splits[str(row["split"])] += 1
            elif (names := self._names(row)) is not None:
                kept = {name: row.get(name) for name in ROW_SCHEMA.names}
                yield kept | names | {"key": self.source.key(names["product_id"]), "round": number}

    def skipped(self) -> dict[str, dict[str, int]]:
        return {"other splits": dict(self.other_splits), "unusable": dict(self.unusable)}

    def _names(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The cells that are read in more than one spelling; None if the row is of no use."""
        loose = row["split"].endswith(DISTRACTORS)
        try:
            product_id, category = identifiers(row, ("product_id", "category"))
        except UnusableCell as error:
            self.unusable[f"rows whose {error.reason}"] += 1
            return None
        product_id = product_id or (row["url"] if loose else None)  # a distractor of no product is one by itself
        if row["url"] is None or not product_id:
            self.unusable["rows without URL or product id"] += 1
            return None
        if row["type"] not in TYPES and not loose:
            self.unusable["rows of unknown type"] += 1
            return None
        captions = texts(_caption_cells(row.get("captions")), lambda reason: self.unusable.update([reason]))
        return {"product_id": product_id, "category": category, "captions": captions}

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


class _PartitionWriter(FolderWriter):
    """Writes WORK/000.arrow, ... (those that get rows) and WORK/partitions.json."""

    def __init__(self, work: Path, source: Source) -> None:
        super().__init__(work)
        self.source = source
        self.input = source.fingerprint()
        self.usable = UsableRows(source)
        self.rows = 0
        self.count = max(1, allow_open_files(PARTITIONS + OTHER_FILES) - OTHER_FILES)
        self._parts: dict[int, RowWriter] = {}

    def add_files(self) -> None:
        files = self.source.files()
        for number, file in enumerate(tqdm(files, desc="partitioning", unit="file")):
            for row in self.usable.of_file(file, number):
                self._partition(row)

    def _partition(self, row: dict[str, Any]) -> None:
        index = partition_of(row["key"], self.count)
        if index not in self._parts:
            file = pa.ipc.new_file(str(self.writing / f"{index:03d}.arrow"), ROW_SCHEMA)
            self._parts[index] = RowWriter(file, ROW_SCHEMA, BATCH_ROWS, BATCH_BYTES)
        self._parts[index].add(row, len(row["jpg"] or b""))
        self.rows += 1

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def finish(self) -> None:
        # What a later run compares: a partition that a full disk cut short is noticed by its size.
        files = {path.name: path.stat().st_size for path in self.writing.iterdir()}
        described = {"input": self.input, "rows": self.rows, "skipped": self.usable.skipped(), "files": files}
        write_report(self.writing / "partitions.json", described)


def partition_of(key: int, count: int) -> int:
    """Which of `count` partitions a key belongs to: in turn they hold ascending ranges of keys."""
    return key * count >> 64  # 0 <= key < 2^64


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
    """The rows of a partition, with what `rate` says of them and `image`, which reads the bytes when it is called."""
    reader = pa.ipc.open_file(mapped)
    rows = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        images = batch.column("jpg")
        texts = batch.select([name for name in ROW_SCHEMA.names if name != "jpg"]).to_pylist()
        for index, (row, bad) in enumerate(zip(texts, next(verdicts), strict=True)):
            # `as_py` is bound, not called: it copies the bytes out of the map when the picture is made.
            rows.append(row | rate(row, images[index].as_buffer(), bad) | {"image": images[index].as_py})
    return rows


def rate(row: dict[str, Any], image: pa.Buffer | bytes | None, bad: str | None) -> dict[str, Any]:
    """Cells of a row: `bad` (why its image cannot be used, or None), `fetched` (whether bytes came), and `sha256`.

    Args:
        bad: why the bytes give no image.
    """
    fetched = len(image or b"") > 0
    if not fetched and row["status"] != "success":
        bad = str(row["status"])
    digest = row["sha256"]
    if fetched and not digest:  # downloaded by other means than ours
        digest = hashlib.sha256(image).hexdigest()
    return {"bad": bad, "fetched": fetched, "sha256": digest}


def by_product(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(product id, its rows) of the rows of a partition, in order."""
    for (_, product_id), group in groupby(sorted(rows, key=_total_order), key=itemgetter("key", "product_id")):
        yield product_id, list(group)


def _total_order(row: dict[str, Any]) -> tuple:
    """Total, so that the files in which the rows came do not show."""
    return row["key"], row["product_id"], row["split"], row["url"], type_rank(row["type"]), row["sha256"] or ""


def pictures_of(rows: list[dict[str, Any]]) -> list[Picture]:
    """The pictures of a product's rows: SIMPLE first, then by type and URL."""
    # The rows of a product are sorted by split and URL, so the rounds of one URL are neighbours.
    pictures = [_downloaded_picture(list(rounds)) for _, rounds in groupby(rows, key=itemgetter("split", "url"))]
    return sorted(pictures, key=lambda picture: (type_rank(picture.type), picture.url))


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
