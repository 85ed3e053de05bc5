"""Two evaluations of the same queries among the same items: their difference, with an interval.

The sampling unit is the product. Folds draw the same products again and again, so a deviation over folds says how much
one number moves between folds, not how far another test set's products could move the difference of two; and both
models find the same queries hard, which a difference of each product with itself takes out. So products are drawn anew,
with replacement, each with all its draws, and the difference is taken in every resample: a paired bootstrap. Its 2.5th
and 97.5th percentiles are the interval.

What the interval does not cover: other distractors, and other training runs of the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrvsf.evaluation.queries import load_queries
from lrvsf.evaluation.results import FIRST_KS, is_trivial, load_results, views_of

RESAMPLES = 10_000  # percentiles of 2.5 stand on 250 of them
AT_A_TIME = 500  # resamples in memory: 4 MB for 1,000 products
SAME = ("test_set", "protocol", "seed", "folds", "products_per_fold", "gallery_sizes", "skipped")


@dataclass(frozen=True)
class Difference:
    """R@k of two evaluations at one gallery size, 0..1, pooled over all draws.

    Attributes:
        galleries, size: as in queries.parquet.
        low, high: the 95 % interval of second - first.
        for_first, for_second: products whose query the one evaluation gets right more often than the other. Where each
            product is asked once, as in the paper's galleries, these are the queries that only one gets right.
    """

    galleries: str
    size: int
    k: int
    first: float
    second: float
    low: float
    high: float
    for_first: int
    for_second: int


def compare_pair(first: str | Path, second: str | Path) -> list[Difference]:
    """Two folders that evaluate_lrvsf.py wrote -> the differences at each gallery size and K. A K that reaches all of
    a gallery is left out.

    The model, the conditioning, the views of a query and the restriction to a category may differ: those are what is
    compared.

    Raises:
        ValueError: another test set, protocol, seed or other draws: the differences would not be paired.
        FileNotFoundError: no queries.parquet.
    """
    results = [load_results(Path(folder, "results.json")) for folder in (first, second)]
    _check_same(*results, first, second)
    tables = [load_queries(folder) for folder in (first, second)]
    parts = [_part_of(table) for table in tables]
    if parts[0] != parts[1]:
        named = [", ".join(f"{galleries} {size}" for galleries, size in part) for part in parts]
        raise ValueError(
            f"{first} has the galleries {named[0]}, {second} {named[1]}. Evaluate both with the same flags."
        )
    differences = []
    for galleries, size in parts[0]:
        pair = [_rows(table, galleries, size) for table in tables]
        _check_draws(*pair, size, first, second)
        draws = pair[0]["draws"].to_numpy()  # (P,), the same in both
        hits = [np.stack([rows[f"hit_at_{k}"].to_numpy() for k in FIRST_KS], axis=1) for rows in pair]  # (P, 3) each
        lows, highs = bootstrap_interval(hits[1] - hits[0], draws)
        for column, k in enumerate(FIRST_KS):
            if any(is_trivial(part, "recall", str(k), whole) for part, whole in _measured(results, galleries, size)):
                continue
            values = [hit[:, column] for hit in hits]
            recalls = [float(value @ draws / draws.sum()) for value in values]  # pooled over all draws, as the interval
            better = [int((values[a] > values[b]).sum()) for a, b in ((0, 1), (1, 0))]
            differences.append(
                Difference(galleries, size, k, *recalls, float(lows[column]), float(highs[column]), *better)
            )
    return differences


def bootstrap_interval(
    differences: np.ndarray, draws: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean of M differences (P, M) of P products, weighted by their draws (P,) -> (M,), (M,).

    Raises ValueError: fewer than 2 products.
    """
    products = len(draws)
    if products < 2:
        raise ValueError(f"{products} product(s) were drawn; an interval over products needs at least 2.")
    generator = np.random.default_rng(seed)
    weighted = np.column_stack([draws[:, None] * differences, draws])  # (P, M + 1): the last column sums to a weight
    means = []
    for start in range(0, resamples, AT_A_TIME):
        count = min(AT_A_TIME, resamples - start)
        # Each resample counts in a row of cells of its own, so that one bincount serves them all.
        drawn = generator.integers(0, products, (count, products)) + products * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * products).reshape(count, products)
        sums = times @ weighted  # (count, M + 1): how often each product was drawn decides, not in which order
        means.append(sums[:, :-1] / sums[:, -1:])
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5), axis=0)
    return low, high


