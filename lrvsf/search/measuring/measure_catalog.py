"""`search_catalog.py measure`: how well and how quickly a catalog answers the queries of a test set.

What is easily taken for one thing is told apart. What the index loses is recall@K against the exact search of the same
catalog. What the model and the filters are worth is R@K, the share of the queries whose target is among the first K.
Whether it is said where there is no such thing is measured by leaving each query's target out. And how long it takes is
measured with pictures, not with embeddings alone.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from lrvsf.data.images import Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.search.catalog import Catalog
from lrvsf.search.commands import HowToEmbed
from lrvsf.search.index import EXACT, VectorIndex
from lrvsf.search.measuring.asked_queries import CONDITIONED, PLAIN, AskedQueries, ask_with, items_left, product_of
from lrvsf.search.measuring.hit_lists import (
    Found,
    HitList,
    depth_for_ties,
    index_recall,
    no_close_match,
    target_recall,
)
from lrvsf.search.measuring.latency import latencies, machine

WAYS = {  # of asking -> which embedding asks, and whether only items of the query's category may answer
    "condition": (CONDITIONED, False),
    "filter": (PLAIN, True),
    "both": (CONDITIONED, True),
    "neither": (PLAIN, False),
}
BATCHES = (1, 32)  # queries that are timed together
TIMED = 64  # different pictures that are timed
ASKED = 256  # queries that are searched for together


def measure_catalog(
    catalog: Catalog, test_set: ProductTestSet, ks: Sequence[int], count: int, seed: int, how: HowToEmbed
) -> dict[str, Any]:
    """Everything that is measured, in JSON's types; numbers of recall are shares, times are ms.

    Raises:
        ValueError: the test set has a category that is not one of the model's conditions; no query can be read.
        TooMuchDamage: more queries cannot be read than are tolerated.
    """
    bad = Tolerance(how.max_bad_fraction, how.max_bad_in_a_row)
    queries = ask_with(catalog, test_set, count, seed, how.batch_size, bad)
    ways, notes = _ways(catalog, queries)
    recalls = _recalls(catalog, queries, ways, ks)
    if CONDITIONED in queries.embeds and recalls["no_close_match"] is None and any(queries.targets):
        notes.append(
            "The model is not calibrated, so nothing is called no close match: see search_catalog.py calibrate."
        )
    named = sum(target is not None for target in queries.targets)
    return {
        "catalog": {
            "folder": str(catalog.generation.catalog),
            "generation": catalog.generation.name,
            "items": len(catalog),
            "index": catalog.index.factory,
            "model": catalog.generation.manifest["model"]["name"],
        },
        "queries": {
            "test_set": str(test_set.root),
            "in_test_set": test_set.n_products,
            "seed": seed,
            "asked": len(queries),
            "with_target_in_catalog": named,
            "without_target_in_catalog": len(queries) - named,
            "unreadable": queries.unreadable.examples(),
        },
        "machine": machine(catalog),
        "not_measured": notes,
        **recalls,
        "latency_ms": _latencies(catalog, test_set, queries, max(ks), "filter" in ways),
    }


def _ways(catalog: Catalog, queries: AskedQueries) -> tuple[list[str], list[str]]:
    """The ways in which this catalog can be asked these queries, and a sentence for each reason why others are not."""
    ways, notes = list(WAYS), []
    if CONDITIONED not in queries.embeds:
        ways = [way for way in ways if WAYS[way][0] == PLAIN]
        notes.append("The model knows no conditions, so nothing is asked under one.")
    nameless = queries.categories.count(None)
    column = category_column(catalog)
    if column is None or nameless:
        ways = [way for way in ways if not WAYS[way][1]]
        if column is None:
            notes.append("The catalog has no column `category` of texts, so nothing is filtered by it.")
        else:
            notes.append(f"{nameless:,} queries have no category, so nothing is filtered by it.")
    else:
        there = set(pc.unique(items_left(catalog)[column]).to_pylist())
        if foreign := Counter(name for name in queries.categories if name not in there):
            names = ", ".join(f"{name} {count:,}" for name, count in foreign.most_common())
            notes.append(
                f"No item of the catalog is of the category of these queries, so a filter finds none: {names}."
            )
    return ways, notes


def category_column(catalog: Catalog) -> str | None:
    """The catalog's column of categories, as a filter names it; None where there is none, or it holds no texts."""
    texts = (field.name for field in catalog.metadata.schema if pa.types.is_string(field.type))
    return next((name for name in texts if name.lower() == "category"), None)


