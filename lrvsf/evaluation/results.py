"""Results as a file, tables and a plot. All that is printed or drawn comes from the dictionary that results.json holds,
or, query by query, from queries.parquet next to it (`lrvsf.evaluation.queries`).

model, model_weights, conditioning, embedding_dim, compute_dtype, store_dtype, data_root, versions
protocol, seed, folds, products_per_fold, gallery_sizes, n_products, n_distractors
query_views                              which views each query is the mean of, if it is: no published protocol asks so
test_set[products | distractors]         what its files are, wherever they lie
skipped[products | distractors][reason]  counts of rows that could not be read
skipped_rows[products | distractors]     the first hundred of them: row, product_id, file, row_in_file, reason
galleries[SIZE]                          SIZE, as K, is a string
    recall[K]                            {"mean", "std"} over folds, between 0 and 1
    recall_optimistic[K]                 the same with a target before the items that tie with it,
    recall_pessimistic[K]                and after them
    recall_copies_aside[K]               the same with no copy of the target before it, where copies are known
    ties                                 queries over all folds, those that tie, and the items they tie with
    recall_at_1_by_category[CATEGORY]    {"mean", "queries"} over the queries of all folds
    items                                the fewest items of a fold's gallery, the target among them
    items_by_category[CATEGORY]          where galleries are of one category: items, mean over the folds that ask for it
    marked                               where the size is not what it says, why
unmatched                                where categories were joined: what did not join
                                         (`lrvsf.evaluation.columns.Categories.facts`)
conditions                               with --conditioning_page: see `lrvsf.evaluation.pages.conditions`

Protocol "leaderboard" and "bootstrap" add product_folds, restrict_to_category, allow_unmatched_categories, bf16_ranks
and missing_draws[products]: draws of a file that name a product that cannot be read. Protocol "paper", one fold of all
products, adds sizes_not_reached, stored_folds (file, folds, products_per_fold, missing_draws, galleries as here) and,
in galleries,
    recall_in_category[K]                recall where the gallery holds only items of the target's category
    precision[K]                         share of the top K that is of the target's category
    category_accuracy                    {"mean", "std"}, the precision at 1
    missing_draws                        of stored folds, the draws of distractors that the test set lacks
"""

import json
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrvsf.data.names import did_you_mean, printable
from lrvsf.durable import write_whole

Results = Mapping[str, Any]

KS = (1, 5, 10, 20, 50)  # the K at which results.json reports
FIRST_KS = KS[:3]  # of tables that compare, plots, pages, queries.parquet, validation and model cards

TRIVIAL = "-: a gallery has at most K items, so that every query would succeed"
UNPUBLISHED = "as no published protocol asks"
GROUND = ("test_set", "skipped", "seed", "folds", "products_per_fold", "product_folds", "missing_draws")
FEW_QUERIES = 200  # below, the table says how little a score can tell; not tuned: an interval of at most 14 points
MOST_NAMES = 30  # categories listed, those with the fewest items first; not tuned


def save_results(results: Results, path: str | Path) -> None:
    """Writes results.json so that a reader never sees half of it."""
    # A number that is not finite ends this: other readers of JSON do not know NaN.
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
        *(["query views   {query_views}, " + UNPUBLISHED] if views_of(results) else []),
        "test set      {n_products} products, {n_distractors} distractors",
        "skipped       {counts}",
    ]
    lines = [line.format(**results, counts=_skipped(results)) for line in lines]
    lines += [f"protocol      {_protocol(results)}", "", *_galleries(results["galleries"], results)]
    if results.get("sizes_not_reached"):
        sizes = ", ".join(map(str, results["sizes_not_reached"]))
        lines.append(_wrapped(f"Not measured, as there are too few distractors: {sizes}"))
    if stored := results.get("stored_folds"):
        per_fold, missing = stored["products_per_fold"], stored["missing_draws"]["products"]
        lines += ["", f"{stored['folds']} stored folds of {per_fold} products, {missing} draws of products missing", ""]
        lines += _galleries(stored["galleries"], results)
    sentences = [*_unmatched(results.get("unmatched")), *_few_queries(results)]
    return "\n".join([*lines, *("\n" + _wrapped(sentence) for sentence in sentences)])


