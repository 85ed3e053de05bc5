"""Recall while training: every product once, among all other products and all distractors, with no draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.embed import Embedded, Encoder, embed_distractors, embed_products
from lrvsf.evaluation.recall import GalleryRanks, RankCounter, fold_recall
from lrvsf.training.loss import symmetric_cross_entropy


def validate(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, max_bad: float = 0.01, max_in_a_row: int = 100
) -> dict[str, float]:
    """R@1, R@5 and R@10, 0..1, and the loss of all products as one batch. Every process must call it; all get the same.

    The loss is comparable between runs on one validation set only: it grows with the number of products.

    Raises TooManyBadImages as `embed_products` does.
    """
    products = all_products(encoder, test_set, batch_size, max_bad, max_in_a_row)
    queries, targets = (products[name].to(encoder.device) for name in ("query", "target"))
    distractors = embed_distractors(encoder, test_set, batch_size, max_bad, max_in_a_row)
    held = gather_object([len(distractors.rows)])  # one entry per process, in order
    first_row = sum(held[: PartialState().process_index])
    ranks = ranks_among_all(queries, targets, [(distractors.embeds["distractor"], first_row)], sum(held))
    recall = fold_recall(ranks.expected, ranks.weights, 10).flatten()  # (10,)
    with torch.no_grad():
        loss = symmetric_cross_entropy(queries, targets, queries, targets, encoder.model.logit_scale)
    return {**{f"R@{k}": recall[k - 1].item() for k in (1, 5, 10)}, "loss": loss.item()}


def all_products(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, max_bad: float, max_in_a_row: int
) -> dict[str, Tensor]:
    """All processes' products in row order, "query" and "target" (P, dim), on every process.

    Raises ValueError if none can be read.
    """
    parts: list[Embedded] = gather_object([embed_products(encoder, test_set, batch_size, max_bad, max_in_a_row)])
    if not any(part.rows for part in parts):
        reasons = sum((Counter(part.skipped) for part in parts), Counter())
        raise ValueError(f"None of the {test_set.n_products} products of {test_set.root} can be read: {dict(reasons)}.")
    return {name: torch.cat([part.embeds[name] for part in parts]) for name in parts[0].embeds}


def ranks_among_all(
    queries: Tensor, targets: Tensor, blocks: Iterable[tuple[Tensor, int]], n_distractors: int
) -> GalleryRanks:
    """The ranks (P, 1) of all products' targets among each other and all processes' distractors, on every process.

    Args:
        queries, targets: (P, dim) unit rows, the same on every process.
        blocks: this process's distractors, as (n, dim) unit rows and the place of the first of them among all.
        n_distractors: how many all processes hold.
    """
    counter = RankCounter(queries, targets, torch.arange(len(queries))[None], [torch.arange(n_distractors)[None]])
    for embeds, first_row in blocks:
        counter.add(embeds, first_row)
    (ranks,) = counter.ranks()
    return ranks
