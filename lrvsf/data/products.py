"""Product shards: which rows can be trained on, known before the first step, and how any part of them is read.

`datasets` reads them undecoded and row group by row group, from a folder or from a URL such as
hf://datasets/NAME/train. In the published layout, tars of products, a whole tar counts as one row group. From Parquet
the scan reads types, categories and ids, a few bytes a row; a tar has no index, so it is read through: convert tars
that are used often.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
from datasets.data_files import DataFilesList

from lrvsf.data.folders import content_names, files_in, place_of
from lrvsf.data.images import JUDGE_FROM, USUAL, Tolerance, TooMuchDamage, reasons_table
from lrvsf.data.names import did_you_mean, lookalikes, quoted
from lrvsf.data.parquet import DAMAGE, BoundedFile, open_parquet, read_rows, wrong_types
from lrvsf.data.schema import MAX_IMAGES, PRODUCT_FEATURES, SCENES, SIMPLE
from lrvsf.data.tars import read_products

logger = logging.getLogger(__name__)

UNDECODED = datasets.Features(
    {
        "product_id": PRODUCT_FEATURES["product_id"],
        "images": datasets.List({**PRODUCT_FEATURES["images"].feature, "image": datasets.Image(decode=False)}),
    }
)
STRUCTURE = ["product_id", "images.list.element.type", "images.list.element.category"]
IMAGE_BYTES = "images.list.element.image.bytes"
CAPTIONS = "images.list.element.captions.list.element"
TEXTS = {*STRUCTURE, "images.list.element.image.path", CAPTIONS}
NOT_ASKED_FOR = "no SIMPLE image of a known category"
NO_CATEGORY = "no SIMPLE image that has a category"
NO_WORDS = "no SIMPLE image that has a caption or a category"
SCAN_ROWS = 1024  # a row is some hundred bytes here: its images stay unread
SCAN_THREADS = 16  # files scanned at once: what counts on a remote store is the number of requests under way


class Structure(NamedTuple):
    """What the scan keeps of a row: its id, and of each image the type, the category and whether it has a caption."""

    product_id: str
    types: list[str]
    categories: list[str | None]
    captioned: list[bool]


def why_no_pair(
    types: list[str], categories: list[str | None], known: list[str] | None, captioned: list[bool] | None = None
) -> str | None:
    """Why a product gives no training pair, or None if it does.

    Args:
        known: the categories to condition on, if any.
        captioned: which images have a caption, if words are to ask.
    """
    if len(types) > MAX_IMAGES:
        return f"more than {MAX_IMAGES:,} images"
    if SIMPLE not in types:
        return "no SIMPLE image"
    if not any(kind in SCENES for kind in types):
        return "no scene image"
    if known is not None:
        found = set(simple_categories(types, categories))
        if found.isdisjoint(known):
            return NO_CATEGORY if found == {None} else NOT_ASKED_FOR
    if captioned is not None:
        images = zip(types, categories, captioned, strict=True)
        if not any(kind == SIMPLE and (has_caption or (name or "").strip()) for kind, name, has_caption in images):
            return NO_WORDS
    return None


def simple_categories(types: list[str], categories: list[str | None]) -> list[str | None]:
    """The categories of a product's SIMPLE images. It stands under the first, and is asked for by any."""
    return [category for kind, category in zip(types, categories, strict=True) if kind == SIMPLE]


