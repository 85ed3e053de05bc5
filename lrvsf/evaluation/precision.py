"""The share of the top k that is of the target's category: precision at k of what the query asked for.

A rank says nothing of what stands above the target, so this needs the top of every list, but no more:
`lrvsf.embedding.top` keeps the best max_k distractors of each query in each gallery. Memory is that of the lists,
about 1.6 MB for 1,000 queries in one gallery, and of one block.

The published code calls it accuracy at k (`unfilt_acc@k`); at k = 1 it is the paper's category accuracy. Among items
that tie products come first, then distractors, each in the order of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrvsf.embedding import top
from lrvsf.embedding.top import checked_unit_rows
from lrvsf.evaluation.recall import Draws, Folds, checked_categories, checked_folds


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
        self.queries, self.targets = (
            top.on_grid(checked_unit_rows(name, embeds))
            for name, embeds in (("query_embeds", query_embeds), ("target_embeds", target_embeds))
        )
        self.device, self.max_k = self.queries.device, max_k
        self.categories = checked_categories(categories, len(self.queries)).to(self.device)
        drawn = [fold.unique(return_counts=True) for fold in checked_folds("product_folds", product_folds)]
        self._products = [(rows.to(self.device), weights.to(self.device)) for rows, weights in drawn]
        galleries = [fold for folds in distractor_folds for fold in checked_folds("distractor_folds", folds)]
        self._sizes = [len(fold) for fold in galleries]
        self._draws = Draws(galleries)
        counts = [len(self._rows(gallery)) for gallery in range(len(galleries))]
        self._best = [top.TopLists(count, max_k, self.device) for count in counts]

    def add(self, embeds: Tensor, first_row: int, categories: Tensor) -> None:
        """Merges in the distractors of rows first_row, first_row + 1, ...: (B, dim) unit rows, (B,) whole numbers."""
        categories = checked_categories(categories, len(embeds)).to(self.device)
        for start in range(0, len(embeds), top.BLOCK):
            first = first_row + start
            items = checked_unit_rows("distractor_embeds", embeds[start : start + top.BLOCK], first).to(self.device)
            scores = self.queries @ top.on_grid(items).T  # (P, b), exact: lists are the same on every machine
            # Distractors are numbered after all products, so that products win ties.
            numbers = torch.arange(first, first + len(items), device=self.device) + len(self.queries)
            codes = self._codes(numbers, categories[start : start + top.BLOCK])  # (P, b)
            for gallery, best in enumerate(self._best):
                columns = (self._draws.between(gallery, first, first + len(items)) - first).to(self.device)
                rows = self._rows(gallery)[:, None]  # (p, 1) against columns (n,), repeats among them
                best.keep(scores[rows, columns], codes[rows, columns])

    def counted(self) -> list[tuple[Tensor, Tensor]]:
        """The lists so far, on the CPU, for the `merge` of another one with the same arguments."""
        # Contiguous: what is sent of a slice is all that it was cut from, here the last block's scores.
        return [(best.scores.contiguous().cpu(), best.items.contiguous().cpu()) for best in self._best]

    def merge(self, counted: list[tuple[Tensor, Tensor]]) -> None:
        """Merges in the lists of another one, of other distractors."""
        for best, (scores, items) in zip(self._best, counted, strict=True):
            best.keep(scores.to(self.device), items.to(self.device))

    def shares(self) -> list[Tensor]:
        """For each gallery size (F, max_k) float64, the mean over a fold's queries, each as often as it was drawn.

        A gallery of fewer than k items has no more than those to count among. Every process must call it.
        """
        found = [self._share(gallery) for gallery in range(len(self._best))]
        folds = len(self._products)
        return [torch.stack(found[start : start + folds]) for start in range(0, len(found), folds)]

    def _share(self, gallery: int) -> Tensor:
        rows, weights = self._products[gallery % len(self._products)]
        best = self._best[gallery]
        best.gather()  # each process saw its own distractors; the products below are the same on all
        best.keep(self.queries[rows] @ self.targets[rows].T, self._codes(rows, self.categories[rows])[rows])
        right = torch.nn.functional.pad(best.items % 2, (0, self.max_k - best.items.shape[1]))  # (p, max_k), 0 or 1
        items = len(rows) + self._sizes[gallery]
        among = torch.arange(1, self.max_k + 1, device=self.device).clamp(max=items)
        share = right.double().cumsum(1) / among
        return ((share * weights[:, None]).sum(0) / weights.sum()).cpu()

    def _rows(self, gallery: int) -> Tensor:
        return self._products[gallery % len(self._products)][0]

    def _codes(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """(P, b): twice an item's number, plus 1 where it is of the query's category. They sort as the numbers do."""
        return 2 * numbers + (self.categories[:, None] == categories)
