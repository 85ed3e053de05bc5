"""The share of the top k that is of the target's category: precision at k of what the query asked for.

A rank says nothing of what stands above the target, so this needs the top of every list, but no more: of each query in
each gallery the best max_k distractors so far are kept, blocks are merged into them, and the processes' lists are
merged at the end. Memory is that of the lists, about 0.5 MB for 1,000 queries in one gallery, and of one block.

The published code calls it accuracy at k (`unfilt_acc@k`); at k = 1 it is the paper's category accuracy. Scores are
float32, and of items that tie no one is preferred.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lrvsf.evaluation.recall import Draws, Folds, as_categories, as_folds, unit_rows

BLOCK = 4096  # distractors of one block of scores


class TopShares:
    """Precision at k in many galleries, from distractors that come in blocks.

    Every process makes one with the same arguments, adds the blocks that it holds, and calls `shares`.

    Args:
        query_embeds, target_embeds: (P, dim) unit rows; row i of one belongs to row i of the other.
        categories: (P,) whole numbers, the targets'.
        product_folds, distractor_folds: as `lrvsf.evaluation.recall.RankCounter` takes them.
        max_k: the largest k.
    """

    def __init__(
        self,
        query_embeds: Tensor,
        target_embeds: Tensor,
        categories: Tensor,
        product_folds: Folds,
        distractor_folds: Sequence[Folds],
        max_k: int = 100,
    ) -> None:
        self.queries, self.targets = unit_rows("query_embeds", query_embeds), unit_rows("target_embeds", target_embeds)
        self.device, self.max_k = self.queries.device, max_k
        self.categories = as_categories("categories", categories, len(self.queries)).to(self.device)
        drawn = [fold.unique(return_counts=True) for fold in as_folds("product_folds", product_folds)]
        self._products = [(rows.to(self.device), weights.to(self.device)) for rows, weights in drawn]
        galleries = [fold for folds in distractor_folds for fold in as_folds("distractor_folds", folds)]
        self._sizes = [len(fold) for fold in galleries]
        self._draws = Draws(galleries)
        self._best = [self._no_items(len(self._rows(gallery))) for gallery in range(len(galleries))]

    def add(self, embeds: Tensor, first_row: int, categories: Tensor) -> None:
        """Merges in the distractors of rows first_row, first_row + 1, ...: (B, dim) unit rows, (B,) whole numbers."""
        categories = as_categories("categories", categories, len(embeds)).to(self.device)
        for start in range(0, len(embeds), BLOCK):
            items = unit_rows("distractor_embeds", embeds[start : start + BLOCK], first_row + start).to(self.device)
            right = self.categories[:, None] == categories[start : start + BLOCK]  # (P, b)
            scores, first = self.queries @ items.T, first_row + start
            for gallery, best in enumerate(self._best):
                columns = (self._draws.of(gallery, first, first + len(items)) - first).to(self.device)
                rows = self._rows(gallery)[:, None]
                self._best[gallery] = self._merged(best, (scores[rows, columns], right[rows, columns]))

    def shares(self) -> list[Tensor]:
        """For each gallery size (F, max_k) float64, the mean over a fold's queries, each as often as it was drawn.

        A gallery of fewer than k items has no more than those to count among. Every process must call it.
        """
        found = [self._share(gallery) for gallery in range(len(self._best))]
        folds = len(self._products)
        return [torch.stack(found[start : start + folds]) for start in range(0, len(found), folds)]

    def _share(self, gallery: int) -> Tensor:
        rows, weights = self._products[gallery % len(self._products)]
        best = _gathered(self._best[gallery])
        own = self.queries[rows] @ self.targets[rows].T, self.categories[rows][:, None] == self.categories[rows]
        _, right = self._merged(best, own)  # (p, max_k)
        items = len(rows) + self._sizes[gallery]
        among = torch.arange(1, self.max_k + 1, device=self.device).clamp(max=items)
        share = right.double().cumsum(1) / among
        return ((share * weights[:, None]).sum(0) / weights.sum()).cpu()

    def _rows(self, gallery: int) -> Tensor:
        return self._products[gallery % len(self._products)][0]

    def _no_items(self, queries: int) -> tuple[Tensor, Tensor]:
        """Lists without an item: (p, max_k) scores, and whether the item is of the target's category."""
        nothing = torch.full((queries, self.max_k), -torch.inf, device=self.device)
        return nothing, torch.zeros_like(nothing, dtype=torch.bool)

    def _merged(self, best: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The best max_k of both. What no query ranks among its best is left out before anything is sorted."""
        wanted = (found[0] > best[0][:, -1:]).any(0)
        scores, right = (torch.cat([a, b[:, wanted]], dim=1) for a, b in zip(best, found, strict=True))
        top = scores.topk(self.max_k, dim=1)
        return top.values, right.gather(1, top.indices)


def _gathered(best: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """All processes' lists side by side."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return best
    parts = []
    for own in best:
        parts.append([torch.empty_like(own) for _ in range(dist.get_world_size())])
        dist.all_gather(parts[-1], own)
    return torch.cat(parts[0], dim=1), torch.cat(parts[1], dim=1)
