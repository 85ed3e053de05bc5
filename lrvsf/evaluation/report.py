"""Results as a file, tables and a plot. All that is printed or drawn comes from the dictionary that results.json holds,
or, query by query, from queries.parquet beside it (`lrvsf.evaluation.queries`).

model, model_weights, conditioning, embedding_dim, compute_dtype, store_dtype, data_root, versions
protocol, seed, folds, products_per_fold, gallery_sizes, n_products, n_distractors
test_set[products | distractors]         what its files are, wherever they lie
skipped[products | distractors][reason]  counts of rows that could not be read
galleries[SIZE]                          SIZE, as K, is a string
    recall[K]                            {"mean", "std"} over folds, between 0 and 1
    recall_optimistic[K]                 the same with a target before the items that tie with it,
    recall_pessimistic[K]                and after them
    ties                                 queries over all folds, those that tie, and the items they tie with
    recall_at_1_by_category[CATEGORY]    {"mean", "queries"} over the queries of all folds
    marked                               where the size is not what it says, why
conditions                               with --conditioning_page: see `lrvsf.evaluation.conditions`

Protocol "leaderboard" and "bootstrap" add product_folds, restrict_to_category, bf16_ranks and missing_draws[products]:
draws of a file that name a product that cannot be read. Protocol "paper", one fold of all products, adds
sizes_not_reached, stored_folds (file, folds, products_per_fold, missing_draws, galleries as here) and, in galleries,
    recall_in_category[K]                recall where the gallery holds only items of the target's category
    precision[K]                         share of the top K that is of the target's category
    category_accuracy                    {"mean", "std"}, the precision at 1
    missing_draws                        of stored folds, the draws of distractors that the test set lacks
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrvsf.durable import write_whole

Results = Mapping[str, Any]


def save_results(results: Results, path: str | Path) -> None:
    """Writes results.json so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def load_results(path: str | Path) -> dict[str, Any]:
    """Reads results.json. Raises ValueError: it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Evaluate the model again.") from error


def results_table(results: Results) -> str:
    """What the evaluation prints, at most 80 columns wide: R@K in percent, mean ± standard deviation over folds."""
    lines = [
        "model         {model}",
        "conditioning  {conditioning}, {embedding_dim} dimensions, computed in {compute_dtype}",
        "test set      {n_products} products, {n_distractors} distractors",
        "skipped       {skipped_rows}",
    ]
    lines = [line.format(**results, skipped_rows=_skipped(results)) for line in lines]
    lines += [f"protocol      {_protocol(results)}", "", *_galleries(results["galleries"])]
    if results.get("sizes_not_reached"):
        lines.append("Not measured, for want of distractors: " + ", ".join(map(str, results["sizes_not_reached"])))
    if stored := results.get("stored_folds"):
        per_fold, missing = stored["products_per_fold"], stored["missing_draws"]["products"]
        lines += ["", f"{stored['folds']} stored folds of {per_fold} products, {missing} draws of products missing", ""]
        lines += _galleries(stored["galleries"])
    return "\n".join(lines)


def _protocol(results: Results) -> str:
    if results["protocol"] == "paper":
        return "paper, all products, the first N distractors"
    text = "{protocol}, {folds} folds of {products_per_fold} products, seed {seed}".format(**results)
    if results.get("product_folds"):
        text += f"\n              products drawn by {results['product_folds']}"
        text += f", {results['missing_draws']['products']} draws missing"
    return text + ("\n              only items of the target's category" if results.get("restrict_to_category") else "")


def _galleries(galleries: Mapping[str, Any]) -> list[str]:
    """The lines of one table, or of three under one another, and what is to be said of them."""
    titles = {
        "recall": "R@K in %, mean ± standard deviation over folds; a gallery has N distractors",
        "recall_in_category": "R@K in %, only items of the target's category",
        "precision": "Share of the top K in the target's category, in %",
    }
    first, lines = next(iter(galleries.values())), []
    for key, title in titles.items():
        if key in first:
            ks = list(first[key])
            letter = "P" if key == "precision" else "R"
            lines += ["", title, f"{'N':>10}" + "".join(f"{f'{letter}@{k}':>14}" for k in ks)]
            for size, gallery in galleries.items():
                name = f"{int(size):,}" + ("*" if "marked" in gallery else " ")
                lines.append(f"{name:>10}" + "".join(f"{_percent(gallery[key][k]):>14}" for k in ks))
    lines = lines[1:]
    marked = {size: gallery["marked"] for size, gallery in galleries.items() if "marked" in gallery}
    lines += ["", *(f"* {int(size):,}: {why}" for size, why in marked.items())] if marked else []
    tied = {size: gallery["ties"]["tied_queries"] for size, gallery in galleries.items()}
    if any(tied.values()):
        counts = ", ".join(f"{size}: {count}" for size, count in tied.items())
        queries = first["ties"]["queries"]
        lines += ["", f"Tied with another item, of {queries} queries, by gallery: {counts}"]
    return lines


def comparison_table(named_results: Mapping[str, Results], size: int | None = None) -> str:
    """One row per model: R@1, R@5, R@10 in percent at each gallery size that all were evaluated at, or at `size` only.

    Args:
        named_results: name of a model -> its results, in the order of the rows.

    Raises:
        ValueError: no results, or no gallery size in common.
    """
    if not named_results:
        raise ValueError("comparison_table got no results.")
    have = [set(map(int, results["galleries"])) for results in named_results.values()]
    common = sorted(set.intersection(*have) & ({size} if size is not None else have[0]))
    if not common:
        raise ValueError(
            f"No gallery size in common: {dict(zip(named_results, map(sorted, have), strict=True))}; asked for {size}."
        )
    ks, width = ("1", "5", "10"), max(map(len, [*named_results, "model"]))
    lines = [
        " " * width + "".join(f"{f'{n:,} distractors':>{7 * len(ks)}}" for n in common),
        f"{'model':<{width}}" + "".join(f"{'R@' + k:>7}" for k in ks) * len(common),
    ]
    for name, results in named_results.items():
        recalls = [results["galleries"][str(n)]["recall"][k]["mean"] for n in common for k in ks]
        lines.append(f"{name:<{width}}" + "".join(f"{100 * recall:>7.1f}" for recall in recalls))
    return "\n".join(lines)


def _percent(recall: Mapping[str, float]) -> str:
    return f"{100 * recall['mean']:.2f} ± {100 * recall['std']:.2f}"


def _skipped(results: Results) -> str:
    counts = [f"{n} {what} ({reason})" for what, reasons in results["skipped"].items() for reason, n in reasons.items()]
    return ", ".join(counts) or "none"
