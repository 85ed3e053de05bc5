"""What prepare_lrvsf.py wrote, and the published tars: a product's SIMPLE pictures are items, its scenes are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrvsf.data.bounds.tar_members import TarMembers
from lrvsf.data.folders import Address
from lrvsf.data.foreign.tables import parquet_rows
from lrvsf.data.parquet import DAMAGE, Unreachable, describe_files, open_parquet
from lrvsf.data.products import wrong_columns
from lrvsf.data.schema import SIMPLE
from lrvsf.data.tars import MEMBER, read_distractors, read_products
from lrvsf.data.testset import ProductTestSet, image_bytes
from lrvsf.search.sources.lister import Lister, Picture, Source, by_file, stat_of

KNOWN = ("category", "caption")
STRUCTURE = ["product_id", "images.list.element.type", "images.list.element.category"]
STRUCTURE += ["images.list.element.captions.list.element"]
IMAGES = ["images.list.element.type", "images.list.element.image.bytes"]


def is_products(path: Path | Address) -> bool:
    """Whether a Parquet file is a product shard."""
    try:
        with open_parquet(path) as file:
            return wrong_columns(file) is None
    except Unreachable:
        raise
    except DAMAGE as error:
        raise OSError(f"{path} is not a readable Parquet file: {error}") from error


def list_products(lister: Lister, files: list[Path] | list[Address]) -> Source:
    """The SIMPLE pictures of product shards."""
    lister.columns, counts = list(KNOWN), []
    for path in files:
        before = lister.listed
        for row, product in enumerate(parquet_rows(path, STRUCTURE)):
            _add_product(lister, f"{path.name}, row {row}", product)
        counts.append(lister.listed - before)
    lister.identify(describe_files(files))

    def pictures(path: Path, start: int) -> Iterator[Picture]:
        # A product has any number of pictures, so rows cannot be jumped to by a picture's number.
        for product in parquet_rows(path, IMAGES):
            for image in _simple(product):  # undecoded, so passing over is cheap
                if start:
                    start -= 1
                else:
                    yield image["image"]["bytes"] if image["image"] else None

    return lister.source(by_file(files, counts, pictures))


def _add_product(lister: Lister, where: str, product: dict[str, Any]) -> None:
    images = _simple(product)
    lister.once(product["product_id"], where)
    if not images:
        lister.skips.add("product without a SIMPLE picture", where)
    for image in images:
        lister.add(where, product["product_id"], (image["category"], next(iter(image["captions"] or ()), None)))


def _simple(product: dict[str, Any]) -> list[dict[str, Any]]:
    return [image for image in product["images"] or () if image is not None and image["type"] == SIMPLE]


def list_test_set(lister: Lister) -> Source:
    """The targets of a test set's products, then its distractors. One without PRODUCT_ID is called by its row."""
    test_set = ProductTestSet(lister.folder)
    files = [*test_set.files["products"], *test_set.files["distractors"]]
    cells = {"CATEGORY": "category", "blip2_caption1": "caption"}
    lister.columns, counts = list(cells.values()), []
    for path in files:
        with open_parquet(path) as file:
            present, rows = file.schema_arrow.names, file.metadata.num_rows
        wanted = [name for name in ("PRODUCT_ID", *cells) if name in present]
        what = "product" if path in test_set.files["products"] else "distractor"
        # Distractors are numbered over all their files; the first count is the products'.
        first = sum(counts[1:]) if what == "distractor" else 0
        for row, known in enumerate(parquet_rows(path, wanted) if wanted else [{}] * rows):
            name = item_name(known.get("PRODUCT_ID"), what, first + row)
            lister.add(f"{path.name}, row {row}", name, map(_text, map(known.get, cells)))
        counts.append(rows)
    lister.identify(describe_files(files))

    def pictures(path: Path, start: int) -> Iterator[Picture]:
        column = "SIMPLE_IMG" if path in test_set.files["products"] else "jpg"
        return (image_bytes(known[column]) for known in parquet_rows(path, [column], start))

    return lister.source(by_file(files, counts, pictures))


def item_name(product_id: Any, what: str, row: int) -> Any:
    """The id of a test set's row: its PRODUCT_ID or, where there is none, "product 17" or "distractor 17"."""
    return product_id or f"{what} {row}"


def _text(cell: Any) -> str | None:
    return None if cell is None else str(cell)


def list_tars(lister: Lister, files: list[Path]) -> Source:
    """The SIMPLE pictures of product tars, or all pictures of distractor tars, which are read once to list them."""
    lister.columns, counts = list(KNOWN), []
    for path in files:
        before, lost = lister.listed, Counter()
        for number, product in enumerate(_tar_products(path, lost)):
            _add_product(lister, f"{path.name}, product {number}", product)
        counts.append(lister.listed - before)
        # A tar has no index: what is lost is known when all of it was read.
        for reason, count in lost.items():
            lister.skips.add_all(reason, [path.name] * count)
        lister.identify(stat_of(path))

    def pictures(path: Path, start: int) -> Iterator[Picture]:
        images = (image for product in _tar_products(path, Counter()) for image in _simple(product))
        for number, image in enumerate(images):
            if number >= start:
                yield image["image"]["bytes"]

    return lister.source(by_file(files, counts, pictures))


def _tar_products(path: Path, lost: Counter[str]) -> Iterator[dict[str, Any]]:
    """Product rows, of a tar of either kind."""
    if _has_numbers(path):
        yield from read_products(path, lost)
        return
    for number, row in enumerate(read_distractors(path, lost)):
        image = {"image": {"bytes": row["jpg"]}, "type": SIMPLE, "category": row["CATEGORY"]}
        image["captions"] = [row["blip2_caption1"]] if row["blip2_caption1"] else []
        yield {"product_id": row["PRODUCT_ID"] or f"{path.stem}, picture {number}", "images": [image]}


def _has_numbers(path: Path) -> bool:
    """Whether a tar's first picture is ID.0.jpg, a product's, and not ID.jpg, a distractor's."""
    # The first picture decides, as a tar is of one kind throughout.
    with path.open("rb") as file:
        for member in TarMembers(file):
            match = MEMBER.fullmatch(member.path.rpartition("/")[2])
            if match and match["part"].lower() != "json":
                return match["number"] is not None
    return True
