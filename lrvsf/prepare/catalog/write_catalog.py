"""`prepare_lrvsf.py catalog`: your own products -> product shards to train on, and test sets.

Every image is read once, decoded, made smaller if it is large, and put on disk until all are read. Then it is known
which products are complete, and each goes to its split (see splits.py). Memory holds the list of images (0.8 GB for a
million), some dozens of images, and one page of a Parquet table that holds images itself; disk holds the smaller images
twice until the step is done.

The same catalog gives the same bytes, with any number of processes and after any number of kills.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from tqdm import tqdm
from typer import Argument, Option

from lrvsf.data.foreign.picture_files import read_file
from lrvsf.data.foreign.shown import as_shown
from lrvsf.data.images import BadImage, decode_image
from lrvsf.durable import locked
from lrvsf.prepare.catalog.listing import ListedImage, Listing, read_listing
from lrvsf.prepare.catalog.next_steps import next_steps
from lrvsf.prepare.catalog.splits import SETS, TRAIN, Shares, Splits
from lrvsf.prepare.rows import Picture, distractor_row, product_row, query_row
from lrvsf.prepare.spool import Spool
from lrvsf.prepare.workers import worker_map
from lrvsf.prepare.writers import ProductShardWriter, TestSetWriter, made_from, read_manifest
from lrvsf.report import as_table, write_report

FORMAT = 3  # raise it when the same catalog gives other bytes
JPEG_QUALITY = 95
CHUNK = 64  # images in memory at a time
NO_CATEGORY = "no category"  # a test set needs one; no model is asked about it


def catalog(
    table: Annotated[
        Path,
        Argument(
            help=".csv or .parquet with product_id, image (path from the table's folder, or bytes), role (product or "
            "scene), and category, text or both; or a folder CATEGORY/PRODUCT/IMAGE"
        ),
    ],
    out: Annotated[Path, Argument(help="data folder; gets train/, validation/, test/, train.yaml and catalog.json")],
    scene_pattern: Annotated[str, Option(help="pattern of the file names that are scenes; for a folder")] = "*scene*",
    validation: Annotated[float, Option(help="share of the products in the validation set")] = 0.1,
    test: Annotated[float, Option(help="share of the products in the test set")] = 0.1,
    seed: Annotated[int, Option(help="seed of the split and of the order of the products")] = 0,
    image_size: Annotated[
        int, Option(help="pixels of the shortest side of images that are larger; 0 keeps them as they are")
    ] = 256,
    images: Annotated[
        Path | None, Option(help="folder that a table's paths start from and may not leave; by default the table's")
    ] = None,
    processes: Annotated[int | None, Option(help="processes that decode images; all cores by default")] = None,
) -> dict[str, Any]:
    """Turn your own products into product shards and test sets."""
    shares = Shares(validation, test, seed)
    if image_size < 0:
        raise ValueError(f"image_size={image_size} must be 1 or more, or 0 to keep images as they are")
    if table.is_dir() and out.resolve().is_relative_to(table.resolve()):
        raise ValueError(f"{out} is inside {table}, whose images are read; choose another folder")
    listing = read_listing(table, scene_pattern, images)
    settings = {"format": FORMAT, "validation": validation, "test": test, "seed": seed, "image_size": image_size}
    source = listing.fingerprint(settings)
    with locked(out, "prepare_lrvsf.py catalog"):
        if not _finished(out, source):
            with Spool(out / "images.writing") as spool, worker_map(processes) as mapper:
                job = partial(fetch, image_size=image_size, folder=listing.images_folder)
                spooled = list(_read_images(listing, spool, job, mapper))
                splits = Splits(spooled, shares)
                _write_folders(splits, spool, out, source, _report(listing, splits, len(spooled), settings))
        report = {"folder": str(out), **read_manifest(out / TRAIN)["note"]["report"]}
        report |= next_steps(out, report)
        write_report(out / "catalog.json", report)
    return report


def fetch(source: str | bytes | None, image_size: int, folder: Path) -> tuple[bytes, bytes, list[str]] | str:
    """(encoded image, SHA-256 of what it came as, how it was changed), or why there is none. Runs in the workers.

    Args:
        source: path, or bytes, or None.
        image_size: pixels that the shortest side may have; 0 for any number.
        folder: that a path may not leave.
    """
    changes: list[str] = []  # `as_shown` says through it what a plain conversion would have got wrong
    try:
        source = read_file(source, folder) if isinstance(source, str) else source
        image = decode_image(source, partial(as_shown, changes=changes))
    except BadImage as error:
        return error.reason
    # Of the file as it came: two shops' copies of one photo are one picture, whatever was done to them here.
    digest = hashlib.sha256(source).digest()
    shortest = min(image.size)
    if image_size and shortest > image_size:
        # The shortest side exactly, the longer one by the ratio: `round` alone may give image_size - 1.
        width, height = (max(image_size, round(side * image_size / shortest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    elif not changes:
        return source, digest, changes  # the file as it came
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), digest, changes


def _read_images(listing: Listing, spool: Spool, job: Callable, mapper: Callable) -> Iterator[ListedImage]:
    """Puts every image that can be used into the spool; the others are counted, and so are those that were changed."""
    pairs = zip(listing.entries, listing.images(), strict=True)
    with tqdm(total=len(listing.entries), desc="reading", unit="image") as bar:
        while chunk := list(islice(pairs, CHUNK)):
            for (listed, _), fetched in zip(chunk, mapper(job, [image for _, image in chunk]), strict=True):
                if isinstance(fetched, str):
                    listing.skips.add(fetched, listed.where)
                else:
                    data, listed.digest, changes = fetched
                    for change in changes:
                        listing.changes.add(change, listed.where)
                    # Only where the bytes wait is kept, for a million images do not fit into memory.
                    listed.span = spool.add(data)
                    yield listed
            bar.update(len(chunk))


def _finished(out: Path, source: str) -> bool:
    """Whether all that a catalog gives is there; ValueError if something else is."""
    made = {name: made_from(out / name, source) for name in (TRAIN, *SETS)}
    # A catalog may give no test set; train/ is written last, and its report names those that there are.
    return made[TRAIN] and all(made[name] for name in SETS if name in read_manifest(out / TRAIN)["note"]["report"])


def _report(listing: Listing, splits: Splits, images: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything but what depends on where it is written."""
    parts = {"listed": listing.listed, "images that can be used": images, **listing.skips.report("not used")}
    parts |= listing.changes.report("images written anew")
    if listing.unused:
        parts["columns not used"] = ", ".join(listing.unused)
    if not splits.complete[TRAIN]:
        raise ValueError(
            f"{listing.source} gives no product to train on: one with a product image and a scene, with a category if "
            f"any product has one, and outside the test sets\n{as_table(parts | splits.report())}"
        )
    repeated = splits.skips.report("images, not used")
    return parts | splits.report() | repeated | {"categories": splits.categories(), "settings": settings}


