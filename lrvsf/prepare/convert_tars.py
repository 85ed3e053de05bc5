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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm
from typer import Argument, Option

from lrvsf.data.folders import files_in, matching_below
from lrvsf.data.parquet import DAMAGE, open_parquet
from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.data.sharing import SharedPictures, number_of
from lrvsf.data.tars import read_distractors, read_products
from lrvsf.data.testset import image_bytes, wrong_cells
from lrvsf.data.workers import why_bad, worker_map
from lrvsf.durable import locked
from lrvsf.prepare.laion.url_metadata import UrlMetadata
from lrvsf.prepare.rows import NEITHER, NO_SCENE, NO_SIMPLE, TYPES, Picture, Skips, distinct, product_row, query_row
from lrvsf.prepare.spool import Place, Spool
from lrvsf.prepare.step_report import as_table, write_report
from lrvsf.prepare.writers import FolderWriter, ProductShardWriter, TestSetWriter, made_from, read_manifest

FORMAT = 2  # raise it when the same tars give other bytes
CHUNK = 64  # products, or single images, in memory at a time
READ_ROWS = 64


@dataclass
class Tally:
    """What becomes of the products and images of one part."""

    products: Counter[str] = field(default_factory=Counter)
    distractors: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # by the reader
    bad: Counter[str] = field(default_factory=Counter)  # images
    shared: SharedPictures = field(default_factory=SharedPictures)
    unjoined: Skips = field(default_factory=Skips)  # images without metadata, and metadata without an image

    def share(self, product_id: str, pictures: list[Picture]) -> None:
        """Notes the pictures of a product that is kept."""
        self.shared.add(product_id, [number_of(picture.sha256) for picture in pictures])

    def report(self) -> dict[str, Any]:
        parts = {"products": self.products, "distractors": self.distractors}
        parts |= {"lost": self.lost, "images not kept": self.bad}
        counted = {name: dict(counts.most_common()) for name, counts in parts.items() if counts}
        return counted | self.shared.report() | self.unjoined.report("does not join")


@dataclass(frozen=True)
class Part:
    """A folder to write: of which files, and how."""

    name: str
    files: list[Path]
    write: Callable[[FolderWriter, Tally, Callable], None]

    def writer(self, out: Path) -> FolderWriter:
        return (ProductShardWriter if self.name == "train" else TestSetWriter)(out / self.name)

    def fingerprint(self) -> str:
        stats = [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in self.files]
        return hashlib.sha256(json.dumps([FORMAT, self.name, stats]).encode()).hexdigest()


def tars(
    source: Annotated[Path, Argument(help="folder with TRAIN/, VALID/, TEST/, or some of them")],
    out: Annotated[Path, Argument(help="data folder; gets train/, validation/, test/ and tars.json")],
    metadata: Annotated[
        Path | None,
        Option(help="folder of *metadata*.parquet, at any depth, for TEST; by default the same as the tars'"),
    ] = None,
    processes: Annotated[int | None, Option(help="how many decode images; all cores by default")] = None,
) -> dict[str, Any]:
    """Turn the published tar layout into product shards and test sets."""
    parts, missing = find_parts(source, metadata or source)
    with locked(out, "prepare_lrvsf.py tars"), worker_map(processes) as mapper:
        finished = [made_from(out / part.name, part.fingerprint()) for part in parts]  # refuses before it writes
        for part, done in zip(parts, finished, strict=True):
            if not done:
                _write(part, out, mapper)
        notes = {part.name: read_manifest(out / part.name)["note"]["report"] for part in parts}
        report = {"folder": str(out), **notes, **missing}
        write_report(out / "tars.json", report)
    return report


def find_parts(source: Path, metadata: Path) -> tuple[list[Part], dict[str, str]]:
    """What there is to write, and why the rest is left out.

    Raises:
        FileNotFoundError: there is nothing.
    """
    train = files_in(source / "TRAIN", "*.tar")
    prods, dist = (files_in(source / "VALID", pattern) for pattern in ("prods*.tar", "dist*.tar"))
    tests, test_dist = (files_in(source / "TEST", pattern) for pattern in ("prods*.parquet", "dist*.parquet"))
    described = matching_below(metadata, "*metadata*.parquet")
    parts, missing = [], {}
    if train:
        parts.append(Part("train", train, lambda writer, tally, mapper: _shards(writer, train, tally, mapper)))
    else:
        missing["train"] = f"left out: no TRAIN/*.tar in {source}"
    if prods:
        parts.append(
            Part("validation", prods + dist, lambda writer, tally, mapper: _tar_set(writer, prods, dist, tally, mapper))
        )
    else:
        missing["validation"] = f"left out: no VALID/prods*.tar in {source}"
    if tests and described:
        files = (tests, test_dist, described)
        parts.append(
            Part("test", sum(files, []), lambda writer, tally, mapper: _parquet_set(writer, *files, tally, mapper))
        )
    elif tests:
        missing["test"] = (
            f"left out: TEST/prods*.parquet says of no image what it is, and {metadata} has no *metadata*.parquet that "
            "does; name the folder of LRVS-F's metadata with --metadata"
        )
    else:
        missing["test"] = f"left out: no TEST/prods*.parquet in {source}"
    if not parts:
        raise FileNotFoundError(f"nothing to read\n{as_table(missing)}")
    return parts, missing


