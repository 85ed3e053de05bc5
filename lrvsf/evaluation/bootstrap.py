"""The bootstrap protocols: from a model and a test set to results, with every draw seeded.

A gallery of size N is the products of a fold plus N distractors. Folds of products and of distractors are drawn with
replacement, as in the published benchmark (arXiv 2306.02928), but from a seed that the results carry: two models on one
test set with one seed face the same queries and the same distractors, so that their difference is paired.

"bootstrap" is this at sizes of one's own; "leaderboard" is 20 folds of 1,000 products at the leaderboard's four sizes,
the products drawn from the seed or, as published, from a file. The published code draws distractors unseeded, so no
file can repeat those. The paper's protocol is in `lrvsf.evaluation.paper`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrvsf.evaluation.arguments import GALLERY_SIZES, check_galleries
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.galleries import describe_items, gallery_results, over_folds
from lrvsf.evaluation.queries import QueryTable
from lrvsf.evaluation.recall import Folds, GalleryRanks, RankCounter, fold_recall
from lrvsf.evaluation.results import KS
from lrvsf.evaluation.stored_folds import read_indices

logger = logging.getLogger(__name__)

LEADERBOARD_SIZES = (10_000, 100_000, 500_000, 1_000_000)
FLAGS = {  # that only some protocols have: given to another, they would be obeyed by nobody
    "bootstrap": ("gallery_sizes", "folds", "products_per_fold", "restrict_to_category"),
    "leaderboard": ("product_folds", "restrict_to_category"),
    "paper": ("stored_folds",),
}
EVERYWHERE = ("seed", "bf16_ranks", "allow_unmatched_categories")
MAX_PRODUCTS_PER_FOLD = 1000  # the published folds'


@dataclass(frozen=True)
class BootstrapSettings:
    """What, with the test set, decides the draws.

    Attributes:
        gallery_sizes: distractors in a gallery, one or several numbers.
        folds: draws of products, each with its own draw of distractors at every size; at least 2, or there is no
            deviation.
        products_per_fold: None for as many as can be read, at most 1000.
        product_folds: the published `bootstrapped_indices.pt`, in place of draws of products; it decides the two above.
        restrict_to_category: leave only items of the target's category in a query's gallery.
        allow_unmatched_categories: do so even where distractors have no category, or a category no distractor.
        bf16_ranks: multiply in bfloat16 first, with the same results (`lrvsf.evaluation.ranks`).
        protocol: "bootstrap" refuses sizes above the number of distractors; "leaderboard" fills them with repeats, as
            published, and marks them.
    """

    gallery_sizes: list[int] = field(default_factory=lambda: list(GALLERY_SIZES))
    folds: int = 20
    seed: int = 0
    products_per_fold: int | None = None
    product_folds: str | None = None
    restrict_to_category: bool = False
    allow_unmatched_categories: bool = False
    bf16_ranks: bool = False
    protocol: str = "bootstrap"

    @classmethod
    def leaderboard(cls, **choices: Any) -> BootstrapSettings:
        """The leaderboard's protocol; `choices` are any settings but gallery_sizes, folds and products_per_fold."""
        fixed = {"gallery_sizes": list(LEADERBOARD_SIZES), "folds": 20, "products_per_fold": 1000}
        return cls(**fixed, **choices, protocol="leaderboard")

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds={self.folds}: a standard deviation needs at least 2.")
        if not self.gallery_sizes or min(self.gallery_sizes) < 1:
            raise ValueError(
                f"gallery_sizes={self.gallery_sizes}: give one or more numbers of distractors, each at least 1."
            )
        if len(set(self.gallery_sizes)) < len(self.gallery_sizes):
            raise ValueError(f"gallery_sizes={self.gallery_sizes} names a size twice; give each once.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0.")
        if self.products_per_fold is not None and self.products_per_fold < 1:
            raise ValueError(f"products_per_fold={self.products_per_fold} must be at least 1.")

    def check_distractors(self, available: int) -> None:
        if self.protocol != "leaderboard":
            check_galleries(self.gallery_sizes, available)


def chosen_settings(protocol: str, given: Mapping[str, Any]) -> BootstrapSettings | None:
    """The settings of a protocol from flags, of which None and False mean: not given. The paper's has none.

    Raises ValueError: a flag of another protocol, or a value out of range.
    """
    names = {name for others in FLAGS.values() for name in others}
    for name in sorted(names.difference(FLAGS[protocol])):
        if given[name] is not None and given[name] is not False:
            raise ValueError(f"--{name} has no meaning in the {protocol} protocol; leave it out.")
    if protocol == "paper":
        return None
    chosen = {name: given[name] for name in (*FLAGS[protocol], *EVERYWHERE) if given[name] is not None}
    return BootstrapSettings.leaderboard(**chosen) if protocol == "leaderboard" else BootstrapSettings(**chosen)