def _protocol(results: Results) -> str:
    if results["protocol"] == "paper":
        lines = ["paper, all products, the first N distractors"]
    else:
        lines = ["{protocol}, {folds} folds of {products_per_fold} products, seed {seed}".format(**results)]
    if results.get("product_folds"):
        lines.append(f"products drawn by {results['product_folds']}")
        lines[-1] += f", {results['missing_draws']['products']} draws missing"
    elif results["protocol"] == "leaderboard":
        lines.append("products drawn here, which are not the published draws")
    if results["protocol"] != "bootstrap" and results["compute_dtype"] != "float32":
        lines.append(f"in {results['compute_dtype']}, where the published scores are of float32")
    if results.get("restrict_to_category"):
        lines.append("only items of the target's category")
    return "\n              ".join(lines)


def _galleries(galleries: Mapping[str, Any], results: Results) -> list[str]:
    """The lines of one table, or of three under one another, and what is to be said of them."""
    titles = {
        "recall": "R@K in %, mean ± standard deviation over folds; a gallery has N distractors",
        "recall_copies_aside": "R@K in %, with no place taken by a known copy of the target",
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
                cells = ["-" if is_trivial(gallery, key, k, results) else percent(gallery[key][k]) for k in ks]
                lines.append(f"{name:>10}" + "".join(f"{cell:>14}" for cell in cells))
    lines = lines[1:]
    if any(line.endswith(" -") for line in lines):
        lines += ["", TRIVIAL]
    if "items_by_category" in first:
        lines += ["", "Items of a category in a gallery, the target among them, mean over folds"]
        lines += [_items(size, gallery["items_by_category"]) for size, gallery in galleries.items()]
    marked = {size: gallery["marked"] for size, gallery in galleries.items() if "marked" in gallery}
    lines += ["", *(f"* {int(size):,}: {why}" for size, why in marked.items())] if marked else []
    tied = {size: gallery["ties"]["tied_queries"] for size, gallery in galleries.items()}
    if any(tied.values()):
        counts = ", ".join(f"{size}: {count}" for size, count in tied.items())
        queries = first["ties"]["queries"]
        lines += ["", f"Tied with another item, of {queries} queries, by gallery: {counts}"]
    return lines


def is_trivial(gallery: Mapping[str, Any], key: str, k: str, results: Results) -> bool:
    """Whether a gallery has at most K items, so that recall at K is 1 whatever the model."""
    if key == "recall_in_category" or results.get("restrict_to_category"):
        items = max(gallery.get("items_by_category", {}).values(), default=math.inf)  # the largest category's gallery
    else:
        items = gallery.get("items", math.inf)  # earlier versions did not count them
    return int(k) >= items


def _items(size: str, items: Mapping[str, float]) -> str:
    named = [f"{printable(name)} {count:,.1f}".removesuffix(".0") for name, count in items.items()]
    if len(named) > MOST_NAMES:
        fewest = sorted(items, key=items.__getitem__)[:MOST_NAMES]
        named = [named[list(items).index(name)] for name in fewest] + [f"{len(items) - MOST_NAMES} others more"]
    return _wrapped(f"{int(size):>9,}   {', '.join(named)}", indent=12)


def _unmatched(unmatched: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each kind of thing that did not join by category."""
    if unmatched is None:
        return []
    sentences = [
        f"{count:,} distractors have no category ({why}): no gallery of one category holds them."
        for why, count in unmatched["distractors_without_category"].items()
    ]
    if alone := unmatched["categories_without_distractors"]:
        named = ", ".join(map(printable, alone))
        sentences.append(f"No distractor is of {named}: such a gallery holds products only, and recall is too good.")
    if others := unmatched["distractors_of_other_categories"]:
        shown = [
            f"{printable(name)} {count:,}" + _in_brackets(did_you_mean(name, unmatched["categories"]))
            for name, count in list(others.items())[:MOST_NAMES]
        ]
        sentences.append(
            f"{sum(others.values()):,} distractors are of categories that no product has: {', '.join(shown)}"
            + ("." if len(others) <= MOST_NAMES else f" and {len(others) - MOST_NAMES} more categories.")
        )
    return sentences


def _in_brackets(question: str) -> str:
    return question and f" ({question[1].lower()}{question[2:]})"


def _few_queries(results: Results) -> list[str]:
    """One sentence where the queries are too few to tell much: how far the score could be from that of others."""
    # Folds ask for the same products again: more draws than products are not more independent queries.
    queries = min(results["n_products"], results["folds"] * results["products_per_fold"])
    if queries >= FEW_QUERIES:
        return []
    size = max(results["galleries"], key=int)  # a text, as JSON's names are
    low, high = wilson_interval(results["galleries"][size]["recall"]["1"]["mean"], queries)
    return [
        f"{queries} queries tell little: the 95 % interval of R@1 at N = {int(size):,} is {100 * (high - low):.0f} "
        f"points wide, from {100 * low:.0f} to {100 * high:.0f} %, and smaller differences may be chance."
    ]


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent cases (Wilson 1927), within 0..1 also at 0 and 1."""
    z2 = 1.959964**2  # the normal distribution's 97.5th percentile
    middle, half = share + z2 / (2 * count), math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    return max(0.0, (middle - half) / (1 + z2 / count)), min(1.0, (middle + half) / (1 + z2 / count))


def _wrapped(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, 80, subsequent_indent=" " * indent, drop_whitespace=True, break_on_hyphens=False)


def comparison_table(named_results: Mapping[str, Results]) -> str:
    """One row per model: R@1, R@5, R@10 in percent at each gallery size that all were evaluated at.
    Below it, what does not compare: other test sets or draws, galleries of one category.

    Args:
        named_results: name of a model -> its results, in the order of the rows.

    Raises:
        ValueError: no results, or no gallery size in common.
    """
    if not named_results:
        raise ValueError("comparison_table got no results.")
    have = [set(map(int, results["galleries"])) for results in named_results.values()]
    common = sorted(set.intersection(*have))
    if not common:
        raise ValueError(f"No gallery size in common: {dict(zip(named_results, map(sorted, have), strict=True))}.")
    ks, width = [str(k) for k in FIRST_KS], max(map(len, [*named_results, "model"]))
    lines = [
        " " * width + "".join(f"{f'{n:,} distractors':>{7 * len(ks)}}" for n in common),
        f"{'model':<{width}}" + "".join(f"{'R@' + k:>7}" for k in ks) * len(common),
    ]
    for name, results in named_results.items():
        galleries = [results["galleries"][str(n)] for n in common]
        cells = [
            "-" if is_trivial(gallery, "recall", k, results) else f"{100 * gallery['recall'][k]['mean']:.1f}"
            for gallery in galleries
            for k in ks
        ]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>7}" for cell in cells))
    notes = [TRIVIAL] if any(line.endswith(" -") for line in lines) else []
    return "\n".join([*lines, *("\n" + _wrapped(note) for note in [*notes, *_differing_ground(named_results)])])


def _differing_ground(named_results: Mapping[str, Results]) -> list[str]:
    """A sentence for each model whose figures were not measured as the first one's, or not in whole galleries."""
    (first, ground), *others = named_results.items()
    sentences = [
        f"{printable(name)} was not measured on the ground of {printable(first)}, so that they do not compare: "
        f"{', '.join(differ)} differ."
        for name, results in others
        if (differ := [fact for fact in GROUND if results.get(fact) != ground.get(fact)])
    ]
    within = [printable(name) for name, results in named_results.items() if results.get("restrict_to_category")]
    views = [f"{printable(name)} ({asked})" for name, results in named_results.items() if (asked := views_of(results))]
    return [
        *sentences,
        *([f"Only items of the target's category: {', '.join(within)}."] if within else []),
        *([f"Queries by views of their pictures, {UNPUBLISHED}: {', '.join(views)}."] if views else []),
    ]


def views_of(results: Results) -> str:
    """The views whose mean each query was, as "whole,flip"; empty where it was the whole picture alone."""
    return printable(results.get("query_views", ""))


def shown_name(results: Results) -> str:
    """The model's name for a plot, with the views of its queries."""
    return ", ".join(filter(None, (Path(results["model"]).name, views_of(results))))


def percent(recall: Mapping[str, float]) -> str:
    """Mean ± deviation over folds: "93.44 ± 0.83"."""
    return f"{100 * recall['mean']:.2f} ± {100 * recall['std']:.2f}"


def _skipped(results: Results) -> str:
    counts = [f"{n} {what} ({reason})" for what, reasons in results["skipped"].items() for reason, n in reasons.items()]
    return ", ".join(counts) or "none"
