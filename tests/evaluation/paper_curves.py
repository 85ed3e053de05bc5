"""The published function's curves in one gallery, made by the counters of the paper's protocol."""

import torch
from torch import Tensor

from lrvsf.evaluation.precision import TopShares
from lrvsf.evaluation.recall import RankCounter, fold_recall


def paper_curves(
    query_embeds: Tensor,
    target_embeds: Tensor,
    distractor_embeds: Tensor,
    target_category: Tensor,
    distractor_category: Tensor,
    weights: Tensor | None = None,
    max_k: int = 100,
) -> dict[str, Tensor]:
    """(max_k,) each, under their published names: recall in the whole gallery and in the part of it that is of the
    target's category, and the share of the top k that is of that category.

    `weights` (P,) say how often a product counts as a query; one that never does is not in the gallery.
    """
    products = len(query_embeds)
    counts = torch.ones(products, dtype=torch.int64) if weights is None else weights
    drawn = torch.arange(products).repeat_interleave(counts)[None]
    everything = [torch.arange(len(distractor_embeds))[None]]
    curves = {}
    for name, categories in (("unfilt_r@k", None), ("filt_r@k", target_category)):
        counter = RankCounter(query_embeds, target_embeds, drawn, everything, categories)
        counter.add(distractor_embeds, 0, None if categories is None else distractor_category)
        (ranks,) = counter.ranks()
        curves[name] = fold_recall(ranks.expected, ranks.weights, max_k)[0]
    tops = TopShares(query_embeds, target_embeds, target_category, drawn, everything, max_k)
    tops.add(distractor_embeds, 0, distractor_category)
    curves["unfilt_acc@k"] = tops.shares()[0][0]
    return curves