def _write(part: Part, out: Path, mapper: Callable) -> None:
    tally = Tally()
    with part.writer(out) as writer:
        part.write(writer, tally, mapper)
        joins = writer.unjoined_categories() if isinstance(writer, TestSetWriter) else {}
        report = {"files": len(part.files), **tally.report(), **joins}
        if not tally.products["kept"]:
            raise ValueError(f"{part.files[0].parent} gives no product that can be used\n{as_table(report)}")
        writer.note = {"input": part.fingerprint(), "report": report}


def _shards(writer: ProductShardWriter, files: list[Path], tally: Tally, mapper: Callable) -> None:
    for product_id, pictures in _tar_products(files, tally, mapper):
        types = {picture.type for picture in pictures}
        if product_id in writer.ids:
            tally.products["there twice"] += 1
        elif SIMPLE in types and types & set(SCENES):
            tally.products["kept"] += 1
            writer.add(product_row(product_id, pictures))
            tally.share(product_id, pictures)
        else:
            tally.products[NO_SCENE if SIMPLE in types else NO_SIMPLE if types else NEITHER] += 1


def _tar_set(writer: TestSetWriter, prods: list[Path], dist: list[Path], tally: Tally, mapper: Callable) -> None:
    _add_queries(writer, _tar_products(prods, tally, mapper), tally)
    rows = (
        row for file in tqdm(dist, desc="VALID distractors", unit="tar") for row in read_distractors(file, tally.lost)
    )
    _add_distractors(writer, rows, tally, mapper)


def _parquet_set(
    writer: TestSetWriter,
    prods: list[Path],
    dist: list[Path],
    metadata: list[Path],
    tally: Tally,
    mapper: Callable,
) -> None:
    described = UrlMetadata(metadata, tally.lost)
    with Spool(writer.writing.with_name("test-images.writing")) as spool:
        places = {row["url"]: spool.add(row["jpg"] or b"") for file in prods for row in _images(file)}
        products = _described(places, described)
        named = {picture.url for pictures in products.values() for picture, _ in pictures}
        for url in sorted(places.keys() - named):
            tally.unjoined.add("images of products that no metadata describes", url)
        loaded = (
            (product_id, [_with_data(picture, spool.read(place)) for picture, place in pictures])
            for product_id, pictures in tqdm(sorted(products.items()), desc="TEST products", unit="product")
        )
        _add_queries(writer, _judged(loaded, tally, mapper), tally)
    for url in described.without_file(pa.concat_arrays([pa.array(list(places), pa.string()), *map(_urls, dist)])):
        tally.unjoined.add("metadata rows of the test set without an image", url)
    _add_distractors(writer, _described_distractors(dist, described, tally), tally, mapper)


def _add_queries(writer: TestSetWriter, products: Iterable[tuple[str, list[Picture]]], tally: Tally) -> None:
    seen: set[str] = set()
    for product_id, pictures in products:
        row = "there twice" if product_id in seen else query_row(product_id, pictures)
        seen.add(product_id)
        tally.products[row if isinstance(row, str) else "kept"] += 1
        if not isinstance(row, str):
            writer.add_query(row)
            tally.share(product_id, pictures)


def _add_distractors(writer: TestSetWriter, rows: Iterator[dict[str, Any]], tally: Tally, mapper: Callable) -> None:
    while chunk := list(islice(rows, CHUNK)):
        for row, bad in zip(chunk, mapper(why_bad, [row["jpg"] for row in chunk]), strict=True):
            tally.distractors["kept" if bad is None else bad] += 1
            if bad is None:
                writer.add_distractor(row)


