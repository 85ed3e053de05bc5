"""Recall while training: every product once, among all other products and all distractors, with no draws."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.embed import Encoder, embed_distractors
from lrvsf.evaluation.protocols import all_products
from lrvsf.evaluation.recall import RankCounter, fold_recall


def full_gallery_recall(encoder: Encoder, test_set: ProductTestSet, batch_size: int) -> dict[int, float]:
    """K -> recall at K, 0..1, for K = 1..10. Every process must call it; all get the same."""
    products = all_products(encoder, test_set, batch_size)
    distractors = embed_distractors(encoder, test_set, batch_size)
    held = gather_object([len(distractors.rows)])  # one entry per process, in order
    first_row = sum(held[: PartialState().process_index])
    counter = RankCounter(
        products.embeds["query"].to(encoder.device),
        products.embeds["target"].to(encoder.device),
        torch.arange(len(products.rows))[None],
        [torch.arange(sum(held))[None]],
    )
    counter.add(distractors.embeds["distractor"], first_row)
    (ranks,) = counter.ranks()
    recall = fold_recall(ranks.expected, ranks.weights, 10)  # (1, 10)
    return {k: recall.flatten()[k - 1].item() for k in range(1, 11)}
