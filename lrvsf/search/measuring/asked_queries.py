"""The queries of a test set as a catalog is asked: embedded by its model, and their targets found among its items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Decoded, Item, Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.embedding.store import renormalised
from lrvsf.report import Ledger
from lrvsf.search.catalog import Catalog
from lrvsf.search.hits import Hit
from lrvsf.search.sources.prepared import item_name

PLAIN, CONDITIONED = "plain", "conditioned"


@dataclass(frozen=True)
class AskedQueries:
    """N queries that could be read.

    Attributes:
        rows: (N,) their rows in products.parquet, ascending.
        categories: what each is asked about; None where the test set does not say.
        targets: the product of the catalog that each should find; None where the catalog does not have it.
        embeds: PLAIN and, of a model with conditions, CONDITIONED -> (N, dim) unit rows.
        unreadable: those that could not be read, by reason.
    """

    rows: np.ndarray
    categories: list[str | None]
    targets: list[str | None]
    embeds: dict[str, np.ndarray]
    unreadable: Ledger

    def __len__(self) -> int:
        return len(self.rows)


class SampledQueries(Products):
    """Some of a test set's queries, without and, where the model knows conditions, with the product's category.

    Args:
        rows: those of products.parquet that are wanted, ascending.
    """

    def __init__(self, test_set: ProductTestSet, rows: np.ndarray, conditioned: bool) -> None:
        super().__init__(test_set)
        self.rows, self.total = rows, len(rows)
        self.kinds = (PLAIN, CONDITIONED) if conditioned else (PLAIN,)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        wanted = set(self.rows[start:stop].tolist())
        for product in self.test_set.products(min(wanted, default=0), max(wanted, default=-1) + 1):
            if product.row in wanted:
                yield product.row, product.query_image

    def decode(self, encoder: Encoder, image: bytes | None) -> Decoded:
        # As the catalog looks at what it is asked with, upright and on white; evaluate_lrvsf.py does not.
        return Decoded([encoder.pixels_of(decode_shown(image))] * len(self.kinds))

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, torch.Tensor]:
        embeds = {PLAIN: encoder.embed(pixels[0])}
        if CONDITIONED in self.kinds:
            embeds[CONDITIONED] = encoder.embed(pixels[0], [self.conditions(encoder)[row] for row in rows])
        return embeds


def ask_with(
    catalog: Catalog, test_set: ProductTestSet, count: int, seed: int, batch_size: int, bad: Tolerance
) -> AskedQueries:
    """Embeds the queries of a test set, or as many of them as are wanted, drawn by the seed.

    Raises:
        ValueError: the test set has a category that is not one of the model's conditions; no query can be read.
        TooMuchDamage: more queries cannot be read than are tolerated.
    """
    if catalog.conditions:
        test_set.check_categories(catalog.conditions)
    rows = np.arange(test_set.n_products)
    if count < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
    sample = SampledQueries(test_set, rows, conditioned=bool(catalog.conditions))
    embedded = embed_share(catalog.encoder, sample, batch_size, bad)
    unreadable = Ledger()
    for row, reason in embedded.bad:
        unreadable.add(reason, f"row {row}")
    if not embedded.rows:
        raise ValueError(f"{test_set.root} has no query that can be read: {reasons(unreadable)}")
    readable = np.array(embedded.rows)
    categories = test_set.categories()
    ids = [origin.product_id for origin in test_set.origins("products")]
    names = [item_name(ids[row], "product", row) for row in embedded.rows]
    # Rounded as evaluate_lrvsf.py rounds its queries, so that both count the same.
    embeds = {kind: renormalised(rows.half()).numpy() for kind, rows in embedded.embeds.items()}
    wanted = [categories[row] for row in embedded.rows]
    return AskedQueries(readable, wanted, products_named(catalog, names), embeds, unreadable)


def reasons(unreadable: Ledger) -> str:
    """ "2 truncated (row 3, row 7)", for a line."""
    told = unreadable.examples().items()
    return "; ".join(f"{one['count']:,} {reason} ({one['such as']})" for reason, one in told)


def product_of(hit: Hit) -> str:
    """What all photos of a hit's product have in common: its `product_id`, or its id."""
    known = hit.metadata.get("product_id")
    return hit.id if known is None else str(known)


def products_named(catalog: Catalog, names: Sequence[str]) -> list[str | None]:
    """The product, as `product_of` gives it, that each name is the product_id or the id of; None: there is none."""
    items = items_left(catalog)
    ids = products = items["id"].combine_chunks()
    if "product_id" in items.column_names:
        products = pc.coalesce(items["product_id"].combine_chunks().cast(pa.string()), ids)
    wanted = pa.array(names, pa.string())
    places = pc.coalesce(pc.index_in(wanted, value_set=products), pc.index_in(wanted, value_set=ids))
    return products.take(places).to_pylist()  # of no place, None


def items_left(catalog: Catalog) -> pa.Table:
    """`id` and metadata of the items that are still there."""
    left = np.ones(len(catalog.metadata), bool)
    left[catalog.generation.removed] = False
    return catalog.metadata.filter(pa.array(left))