def _tar_products(files: list[Path], tally: Tally, mapper: Callable) -> Iterator[tuple[str, list[Picture]]]:
    """(product id, distinct readable pictures) of every product of some tars."""
    rows = (
        row for file in tqdm(files, desc=files[0].parent.name, unit="tar") for row in read_products(file, tally.lost)
    )
    products = (
        (
            row["product_id"],
            [
                _picture(image["type"], image["category"], image["captions"], image["image"]["bytes"])
                for image in row["images"]
            ],
        )
        for row in rows
    )
    return _judged(products, tally, mapper)


def _judged(
    products: Iterator[tuple[str, list[Picture]]], tally: Tally, mapper: Callable
) -> Iterator[tuple[str, list[Picture]]]:
    """The products with their distinct decodable pictures, SIMPLE first."""
    while chunk := list(islice(products, CHUNK)):
        verdicts = iter(mapper(why_bad, [picture.data for _, pictures in chunk for picture in pictures]))
        for product_id, pictures in chunk:
            bad = [next(verdicts) for _ in pictures]
            tally.bad.update(reason for reason in bad if reason is not None)
            readable = [picture for picture, reason in zip(pictures, bad, strict=True) if reason is None]
            kept = distinct(readable)
            tally.bad.update(["the same image twice in a product"] * (len(readable) - len(kept)))
            yield product_id, sorted(kept, key=lambda picture: TYPES.index(picture.type))


def _picture(kind: str, category: str | None, captions: list[str], data: bytes | None, url: str = "") -> Picture:
    sha256 = hashlib.sha256(data).hexdigest() if data else ""
    return Picture("", kind, category, captions, url, sha256, data, failure=None, fetched=bool(data))


def _with_data(picture: Picture, data: bytes) -> Picture:
    return _picture(picture.type, picture.category, picture.captions, data, picture.url)


def _images(file: Path) -> Iterator[dict[str, Any]]:
    """`url` and `jpg` of each row."""
    return _rows(file, ["url", "jpg"])


def _rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        with open_parquet(file) as parquet:
            if missing := [name for name in ("url", "jpg") if name not in parquet.schema_arrow.names]:
                raise ValueError(
                    f"{file} lacks the column(s) {', '.join(missing)}; it has {', '.join(parquet.schema_arrow.names)}. "
                    "Write it with jpg as its column and url as its index"
                )
            if why := wrong_cells(parquet, ["url", "jpg"]):
                raise ValueError(f"{file} {why}. Write it again")
            for batch in parquet.iter_batches(READ_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield row | {"jpg": image_bytes(row["jpg"])} if "jpg" in row else row
    except DAMAGE as error:
        raise OSError(f"{file} is damaged: {error}. Write it again, or remove it.") from error


def _described(places: dict[str, Place], metadata: UrlMetadata) -> dict[str, list[tuple[Picture, Place]]]:
    """Product id -> its pictures, still without data, and where their images wait."""
    products: dict[str, list[tuple[Picture, Place]]] = defaultdict(list)
    for row in metadata.rows(pa.array(list(places), pa.string())):
        product_id, split = row["PRODUCT_ID"], row["SPLIT"] or ""
        # The published products are told apart by TYPE, or by SPLIT: test_query and test_gallery.
        kind = row["TYPE"] or (SIMPLE if "gallery" in split else SCENES[0] if "query" in split else None)
        if product_id is not None and kind in TYPES and (not split or split.startswith("test")):
            picture = _picture(kind, row["CATEGORY"], row["captions"], None, row["URL"])
            products[product_id].append((picture, places[row["URL"]]))
    return products


def _described_distractors(files: list[Path], metadata: UrlMetadata, tally: Tally) -> Iterator[dict[str, Any]]:
    """The images of the files, with what the metadata says of their URLs."""
    urls = [_urls(file) for file in files]
    facts = metadata.facts(pa.concat_arrays([pa.array([], pa.string()), *urls]))
    known = facts["URL"].combine_chunks()
    for file, own in zip(tqdm(files, desc="TEST distractors", unit="file"), urls, strict=True):
        found = facts.take(pc.index_in(own, known)).to_pylist()  # of rows with one URL the first
        for row, fact in zip(_images(file), found, strict=True):
            if fact["URL"] is None:
                tally.unjoined.add("distractors that no metadata describes", str(row["url"]))
            del fact["URL"]
            yield fact | {"TYPE": fact["TYPE"] or SIMPLE, "jpg": row["jpg"]}


def _urls(file: Path) -> pa.Array:
    """The URLs of a file, whose rows were found to be readable or are refused by name."""
    return pa.array((row["url"] for row in _rows(file, ["url"])), pa.string())
