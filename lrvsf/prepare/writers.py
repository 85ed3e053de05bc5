"""Writing product shards and test sets: what every step that ends in a data set ends with.

A folder appears whole or not at all (see `durable.whole_folder`). What a killed run left is thrown away by the next.

    FOLDER/00000.parquet, ...   rows of PRODUCT_FEATURES, image bytes as they came (photographs do not compress further)
    FOLDER/manifest.json        the files, their sizes, a digest of the rows of each, and one of the whole list

    FOLDER/products.parquet, FOLDER/distractors/00000.parquet, ...      a test set in the published layout
    FOLDER/manifest.json                                                how many rows of each; the files, their sizes

The digests are taken of the rows, not of the Parquet files, so that another version of pyarrow gives the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.testset import DISTRACTOR_SCHEMA, QUERY_SCHEMA
from lrvsf.durable import whole_folder, writing_place
from lrvsf.prepare.row_writer import NumberedFiles, RowWriter, parquet_writer
from lrvsf.prepare.rows import unjoined_categories
from lrvsf.report import write_report

MANIFEST = "manifest.json"
SHARD_BYTES = 256 * 2**20  # not tuned: files that a Hub repository and a shuffling reader like
DISTRACTOR_ROWS = 20_000  # not tuned


class FolderWriter:
    """A context manager that gives `self.writing`, a folder that becomes `self.folder` if the block succeeds.

    Attributes:
        note: a dict that the manifest keeps under "note", for what a step wants to remember of its input.

    Raises:
        ValueError: the folder is there already, and not empty; or it cannot be replaced, as a mount point cannot.
        OSError: it is written, but could not be renamed; `writing` is then kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.writing = writing_place(self.folder)
        self.note: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is in use; remove it or choose another folder")
        _refuse_irreplaceable(self.folder)
        self._whole = whole_folder(self.folder)
        self._whole.__enter__()
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            # On a full disk closing fails too, which would hide the first failure.
            with suppress(Exception):
                self.close()
            self._whole.__exit__(kind, error, trace)
            return
        with ExitStack() as stack:
            stack.push(self._whole)  # which sees what closing and finishing raise, as if the block had
            self.close()
            self.finish()

    def begin(self) -> None:
        """Opens what is written to, in `writing`."""

    def close(self) -> None:
        """Closes what is open, whether or not the block succeeded."""
        raise NotImplementedError

    def finish(self) -> None:
        """Completes the folder of a block that succeeded, or raises ValueError."""
        raise NotImplementedError


def _refuse_irreplaceable(folder: Path) -> None:
    """Finds out before hours of work what would prevent the finished folder's renaming."""
    if folder.exists():
        try:
            folder.rmdir()  # it is empty; this is what the renaming would do, and a mount point refuses
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be replaced by the finished folder ({error.strerror}), as a mount point cannot; name "
                "a folder within it"
            ) from error
        folder.mkdir()