def draw_folds(items: int, draws: int, folds: int, seed: int, stream: int) -> Tensor:
    """(folds, draws) row numbers below `items`, with replacement. `stream` separates draws that share a seed.

    Each gallery size is a stream of its own, so adding a size leaves the draws of the others as they were.
    """
    # A generator for each stream, not one for all in turn: results stay paired whatever sizes are asked for.
    return torch.from_numpy(np.random.default_rng([seed, stream]).integers(0, items, (folds, draws)))


def evaluate_bootstrap(
    data: EmbeddedTestSet, settings: BootstrapSettings, queries: QueryTable | None = None
) -> dict[str, Any]:
    """Embeds what is missing and counts ranks. Every process must call it; all get the same results.

    With `queries`, what became of every query is added to it.

    Returns:
        What results.json holds (`lrvsf.evaluation.results`), but for the names of the model and the test set.

    Raises:
        ValueError: a category that the model does not know, distractors that do not join by category, a gallery larger
            than the distractors that could be read; and as `EmbeddedTestSet.fill` does.
    """
    settings.check_distractors(data.test_set.n_distractors)  # all that can be refused is, before anything is embedded
    stored = settings.product_folds and read_indices(settings.product_folds, data.test_set.n_products)
    restricted = settings.restrict_to_category
    if restricted and not settings.allow_unmatched_categories:
        data.categories.check()
    knows_copies = data.known_copies is not None
    data.fill()
    settings.check_distractors(data.n_distractors)  # again: some may not have been readable

    if stored is None:
        per_fold = settings.products_per_fold or min(len(data.rows), MAX_PRODUCTS_PER_FOLD)
        product_folds: Folds = draw_folds(len(data.rows), per_fold, settings.folds, settings.seed, stream=0)  # (F, n)
    else:
        per_fold, product_folds = stored.shape[1], data.positions(stored)
    distractor_folds = [
        draw_folds(data.n_distractors, size, len(product_folds), settings.seed, stream=size)  # (F, size)
        for size in settings.gallery_sizes
    ]
    categories = data.product_categories if restricted else None
    counter = RankCounter(
        data.queries, data.targets, product_folds, distractor_folds, categories, bf16=settings.bf16_ranks
    )
    data.count(counter)
    galleries, ranked = {}, counter.ranks()
    own = [None] * len(ranked)
    if knows_copies:
        own = copies_alone(data, product_folds, distractor_folds, restricted)
    for size, drawn, ranks, copies in zip(settings.gallery_sizes, distractor_folds, ranked, own, strict=True):
        galleries[str(size)] = {
            **gallery_results(size, ranks, data.category_names),
            **describe_items(product_folds, drawn, data if restricted else None),
            **({} if copies is None else {"recall_copies_aside": copies_aside(ranks, copies)}),
        }
        if queries is not None:
            queries.add(size, ranks, data, "galleries")
        if size > data.n_distractors:  # as the published code draws: its score is better than its size deserves
            galleries[str(size)]["marked"] = f"drawn with repeats from only {data.n_distractors} distractors"
    return {
        **asdict(settings),
        "folds": len(product_folds),
        "products_per_fold": per_fold,
        "missing_draws": {"products": len(product_folds) * per_fold - int(counter.weights.sum())},  # of a file only
        **data.facts,
        **({"unmatched": data.categories.facts()} if restricted else {}),
        "galleries": galleries,
    }


def copies_alone(
    data: EmbeddedTestSet, product_folds: Folds, distractor_folds: Sequence[Folds], restricted: bool
) -> list[GalleryRanks]:
    """For each gallery size, the ranks among a target and its own known copies.

    `restricted`: galleries hold the target's category only, and so no copy under another one.
    """
    copies = data.copies
    if restricted:
        same = data.product_categories[copies] == data.distractor_categories  # of -1 anything: it stays -1
        copies = torch.where(same, copies, -1)
    with_copies = torch.zeros(len(data.rows), dtype=torch.bool)
    with_copies[copies[copies >= 0]] = True
    # A product with copies is a category of its own, of which the only other items are these. All others, which may be
    # most, share one that no distractor has; what is counted of them is their rivals, and dropped.
    places = torch.where(with_copies, torch.arange(len(data.rows)), len(data.rows))
    counter = RankCounter(data.queries, data.targets, product_folds, distractor_folds, places)
    data.count(counter, categories=copies)
    return [
        GalleryRanks(ranks.above * with_copies[:, None], ranks.tied * with_copies[:, None], ranks.weights)
        for ranks in counter.ranks()
    ]


def copies_aside(ranks: GalleryRanks, copies: GalleryRanks) -> dict[str, dict[str, float]]:
    """Recall where a copy of the target, which is as right an answer, takes no place before it."""
    aside = GalleryRanks(ranks.above - copies.above, ranks.tied - copies.tied, ranks.weights)
    return over_folds(fold_recall(aside.expected, aside.weights, max(KS)))