@dataclass
class ProductShards:
    """The shards of a training set, scanned. A row's number is its position in the files sorted by name.

    Attributes:
        stream: undecoded rows; one of its shards is one row group.
        row_groups: the name of each, for messages; a tar counts as one.
        starts: (row groups + 1,) row number where each begins.
        rows: (n,) numbers of the rows that give a training pair, ascending.
        category_codes: (n,) a number for the category of each of them.
        faulty: product id -> why it gives none.
        fingerprint: of what decides an epoch's order: the ids, usable or not, and how row groups divide them.
    """

    stream: datasets.IterableDataset
    row_groups: list[str]
    starts: np.ndarray
    rows: np.ndarray
    category_codes: np.ndarray
    faulty: dict[str, str]
    fingerprint: str

    @property
    def usable(self) -> int:
        """How many products give a training pair."""
        return len(self.rows)

    @classmethod
    def scan(
        cls, folder: str, categories: list[str] | None = None, tolerance: Tolerance = USUAL, words: bool = False
    ) -> ProductShards:
        """Reads the structure of FOLDER/*.parquet; FOLDER may be a URL that fsspec knows.

        Args:
            categories: conditions that the model knows; None for training without a condition.
            tolerance: of unreadable files, and of products that give no pair.
            words: whether texts are the conditions, captions or, where there is none, categories' names.

        Raises:
            FileNotFoundError: no shards.
            ValueError: a file is not a product shard, a product is there twice, or no product is usable.
            TooMuchDamage: more than the tolerated share is unreadable, unusable or of unknown categories.
        """
        files = product_files(folder)
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            scanned = list(zip(files, pool.map(partial(_structure, words=words), files), strict=True))
        damaged = {file: found for file, found in scanned if isinstance(found, Exception)}
        if len(damaged) > tolerance.fraction * len(files):
            listed = "\n".join(f"  {file}: {error}" for file, error in damaged.items())
            raise TooMuchDamage(
                f"{len(damaged)} of {len(files)} shards cannot be read; write them again, or remove them:\n" + listed
            )
        for file, error in damaged.items():
            logger.warning("Skipped the whole of %s: %s. Write it again.", file, error)
        files = [file for file in files if file not in damaged]
        groups = [(file, i, rows) for file, found in scanned if file in files for i, rows in enumerate(found)]
        names = [f"{file}, part {i}" for file, i, _ in groups]
        starts = np.cumsum([0, *(len(rows) for _, _, rows in groups)], dtype=np.int64)
        structure = [(file, row) for file, _, rows in groups for row in rows]
        rows, category_codes, faulty = _usable_rows(structure, categories, words)
        if categories is not None:
            _compare_categories([row for _, row in structure], categories, tolerance, folder)
        if words:
            _count_uncaptioned([row for _, row in structure if row.product_id not in faulty], folder)
        if faulty:
            _report(faulty, len(structure), tolerance, folder)
        if len(rows) == 0:
            raise ValueError(f"{folder} holds no products; write product shards there with prepare_lrvsf.py")
        # A resumed run must find the same order, which follows from the ids, the row groups and what is usable.
        identity = json.dumps([[row.product_id for row in group] for _, _, group in groups])
        fingerprint = hashlib.sha256(identity.encode() + rows.tobytes()).hexdigest()
        return cls(_stream(files), names, starts, rows, category_codes, faulty, fingerprint)

    def read(self, group: int) -> Iterator[tuple[int, dict]]:
        """(row number, row) of a row group, undecoded; ends early with a warning where the shard is damaged."""
        number = int(self.starts[group])
        try:
            _check_size(self.row_groups[group])
            for row in self.stream.shard(num_shards=len(self.row_groups), index=group):
                yield number, row
                number += 1
        except DAMAGE as error:
            lost = int(self.starts[group + 1]) - number
            logger.warning("%s: %s. Lost %d products; write this file again.", self.row_groups[group], error, lost)


def _check_size(name: str) -> None:
    """Raises ParquetBomb: `datasets` reads a row group at once, so what it unfolds to is looked at before."""
    file, _, group = name.rpartition(", part ")
    if file.endswith(".parquet") and os.path.exists(file):  # of remote files the scan has looked at the footers
        with open_parquet(file) as parquet:
            parquet.check_whole(int(group), list(UNDECODED))


def product_files(folder: str) -> list[str]:
    """FOLDER/*.parquet or, where there are none, FOLDER/*.tar, by name, as paths or URLs.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the folder, or a file, has two colons in a row in its name (see `folders.place_of`).
    """
    filesystem, path = place_of(str(folder))
    # Listed, not matched: in a pattern the brackets of "data [spring]" would mean one of six letters.
    if "file" in filesystem.protocol:
        files = [*map(str, files_in(Path(path), "*.parquet") or files_in(Path(path), "*.tar"))]
    else:
        there = filesystem.ls(path, detail=False) if filesystem.isdir(path) else []
        places = {place.rstrip("/").rpartition("/")[2]: filesystem.unstrip_protocol(place) for place in there}
        names = content_names(list(places), str(folder))
        endings = ([name for name in names if name.endswith(ending)] for ending in (".parquet", ".tar"))
        files = [places[name] for name in next(filter(None, endings), ())]
    if not files:
        raise FileNotFoundError(f"no *.parquet and no *.tar in {folder}; write product shards with prepare_lrvsf.py")
    if chained := [file for file in files if "::" in file]:
        raise ValueError(f"{chained[0]} has '::' in its name, which is read as two places; rename it")
    return files