def differences_table(named_results: Mapping[str, Mapping[str, Any]], differences: Sequence[Difference]) -> str:
    """What is printed of a pair, at most 80 columns wide but for long names."""
    lines = []
    for which, (name, results) in zip(("first", "second"), named_results.items(), strict=True):
        asked = "conditioning " + results["conditioning"]
        asked += ", only items of the target's category" if results.get("restrict_to_category") else ""
        asked += f", query views {views}" if (views := views_of(results)) else ""
        lines.append(f"{which + ':':<8}{name} ({asked})")
    for galleries in dict.fromkeys(one.galleries for one in differences):
        stored = " on the stored folds" if galleries == "stored_folds" else ""
        lines += ["", f"R@K in %, second - first in points{stored}; 95 % interval over products"]
        lines.append(f"{'products more often':>80}")
        columns = {"N": 10, "K": 5, "first": 9, "second": 9, "difference": 12, "95 % interval": 18, "1st": 8, "2nd": 9}
        lines.append("".join(f"{name:>{width}}" for name, width in columns.items()))
        for one in differences:
            if one.galleries == galleries:
                lines.append(_line(one))
    return "\n".join(lines)


def _line(one: Difference) -> str:
    interval = f"{100 * one.low:+.2f} to {100 * one.high:+.2f}"
    recalls = f"{100 * one.first:>9.2f}{100 * one.second:>9.2f}{100 * (one.second - one.first):>+12.2f}"
    return f"{one.size:>10,}{one.k:>5}{recalls}{interval:>18}{one.for_first:>8}{one.for_second:>9}"


def _measured(results: Sequence[Mapping[str, Any]], galleries: str, size: int) -> list[tuple[Any, Mapping[str, Any]]]:
    """Each evaluation's part on one gallery size, and the whole."""
    parts = [whole if galleries == "galleries" else whole[galleries] for whole in results]
    return [(part["galleries"][str(size)], whole) for part, whole in zip(parts, results, strict=True)]


def _check_same(one: Mapping[str, Any], two: Mapping[str, Any], first: str | Path, second: str | Path) -> None:
    """Both were measured on the same ground, as far as results.json tells."""
    for results, folder in ((one, first), (two, second)):
        if "test_set" not in results:
            raise ValueError(f"{folder} does not say what test set it is of. Evaluate the model again.")
    for name in SAME:
        if one.get(name) != two.get(name):
            raise ValueError(
                f"{name} is {one.get(name)} in {first} but {two.get(name)} in {second}: not the same queries among the "
                "same items. Evaluate both with the same flags."
            )


def _check_draws(one: pa.Table, two: pa.Table, size: int, first: str | Path, second: str | Path) -> None:
    for name in ("product_row", "category", "draws"):
        if not one[name].equals(two[name]):
            values = [table[name].to_pylist()[:5] for table in (one, two)]
            raise ValueError(
                f"At {size} distractors {name} begins with {values[0]} in {first} but with {values[1]} in {second} or "
                "differs further on: other draws. Evaluate both with the same flags."
            )


def _part_of(table: pa.Table) -> list[tuple[str, int]]:
    parts = table.select(["galleries", "size"]).to_pylist()
    return list(dict.fromkeys((part["galleries"], part["size"]) for part in parts))


def _rows(table: pa.Table, galleries: str, size: int) -> pa.Table:
    rows = table.filter((pc.field("galleries") == galleries) & (pc.field("size") == size))
    return rows.sort_by("product_row").combine_chunks()  # both tables in one order: products are paired by place
