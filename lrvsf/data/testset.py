"""Reading a test set in LRVS-F's published layout (arXiv 2306.02928), row by row in constant memory.

    ROOT/products.parquet           SIMPLE_IMG, COMPLEX_IMG (encoded bytes), CATEGORY, blip2_caption1
    ROOT/distractors/*.parquet      jpg (encoded bytes)

Files are read one by one, not as one table: the published ones differ in their further columns, which are left unread.
A row's number is its position in the files sorted by name, so any process can read any slice, and all agree on row 17.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lrvsf.data.folders import files_in
from lrvsf.data.names import did_you_mean, identified
from lrvsf.data.parquet import opened, read_rows, wrong_types

PRODUCT_COLUMNS = ("SIMPLE_IMG", "COMPLEX_IMG", "CATEGORY", "blip2_caption1")
DISTRACTOR_COLUMNS = ("jpg",)
IMAGE_COLUMNS = ("SIMPLE_IMG", "COMPLEX_IMG", "jpg")

# What prepare_lrvsf.py writes: the columns above, and what else is known of a row.
_KNOWN = [(name, pa.string()) for name in ("PRODUCT_ID", "TYPE", "CATEGORY", "blip2_caption1")]
QUERY_SCHEMA = pa.schema([*_KNOWN, ("SIMPLE_IMG", pa.binary()), ("COMPLEX_IMG", pa.binary())])
DISTRACTOR_SCHEMA = pa.schema([*_KNOWN, ("jpg", pa.binary())])

RESTORE = "Restore this file."
BATCH_ROWS = 64  # rows in memory at a time: some 10 MB of encoded photos


@dataclass(frozen=True)
class Product:
    """One row of products.parquet. Images are encoded bytes, not yet looked at; None where the cell holds none."""

    row: int
    target_image: bytes | None  # SIMPLE_IMG: the product alone
    query_image: bytes | None  # COMPLEX_IMG: a scene
    category: str | None
    caption: str | None


@dataclass(frozen=True)
class Origin:
    """Where a row of a test set is: its PRODUCT_ID (None for an empty cell, and for "nan"), its file below the folder,
    its row there."""

    product_id: str | None
    file: str
    row: int


class ProductTestSet:
    """A test set on disk. Opening reads footers only, and refuses what is missing before any work is done.

    Attributes:
        n_products, n_distractors: rows in the files; how many of them are readable images only decoding tells.
        files: the paths of the files of "products" and of "distractors", in the order of their rows.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        products, folder = self.root / "products.parquet", self.root / "distractors"
        if not products.is_file():
            raise FileNotFoundError(f"{products} does not exist; {_holds(self.root)}. {_REMEDY}")
        files = files_in(folder, "*.parquet")
        if not files:
            raise FileNotFoundError(f"{folder} has no .parquet file; {_holds(self.root)}. {_REMEDY}")
        self._files = {"products": [_File(products, PRODUCT_COLUMNS)]}
        self._files["distractors"] = [_File(file, DISTRACTOR_COLUMNS) for file in files]
        self.files = {"products": [products], "distractors": files}
        self.n_products, self.n_distractors = (sum(file.rows for file in part) for part in self._files.values())
        if not self.n_products:
            raise ValueError(f"{products} has no rows: there is nothing to ask for. {_REMEDY}")

    def products(self, start: int = 0, stop: int | None = None) -> Iterator[Product]:
        """The products of rows start to stop (excluded)."""
        for row, cells in self._rows("products", start, stop):
            target, query, category, caption = (cells[name] for name in PRODUCT_COLUMNS)
            yield Product(row, image_bytes(target), image_bytes(query), _name(category), caption)

    def distractors(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
        """(row number, encoded image) of rows start to stop (excluded)."""
        for row, cells in self._rows("distractors", start, stop):
            yield row, image_bytes(cells["jpg"])

    def origins(self, what: str, start: int = 0, stop: int | None = None) -> Iterator[Origin]:
        """Where the rows start to stop (excluded) of the "products" or "distractors" are. No image is read."""
        # Only ids are read, and of files without ids nothing: a row's place follows from the footers.
        for file, _, first, last in self._slices(what, start, stop):
            name = str(file.path.relative_to(self.root))
            if not file.has_ids:
                yield from (Origin(None, name, row) for row in range(first, last))
                continue
            for row, cells in file.read(first, last, ["PRODUCT_ID"]):
                yield Origin(identified(cells["PRODUCT_ID"])[0], name, row)

    def categories(self) -> list[str | None]:
        """The category of every product, in row order; None where there is none. No image is read."""
        return [_name(cell) for cell in self._files["products"][0].column("CATEGORY")]

    def captions(self) -> list[str | None]:
        """The caption of every product, in row order; None where there is none that says something."""
        cells = self._files["products"][0].column("blip2_caption1")
        return [str(cell) if cell is not None and str(cell).strip() else None for cell in cells]

    def texts(self, template: str = "{}") -> list[str]:
        """What asks for every product in words, in row order: its caption or, where it has none, its category's text.

        Args:
            template: the text of a category, "{}" for its name.

        Raises ValueError: a product has neither.
        """
        words = zip(self.captions(), self.categories(), strict=True)
        named = [caption or (None if name is None else template.format(name)) for caption, name in words]
        if without := [row for row, text in enumerate(named) if text is None]:
            others = f" So it is with {len(without) - 1} other products." if without[1:] else ""
            raise ValueError(
                f"{self.files['products'][0]}, row {without[0]}: there is neither a caption (blip2_caption1) nor a "
                f"category, so no words ask for it.{others} Fill one, or evaluate with --conditioning none."
            )
        return named

    def check_categories(self, known: list[str]) -> None:
        """Refuses, before anything is embedded, a test set with a category that the model has never heard of."""
        unknown = [(row, name) for row, name in enumerate(self.categories()) if name not in known]
        if unknown:
            row, name = unknown[0]
            others = f" So it is with {len(unknown) - 1} other products." if unknown[1:] else ""
            raise ValueError(
                f"{self.files['products'][0]}, row {row}: category {name!r} is not one of the model's: "
                f"{', '.join(known)}.{others}{did_you_mean(name or '', known)} "
                "Evaluate a model that was trained with it, or correct the row."
            )

    def _rows(self, what: str, start: int, stop: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row over all files, cells) of a slice."""
        for file, offset, first, last in self._slices(what, start, stop):
            for row, cells in file.read(first, last):
                yield offset + row, cells

    def _slices(self, what: str, start: int, stop: int | None) -> Iterator[tuple[_File, int, int, int]]:
        """The files that a slice touches: (file, its first row over all files, start and stop within it)."""
        offset = 0
        for file in self._files[what]:
            first, last = max(start - offset, 0), file.rows if stop is None else min(stop - offset, file.rows)
            if first < last:
                yield file, offset, first, last
            offset += file.rows


def wrong_cells(file: pq.ParquetFile, columns: Iterable[str]) -> str | None:
    """Why these columns do not hold what a test set's of that name hold, or None if they do.

    Images are binary, or structs as `datasets` stores them, whose `bytes` count.
    """
    leaves = {file.schema.column(i).path for i in range(len(file.schema))}
    images = [name for name in columns if name in IMAGE_COLUMNS]
    leaf = {name: name if name in leaves else f"{name}.bytes" for name in images}
    if without := [name for name in images if leaf[name] not in leaves]:
        return f"has {file.schema_arrow.field(without[0]).type} in {without[0]}, where encoded images must be"
    present = set(file.schema_arrow.names) - set(images)
    kinds = {name: file.schema_arrow.field(name).type for name in columns if name in present}
    if lists := [name for name, kind in kinds.items() if pa.types.is_nested(kind)]:
        return f"has {kinds[lists[0]]} in {lists[0]}, where text must be"
    return wrong_types(file, set(columns) - set(images), leaf.values())


class _File:
    """One Parquet file: its path, its number of rows, and the columns wanted of it."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, list(columns)
        with opened(path, _REMEDY, columns) as file:
            self.rows = file.metadata.num_rows
            self.has_ids = "PRODUCT_ID" in file.schema_arrow.names
            if why := wrong_cells(file, columns):
                raise ValueError(f"{path} {why}. {_REMEDY}")

    def column(self, name: str) -> list[Any]:
        """All cells of a small column."""
        with opened(self.path, RESTORE) as file:
            return file.read([name])[name].to_pylist()

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row in this file, cells) of a slice, of the columns wanted or of others; row groups outside it are not
        touched."""
        with opened(self.path, RESTORE) as file:
            for group, (first, last) in enumerate(pairwise(file.starts)):
                if first < stop and last > start:
                    cells = read_rows(file, columns or self.columns, BATCH_ROWS, [group])
                    # Rows before the slice in its first row group are read and dropped: Parquet has no way in between.
                    yield from islice(enumerate(cells, first), max(start - first, 0), stop - first)


def image_bytes(cell: Any) -> bytes | None:
    """A cell's encoded image. `datasets` stores {bytes, path}; the path names a foreign file and is never opened."""
    return cell["bytes"] if isinstance(cell, dict) else cell


def _name(cell: Any) -> str | None:
    """A category or id as every file of a test set is read. What is no name stays, and is joined to nothing."""
    name, unusable = identified(cell)
    return str(cell) if unusable else name


def _holds(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return f"{folder} holds " + (", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing")


_REMEDY = (
    "A test set is a folder with products.parquet "
    f"({', '.join(PRODUCT_COLUMNS)}) and distractors/*.parquet ({', '.join(DISTRACTOR_COLUMNS)}): "
    "make one with prepare_lrvsf.py."
)
