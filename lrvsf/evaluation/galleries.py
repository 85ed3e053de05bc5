"""What results.json says of one gallery size: its recalls, its ties, and how many items its galleries had."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.recall import Folds, GalleryRanks, fold_recall, mean_and_std
from lrvsf.evaluation.results import KS

logger = logging.getLogger(__name__)

TIES_WORTH_A_WARNING = 0.001  # of the queries; not tuned


def gallery_results(size: int, ranks: GalleryRanks, categories: list[str]) -> dict[str, Any]:
    """One gallery size's part of the results, as `lrvsf.evaluation.results` lists it."""
    if ranks.tied_queries > TIES_WORTH_A_WARNING * ranks.queries and PartialState().is_main_process:
        logger.warning(
            "Gallery of %d: %d of %d queries tie with other items. Equal images, or a model that collapses? "
            "The results hold the optimistic and the pessimistic recall.",
            *(size, ranks.tied_queries, ranks.queries),
        )
    results: dict[str, Any] = {"recall": {}, "recall_optimistic": {}, "recall_pessimistic": {}}
    for name, counted in (("", ranks.expected), ("_optimistic", ranks.optimistic), ("_pessimistic", ranks.pessimistic)):
        results[f"recall{name}"] = over_folds(fold_recall(counted, ranks.weights, max(KS)))
    tied_items = int((ranks.weights * ranks.tied).sum())
    results["ties"] = {"queries": ranks.queries, "tied_queries": ranks.tied_queries, "tied_items": tied_items}
    results["recall_at_1_by_category"] = {}
    for category in sorted(set(categories), key=str):
        rows = torch.tensor([name == category for name in categories])
        weights = ranks.weights[rows]
        if weights.sum() > 0:  # with few products a category may never be drawn
            share = (weights * (ranks.expected[rows] <= 1)).sum() / weights.sum()
            results["recall_at_1_by_category"][str(category)] = {"mean": share.item(), "queries": int(weights.sum())}
    return results


def over_folds(curves: Tensor) -> dict[str, dict[str, float]]:
    """(F, K) -> mean and deviation over folds at each K of KS."""
    mean, std = mean_and_std(curves)
    return {str(k): {"mean": mean[k - 1].item(), "std": std[k - 1].item()} for k in KS}


def describe_items(
    product_folds: Folds, distractor_folds: Folds, categorised: EmbeddedTestSet | None = None
) -> dict[str, Any]:
    """How many items the galleries of one size had, its target among them: a K that reaches them is no success.

    Args:
        product_folds, distractor_folds: F times the positions drawn.
        categorised: the test set, where galleries are of one category.

    Returns:
        items: the fewest of a fold's gallery; with categories, items_by_category: name -> mean over the folds that ask
        for it.
    """
    # A product stands in a gallery once however often it was drawn; a distractor as often as it was drawn.
    products = [torch.as_tensor(rows).unique() for rows in product_folds]
    folds = list(zip(products, distractor_folds, strict=True))
    described: dict[str, Any] = {"items": min(len(rows) + len(drawn) for rows, drawn in folds)}
    if categorised is None:
        return described
    names, counts = categorised.categories.names, []
    for rows, drawn in folds:
        targets = torch.bincount(categorised.product_categories[rows], minlength=len(names))
        # Category -1, which no product has, is counted in a first bin that is cut off.
        others = torch.bincount(categorised.distractor_categories[drawn] + 1, minlength=len(names) + 1)[1:]
        counts.append(torch.where(targets > 0, targets + others, 0))  # no product: nobody asks for this gallery
    items = torch.stack(counts)  # (F, C)
    means = items.sum(0).double() / (items > 0).sum(0).clamp(min=1)
    by_category = {name: mean for name, mean in zip(names, means.tolist(), strict=True) if mean}
    return {**described, "items_by_category": by_category}
