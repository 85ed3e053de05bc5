"""A test set -> a data set in the layout that mteb reads, as a folder of this machine or a repository on the Hub.

    FOLDER/README.md          tells `datasets` which files are which configuration
    FOLDER/queries/*.parquet  id, image (a scene), text (the condition)
    FOLDER/corpus/*.parquet   id, image: targets and distractors, each once
    FOLDER/qrels/*.parquet    query-id, corpus-id, score: of each query one target

The pictures are the evaluation's: what it cannot read is left out and counted, a product as a whole. `datasets` turns
pictures by EXIF, which the evaluation does not; a picture that asks for it is written as a PNG of its pixels as stored.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as Pillow
from typer import Argument, Option

from lrvsf.data.images import BadImage, decode_image
from lrvsf.data.testset import Product, ProductTestSet
from lrvsf.durable import whole_folder
from lrvsf.evaluation.arguments import check_test_set
from lrvsf.report import Ledger

SPLIT = "test"
QUERIES = Features({"id": Value("string"), "image": Image(), "text": Value("string")})
CORPUS = Features({"id": Value("string"), "image": Image()})
QRELS = Features({"query-id": Value("string"), "corpus-id": Value("string"), "score": Value("int32")})
CONFIGURATIONS = {"default": "qrels", "queries": "queries", "corpus": "corpus"}  # mteb's names -> our folders
ROWS = 256  # rows written at a time: some 20 MB of encoded photos
EXIF_ORIENTATION = 0x0112


def mteb_dataset(
    test_set: Annotated[Path, Argument(help="folder with products.parquet and distractors/")],
    folder: Annotated[Path, Argument(help="folder to write; it must not be there yet")],
    conditioning: Annotated[
        Literal["category", "text"], Option(help="what a query is asked by: its category, or its caption")
    ] = "category",
) -> dict[str, Any]:
    """Write a test set as a data set that mteb reads, for the task in contrib/mteb."""
    check_test_set(str(test_set))  # it knows which folder may be meant
    source = ProductTestSet(test_set)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already. Name another folder, or remove it.")
    asked, skipped = conditions_of(source, conditioning), Ledger()
    with whole_folder(folder) as writing:
        products = list(_write_products(source, asked, writing, skipped))
        distractors = _write_distractors(source, writing, skipped)
        if not products:
            raise ValueError(f"None of the {source.n_products} products of {test_set} can be read: {skipped.table()}.")
        (writing / "README.md").write_text(card_text(conditioning, digest_of(writing)), encoding="utf-8")
    counts = {"queries": len(products), "corpus": len(products) + distractors}
    return {"wrote": str(folder), **counts, "asked by": conditioning, **skipped.report("left out")}


def conditions_of(test_set: ProductTestSet, conditioning: str) -> list[str]:
    """What asks for each product, in row order. Raises ValueError: a product has nothing to be asked by."""
    if conditioning == "text":
        return test_set.texts()
    names = test_set.categories()
    if None in names:
        raise ValueError(f"{test_set.files['products'][0]}, row {names.index(None)}: no category. Fill it.")
    return names


def as_stored(data: bytes | None) -> bytes:
    """The encoded picture, such that readers that obey EXIF and those that do not see the same pixels.

    Raises BadImage: the evaluation cannot read it either.
    """
    pixels, turn = decode_image(data), 1
    with suppress(Exception):  # a damaged tag turns nothing
        turn = Pillow.open(io.BytesIO(data)).getexif().get(EXIF_ORIENTATION, 1)
    if turn == 1:
        return data
    out = io.BytesIO()
    pixels.save(out, "PNG")
    return out.getvalue()


def _write_products(source: ProductTestSet, asked: list[str], folder: Path, skipped: Ledger) -> Iterator[int]:
    """Writes queries, targets and which belongs to which; gives the rows of the products that could be read."""
    with (
        _Table(folder / "queries", QUERIES) as queries,
        _Table(folder / "corpus", CORPUS, "targets") as targets,
        _Table(folder / "qrels", QRELS) as qrels,
    ):
        for row, query, target in _readable(source.products(), skipped):
            queries.add({"id": f"q{row}", "image": {"bytes": query, "path": None}, "text": asked[row]})
            targets.add({"id": f"p{row}", "image": {"bytes": target, "path": None}})
            qrels.add({"query-id": f"q{row}", "corpus-id": f"p{row}", "score": 1})
            yield row


def _readable(products: Iterable[Product], skipped: Ledger) -> Iterator[tuple[int, bytes, bytes]]:
    for product in products:
        try:
            pictures = as_stored(product.query_image), as_stored(product.target_image)
        except BadImage as error:
            skipped.add(f"product, {error.reason}", f"row {product.row}")
            continue
        yield product.row, *pictures


def _write_distractors(source: ProductTestSet, folder: Path, skipped: Ledger) -> int:
    """Writes the distractors; gives how many could be read."""
    written = 0
    with _Table(folder / "corpus", CORPUS, "distractors") as corpus:
        for row, data in source.distractors():
            try:
                corpus.add({"id": f"d{row}", "image": {"bytes": as_stored(data), "path": None}})
            except BadImage as error:
                skipped.add(f"distractor, {error.reason}", f"row {row}")
                continue
            written += 1
    return written


class _Table:
    """A Parquet file that takes a row at a time, and says to `datasets` what its columns are."""

    def __init__(self, folder: Path, features: Features, name: str = SPLIT) -> None:
        folder.mkdir(exist_ok=True)
        self._schema = features.arrow_schema
        self._file, self._rows = pq.ParquetWriter(folder / f"{name}.parquet", self._schema), []

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def digest_of(folder: Path) -> str:
    """Another text for other tables."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.parquet")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def card_text(conditioning: str, digest: str) -> str:
    """The data set's card; its YAML tells `datasets` which files are which configuration."""
    lines = ["---", "configs:"]
    for config, folder in CONFIGURATIONS.items():
        # `datasets` knows a folder by its name and by what stands here, and would read another folder of that name from
        # its cache, whatever the files hold.
        lines += [f"- config_name: {config}", f"  description: sha256 {digest}", "  data_files:"]
        lines += [f"  - split: {SPLIT}", f"    path: {folder}/*.parquet"]
    lines += ["tags:", "- mteb", "- visual-search", "- image-retrieval", "---", ""]
    return "\n".join(lines) + CARD.format({"category": "its product's category", "text": "a caption"}[conditioning])


CARD = """# A test set of referred visual search, for mteb

A query is a scene and {}, which says what is meant (`queries`: `id`, `image`, `text`). It has one right answer
among the pictures of products (`corpus`: `id`, `image`), which `default` names (`query-id`, `corpus-id`, `score`).

The pictures stay under the licences of those they come from.
"""
