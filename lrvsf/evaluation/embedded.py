"""A test set as rows to count on: all products on every process, distractors in blocks."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Distractors, Products, QueryViews, check_conditions
from lrvsf.embedding.store import Embed, EmbeddingStore, Shard
from lrvsf.embedding.top import TopItems
from lrvsf.embedding.views import ONCE, Views, names_of
from lrvsf.evaluation.columns import Categories, copies_in, join_categories

SKIPPED_NAMED = 100  # rows that could not be read and are listed one by one; not tuned


class Counter(Protocol):
    """What takes each distractor once, in blocks of any size, in any number of processes.

    Attributes:
        categories: None if it does not look at those of the distractors.
    """

    categories: Tensor | None

    def add(self, embeds: Tensor, first_row: int, categories: Tensor | None = None) -> None:
        """Takes the distractors of rows first_row, first_row + 1, ...: (n, dim) unit rows, (n,) whole numbers."""

    def counted(self) -> Any:
        """What is known of the distractors so far, without what was needed to find it."""

    def merge(self, counted: Any) -> None:
        """Adds what another one, made with the same arguments, has `counted`."""


class Elsewhere(Protocol):
    """Other processes than those of this launch, which count in their place, and embed unless `embed` is None."""

    embed: Embed | None

    def count(self, shards: list[Shard], counters: Sequence[Counter], categories: Tensor | None) -> None:
        """Adds all shards of distractors, and the categories (N,) of all distractors, to counters."""


class StoredTestSet(EmbeddingStore):
    """The embedding store of a test set, which it knows.

    Args:
        parts: its products and distractors, where they get their embeddings otherwise than from the encoder alone.
        settings: the others of `EmbeddingStore`.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder,
        test_set: ProductTestSet,
        parts: tuple[Products, Distractors] | None = None,
        **settings: Any,
    ) -> None:
        parts = parts or (Products(test_set), Distractors(test_set))
        super().__init__(folder, encoder, parts, test_set.root, **settings)
        self.test_set = test_set