class ProductShardWriter(FolderWriter):
    """Writes product rows to FOLDER/00000.parquet, 00001.parquet, ... in the order given.

        with ProductShardWriter(out / "train") as shards:
            for row in rows:
                shards.add(row)

    Leaving the block normally puts the folder in its place; leaving it by an exception removes what was written.

    Args:
        folder: must not exist, or be empty.
        shard_bytes, shard_rows: a file is closed when its images have this many bytes, or it has this many rows.
        dictionary: see `parquet_writer`.

    Attributes:
        ids: the product ids added so far.

    Raises:
        ValueError: the folder is in use; or, at the end, no product was added.
    """

    def __init__(
        self,
        folder: str | Path,
        shard_bytes: int = SHARD_BYTES,
        shard_rows: int | None = None,
        dictionary: bool = False,
    ) -> None:
        super().__init__(folder)
        self.ids: set[str] = set()
        schema = PRODUCT_FEATURES.arrow_schema
        shard = partial(parquet_writer, schema=schema, dictionary=dictionary)
        self._shards = NumberedFiles(self.writing, shard, shard_rows, shard_bytes)
        self._digest = hashlib.sha256()
        self._files: list[dict[str, Any]] = []
        self._images = 0

    def add(self, row: dict[str, Any]) -> None:
        """Writes one row of PRODUCT_FEATURES.

        Raises:
            ValueError: no product id, one that was added before, or an image without bytes.
        """
        name = row["product_id"]
        if not name or name in self.ids:
            raise ValueError(f"product id {name!r} is {'here twice' if name else 'empty'}; give each product its own")
        # An image without bytes would be looked for at its path, which is there on no other machine.
        for number, image in enumerate(row["images"]):
            if not image["image"]["bytes"]:
                raise ValueError(f"product {name!r}, image {number} has no bytes; leave it out or read its file first")
        self.ids.add(name)
        self._images += len(row["images"])
        self._digest.update(row_digest(row))  # first, because the row may fill and close its shard
        self._list(self._shards.add(row, row_bytes(row)))

    def close(self) -> None:
        self._list(self._shards.close())

    def _list(self, shard: RowWriter | None) -> None:
        """Notes a shard that was closed for the manifest."""
        if shard is not None:
            path = self.writing / f"{len(self._files):05d}.parquet"
            self._files.append(shard_entry(path, shard, self._digest.hexdigest()))
            self._digest = hashlib.sha256()

    def finish(self) -> None:
        if not self.ids:
            raise ValueError(f"there is no product to write to {self.folder}; look into the input")
        write_products_manifest(self.writing, self._images, self._files, self.note)


class TestSetWriter(FolderWriter):
    """Writes a test set in the published layout: FOLDER/products.parquet and FOLDER/distractors/00000.parquet, ...

    Used like `ProductShardWriter`. Queries and distractors may come in any order; without distractors the folder gets
    one empty file of them, so that it can be read.

    Args:
        folder: must not exist, or be empty.
        shard_rows: rows of one file of distractors.
        dictionary: see `parquet_writer`.

    Attributes:
        queries, distractors: how many were added so far.
        categories: how many queries and distractors of each category.

    Raises:
        ValueError: the folder is in use; or, at the end, no query was added.
    """

    __test__ = False  # for pytest: a class that begins with Test and holds no tests

    def __init__(self, folder: str | Path, shard_rows: int = DISTRACTOR_ROWS, dictionary: bool = False) -> None:
        super().__init__(folder)
        self.queries = self.distractors = 0
        self.categories: dict[str, Counter[str | None]] = {"queries": Counter(), "distractors": Counter()}
        distractors = partial(parquet_writer, schema=DISTRACTOR_SCHEMA, dictionary=dictionary)
        self._distractors = NumberedFiles(self.writing / "distractors", distractors, shard_rows)
        self._dictionary = dictionary

    def begin(self) -> None:
        self._products = parquet_writer(self.writing / "products.parquet", QUERY_SCHEMA, dictionary=self._dictionary)
        self._distractors.folder.mkdir()
        self._distractors.begin()  # even if none comes: a test set without such a file cannot be opened

    def add_query(self, row: dict[str, Any]) -> None:
        """Writes one row of QUERY_SCHEMA; PRODUCT_ID, TYPE and blip2_caption1 may be missing or None.

        Raises:
            ValueError: no category, or an image without bytes.
        """
        for column in ("CATEGORY", "SIMPLE_IMG", "COMPLEX_IMG"):
            if not row.get(column):
                raise ValueError(f"query {self.queries} (product {row.get('PRODUCT_ID')!r}) has no {column}")
        self._products.add(row, len(row["SIMPLE_IMG"]) + len(row["COMPLEX_IMG"]))
        self.categories["queries"][row["CATEGORY"]] += 1
        self.queries += 1

    def add_distractor(self, row: dict[str, Any]) -> None:
        """Writes one row of DISTRACTOR_SCHEMA; everything but jpg may be missing or None.

        Raises:
            ValueError: no bytes in jpg.
        """
        if not row.get("jpg"):
            raise ValueError(f"distractor {self.distractors} (product {row.get('PRODUCT_ID')!r}) has no jpg")
        self._distractors.add(row, len(row["jpg"]))
        self.categories["distractors"][row.get("CATEGORY") or None] += 1  # "" is no category
        self.distractors += 1

    def unjoined_categories(self) -> dict[str, Any]:
        """What a gallery of one category would lack, category by category; empty where all categories join."""
        return unjoined_categories(self.categories["queries"], self.categories["distractors"])

    def close(self) -> None:
        self._products.close()
        self._distractors.close()

    def finish(self) -> None:
        if not self.queries:
            raise ValueError(f"there is no query to write to {self.folder}; look into the input")
        paths = [self.writing / "products.parquet", *sorted(self.writing.glob("distractors/*.parquet"))]
        files = [_stated(path, self.writing) for path in paths]
        numbers = {"queries": self.queries, "distractors": self.distractors}
        write_report(self.writing / MANIFEST, {**numbers, "note": self.note, "files": files})


