"""`prepare_lrvsf.py testset`: downloaded images -> a test set in the published layout.

The first readable image of a kind is taken: COMPLEX before PARTIAL_COMPLEX, then by URL. So a dead link can change
which images a query and its target are, but chance cannot.

Products and distractors stand in the order of the metadata, so that the first N are the published first N without
those that did not arrive. They are found product by product, in a seeded order; meanwhile they wait on disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.data.names import UnusableCell, identifiers
from lrvsf.data.parquet import opened, read_rows
from lrvsf.data.testset import PRODUCT_COLUMNS, image_bytes, wrong_cells
from lrvsf.durable import locked
from lrvsf.prepare.laion.downloaded import DISTRACTORS, Partitions, Source
from lrvsf.prepare.rows import NO_CATEGORY, TWICE, Picture, distinct, distractor_row, query_row
from lrvsf.prepare.spool import Waiting
from lrvsf.prepare.workers import why_bad, worker_map
from lrvsf.prepare.writers import TestSetWriter, made_from, read_manifest
from lrvsf.report import as_table, write_report

PUBLISHED_DISTRACTORS = {"test": 2_000_014}  # the distractors of the full test set, arXiv 2306.02928
SEED = 0  # of the order of rows without a place in the metadata
READ_ROWS = 64
NAMES = ("PRODUCT_ID", "TYPE", "CATEGORY")


def testset(
    downloaded: Annotated[Path, Argument(help="folder that `download` wrote")],
    out: Annotated[Path, Argument(help="data folder; gets SPLIT/products.parquet and SPLIT/distractors/")],
    split: Annotated[
        str, Option(help="split of the queries and targets; that of the distractors is SPLIT_distractors")
    ] = "test",
    products: Annotated[Path | None, Option(help="a published products.parquet, in place of rows of SPLIT")] = None,
    processes: Annotated[int | None, Option(help="processes that decode images; all cores by default")] = None,
) -> dict[str, Any]:
    """Make a test set in the published layout from downloaded images."""
    splits = (split + DISTRACTORS,) if products else (split, split + DISTRACTORS)
    source = Source(downloaded, splits, SEED)
    folder, work = out / split, out / f"{split}.partitions"
    fingerprint = _fingerprint(source, products)
    with locked(out, "prepare_lrvsf.py testset"):
        if not made_from(folder, fingerprint):
            partitions = Partitions.of(source, work)
            with (
                TestSetWriter(folder) as writer,
                worker_map(processes) as mapper,
                Waiting(work / "queries.waiting") as queries,
                Waiting(work / "distractors.waiting") as distractors,
            ):
                filler = _Filler(writer, split, queries, distractors)
                if products:
                    filler.add_published(products)
                for product_id, pictures in partitions.products(mapper):
                    filler.add(product_id, pictures)
                # Only now is every place known; memory held none of the images meanwhile.
                filler.write_in_order()
                note = filler.report() | partitions.skipped
                if not writer.queries:
                    raise ValueError(
                        f"{downloaded} gives no query of the split {split!r}; download more, or name another --split\n"
                        + as_table(note)
                    )
                writer.note = {"input": fingerprint, "report": note}
        report = {"folder": str(folder), **read_manifest(folder)["note"]["report"]}
        write_report(out / f"testset-{split}.json", report)
        shutil.rmtree(work, ignore_errors=True)
    return report


def _fingerprint(source: Source, products: Path | None) -> str:
    """What the test set is made from, the published file included."""
    if products is None:
        return source.fingerprint()
    stat = products.stat()  # not its bytes, which would be hashed at every start
    return hashlib.sha256(json.dumps([source.fingerprint(), stat.st_size, stat.st_mtime_ns]).encode()).hexdigest()


class _Filler:
    """Puts products into a test set and counts what becomes of them."""

    def __init__(self, writer: TestSetWriter, split: str, queries: Waiting, distractors: Waiting) -> None:
        self.writer, self.split = writer, split
        self.waiting_queries, self.waiting_distractors = queries, distractors
        self.products: Counter[str] = Counter()
        self.lost: dict[str, Counter[str]] = {split: Counter(), split + DISTRACTORS: Counter()}
        self.distractors = 0

    def add(self, product_id: str, pictures: list[Picture]) -> None:
        # One product may be both: its pictures as a query, and others of it among the distractors.
        shown, others = ([p for p in pictures if p.split == name] for name in self.lost)
        for part, lost in zip((shown, others), self.lost.values(), strict=True):
            lost.update(picture.failure for picture in part if picture.failure is not None)
            if same := sum(picture.data is not None for picture in part) - len(distinct(part)):
                lost[TWICE] += same
        if shown:
            row = query_row(product_id, distinct(shown))
            if self._counted(row):
                # A product has a row for each of its URLs, and stands where its first one does.
                places = [picture.metadata_row for picture in shown if picture.metadata_row is not None]
                self.waiting_queries.add(min(places, default=None), row, ("SIMPLE_IMG", "COMPLEX_IMG"))
        self.distractors += len(others)
        for picture in distinct(others):
            self.waiting_distractors.add(picture.metadata_row, distractor_row(product_id, picture), ("jpg",))

    def add_published(self, path: Path) -> None:
        for row in _published(path):
            row = _usable(row)
            if self._counted(row):
                self.writer.add_query(row)

    def write_in_order(self) -> None:
        """Gives the writer what waits."""
        for row in self.waiting_queries.in_order():
            self.writer.add_query(row)
        for row in self.waiting_distractors.in_order():
            self.writer.add_distractor(row)

    def _counted(self, row: dict[str, Any] | str) -> bool:
        """Counts a query, or why there is none; whether there is one."""
        self.products["listed"] += 1
        self.products[row if isinstance(row, str) else "complete"] += 1
        return not isinstance(row, str)

    def report(self) -> dict[str, Any]:
        kept, published = self.writer.distractors, PUBLISHED_DISTRACTORS.get(self.split)
        gallery: dict[str, Any] = {"listed": self.distractors, "kept": kept}
        if published:
            gallery |= {"published": published, "% of the published": 100 * kept / published}
        unplaced = {
            f"{name} without a place in the metadata (last, in a seeded order)": waiting.unplaced
            for name, waiting in (("products", self.waiting_queries), ("distractors", self.waiting_distractors))
            if waiting.unplaced
        }
        return {
            "products": dict(self.products),
            "distractors": gallery,
            **unplaced,
            **self.writer.unjoined_categories(),
            "images not kept": {name: dict(lost) for name, lost in self.lost.items()},
            "note": f"Results on these {kept:,} distractors compare only with results on as many of the same.",
        }


def _usable(row: dict[str, Any]) -> dict[str, Any] | str:
    """A published row with its names as text, or why it cannot be used."""
    try:
        names = dict(zip(NAMES, identifiers(row, NAMES), strict=True))
    except UnusableCell as error:
        return f"whose {error.reason}"
    for column in PRODUCT_COLUMNS[:2]:
        if why := why_bad(row[column]):
            return f"with a {column} that is {why}"
    return row | names if names["CATEGORY"] else NO_CATEGORY


def _published(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a published products.parquet, images as bytes; its further columns, an index among them, are left."""
    with opened(path, "Fetch the published file again.", PRODUCT_COLUMNS) as file:
        if why := wrong_cells(file, PRODUCT_COLUMNS):
            raise ValueError(f"{path} {why}; give the published file")
        columns = [name for name in ("PRODUCT_ID", "TYPE", *PRODUCT_COLUMNS) if name in file.schema_arrow.names]
        for row in read_rows(file, columns, READ_ROWS):
            yield row | {name: image_bytes(row[name]) for name in PRODUCT_COLUMNS[:2]}
