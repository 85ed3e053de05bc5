"""A test set whose gallery's embeddings are in a Lance table: taken from there, and not made again.

The table is one that `search_catalog.py lance` wrote of a catalog that has the pictures, by the same model. A picture
is known by the SHA-256 of its bytes, as in a catalog: an id says nothing of a picture, and may be that of several.
Queries are embedded, as they are asked under a condition, and so is what a catalog shows otherwise than the
published preprocessing reads it. What comes out is an embedding store as ever, from which everything else goes on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lrvsf.data.foreign.shown import is_shown_as_stored
from lrvsf.data.images import FEW, Tolerance
from lrvsf.data.names import quoted
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Decoded, Distractors, Products
from lrvsf.embedding.top import NORM_TOLERANCE
from lrvsf.scale.lance_search import TableVectors
from lrvsf.scale.lance_table import FAULTS, TableGeneration, TableGenerations, damaged_table, open_latest, vector_column
from lrvsf.search.segments import DIGEST, digest_of, model_facts
from lrvsf.search.sources.prepared import item_name

MISSING = -1  # the number of a picture that the table lacks
REMEDY = "index the test set by this model with search_catalog.py index --switch, then run search_catalog.py lance"


def gallery_parts(
    table: str, encoder: Encoder, test_set: ProductTestSet, tolerance: Tolerance
) -> tuple[Products, Distractors]:
    """The parts of a test set, whose gallery is in a table.

    Args:
        table: TABLE or TABLE@VERSION.
        tolerance: of bad images, which no table has.

    Raises:
        FileNotFoundError: there is no such version.
        ValueError: the table is of another model, lacks pictures, or has rows that are no unit rows; it is damaged.
    """
    generation = TableGenerations(table).answering()
    column = vector_column({"model": {"digest": digest_of(model_facts(encoder))}})
    _check_column(generation, column, encoder)
    gallery = Gallery(generation.folder.absolute(), generation.table.version, column)
    gallery.check_rows()
    parts = TakenProducts(test_set, gallery), TakenDistractors(test_set, gallery)
    for part in parts:
        gallery.check_ids(part, tolerance)
    return parts


def _check_column(generation: TableGeneration, column: str, encoder: Encoder) -> None:
    """Refuses a version without vectors of this model for each of its rows."""
    where, model = f"{generation.folder}, version {generation.table.version},", encoder.model.name_or_path
    made, facts = generation.manifest["model"], model_facts(encoder)
    if column not in generation.table.schema.names:
        differ = sorted(name for name in {**facts, **made["facts"]} if facts.get(name) != made["facts"].get(name))
        raise ValueError(
            f"{where} has no embeddings by {model} (digest {digest_of(facts)}). It answers by {made['name']} (digest "
            f"{made['digest']}), which differs in {', '.join(differ)}. Evaluate that one, or {REMEDY}"
        )
    kind = generation.table.schema.field(column).type
    if kind != pa.list_(pa.float16(), encoder.dim):
        raise damaged_table(generation.folder, ValueError(f"{column} is {kind}, of {encoder.dim} dimensions"))
    if without := generation.table.count_rows(filter=f"{column} is null"):
        raise ValueError(
            f"{where} has {without:,} rows without an embedding by {model}, which came while another model answered; "
            f"let this one answer with search_catalog.py switch, and {REMEDY}"
        )


class Gallery:
    """The vectors of one model in one version of a table, found by their pictures. Sent to a process, it is opened anew
    there.

    Args:
        folder: the table's, absolute.
        version: Lance's number, which stays as it is whatever is written meanwhile.
        column: of the vectors.
    """

    def __init__(self, folder: Path, version: int, column: str) -> None:
        self.folder, self._opened = folder, (folder, version, column)
        try:
            self._table = open_latest(folder).checkout_version(version)
            digests = self._table.to_table(columns=[DIGEST])[DIGEST].combine_chunks()
        except FAULTS as error:
            raise damaged_table(folder, error) from error
        cells = np.frombuffer(digests.cast(pa.binary(32)).buffers()[1], "S32", len(digests), 32 * digests.offset)
        # Sorted text in place of a dict: 40 bytes a picture in each process, not some hundred. Of copies of one picture
        # the first row counts.
        self._order = np.argsort(cells, kind="stable")
        self._digests = cells[self._order]
        self.vectors = TableVectors(self._table, column, len(digests))

    def __reduce__(self) -> tuple[Any, ...]:
        return Gallery, self._opened

    def find(self, picture: bytes | None) -> int | None:
        """The row of a picture, or None. Threads may share it."""
        wanted = np.array(hashlib.sha256(picture or b"").digest(), "S32")
        place = int(np.searchsorted(self._digests, wanted))
        there = place < len(self._digests) and self._digests[place] == wanted
        return int(self._order[place]) if there else None

    def check_rows(self) -> None:
        """Raises ValueError: a row is not finite, or not of length 1."""
        lengths = self.vectors.lengths
        wrong = ~((lengths - 1).abs() <= NORM_TOLERANCE)  # also where one is not a number
        if wrong.any():
            row = int(wrong.nonzero()[0])
            item = self._table.take([row], columns=["id"])["id"][0].as_py()
            told = f"the embedding of {quoted(item)}, row {row}, has length {lengths[row]:g}, where 1 must be"
            raise damaged_table(self.folder, ValueError(told))

    def check_ids(self, part: Products | Distractors, tolerance: Tolerance) -> None:
        """Refuses a table that cannot be this test set's, before anything is embedded: its ids are soon compared.

        What is missing may be pictures that cannot be read, as long as they are no more than is tolerated.
        """
        there = set(self._table.to_table(columns=["id"])["id"].to_pylist())
        missing = [
            str(name)
            for row, origin in enumerate(part.origins(0, part.total))
            if (name := item_name(origin.product_id, part.what[:-1], row)) not in there
        ]
        if len(missing) >= FEW and len(missing) > tolerance.fraction * part.total:
            raise ValueError(
                f"{self.folder} lacks {len(missing):,} of the {part.total:,} {part.what} of {part.test_set.root}, such "
                f"as {quoted(missing[0])}; name this test set's table, or {REMEDY}"
            )


class _Taken:
    """What both parts do: a picture that the table has is represented by its row's number, and not decoded."""

    def __init__(self, test_set: ProductTestSet, gallery: Gallery) -> None:
        super().__init__(test_set)
        self.gallery = gallery

    def decode(self, encoder: Encoder, images: tuple[bytes | None, ...]) -> Decoded:
        *scenes, picture = images  # the one that is found comes last
        return Decoded([*map(encoder.pixels, scenes), self._row_or_pixels(encoder, picture)])

    def _row_or_pixels(self, encoder: Encoder, picture: bytes | None) -> np.ndarray:
        row = self.gallery.find(picture)
        if row is not None and is_shown_as_stored(picture):
            return np.array(row)
        # Raises BadImage, and then the table rightly lacks the picture.
        pixels = encoder.pixels(picture)
        return np.array(MISSING) if row is None else pixels

    def embed_gallery(self, encoder: Encoder, rows: list[int], pixels: list[np.ndarray]) -> Tensor:
        taken = [place for place, cell in enumerate(pixels) if not cell.ndim]
        own = [place for place, cell in enumerate(pixels) if cell.ndim]
        numbers = np.array([int(pixels[place]) for place in taken], np.int64)
        if MISSING in numbers:
            self._refuse(rows[taken[numbers.tolist().index(MISSING)]])
        embeds = torch.empty(len(rows), encoder.dim)
        embeds[taken] = self.gallery.vectors.stored(numbers).float()  # float16 again, they are the same bits
        if own:
            embeds[own] = encoder.embed([pixels[place] for place in own])
        return embeds

    def _refuse(self, row: int) -> None:
        (origin,) = self.origins(row, row + 1)
        item = item_name(origin.product_id, self.what[:-1], row)
        raise ValueError(
            f"{self.gallery.folder} has no picture like that of {quoted(str(item))}, row {origin.row} of "
            f"{origin.file}; {REMEDY}. What is embedded is kept"
        )


class TakenProducts(_Taken, Products):
    """The products of a test set, whose targets a table has."""


class TakenDistractors(_Taken, Distractors):
    """The distractors of a test set, which a table has."""
