"""`prepare_lrvsf.py urls`: the published metadata -> lists of URLs to download.

The published files (data/SPLIT/products_simple_metadata.parquet, products_complex_metadata.parquet,
distractors_metadata.parquet) differ in their columns, so each is read by itself, in batches. They are read twice: first
to note a 64-bit hash of each row's URL and product, from which it follows which rows stay, then to write those. That is
17 bytes a row instead of the 200 of its text (three million rows: 0.65 GB and a minute and a half on one core), and two
of three million URLs share a hash once in four million runs.
"""

from __future__ import annotations

import hashlib
import re
import string
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import huggingface_hub
import numpy as np
from tqdm import tqdm
from typer import Argument

from lrvsf.data.folders import matching_below
from lrvsf.data.names import CAPTION, UnusableCell, captions, identifiers
from lrvsf.data.parquet import opened, read_rows
from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.prepare.laion.url_lists import PLACE, SPLITS, is_web, write_list
from lrvsf.report import write_report

BATCH_ROWS = 8192  # not tuned
REMEDY = "Fetch it again, and give the folder of LRVS-F's metadata files only."
NEEDED = ("URL", "SPLIT")
COLUMNS = ("URL", "SPLIT", "TYPE", "PRODUCT_ID", "CATEGORY")
BASE_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
# The published SPLITs are such as test_query and test_gallery. In products_*.parquet these are a product's scenes and
# SIMPLE images, both of the test set; elsewhere a gallery is distractors.
ROLE = re.compile(r"_(query|gallery|distractors?)$")
PRODUCT_RANKS = [rank for rank, split in enumerate(SPLITS) if not split.endswith("_distractors")]


def urls(
    metadata: Annotated[
        str, Argument(help="folder with metadata *.parquet at any depth, or a Hub dataset: Slep/LAION-RVS-Fashion")
    ],
    out: Annotated[Path, Argument(help="folder to write: urls/*.parquet (lists for `download`), urls.json (report)")],
) -> dict[str, Any]:
    """Turn LRVS-F's metadata into URL lists, with duplicates and overlap of splits resolved.

    A picture or a product that is in two splits stays in the first of: test, test_distractors, validation,
    validation_distractors, train. Only the three splits of products are compared by product.
    """
    files = metadata_files(metadata)
    total = sum(_count_rows(file) for file in files)
    skipped: Counter[str] = Counter()
    # 8 + 8 + 1 bytes a row, where lists of Python's numbers would take several times that.
    url_hashes, product_hashes, ranks = array("Q"), array("Q"), array("B")
    with tqdm(total=2 * total, unit="row", desc="urls", mininterval=1) as bar:
        for row in usable_rows(files, skipped, bar):
            url_hashes.append(_hash(row["url"]))
            product_hashes.append(_hash(row["product_id"] or ""))
            ranks.append(SPLITS.index(row["split"]))
        if not ranks:
            raise ValueError(f"none of the {total} rows of {metadata} can be used: {dict(skipped)}")
        url, product, rank = (np.frombuffer(column, column.typecode) for column in (url_hashes, product_hashes, ranks))
        has_product = product != _hash("")
        keep, overlap = resolve(url, product, rank, has_product)
        with write_list(out / "urls", shuffle=True) as written:
            # What is skipped was counted in the first pass, so this counter is thrown away.
            for kept, row in zip(keep, usable_rows(files, Counter(), bar), strict=True):
                if kept:
                    written.add(row)
    report = {
        "metadata files": len(files),
        "rows": total,
        "skipped": dict(skipped.most_common()) or 0,
        **overlap,
        "URLs to download": written.rows,
        "splits": {
            split: {"URLs": int(chosen.sum()), "products": len(np.unique(product[chosen & has_product]))}
            for number, split in enumerate(SPLITS)
            if (chosen := keep & (rank == number)).any()
        },
        "list": str((out / "urls").resolve()),
    }
    write_report(out / "urls.json", report)
    return report