def shard_entry(path: Path, shard: RowWriter, digest: str) -> dict[str, Any]:
    """A manifest's entry of a shard of products that was closed; `digest`: of its rows."""
    numbers = {"rows": shard.rows, "image_bytes": shard.bytes, "digest": digest}
    return _stated(path, path.parent) | numbers


def write_products_manifest(folder: Path, images: int, files: list[dict[str, Any]], note: dict[str, Any]) -> None:
    """FOLDER/manifest.json of product shards: the entries of its files in order, how many images, the step's note."""
    manifest = {
        "products": sum(file["rows"] for file in files),
        "images": images,
        "image_bytes": sum(file["image_bytes"] for file in files),
        "digest": list_digest(files),
        "note": note,
        "files": files,
    }
    write_report(folder / MANIFEST, manifest)


def row_bytes(row: dict[str, Any]) -> int:
    """Bytes of a product row's images."""
    return sum(len(image["image"]["bytes"]) for image in row["images"])


def row_digest(row: dict[str, Any]) -> bytes:
    """SHA-256 of a product row: its id and, for each image, bytes, type, category and captions; not the path."""
    # Each image by its own hash, so that no two rows of other images, cut at another byte, give one text.
    images = [
        [hashlib.sha256(i["image"]["bytes"] or b"").hexdigest(), i["type"], i["category"], i.get("captions")]
        for i in row["images"] or ()
    ]
    return hashlib.sha256(json.dumps([row["product_id"], images]).encode()).digest()


def list_digest(files: list[dict[str, Any]]) -> str:
    """SHA-256 of a manifest's list of files: the same for the same rows in the same order, cut into the same files."""
    # The name of a file is not in it, nor its size, which another version of pyarrow changes.
    return hashlib.sha256(json.dumps([[file["rows"], file["digest"]] for file in files]).encode()).hexdigest()


def _stated(path: Path, folder: Path) -> dict[str, Any]:
    """A manifest's entry of a file."""
    return {"name": str(path.relative_to(folder)), "size": path.stat().st_size}


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """FOLDER/manifest.json, or None where there is none: what was written by other means has none.

    Raises:
        ValueError: it is no manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); write the folder again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("note"), dict):
        raise ValueError(f"{path} is damaged: it has no note; write the folder again")
    return manifest


def made_from(folder: str | Path, source: str) -> bool:
    """Whether the folder is finished and its note's "input" is this; False if it is not there yet.

    Raises:
        ValueError: it is there, made from something else, or lacks a file or the end of one; or it is empty and cannot
            be replaced.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        _refuse_irreplaceable(folder.resolve())
        return False
    manifest = read_manifest(folder)
    # Without a manifest it was made by other means, and is not ours to replace.
    if manifest is None or manifest["note"].get("input") != source:
        raise ValueError(
            f"{folder} holds something made from other input or with other settings; remove it or choose another folder"
        )
    for entry in manifest.get("files", ()):
        # Sizes, which a crash of the machine or a full disk changes; what else was done to a file, `check` finds.
        size = path.stat().st_size if (path := folder / entry["name"]).is_file() else None
        if size != entry.get("size", size) or size is None:
            found = "is missing" if size is None else f"has {size:,} bytes in place of {entry['size']:,}"
            raise ValueError(f"{folder} is not whole: {entry['name']} {found}; remove the folder to make it again")
    return True