def _stream(files: list[str]) -> datasets.IterableDataset:
    """Undecoded rows; each of its shards is one row group."""
    if files[0].endswith(".tar"):
        # Without features: with them, an image whose path happens to exist here would lose its bytes to it.
        return datasets.IterableDataset.from_generator(_tar_rows, gen_kwargs={"tars": files})
    stream = datasets.load_dataset(
        "parquet",
        data_files={"train": DataFilesList(files, [])},  # as they are; a plain list would be one of patterns
        split="train",
        streaming=True,
        features=UNDECODED,
        columns=list(UNDECODED),
    )
    return stream.reshard()  # from a shard a file to a shard a row group: `shard(index=...)` then reads just that one


def _tar_rows(tars: list[str]) -> Iterator[dict]:
    """What `datasets` reads of tars. Every reading of a tar gives the same rows (lrvsf.data.tars)."""
    for tar in tars:
        yield from read_products(tar, Counter())


def _structure(file: str, words: bool) -> list[list[Structure]] | Exception:
    """The rows of each row group, or why the file cannot be read. (Returned: it runs in a thread of many.)"""
    try:
        if file.endswith(".tar"):
            lost: Counter[str] = Counter()
            rows = [_structure_of(row) for row in read_products(file, lost)]
            if lost:
                logger.warning("%s: %d products; skipped %s.", file, len(rows), dict(lost.most_common()))
            return [rows]
        # pre_buffer joins the small columns' reads into few requests, which is what a remote store makes one wait for.
        with fsspec.open(file, "rb") as handle, BoundedFile(handle, pre_buffer=True) as parquet:
            if why := wrong_columns(parquet):
                raise ValueError(f"{file} {why}. Write product shards with prepare_lrvsf.py")
            columns = _columns(parquet) if words else STRUCTURE
            tables = [_structures(parquet, group, columns) for group in range(parquet.num_row_groups)]
    except DAMAGE as error:
        return error
    return tables


def _structures(parquet: BoundedFile, group: int, columns: list[str]) -> list[Structure]:
    parquet.check_footer(group, list(UNDECODED))
    return [_structure_of(row) for row in read_rows(parquet, columns, SCAN_ROWS, [group])]


def _columns(parquet: pq.ParquetFile) -> list[str]:
    """STRUCTURE and, where there are such, captions."""
    paths = (parquet.schema.column(i).path for i in range(len(parquet.schema)))
    return [*STRUCTURE, *(path for path in paths if path == CAPTIONS)]


def target_images(folder: str) -> Iterator[dict[str, Any]]:
    """Category and captions of every SIMPLE image in a folder; what is damaged is passed over: the scan tells of it."""
    for file in product_files(folder):
        try:
            if file.endswith(".tar"):
                yield from _simple_images(read_products(file, Counter()))
                continue
            with fsspec.open(file, "rb") as handle, BoundedFile(handle, pre_buffer=True) as parquet:
                for group in range(parquet.num_row_groups):
                    parquet.check_footer(group, list(UNDECODED))
                    yield from _simple_images(read_rows(parquet, _columns(parquet), SCAN_ROWS, [group]))
        except DAMAGE:
            continue


def _simple_images(rows: Iterable[dict]) -> Iterator[dict[str, Any]]:
    yield from (image for row in rows for image in row["images"] or () if image and image["type"] == SIMPLE)


def wrong_columns(parquet: pq.ParquetFile) -> str | None:
    """Why a file is no product shard, or None if it is one; further columns are left unread."""
    present = {parquet.schema.column(i).path for i in range(len(parquet.schema))}
    if missing := [path for path in (*STRUCTURE, IMAGE_BYTES) if path not in present]:
        return f"lacks {', '.join(missing)}; it has the columns {', '.join(parquet.schema_arrow.names)}"
    if extra := sorted(path for path in present - TEXTS - {IMAGE_BYTES} if path.startswith("images.")):
        return f"has {', '.join(extra)}, which a product row has not"
    return wrong_types(parquet, TEXTS, [IMAGE_BYTES])


def _structure_of(row: dict) -> Structure:
    images = [image for image in row["images"] or () if image is not None]
    captioned = [any(text and text.strip() for text in image.get("captions") or ()) for image in images]
    types, categories = ([image[name] for image in images] for name in ("type", "category"))
    return Structure(row["product_id"], types, categories, captioned)