def resolve(
    url: np.ndarray, product: np.ndarray, rank: np.ndarray, has_product: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Which rows to keep, and the counts of what was found.

    A row goes when an earlier split has its URL, or, in the splits of products, its product; and when it repeats the
    URL and product of a row before it.

    Args:
        url, product: (n,) hashes.
        rank: (n,) position of the row's split in SPLITS.
        has_product: (n,) whether the row names a product at all.

    Returns:
        (n,) bool, and a part of the report.
    """
    best_of_url, shared_urls = _first_split(url, rank)
    compared = has_product & np.isin(rank, PRODUCT_RANKS)
    best_of_product = rank.copy()  # its own, where products are not compared: such a row is never outranked by one
    best_of_product[compared], shared_products = _first_split(product[compared], rank[compared])
    outranked = (best_of_url < rank) | (best_of_product < rank)
    # Survivors with one URL are of one split, so URL and product name a row. The odd factor only spreads bits.
    pair = url * np.uint64(0x9E3779B97F4A7C15) + product
    survivors = np.flatnonzero(~outranked)
    # `return_index` is that of the first row of each pair.
    keep = np.zeros(len(url), bool)
    keep[survivors[np.unique(pair[survivors], return_index=True)[1]]] = True
    rows_of_url = np.unique(url[keep], return_counts=True)[1]
    in_gallery = ~np.isin(rank, PRODUCT_RANKS) & has_product
    return keep, {
        "URLs in several splits": shared_urls,
        "products in several splits": shared_products,
        "dropped for an earlier split": {
            SPLITS[r]: int((rank[outranked] == r).sum()) for r in np.unique(rank[outranked])
        }
        or 0,
        "dropped as repeated in a split": int(len(survivors) - keep.sum()),
        "URLs of several products (kept)": int((rows_of_url > 1).sum()),
        "distractors with a product's id (kept)": int(np.isin(product[in_gallery & keep], product[compared]).sum()),
    }


def _first_split(key: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, int]:
    """For each row the smallest rank among the rows of its key, and how many keys have several ranks."""
    values, group = np.unique(key, return_inverse=True)  # (k,) keys, (n,) which of them each row has
    first, last = np.full(len(values), 255, np.uint8), np.zeros(len(values), np.uint8)
    np.minimum.at(first, group, rank)
    np.maximum.at(last, group, rank)
    return first[group], int((first != last).sum())


def metadata_files(metadata: str) -> list[Path]:
    """The Parquet files of a folder or of a dataset on the Hub, in a fixed order.

    Raises:
        OSError: neither gives one.
    """
    folder = Path(metadata)
    if not folder.is_dir():
        try:
            folder = Path(
                huggingface_hub.snapshot_download(metadata, repo_type="dataset", allow_patterns=["*.parquet"])
            )
        except Exception as error:  # the Hub's client raises its own, the network's and the validator's kinds
            raise OSError(
                f"{metadata} is not a folder, and cannot be fetched from the Hub as a dataset: {error}. "
                "Give the folder of the metadata files, or Slep/LAION-RVS-Fashion with a network."
            ) from error
    if not (files := matching_below(folder, "*.parquet")):
        raise FileNotFoundError(f"{folder} holds no *.parquet; give the folder of the metadata files")
    return files


def _count_rows(file: Path) -> int:
    with opened(file, REMEDY, NEEDED) as parquet:
        return parquet.metadata.num_rows


def usable_rows(files: list[Path], skipped: Counter[str], bar: tqdm) -> Iterator[dict[str, Any]]:
    """The rows of URL_SCHEMA that the files hold, in order; the others are counted in `skipped` by reason."""
    places = count()
    for file in files:
        with opened(file, REMEDY, NEEDED) as parquet:
            names = parquet.schema_arrow.names
            columns = [name for name in names if name in COLUMNS or CAPTION.fullmatch(name)]
            for cells, place in zip(read_rows(parquet, columns, BATCH_ROWS), places, strict=False):
                row = _row(cells, file.name.startswith("products"), skipped)
                if isinstance(row, str):
                    skipped[row] += 1
                else:
                    yield row | {PLACE: place}
                bar.update()


def _row(cells: dict[str, Any], of_products: bool, skipped: Counter[str]) -> dict[str, Any] | str:
    """A row of URL_SCHEMA without its place, or why there is none.

    Args:
        of_products: whether the file holds products, not distractors.
        skipped: counts captions that cannot be used; their row can.
    """
    try:
        url, split, kind, product, category = identifiers(cells, COLUMNS)
    except UnusableCell as error:
        return error.reason
    if url is None or not is_web(url):
        return "no usable URL"
    name = str(split).lower()
    base, role = BASE_SPLITS.get(ROLE.sub("", name)), ROLE.search(name)
    gallery = role is not None and role[1] != "query" and not of_products
    if base is None or (role and base == "train"):
        return f"unknown split: {split}"[:60]
    # A gallery is of products alone, so that its files need not say it.
    kind = kind or (SIMPLE if gallery else None)
    if kind not in (SIMPLE, *SCENES):
        return f"unknown type: {kind}"[:60]
    if product is None and not gallery:
        return "no product id"
    return {
        # urllib, which img2dataset downloads with, refuses spaces and letters beyond ASCII; what is encoded stays so.
        "url": quote(url, safe=string.punctuation),
        "product_id": product,
        "type": kind,
        "split": f"{base}_distractors" if gallery else base,
        "category": category,
        "captions": captions(cells, lambda reason: skipped.update([reason])),
    }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