class EmbeddedTestSet:
    """What protocols and pages count on, made once a run and handed from one to the next.

    Each of them first refuses what it cannot measure, and then calls `fill`: nothing is embedded before. The attributes
    below are there from then on.

    Args:
        elsewhere: what embeds, and counts for the protocols, in place of this launch's processes. Pages count here.
        views: of each query, whose embeddings are averaged.

    Attributes:
        rows: the products' row numbers in the test set; `queries` and `targets` (P, dim) are in their order, on the
            encoder's device, as are `category_names` and `product_ids` (None without one).
        distractor_rows: (N,) row numbers in the test set, of the `n_distractors` that could be read.
        facts: what results.json says of the model, the test set and the versions.
    """

    def __init__(self, store: StoredTestSet, elsewhere: Elsewhere | None = None, views: Views = ONCE) -> None:
        self.encoder, self.test_set, self._store = store.encoder, store.test_set, store
        self._elsewhere, self._views, self._filled = elsewhere, views, False

    def fill(self) -> None:
        """Embeds what the store lacks and reads the products. Every process must call it; a second call does nothing.

        Raises ValueError: a category that the model does not know, no product can be read; and as the store does.
        """
        if self._filled:
            return
        encoder, test_set, store = self.encoder, self.test_set, self._store
        check_conditions(test_set, encoder.conditioning, encoder.model.config)  # or it fails in the middle of embedding
        store.fill(self._elsewhere and self._elsewhere.embed)
        self.rows: list[int] = store.rows("products").tolist()
        if not self.rows:
            skipped = store.skipped("products")
            raise ValueError(f"None of the {test_set.n_products} products of {test_set.root} can be read: {skipped}.")
        # What the store gives, whether it was just written or not: the rounding of its type is in every result.
        self.queries, self.targets = (store.whole(kind).to(encoder.device) for kind in Products.kinds)
        if self._views != ONCE:
            self.queries = self._queries_by_views().to(encoder.device)
        self.distractor_rows = store.rows("distractors")
        self.n_distractors = len(self.distractor_rows)
        names, origins = test_set.categories(), list(test_set.origins("products"))  # of all rows, unlike what follows
        self.category_names = [names[row] for row in self.rows]
        self.product_ids = [origins[row].product_id for row in self.rows]
        self.facts = {
            "model_weights": store.made_with["model.weights"],  # hashed once, by the process that opened the store
            "conditioning": encoder.conditioning,
            **({} if self._views == ONCE else {"query_views": names_of(self._views)}),
            "embedding_dim": encoder.dim,
            "compute_dtype": "bfloat16" if encoder.bf16 else "float32",
            "store_dtype": store.dtype,
            "test_set": {part.what: part.describe() for part in store.parts},
            "n_products": len(self.rows),
            "n_distractors": self.n_distractors,
            "skipped": {what: store.skipped(what) for what in ("products", "distractors")},
            "skipped_rows": {what: _skipped_rows(store, what) for what in ("products", "distractors")},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers", "numpy")},
        }
        if encoder.conditioning == "text":
            captions = test_set.captions()
            self.facts["queries_without_caption"] = sum(captions[row] is None for row in self.rows)
        self._filled = True

    def _queries_by_views(self) -> Tensor:
        """(P, dim) in the order of `rows`, stored in a folder of their own beside the others, which stay as they are.

        Raises ValueError: a query could be read before, and cannot now.
        """
        store, part = self._store, QueryViews(self.test_set, self._views)
        folder = store.folder / "query_views" / names_of(self._views)
        settings = store.batch_size, store.tolerance, store.dtype
        views = EmbeddingStore(folder, self.encoder, [part], self.test_set.root, *settings)
        views.fill(self._elsewhere and self._elsewhere.embed)
        (places,) = positions_among(views.rows(part.what), [torch.tensor(self.rows)])
        if len(places) < len(self.rows):
            raise ValueError(
                f"{len(self.rows) - len(places)} queries of {self.test_set.root} could be read whole, and not by their "
                f"views: {views.skipped(part.what)}. Restore the file, and remove {store.folder}."
            )
        return views.whole("query")[places]

    @cached_property
    def categories(self) -> Categories:
        """The categories of all rows of the test set, those that could not be read included. Needs no `fill`."""
        return join_categories(self.test_set)

    @cached_property
    def product_categories(self) -> Tensor:
        """(P,) numbers among `categories.names`, in the order of `rows`."""
        return self.categories.products[self.rows]

    @cached_property
    def distractor_categories(self) -> Tensor:
        """(N,) likewise; -1 for what no product has, which is then in no gallery of one category."""
        return self.categories.distractors[self.distractor_rows]

    @cached_property
    def known_copies(self) -> Tensor | None:
        """As `copies_in` gives them, of all rows: nothing need be embedded."""
        return copies_in(self.test_set)

    @cached_property
    def copies(self) -> Tensor | None:
        """(N,) the place among `rows` of the product that a distractor is a copy of, or -1; None if none is known."""
        if self.known_copies is None:
            return None
        position = torch.full((self.test_set.n_products + 1,), -1)  # the last one is that of -1
        position[self.rows] = torch.arange(len(self.rows))
        return position[self.known_copies[self.distractor_rows]]

    def blocks(self, categorised: bool = False) -> Iterator[tuple]:
        """This process's distractors, read anew at every call: (n, dim) unit rows, the place of the first of them among
        the `n_distractors` and, if asked for, their categories (n,)."""
        for embeds, first in self._store.blocks("distractor"):
            yield embeds, first, *([self.distractor_categories[first : first + len(embeds)]] if categorised else [])

    def count(self, *counters: Counter, categories: Tensor | None = None) -> None:
        """Adds the distractors to counters in one pass: this process's, or all of them from elsewhere.

        `categories`: (N,) of the distractors, for counters with others than the test set's.
        """
        if categories is None and any(counter.categories is not None for counter in counters):
            categories = self.distractor_categories
        if self._elsewhere is None:
            add_blocks(self.blocks(), counters, categories)
        else:
            self._elsewhere.count(self._store.placed("distractor"), counters, categories)

    def best_items(self, queries: Tensor, count: int) -> Tensor:
        """(Q, count) on the CPU: the best items of each query, best first, in the gallery of all targets and all
        distractors, over all processes. Item i < P is the target at place i, and P + i the distractor at place i."""
        top = TopItems(queries, count)
        for embeds, first in self.blocks():
            top.add(embeds, torch.arange(first, first + len(embeds)) + len(self.targets))
        top.gather()  # each process saw its own distractors
        top.add(self.targets, torch.arange(len(self.targets)))  # the same on every process
        return top.items.cpu()

    def positions(self, folds: Iterable[Tensor]) -> list[Tensor]:
        """Folds of the test set's product rows -> of positions among those that could be read, the others left out."""
        found = positions_among(torch.tensor(self.rows), folds)
        if not all(map(len, found)):
            raise ValueError(f"A fold names only products that cannot be read: {self.facts['skipped']['products']}.")
        return found


def add_blocks(blocks: Iterable[tuple[Tensor, int]], counters: Sequence[Counter], categories: Tensor | None) -> None:
    """Adds distractors to counters.

    Args:
        blocks: (n, dim) unit rows, and the place of the first of them among all.
        categories: (N,) of all distractors; None if no counter looks at them.
    """
    for embeds, first in blocks:
        for counter in counters:
            own = [] if counter.categories is None else [categories[first : first + len(embeds)]]
            counter.add(embeds, first, *own)


def positions_among(rows: Tensor, folds: Iterable[Tensor]) -> list[Tensor]:
    """Folds of row numbers -> of their positions among ascending `rows` (n,); what is not among them is left out."""
    position = torch.full((int(rows.max()) + 1 if len(rows) else 1,), -1)  # row -> position, -1 for none
    position[rows] = torch.arange(len(rows))
    found = [position[fold[fold < len(position)]] for fold in folds]  # rows beyond the last that could be read
    return [fold[fold >= 0] for fold in found]


def _skipped_rows(store: StoredTestSet, what: str) -> list[dict[str, Any]]:
    """The first rows that could not be read, and where they are."""
    described = []
    for row, reason in store.bad(what)[:SKIPPED_NAMED]:
        (origin,) = store.test_set.origins(what, row, row + 1)
        place = {"product_id": origin.product_id, "file": origin.file, "row_in_file": origin.row}
        described.append({"row": row, **place, "reason": reason})
    return described