def _usable_rows(
    structure: list[tuple[str, Structure]], known: list[str] | None, words: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """All (file, row) -> the numbers of the usable rows, the codes of their categories, product id -> why it is not."""
    seen: dict[str, str] = {}
    codes: dict[str | None, int] = {}
    rows, category_codes, faulty = [], [], {}
    for number, (file, (product, types, names, captioned)) in enumerate(structure):
        if product is None:
            raise ValueError(f"a row of {file} has no product_id; give it one, or remove it")
        if product in seen:
            raise ValueError(f"product {product!r} is in {seen[product]} and again in {file}; remove one of them")
        seen[product] = file
        if reason := why_no_pair(types, names, known, captioned if words else None):
            faulty[product] = reason
        else:
            rows.append(number)
            category_codes.append(codes.setdefault(simple_categories(types, names)[0], len(codes)))
    return np.array(rows, dtype=np.int64), np.array(category_codes, dtype=np.int64), faulty


def _compare_categories(rows: list[Structure], asked: list[str], tolerance: Tolerance, folder: str) -> None:
    """Names the categories that no product has, and those of products that were not asked for.

    Raises:
        TooMuchDamage: more than the tolerated share stand under the latter. A misspelt name loses few products
            of a small catalog, and all of them were meant: no number of them is too small to be judged.
    """
    found: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for _, types, names, _ in rows:
        own = [name for name in simple_categories(types, names) if name is not None]
        found.update(set(own))
        if why_no_pair(types, names, asked) == NOT_ASKED_FOR:
            lost[own[0]] += 1
    for name in asked:
        if name not in found:
            logger.warning("No product in %s is of category %s.%s", folder, quoted(name), did_you_mean(name, found))
    for group in lookalikes(asked):
        logger.warning("%s look alike and are two categories.", " and ".join(map(quoted, group)))
    _count_unused_pictures(rows, asked)
    if not lost:
        return
    near = [f" {quoted(name)}:{hint}" for name in sorted(lost)[:10] if (hint := did_you_mean(name, asked))]
    text = (
        f"{lost.total()} of {len(rows)} products in {folder} are of categories that were not asked for: "
        f"{_most_common(lost)}.{''.join(near)}"
    )
    if lost.total() > tolerance.fraction * len(rows):
        every = shlex.join([*(name for name in asked if name in found), *sorted(lost)])
        allowed = math.ceil(100 * lost.total() / len(rows)) / 100
        raise TooMuchDamage(
            f"{text}\nThat is more than max_bad_fraction={tolerance.fraction:g}. "
            f"Ask for all with --categories {every}, or leave these products out with --max_bad_fraction {allowed:g}."
        )
    logger.warning("%s They are left out.", text)


def _count_unused_pictures(rows: list[Structure], asked: list[str]) -> None:
    """Says how many pictures of products that are trained on are never a target, as nobody asks for their category."""
    unused: Counter[str] = Counter()
    for _, types, names, _ in rows:
        if why_no_pair(types, names, asked) is None:
            unused.update(name for name in simple_categories(types, names) if name not in asked)
    if unused:
        logger.warning(
            "%d SIMPLE images of products to train on are left out, as their category was not asked for: %s.",
            *(unused.total(), _most_common(unused)),
        )


def _count_uncaptioned(rows: list[Structure], folder: str) -> None:
    """Says how many products to train on no caption asks for."""
    if without := sum((SIMPLE, True) not in zip(row.types, row.captioned, strict=True) for row in rows):
        logger.warning(
            "%d of %d products in %s have no caption of a SIMPLE image: the text of their category asks for them.",
            *(without, len(rows), folder),
        )


def _most_common(names: Counter[str | None]) -> str:
    shown = [f"{'none' if name is None else quoted(name)} ({count})" for name, count in names.most_common(10)]
    return ", ".join(shown + ["..."] * (len(names) > 10))


def _report(faulty: dict[str, str], total: int, tolerance: Tolerance, folder: str) -> None:
    """Says which products were left out, or refuses to train on so few."""
    first = ", ".join(list(faulty)[:3])
    table = reasons_table(Counter(faulty.values()))
    text = f"{len(faulty)} of {total} products in {folder} give no training pair, such as {first}:\n{table}"
    if len(faulty) == total or (len(faulty) >= JUDGE_FROM and len(faulty) > tolerance.fraction * total):
        other = ", train without a condition (--condition none)" if NO_CATEGORY in faulty.values() else ""
        raise TooMuchDamage(
            f"{text}\nThat is more than max_bad_fraction={tolerance.fraction:g}. Repair the data{other}, or raise it."
        )
    logger.warning("Skipped: %s", text)