def _recalls(catalog: Catalog, queries: AskedQueries, ways: list[str], ks: Sequence[int]) -> dict[str, Any]:
    """`target_recall` and `index_recall`: way -> K, as a text, -> a share; None for an index that is exact. And
    `no_close_match`: a way with a condition -> what that function gives; None where nothing is told."""
    is_exact, exact = catalog.index.factory == EXACT, _with_exact_search(catalog)
    by_target: dict[str, Any] = {way: {} for way in ways}
    by_index: dict[str, Any] = {way: {} for way in ways}
    verdicts = {}
    with tqdm(desc="asking", total=len(ways) * (1 if is_exact else 1 + len(ks)) * len(queries), unit="query") as bar:
        for way in ways:
            best = hit_lists(exact, queries, way, depth_for_ties(max(ks)), bar)
            for k in ks:
                # An approximate index looks the farther the more it is asked for, so each K is a question of its own.
                lists = best if is_exact else hit_lists(catalog, queries, way, k, bar)
                by_target[way][str(k)] = target_recall(lists, queries.targets, k)
                by_index[way][str(k)] = index_recall(lists, best, k)
            if told := no_close_match(best, queries.targets):
                verdicts[way] = told
    return {
        "target_recall": by_target,
        "index_recall": None if is_exact else by_index,
        "no_close_match": verdicts or None,
    }


def _with_exact_search(catalog: Catalog) -> Catalog:
    """The same catalog, but every row is looked at."""
    for condition in catalog.conditions:
        catalog.scale(condition)  # by its own index, as it tells users; the copy then has these scales, too
    exact = copy.copy(catalog)
    exact.index = VectorIndex(catalog.vectors, EXACT, None)
    return exact


def hit_lists(catalog: Catalog, queries: AskedQueries, way: str, k: int, bar: tqdm) -> list[HitList]:
    """The first k products of each query, asked in one of WAYS."""
    kind, filtered = WAYS[way]
    rows = queries.embeds[kind]
    places: dict[str | None, list[int]] = defaultdict(list)  # of the queries that share a filter
    for place, category in enumerate(queries.categories):
        places[_where(catalog, category) if filtered else None].append(place)
    lists: list[HitList] = [()] * len(queries)
    for where, sharing in places.items():
        for start in range(0, len(sharing), ASKED):
            part = sharing[start : start + ASKED]
            conditions = [queries.categories[place] for place in part] if kind == CONDITIONED else None
            found = catalog.nearest(rows[part], k, where, conditions=conditions)
            for place, hits in zip(part, found, strict=True):
                lists[place] = [Found(product_of(hit), hit.score, hit.close) for hit in hits]
            bar.update(len(part))
    return lists


def _where(catalog: Catalog, category: str) -> str:
    text = category.replace("'", "''")
    return f"\"{category_column(catalog)}\" = '{text}'"


def _latencies(
    catalog: Catalog, test_set: ProductTestSet, queries: AskedQueries, k: int, filtered: bool
) -> dict[str, Any]:
    """queries together -> what `latencies` gives; the filter is the commonest category."""
    timed = dict(zip(queries.rows[:TIMED].tolist(), queries.categories, strict=False))
    pictures = {row: None for row in timed}
    for product in test_set.products(min(timed), max(timed) + 1):
        if product.row in pictures:
            pictures[product.row] = product.query_image
    conditioned = CONDITIONED in queries.embeds
    asked = [(pictures[row], timed[row] if conditioned else None) for row in timed]
    ((commonest, _),) = Counter(queries.categories).most_common(1)
    where = _where(catalog, commonest) if filtered else None
    bar = tqdm(BATCHES, desc="timing", unit="size")
    return {"k": k, **{str(together): latencies(catalog, asked, together, k, where) for together in bar}}