def _write_folders(splits: Splits, spool: Spool, out: Path, source: str, report: dict[str, Any]) -> None:
    """Writes the folders that are not there; train comes last, so that it tells of the others."""
    note = {"input": source, "report": report}
    total = sum(map(len, splits.complete.values()))
    with tqdm(total=total, desc="writing", unit="product") as bar:
        for name in SETS:
            # A killed run may have finished one: it is whole, and of the same splits, so it stays.
            if not splits.complete[name] or made_from(out / name, source):
                continue
            with TestSetWriter(out / name) as writer:
                writer.note = note
                for product_id, images in splits.complete[name].items():
                    pictures = [_catalog_picture(image, spool, NO_CATEGORY) for image in images]
                    writer.add_query(query_row(product_id, pictures))
                    bar.update()
                for image in (*splits.distractors[name], *splits.borrowed[name]):
                    writer.add_distractor(distractor_row(image.product_id, _catalog_picture(image, spool)))
        if not made_from(out / TRAIN, source):
            with ProductShardWriter(out / TRAIN) as writer:
                writer.note = note
                for product_id, images in splits.complete[TRAIN].items():
                    writer.add(product_row(product_id, [_catalog_picture(image, spool) for image in images]))
                    bar.update()


def _catalog_picture(image: ListedImage, spool: Spool, otherwise: str | None = None) -> Picture:
    """`otherwise`: the category of an image that has none."""
    category, captions = image.category or otherwise, list(image.captions)
    return Picture(image.type, category, captions, spool.read(image.span), image.digest.hex())
