"""Two evaluations of the same queries among the same items: their difference, with an interval.

The sampling unit is the product. Folds draw the same products again and again, so a deviation over folds says how much
one number moves between folds, not how far another test set's products could move the difference of two; and both
models find the same queries hard, which a difference of each product with itself takes out. So products are drawn anew,
with replacement, each with all its draws, and the difference is taken in every resample: a paired bootstrap. Its 2.5th
and 97.5th percentiles are the interval.

What the interval does not cover: other distractors and, where each model is one run, other training runs of the same
recipe. Several runs are compared by their means, product by product, and run by run.
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
        by_run: second - first of each pair of runs.
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
    by_run: tuple[float, ...]


def compare_pair(first: Sequence[str | Path], second: Sequence[str | Path]) -> list[Difference]:
    """Two models' runs, folders that evaluate_lrvsf.py wrote -> the differences at each gallery size and K. A K that
    reaches all of a gallery is left out.

    The model, the conditioning, the views of a query and the restriction to a category may differ: those are what is
    compared.

    Args:
        first, second: one folder each, or as many of one as of the other: the runs of one seed are a pair.

    Raises:
        ValueError: another test set, protocol, seed or other draws: the differences would not be paired. More runs of
            one than of the other.
        FileNotFoundError: no queries.parquet.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} runs of the first and {len(second)} of the second: give as many of each.")
    folders = [*first, *second]
    results = [load_results(Path(folder, "results.json")) for folder in folders]
    for folder, other in zip(folders[1:], results[1:], strict=True):  # first, as it needs no table
        _check_same(results[0], other, folders[0], folder)
    tables = [load_queries(folder) for folder in folders]
    parts = [_part_of(table) for table in tables]
    for folder, part in zip(folders[1:], parts[1:], strict=True):
        if part != parts[0]:
            named = [", ".join(f"{galleries} {size}" for galleries, size in each) for each in (parts[0], part)]
            raise ValueError(
                f"{folders[0]} has the galleries {named[0]}, {folder} {named[1]}. Evaluate both with the same flags."
            )
    differences = []
    for galleries, size in parts[0]:
        rows = [_rows(table, galleries, size) for table in tables]
        for folder, other in zip(folders[1:], rows[1:], strict=True):
            _check_draws(rows[0], other, size, folders[0], folder)
        draws = rows[0]["draws"].to_numpy()  # (P,), the same in all
        hits = np.stack([[each[f"hit_at_{k}"].to_numpy() for k in FIRST_KS] for each in rows])  # (2 runs, 3, P)
        hits = hits.reshape(2, len(first), len(FIRST_KS), -1)
        means = hits.mean(1)  # (2, 3, P): over the runs
        lows, highs = bootstrap_interval((means[1] - means[0]).T, draws)
        for column, k in enumerate(FIRST_KS):
            if any(is_trivial(part, "recall", str(k), whole) for part, whole in _measured(results, galleries, size)):
                continue
            # Pooled over all draws, as the interval is.
            recalls = [float(model[column] @ draws / draws.sum()) for model in means]
            better = [int((means[a, column] > means[b, column]).sum()) for a, b in ((0, 1), (1, 0))]
            by_run = tuple(((hits[1, :, column] - hits[0, :, column]) @ draws / draws.sum()).tolist())
            interval = float(lows[column]), float(highs[column])
            differences.append(Difference(galleries, size, k, *recalls, *interval, *better, by_run))
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
                if len(one.by_run) > 1:
                    lines.append(f"{'run by run':>24}   " + "".join(f"{100 * each:+10.2f}" for each in one.by_run))
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
