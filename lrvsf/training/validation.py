"""Recall while training: every product once, among all other products and all distractors, with no draws."""

from __future__ import annotations

from collections import Counter

import torch
from accelerate import PartialState
from torch import Tensor

from lrvsf.data.images import USUAL, Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import Embedded, embed_share
from lrvsf.evaluation.recall import fold_recall, ranks_among_all
from lrvsf.evaluation.results import FIRST_KS
from lrvsf.processes import every
from lrvsf.training.objective.loss import symmetric_cross_entropy


def validate(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, tolerance: Tolerance = USUAL
) -> dict[str, float]:
    """R@1, R@5 and R@10, 0..1, and the loss of all products as one batch. Every process must call it; all get the same.

    The loss is comparable between runs on one validation set only: it grows with the number of products.

    Raises TooMuchDamage as `embed_share` does.
    """
    products = all_products(encoder, test_set, batch_size, tolerance)
    pairs = queries, targets = tuple(products[name].to(encoder.device) for name in ("query", "target"))
    distractors = embed_share(encoder, Distractors(test_set), batch_size, tolerance)
    # Products are few, and every process holds all; of the distractors each holds its own, and knows their place.
    counts = every(len(distractors.rows))
    first_row = sum(counts[: PartialState().process_index])
    ranks = ranks_among_all(queries, targets, [(distractors.embeds["distractor"], first_row)], sum(counts))
    recall = fold_recall(ranks.expected, ranks.weights, max(FIRST_KS)).flatten()  # (10,)
    with torch.no_grad():  # not `info_nce`, which would gather what is whole already
        loss = symmetric_cross_entropy(pairs, pairs, encoder.model.logit_scale)
    return {**{f"R@{k}": recall[k - 1].item() for k in FIRST_KS}, "loss": loss.item()}


def all_products(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, tolerance: Tolerance
) -> dict[str, Tensor]:
    """All processes' products in row order, "query" and "target" (P, dim), on every process.

    Raises ValueError if none can be read.
    """
    parts: list[Embedded] = every(embed_share(encoder, Products(test_set), batch_size, tolerance))
    if not any(part.rows for part in parts):
        reasons = sum((Counter(part.skipped) for part in parts), Counter())
        raise ValueError(f"None of the {test_set.n_products} products of {test_set.root} can be read: {dict(reasons)}.")
    return {name: torch.cat([part.embeds[name] for part in parts]) for name in parts[0].embeds}
