"""`prepare_lrvsf.py tars`: the published training layout -> product shards and test sets.

    IN/TRAIN/*.tar                              products                                        -> OUT/train
    IN/VALID/prods*.tar, IN/VALID/dist*.tar     products, single images                         -> OUT/validation
    IN/TEST/prods*.parquet, dist*.parquet       url (the index) and jpg; *metadata*.parquet says
                                                which product, type and category a URL is       -> OUT/test

A part that is not there is left out. Products keep the order of the tars, sorted by name; training shuffles them. An
image is kept if it can be decoded, a product if it then has a SIMPLE and a scene image.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm
from typer import Argument, Option

from lrvsf.data.folders import files_in, matching_below
from lrvsf.data.parquet import opened, read_rows
from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.data.sharing import SharedPictures, number_of
from lrvsf.data.tars import read_distractors, read_products
from lrvsf.data.testset import image_bytes, wrong_cells
from lrvsf.durable import locked
from lrvsf.prepare.laion.url_metadata import UrlMetadata
from lrvsf.prepare.rows import (
    TWICE,
    TYPES,
    Picture,
    distinct,
    distractor_row,
    product_row,
    query_row,
    type_rank,
    why_incomplete,
)
from lrvsf.prepare.spool import Span, Spool
from lrvsf.prepare.workers import why_bad, worker_map
from lrvsf.prepare.writers import FolderWriter, ProductShardWriter, TestSetWriter, made_from, read_manifest
from lrvsf.report import Ledger, as_table, write_report

FORMAT = 2  # raise it when the same tars give other bytes
# Not tuned: enough images for all workers, few enough for any memory.
CHUNK = 64  # products, or single images, in memory at a time
READ_ROWS = 64


@dataclass(frozen=True)
class Conversion:
    """A folder to write: of which files, and how."""

    name: str
    files: list[Path]
    write: Callable[[PartWriter], None]

    def writer(self, out: Path) -> FolderWriter:
        return (ProductShardWriter if self.name == "train" else TestSetWriter)(out / self.name)

    def fingerprint(self) -> str:
        # By size and time: hashing the tars would take as long as reading them.
        stats = [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in self.files]
        return hashlib.sha256(json.dumps([FORMAT, self.name, stats]).encode()).hexdigest()


def tars(
    source: Annotated[Path, Argument(help="folder with TRAIN/, VALID/, TEST/, or some of them")],
    out: Annotated[Path, Argument(help="data folder; gets train/, validation/, test/ and tars.json")],
    metadata: Annotated[
        Path | None,
        Option(help="folder of *metadata*.parquet, at any depth, for TEST; by default the same as the tars'"),
    ] = None,
    processes: Annotated[int | None, Option(help="processes that decode images; all cores by default")] = None,
) -> dict[str, Any]:
    """Turn the published tar layout into product shards and test sets."""
    parts, missing = conversions(source, metadata or source)
    with locked(out, "prepare_lrvsf.py tars"), worker_map(processes) as mapper:
        # All parts are asked first, so that what cannot be replaced is refused before hours of work on another part.
        finished = [made_from(out / part.name, part.fingerprint()) for part in parts]
        for part, done in zip(parts, finished, strict=True):
            if not done:
                _convert(part, out, mapper)
        notes = {part.name: read_manifest(out / part.name)["note"]["report"] for part in parts}
        report = {"folder": str(out), **notes, **missing}
        write_report(out / "tars.json", report)
    return report


def conversions(source: Path, metadata: Path) -> tuple[list[Conversion], dict[str, str]]:
    """What there is to write, and why the rest is left out.

    Raises:
        FileNotFoundError: there is nothing.
    """
    train = files_in(source / "TRAIN", "*.tar")
    prods, dist = (files_in(source / "VALID", pattern) for pattern in ("prods*.tar", "dist*.tar"))
    tests, test_dist = (files_in(source / "TEST", pattern) for pattern in ("prods*.parquet", "dist*.parquet"))
    described = matching_below(metadata, "*metadata*.parquet")
    test = (tests, test_dist, described)
    parts = [
        Conversion("train", train, lambda part: part.add_products(train)),
        Conversion("validation", prods + dist, lambda part: part.add_tar_set(prods, dist)),
        Conversion("test", sum(test, []), lambda part: part.add_parquet_set(*test)),
    ]
    # What a part cannot do without; a test set may have no distractors.
    needed = {
        "train": ("TRAIN/*.tar", train),
        "validation": ("VALID/prods*.tar", prods),
        "test": ("TEST/prods*.parquet", tests),
    }
    missing = {name: f"left out: no {pattern} in {source}" for name, (pattern, files) in needed.items() if not files}
    if tests and not described:
        missing["test"] = (
            f"left out: TEST/prods*.parquet says of no image what it is, and {metadata} has no *metadata*.parquet that "
            "does; name the folder of LRVS-F's metadata with --metadata"
        )
    if len(missing) == len(parts):
        raise FileNotFoundError(f"nothing to read\n{as_table(missing)}")
    return [part for part in parts if part.name not in missing], missing


def _convert(part: Conversion, out: Path, mapper: Callable) -> None:
    with part.writer(out) as writer:
        filled = PartWriter(writer, mapper)
        part.write(filled)
        # Shards have no gallery; in a test set a category without distractors would make an empty one.
        joins = writer.unjoined_categories() if isinstance(writer, TestSetWriter) else {}
        report = {"files": len(part.files), **filled.report(), **joins}
        if not filled.products.counts["kept"]:
            raise ValueError(f"{part.files[0].parent} gives no product that can be used\n{as_table(report)}")
        writer.note = {"input": part.fingerprint(), "report": report}


class PartWriter:
    """Fills one part's folder, and counts what becomes of its products and images.

    Attributes:
        products, distractors: by what became of them.
        lost: what the reader of tars or metadata could not use.
        bad: images that are not kept.
        unjoined: images without metadata, and metadata without an image.
        shared: the pictures of the products that are kept.
    """

    def __init__(self, writer: FolderWriter, mapper: Callable) -> None:
        self.writer, self.mapper = writer, mapper
        self.products, self.distractors, self.lost, self.bad, self.unjoined = (Ledger() for _ in range(5))
        self.shared = SharedPictures()

    def report(self) -> dict[str, Any]:
        counts = self.products.report("products") | self.distractors.report("distractors")
        counts |= self.lost.report("lost") | self.bad.report("images not kept")
        return counts | self.shared.report() | self.unjoined.report("does not join")

    def add_products(self, files: list[Path]) -> None:
        """Product shards of tars."""
        for product_id, pictures in self._tar_products(files):
            if product_id in self.writer.ids:  # the first one is kept
                self.products.add("there twice")
            elif lacks := why_incomplete(pictures):
                self.products.add(lacks)
            else:
                self.writer.add(product_row(product_id, pictures))
                self._keep(product_id, pictures)

    def add_tar_set(self, prods: list[Path], dist: list[Path]) -> None:
        """A test set of tars."""
        self._add_queries(self._tar_products(prods))
        bar = tqdm(dist, desc="VALID distractors", unit="tar")
        rows = (row for file in bar for row in read_distractors(file, self.lost.counts))
        self._add_distractors((row, row["jpg"]) for row in rows)

    def add_parquet_set(self, prods: list[Path], dist: list[Path], metadata: list[Path]) -> None:
        """A test set of Parquet files, whose metadata says what each URL is."""
        # The files know a picture by its URL alone; what it is stands in the metadata.
        described = UrlMetadata(metadata, self.lost.counts)
        with Spool(self.writer.writing.with_name("test-images.writing")) as spool:
            # A test set's products wait on disk until the metadata has said which pictures make one product.
            spans = {row["url"]: spool.add(row["jpg"] or b"") for file in prods for row in _url_rows(file)}
            products = _described_products(spans, described)
            named = {picture.url for pictures in products.values() for picture, _ in pictures}
            self.unjoined.add_all("images of products that no metadata describes", sorted(spans.keys() - named))
            loaded = (
                (product_id, [_with_data(picture, spool.read(span)) for picture, span in pictures])
                for product_id, pictures in tqdm(sorted(products.items()), desc="TEST products", unit="product")
            )
            self._add_queries(self._judged(loaded))
        urls = pa.concat_arrays([pa.array(list(spans), pa.string()), *map(_urls, dist)])
        self.unjoined.add_all("metadata rows of the test set without an image", described.without_file(urls))
        self._add_distractors(self._described_distractors(dist, described))

    def _keep(self, product_id: str, pictures: list[Picture]) -> None:
        self.products.add("kept")
        self.shared.add(product_id, [number_of(picture.sha256) for picture in pictures])

    def _add_queries(self, products: Iterable[tuple[str, list[Picture]]]) -> None:
        seen: set[str] = set()
        # Two queries of one product would have each other's target as a right answer.
        for product_id, pictures in products:
            row = "there twice" if product_id in seen else query_row(product_id, pictures)
            seen.add(product_id)
            if isinstance(row, str):
                self.products.add(row)
            else:
                self.writer.add_query(row)
                self._keep(product_id, pictures)

    def _add_distractors(self, described: Iterable[tuple[dict[str, Any], bytes]]) -> None:
        """`described`: what is known of a distractor, by its column, and its image."""
        described = iter(described)
        while chunk := list(islice(described, CHUNK)):
            for (known, data), bad in zip(chunk, self.mapper(why_bad, [data for _, data in chunk]), strict=True):
                self.distractors.add("kept" if bad is None else bad)
                if bad is None:
                    picture = Picture(known["TYPE"], known["CATEGORY"], [known["blip2_caption1"]], data)
                    self.writer.add_distractor(distractor_row(known["PRODUCT_ID"], picture))

    def _tar_products(self, files: list[Path]) -> Iterator[tuple[str, list[Picture]]]:
        """(product id, distinct readable pictures) of every product of some tars."""
        bar = tqdm(files, desc=files[0].parent.name, unit="tar")
        rows = (row for file in bar for row in read_products(file, self.lost.counts))
        return self._judged((row["product_id"], list(map(_tar_picture, row["images"]))) for row in rows)

    def _judged(self, products: Iterator[tuple[str, list[Picture]]]) -> Iterator[tuple[str, list[Picture]]]:
        """The products with their distinct decodable pictures, SIMPLE first."""
        while chunk := list(islice(products, CHUNK)):
            verdicts = iter(self.mapper(why_bad, [picture.data for _, pictures in chunk for picture in pictures]))
            for product_id, pictures in chunk:
                # The verdicts of a chunk come in one line, so each product takes as many as it has pictures.
                readable = []
                for picture, reason in zip(pictures, verdicts, strict=False):
                    if reason is None:
                        readable.append(picture)
                    else:
                        self.bad.add(reason)
                kept = distinct(readable)
                self.bad.add_all(TWICE, [None] * (len(readable) - len(kept)))
                yield product_id, sorted(kept, key=lambda picture: type_rank(picture.type))

    def _described_distractors(
        self, files: list[Path], metadata: UrlMetadata
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        """What the metadata says of the URLs of the files, and their images."""
        urls = [_urls(file) for file in files]
        # One pass over the metadata for all files: text of a few million URLs fits, their images do not.
        facts = metadata.facts(pa.concat_arrays([pa.array([], pa.string()), *urls]))
        known = facts["URL"].combine_chunks()
        for file, file_urls in zip(tqdm(files, desc="TEST distractors", unit="file"), urls, strict=True):
            # Of several rows with one URL, `index_in` gives the first, which is the test set's own.
            found = facts.take(pc.index_in(file_urls, known)).to_pylist()
            for row, fact in zip(_url_rows(file), found, strict=True):
                if fact["URL"] is None:
                    self.unjoined.add("distractors that no metadata describes", str(row["url"]))
                yield fact | {"TYPE": fact["TYPE"] or SIMPLE}, row["jpg"]


def _tar_picture(image: dict[str, Any]) -> Picture:
    """A picture of a row of PRODUCT_FEATURES."""
    return _with_data(Picture(image["type"], image["category"], image["captions"], None), image["image"]["bytes"])


def _with_data(picture: Picture, data: bytes) -> Picture:
    return replace(picture, data=data, sha256=hashlib.sha256(data).hexdigest() if data else "")


def _url_rows(file: Path, columns: tuple[str, ...] = ("url", "jpg")) -> Iterator[dict[str, Any]]:
    remedy = "Write it again, with jpg as its column and url as its index, or remove it."
    with opened(file, remedy, ("url", "jpg")) as parquet:
        if why := wrong_cells(parquet, ["url", "jpg"]):
            raise ValueError(f"{file} {why}. {remedy}")
        for row in read_rows(parquet, list(columns), READ_ROWS):
            yield row | {"jpg": image_bytes(row["jpg"])} if "jpg" in row else row


def _described_products(spans: dict[str, Span], metadata: UrlMetadata) -> dict[str, list[tuple[Picture, Span]]]:
    """Product id -> its pictures, still without data, and where their images wait."""
    products: dict[str, list[tuple[Picture, Span]]] = defaultdict(list)
    for row in metadata.rows(pa.array(list(spans), pa.string())):
        product_id, split = row["PRODUCT_ID"], row["SPLIT"] or ""
        # The published products are told apart by TYPE, or by SPLIT: test_query and test_gallery.
        kind = row["TYPE"] or (SIMPLE if "gallery" in split else SCENES[0] if "query" in split else None)
        if product_id is not None and kind in TYPES and (not split or split.startswith("test")):
            picture = Picture(kind, row["CATEGORY"], row["captions"], None, url=row["URL"])
            products[product_id].append((picture, spans[row["URL"]]))
    return products


def _urls(file: Path) -> pa.Array:
    """The URLs of a file, whose rows were found to be readable or are refused by name."""
    return pa.array((row["url"] for row in _url_rows(file, ("url",))), pa.string())
