"""Recall while training: every product once, among all other products and all distractors, with no draws."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.embed import Embedded, Encoder, embed_distractors
from lrvsf.evaluation.protocols import all_products
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
    queries, targets = (products.embeds[name].to(encoder.device) for name in ("query", "target"))
    distractors = embed_distractors(encoder, test_set, batch_size, max_bad, max_in_a_row)
    ranks = ranks_among_all(products, distractors, encoder.device)
    recall = fold_recall(ranks.expected, ranks.weights, 10).flatten()  # (10,)
    with torch.no_grad():
        loss = symmetric_cross_entropy(queries, targets, queries, targets, encoder.model.logit_scale)
    return {**{f"R@{k}": recall[k - 1].item() for k in (1, 5, 10)}, "loss": loss.item()}


def ranks_among_all(products: Embedded, distractors: Embedded, device: torch.device) -> GalleryRanks:
    """The ranks (P, 1) of all products' targets among each other and all processes' distractors, on every process.

    Args:
        products: the same on every process (`all_products`).
        distractors: this process's own.
    """
    held = gather_object([len(distractors.rows)])  # one entry per process, in order
    first_row = sum(held[: PartialState().process_index])
    queries, targets = (products.embeds[name].to(device) for name in ("query", "target"))
    counter = RankCounter(queries, targets, torch.arange(len(products.rows))[None], [torch.arange(sum(held))[None]])
    counter.add(distractors.embeds["distractor"], first_row)
    (ranks,) = counter.ranks()
    return ranks
