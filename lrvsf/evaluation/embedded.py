"""A test set as rows to count on: all products on every process, distractors in blocks."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrvsf.data.images import USUAL, Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.store import EmbeddingStore
from lrvsf.evaluation.columns import Categories

SKIPPED_NAMED = 100  # rows that could not be read and are listed one by one


class StoredTestSet(EmbeddingStore):
    """The embedding store of a test set, which it knows."""

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder,
        test_set: ProductTestSet,
        batch_size: int = 256,
        tolerance: Tolerance = USUAL,
        dtype: str = "float16",
    ) -> None:
        parts = Products(test_set), Distractors(test_set)
        super().__init__(folder, encoder, parts, test_set.root, batch_size, tolerance, dtype)
        self.test_set = test_set


class EmbeddedTestSet:
    """What a protocol counts on: all products on every process, and the distractors in blocks.

    Attributes:
        rows: the products' row numbers in the test set; `queries` and `targets` (P, dim) are in their order, on the
            encoder's device, as are `category_names`, `product_ids` (None without one) and, where categories were
            joined, `product_categories` (P,).
        distractor_rows: (N,) row numbers in the test set, of the `n_distractors` that could be read; where categories
            were joined, `distractor_categories` (N,), -1 for what no product has.
        facts: what results.json says of the model, the test set and the versions.

    Raises ValueError: no product can be read; and as `EmbeddingStore.fill` does.
    """

    def __init__(self, store: StoredTestSet, joined: Categories | None = None) -> None:
        encoder, test_set = store.encoder, store.test_set
        if encoder.conditioning == "category":
            test_set.check_categories(encoder.model.config.categories)
        store.fill()
        self._store = store
        self.rows: list[int] = store.rows("products").tolist()
        if not self.rows:
            skipped = store.skipped("products")
            raise ValueError(f"None of the {test_set.n_products} products of {test_set.root} can be read: {skipped}.")
        self.queries, self.targets = (store.whole(kind).to(encoder.device) for kind in Products.kinds)
        self.distractor_rows = store.rows("distractors")
        self.n_distractors = len(self.distractor_rows)
        names = test_set.categories()
        self.category_names = [names[row] for row in self.rows]
        origins = list(test_set.origins("products"))
        self.product_ids = [origins[row].product_id for row in self.rows]
        self.joined, self.distractor_categories = joined, None
        if joined is not None:
            self.product_categories = joined.products[self.rows]
            self.distractor_categories = joined.distractors[self.distractor_rows]
        self.facts = {
            "model_weights": weights_digest(encoder.model),
            "conditioning": encoder.conditioning,
            "embedding_dim": encoder.dim,
            "compute_dtype": "bfloat16" if encoder.bf16 else "float32",
            "store_dtype": store.dtype,
            "test_set": {part.what: part.describe() for part in store.parts},
            "n_products": len(self.rows),
            "n_distractors": self.n_distractors,
            "skipped": {what: store.skipped(what) for what in ("products", "distractors")},
            "skipped_rows": {what: _skipped_rows(store, what) for what in ("products", "distractors")},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "numpy")},
            },
        }
        if joined is not None:
            self.facts["unmatched"] = joined.facts()

    def joined_rows(self) -> tuple[list[str], Tensor, Tensor] | None:
        """The names of the categories and the numbers of the products and distractors that could be read, or None."""
        if self.joined is None:
            return None
        return self.joined.names, self.product_categories, self.distractor_categories

    def blocks(self) -> Iterator[tuple[Tensor, int, Tensor | None]]:
        """This process's distractors, read anew at every call: (n, dim) unit rows, the place of the first among the
        `n_distractors`, and with categories those (n,), -1 for what no product has."""
        for embeds, first in self._store.blocks("distractor"):
            categories = self.distractor_categories
            yield embeds, first, None if categories is None else categories[first : first + len(embeds)]

    def positions(self, folds: Iterable[Tensor]) -> list[Tensor]:
        """Folds of the test set's product rows -> of positions among those that could be read, the others left out."""
        position = torch.full((max(self.rows) + 1,), -1)
        position[self.rows] = torch.arange(len(self.rows))
        found = [position[fold[fold < len(position)]] for fold in folds]
        found = [fold[fold >= 0] for fold in found]
        if not all(map(len, found)):
            raise ValueError(f"A fold names only products that cannot be read: {self.facts['skipped']['products']}.")
        return found


def _skipped_rows(store: StoredTestSet, what: str) -> list[dict[str, Any]]:
    """The first rows that could not be read, and where they are."""
    described = []
    for row, reason in store.bad(what)[:SKIPPED_NAMED]:
        (origin,) = store.test_set.origins(what, row, row + 1)
        place = {"product_id": origin.product_id, "file": origin.file, "row_in_file": origin.row}
        described.append({"row": row, **place, "reason": reason})
    return described
