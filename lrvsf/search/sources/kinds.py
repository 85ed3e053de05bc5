"""What IMAGES may name: a folder, a table, what prepare_lrvsf.py wrote, tars, or a data set; told apart by a look."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lrvsf.data.folders import addresses_at, files_below, files_in
from lrvsf.data.foreign.picture_files import NO_SUFFIX, SUFFIXES
from lrvsf.data.foreign.tables import TEXT
from lrvsf.paths import near
from lrvsf.search.sources.lister import KINDS, Lister, Source, by_path, stat_of
from lrvsf.search.sources.prepared import is_products, list_products, list_tars, list_test_set
from lrvsf.search.sources.shop_tables import list_parquet, list_table
from lrvsf.search.sources.streams import is_dataset, is_dataset_folder, list_dataset

TAR = ".tar"


def open_source(name: str, images: Path | None = None, split: str | None = None, spool: Path | None = None) -> Source:
    """Lists what IMAGES names.

    Args:
        images: of a table: the folder that paths start from and may not leave; by default its own.
        split: of a data set that has several.
        spool: a folder for the pictures of a data set, which are read once.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: it is no source, lacks a column, or has ids that repeat or look alike; an option does not fit.
        OSError: it is damaged.
    """
    if is_address(name):
        return _list_address(name, images, split)
    path = Path(name)
    tables, tars = (files_in(path, f"*{suffix}") for suffix in (".parquet", TAR))
    kind = _kind(name, path, tables, tars) if not is_dataset(name) else list_dataset
    if images and kind is not list_table:
        raise ValueError(f"{name} names its pictures itself; --images_folder goes with a table only")
    if split and kind is not list_dataset:
        raise ValueError(f"{name} has no splits; --split goes with a data set only")
    if kind is list_dataset:
        return list_dataset(name, split, spool)
    if kind is list_table:
        return list_table(Lister(name, images or (path if path.is_dir() else path.parent)), tables or [path])
    if kind in (list_products, list_tars):
        return kind(Lister(name, path, products=True), tables or tars or [path])
    return kind(Lister(name, path, products=kind is list_test_set, by_path=kind is list_folder))


def is_address(name: str) -> bool:
    """Whether a name is that of a store: s3://..., https://... Data sets of the Hub have addresses of another kind."""
    return "://" in name and not is_dataset(name)


def _list_address(name: str, images: Path | None, split: str | None) -> Source:
    """The rows of Parquet files behind an address: a table with the pictures' bytes, or product shards."""
    if images or split:
        raise ValueError(f"{name} has its pictures in it; --images_folder and --split go with other sources")
    files = addresses_at(name, ".parquet")
    if not files:
        raise FileNotFoundError(f"{name} has no .parquet file; only such are read from an address. Download the rest")
    products = is_products(files[0])
    lister = Lister(name, Path(os.devnull), products=products)  # no path of theirs is opened
    return list_products(lister, files) if products else list_parquet(lister, files)


def _kind(name: str, path: Path, tables: list[Path], tars: list[Path]) -> Callable[..., Source]:
    """The function that lists what a path names."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {name}{near(path)}; IMAGES is {KINDS}")
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in (*TEXT, ".parquet", TAR):
            raise ValueError(f"{name} is a file that gives no list of pictures; IMAGES is {KINDS}")
        products = suffix == ".parquet" and is_products(path)
        return list_tars if suffix == TAR else list_products if products else list_table
    # Before tables, one of which its products.parquet would pass for.
    if (path / "products.parquet").is_file() and (path / "distractors").is_dir():
        return list_test_set
    if any((path / part / "manifest.json").is_file() for part in ("train", "validation", "test")):
        raise ValueError(
            f"{name} is a data folder of several parts; give one, as {path / 'train'}, or the table that they are from"
        )
    if tables:
        return list_products if is_products(tables[0]) else list_table
    if tars:
        return list_tars
    # Last: a folder of tables or tars may have a data/ or a metadata.csv besides.
    return list_dataset if is_dataset_folder(path) else list_folder


def list_folder(lister: Lister) -> Source:
    """Every picture at any depth, by path. Its id is the path below the folder."""
    paths: list[str] = []
    for path in files_below(lister.folder, lister.skip):
        where = path.relative_to(lister.folder).as_posix()
        if path.suffix.lower() not in SUFFIXES:
            lister.skip(NO_SUFFIX, where)
        elif where != where.strip():
            lister.skip("file whose name begins or ends with a blank; rename it", where)
        elif lister.add(where, where):
            lister.identify(stat_of(path))
            paths.append(str(path))
    return lister.source(by_path(lister, paths))
