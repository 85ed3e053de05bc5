"""The paper's protocol (arXiv 2306.02928): the full test set at growing galleries, and stored folds.

The full test set is one gallery of all products and the first N distractors, for N from 0 to all of the published
2,000,015. Stored folds are the published draws of products and of distractors (`lrvsf.evaluation.stored_folds`), and
the same products without any distractor. Everywhere recall is measured in the whole gallery and in the part of it that
is of the target's category, with the share of the top K that is of that category (`lrvsf.evaluation.precision`).

Links die, so a test set of today has fewer distractors than were published. What that changes is marked: sizes out of
reach are listed instead of measured, the largest gallery is all there is, and draws that are missing are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.columns import ids_of
from lrvsf.evaluation.embedded import EmbeddedTestSet, positions_among
from lrvsf.evaluation.galleries import describe_items, gallery_results, over_folds
from lrvsf.evaluation.precision import TopShares
from lrvsf.evaluation.queries import QueryTable
from lrvsf.evaluation.recall import Folds, RankCounter, fold_recall
from lrvsf.evaluation.results import KS
from lrvsf.evaluation.stored_folds import StoredFolds

# The published curve's; the last one is all published distractors.
SIZES = (0, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_015)


def evaluate_paper(
    data: EmbeddedTestSet,
    stored_folds: str | None = None,
    bf16_ranks: bool = False,
    queries: QueryTable | None = None,
    allow_unmatched: bool = False,
) -> dict[str, Any]:
    """Embeds what is missing and measures it all. Every process must call it; all get the same results.

    Args:
        stored_folds: file of the published folds, as `lrvsf.evaluation.stored_folds` writes it.
        bf16_ranks: multiply in bfloat16 first, with the same ranks.
        queries: what became of every query is added to it.
        allow_unmatched: measure within categories even where distractors do not join the products.

    Returns:
        What results.json holds (`lrvsf.evaluation.results`), but for the names of the model and the test set.

    Raises:
        ValueError: distractors without categories or that do not join, folds of another test set; and as
            `evaluate_bootstrap` does.
    """
    stored = None if stored_folds is None else StoredFolds(stored_folds)
    matched = None if stored is None else _Matched(stored, data.test_set)  # refused before anything is embedded
    categories = data.categories
    if not allow_unmatched:
        categories.check()
    data.fill()

    reached = [size for size in SIZES if size <= data.n_distractors]  # never empty: 0 is one
    sizes = reached if reached[-1] == data.n_distractors else [*reached, data.n_distractors]
    everyone = torch.arange(len(data.rows))[None]  # one fold, (1, P)
    prefixes = [torch.arange(size)[None] for size in sizes]  # the first N distractors of the test set's order
    galleries = _galleries(data, sizes, everyone, prefixes, bf16_ranks, queries, "galleries")
    if len(sizes) > len(reached):
        galleries[str(sizes[-1])]["marked"] = "all distractors of this test set; no published size"
    results = {
        "protocol": "paper",
        "gallery_sizes": sizes,
        "sizes_not_reached": list(SIZES[len(reached) :]),
        "folds": 1,
        "products_per_fold": len(data.rows),
        "seed": None,
        "allow_unmatched_categories": allow_unmatched,
        "bf16_ranks": bf16_ranks,
        **data.facts,
        "unmatched": categories.facts(),
        "galleries": galleries,
    }
    if matched is not None:
        results["stored_folds"] = {"file": stored_folds, **matched.results(data, bf16_ranks, queries)}
    return results


class _Matched:
    """Stored folds as rows of a test set, before and after its images were read."""

    def __init__(self, stored: StoredFolds, test_set: ProductTestSet) -> None:
        self.folds, self.sizes = stored.folds, [0, *stored.sizes]
        self.products = stored.products(ids_of(test_set, "products"))
        ids = ids_of(test_set, "distractors")
        self.distractors = [stored.distractors(size, ids) for size in stored.sizes]

    def results(self, data: EmbeddedTestSet, bf16_ranks: bool, queries: QueryTable | None) -> dict[str, Any]:
        """The folds' galleries. What could not be read is left out: galleries can be smaller and queries fewer."""
        products = data.positions(self.products.rows)
        drawn: list[Sequence[Tensor]] = [[torch.empty(0, dtype=torch.int64)] * self.folds]  # size 0: products alone
        drawn += [positions_among(data.distractor_rows, matched.rows) for matched in self.distractors]
        galleries = _galleries(data, self.sizes, products, drawn, bf16_ranks, queries, "stored_folds")
        for size, matched, folds in zip(self.sizes[1:], self.distractors, drawn[1:], strict=True):
            missing = matched.draws - sum(map(len, folds))  # of ids that are not there, and of images that are damaged
            if missing:
                galleries[str(size)]["missing_draws"] = missing
                galleries[str(size)]["marked"] = (
                    f"{missing / matched.draws:.2%} of the draws of distractors are missing"
                )
        return {
            "folds": self.folds,
            "products_per_fold": self.products.draws // self.folds,
            "missing_draws": {"products": self.products.draws - sum(map(len, products))},
            "galleries": galleries,
        }


def _galleries(
    data: EmbeddedTestSet,
    sizes: list[int],
    product_folds: Folds,
    distractor_folds: Sequence[Folds],
    bf16_ranks: bool,
    queries: QueryTable | None,
    name: str,
) -> dict[str, Any]:
    """The results of each size, in one pass over the distractors."""
    arguments = data.queries, data.targets, product_folds, distractor_folds
    whole = RankCounter(*arguments, bf16=bf16_ranks)
    within = RankCounter(*arguments, data.product_categories, bf16=bf16_ranks)
    tops = TopShares(data.queries, data.targets, data.product_categories, product_folds, distractor_folds, max(KS))
    data.count(whole, within, tops)  # read once for all three
    galleries = {}
    counted = zip(sizes, distractor_folds, whole.ranks(), within.ranks(), tops.shares(), strict=True)
    for size, drawn, ranks, restricted, shares in counted:
        if queries is not None:
            queries.add(size, ranks, data, name)
        precision = over_folds(shares)
        galleries[str(size)] = {
            **gallery_results(size, ranks, data.category_names),
            **describe_items(product_folds, drawn, data),
            "recall_in_category": over_folds(fold_recall(restricted.expected, restricted.weights, max(KS))),
            "precision": precision,
            "category_accuracy": precision["1"],  # the paper's name for it
        }
    return galleries
