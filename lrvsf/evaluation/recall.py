"""Bootstrapped recall at K by counting ranks, exact, for any number of galleries in one pass over the distractors.

What is special here: nothing is sorted and no gallery is ever built. Recall at K needs only the target's rank:

    rank(i) = 1 + other targets of the fold that beat target i + draws of the fold's distractors that beat it

where "beats" means a higher dot product with query i. All folds of all gallery sizes share the same dot products, so a
block of distractors is multiplied once; its 0/1 wins times the integer matrix of how often each gallery drew each
distractor add up to ranks everywhere at once. Memory is that of one block, and the counts of several processes add up.

Ties are decided, not left to rounding. Equal images give equal embeddings but, in a blocked float32 product, not always
equal scores; so scores nearer to the target's than float32 can tell apart are computed again in float64, as query ·
(item - target), which is exactly 0 for an item equal to the target. The headline counts half of the tied items above
the target (its expected rank); a model that maps everything to one point then scores nothing, not 100 %.

Protocol: LRVS-Fashion, arXiv 2306.02928. As in the published code, folds are drawn with replacement; a product drawn
twice counts twice as a query but stands in the gallery once, a distractor drawn twice stands in it twice, and the
standard deviation is the sample's (over folds - 1).

The arithmetic of one block is in `lrvsf.evaluation.ranks`, what needs the top of each list in
`lrvsf.evaluation.precision`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrvsf.embedding.top import checked_unit_rows
from lrvsf.evaluation.ranks import count_above
from lrvsf.processes import sum_over

Folds = Tensor | Sequence[Tensor]

BLOCK = 16384  # distractors whose multiplicities are laid out at a time: 5 MB for 80 galleries


@dataclass(frozen=True)
class GalleryRanks:
    """Where each target stands in each fold of one gallery size. P products, F folds.

    Attributes:
        above: (P, F) items that beat the target. Also filled where the fold lacks the product; `weights` is 0 there.
        tied: (P, F) items with exactly the target's score, itself not among them.
        weights: (P, F) how often the fold drew the product as a query.
    """

    above: Tensor
    tied: Tensor
    weights: Tensor

    @property
    def expected(self) -> Tensor:
        """(P, F) ranks from 1, with half of the tied items before the target."""
        return 1 + self.above + self.tied / 2

    @property
    def optimistic(self) -> Tensor:
        """(P, F) ranks with the target before all items that tie with it."""
        return 1 + self.above

    @property
    def pessimistic(self) -> Tensor:
        """(P, F) ranks with the target after all items that tie with it."""
        return 1 + self.above + self.tied

    @property
    def tied_queries(self) -> int:
        """Queries, over all folds, with at least one tie."""
        return int(self.weights[self.tied > 0].sum())

    @property
    def queries(self) -> int:
        """Queries over all folds."""
        return int(self.weights.sum())


class RankCounter:
    """Ranks of P targets in many galleries, from distractors that come in blocks.

    Every process makes one with the same arguments, adds the blocks that it holds, and calls `ranks`, which sums over
    processes.

    Args:
        query_embeds, target_embeds: (P, dim) unit rows; row i of one belongs to row i of the other.
        product_folds: F times the row numbers of products, repeats allowed: (F, draws), or F rows of any lengths.
        distractor_folds: for each gallery size, F times the row numbers of distractors: (F, size), or F rows.
        categories: (P,) whole numbers; with them, a query's gallery holds the items of its target's category only.
        bf16: multiply in bfloat16 first. The ranks are the same (`lrvsf.evaluation.ranks`).
    """

    def __init__(
        self,
        query_embeds: Tensor,
        target_embeds: Tensor,
        product_folds: Folds,
        distractor_folds: Sequence[Folds],
        categories: Tensor | None = None,
        bf16: bool = False,
    ) -> None:
        self.queries, self.targets = (
            checked_unit_rows("query_embeds", query_embeds),
            checked_unit_rows("target_embeds", target_embeds),
        )
        if self.queries.shape != self.targets.shape:
            raise ValueError(
                f"query_embeds {tuple(self.queries.shape)} and target_embeds {tuple(self.targets.shape)} differ in "
                "shape: row i of one must belong to row i of the other, from the same model."
            )
        product_folds = checked_folds("product_folds", product_folds)
        self.folds = len(product_folds)
        drawn = [checked_folds("distractor_folds", folds) for folds in distractor_folds]
        for size, folds in enumerate(drawn):
            if len(folds) != self.folds:
                raise ValueError(f"product_folds has {self.folds} folds but distractor_folds[{size}] has {len(folds)}.")
        products, device = len(self.queries), self.queries.device
        product_draws = Draws(product_folds)
        if product_draws.largest >= products:
            raise IndexError(f"product_folds names row {product_draws.largest}, but there are {products} products.")
        self.weights = product_draws.multiplicities(0, products).to(device)  # (P, F)
        self.categories = None if categories is None else checked_categories(categories, products).to(device)
        self.bf16 = bf16
        self._draws = Draws([fold for folds in drawn for fold in folds])  # S sizes x F folds, sizes outermost
        self._above = torch.zeros(products, len(drawn) * self.folds, dtype=torch.int64, device=device)  # (P, S * F)
        self._tied = torch.zeros_like(self._above)
        self._added = torch.zeros(1, dtype=torch.int64, device=device)  # a tensor, as it is summed over processes

    def add(self, embeds: Tensor, first_row: int, categories: Tensor | None = None) -> None:
        """Counts the distractors of rows first_row, first_row + 1, ...: (B, dim) unit rows. Add each row once.

        Categories (B,) are needed where the counter has them; one that no target has, as -1, is in no gallery.
        """
        if (categories is None) != (self.categories is None):
            raise ValueError("Distractors need categories if the counter has them, and only then.")
        if categories is not None:
            categories = checked_categories(categories, len(embeds)).to(self.queries.device)
        for start in range(0, len(embeds), BLOCK):  # so that memory is a block's, however many rows come
            block = checked_unit_rows("distractor_embeds", embeds[start : start + BLOCK], first_row + start)
            if block.shape[1] != self.queries.shape[1]:
                dims = block.shape[1], self.queries.shape[1]
                raise ValueError("Distractors have {} dimensions but queries {}: another model's?".format(*dims))
            block = block.to(self.queries.device)
            first = first_row + start
            held = self._draws.multiplicities(first, first + len(block)).to(block.device)  # (B, S * F)
            self._count(block, held, None if categories is None else categories[start : start + BLOCK])
        self._added += len(embeds)

    def _count(self, items: Tensor, held: Tensor, categories: Tensor | None, own: bool = False) -> None:
        for rows, columns in _category_blocks(self.categories, categories):
            above, tied = count_above(
                self.queries[rows], self.targets[rows], items[columns], held[columns], own, self.bf16
            )
            self._above[rows] += above
            self._tied[rows] += tied

    def counted(self) -> tuple[Tensor, ...]:
        """What was counted so far, on the CPU: integers, for the `merge` of another one with the same arguments."""
        return self._above.cpu(), self._tied.cpu(), self._added.cpu()

    def merge(self, counted: tuple[Tensor, ...]) -> None:
        """Adds what another counter has counted, of other distractors."""
        for own, other in zip((self._above, self._tied, self._added), counted, strict=True):
            own += other.to(own.device)

    def ranks(self) -> list[GalleryRanks]:
        """The ranks for each gallery size, in the order given. Every process must call it; all get the same. Only once.

        Raises:
            IndexError: fewer distractors were added than the folds name, so that ranks would be too good.
        """
        sum_over(self._above, self._tied, self._added)  # integers: the sum does not depend on the number of processes
        if self._draws.largest >= self._added.item():
            raise IndexError(
                f"distractor_folds names row {self._draws.largest}, but there are {self._added.item()} distractors."
            )
        present = (self.weights > 0).float().repeat(1, len(self._above[0]) // self.folds)  # the same for every size
        # The other targets of a fold are items of its gallery, once each, however often their products were drawn.
        self._count(self.targets, present, self.categories, own=True)
        columns = zip(self._above.split(self.folds, dim=1), self._tied.split(self.folds, dim=1), strict=True)
        return [GalleryRanks(above.cpu(), tied.cpu(), self.weights.cpu()) for above, tied in columns]


def fold_recall(ranks: Tensor, weights: Tensor, max_k: int) -> Tensor:
    """Recall at K = 1..max_k in each fold, as (F, max_k) float64, from ranks (P, F) and the weights of the queries (P,
    F)."""
    weights = weights.double()  # exact for any number of draws
    reached_at = ranks.ceil().long().clamp(max=max_k + 1)  # (P, F): the least K that finds the target
    # A histogram of these K for each fold, summed up; its ends, K = 0 and beyond max_k, are cut off.
    found = weights.new_zeros(ranks.shape[1], max_k + 2).scatter_add_(1, reached_at.T, weights.T).cumsum(1)
    return found[:, 1:-1] / weights.sum(0)[:, None]


def mean_and_std(recall: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over folds (F, K) -> (K,), (K,). One fold has no deviation: 0 is given."""
    return recall.mean(0), recall.std(0) if len(recall) > 1 else torch.zeros_like(recall[0])  # std of one is NaN


def bootstrap_recall(
    query_embeds: Tensor,
    target_embeds: Tensor,
    distractor_embeds: Tensor,
    product_folds: Tensor,
    distractor_folds: Tensor,
    max_k: int = 100,
) -> tuple[Tensor, Tensor]:
    """Recall at K = 1..max_k of one gallery size, over folds, as the published benchmark computes it (module
    docstring).

    Args:
        query_embeds, target_embeds: (P, dim) unit rows; row i of one belongs to row i of the other.
        distractor_embeds: (N, dim) unit rows.
        product_folds: (F, draws) row numbers of products, repeats allowed.
        distractor_folds: (F, size) row numbers of distractors, repeats allowed.
        max_k: the largest K. Beyond the gallery's size recall is 1.

    Returns:
        mean, std: (max_k,) float32 each, between 0 and 1, over folds.

    Raises:
        ValueError: a row that is not finite or not of length 1, or shapes that do not fit.
        IndexError: a row number out of range.
    """
    counter = RankCounter(query_embeds, target_embeds, product_folds, [distractor_folds])
    counter.add(torch.as_tensor(distractor_embeds), first_row=0)
    (ranks,) = counter.ranks()
    mean, std = mean_and_std(fold_recall(ranks.expected, ranks.weights, max_k))
    return mean.float(), std.float()


class Draws:
    """The draws of G galleries, sorted, so that the multiplicities of any slice of rows are found without a table over
    all rows."""

    def __init__(self, galleries: Sequence[Tensor]) -> None:
        # NumPy sorts many times faster; int32 is half of what int64 would take.
        self.sorted = [torch.from_numpy(np.sort(rows.numpy().astype(np.int32))) for rows in galleries]
        self.largest = max((int(rows[-1]) for rows in self.sorted if len(rows)), default=-1)

    def between(self, gallery: int, start: int, stop: int) -> Tensor:
        """The rows start to stop (excluded) that a gallery drew, ascending, as often as it did."""
        rows = self.sorted[gallery]
        # Two searches instead of a mask: a slice costs its own length, not that of the gallery.
        low, high = torch.searchsorted(rows, torch.tensor([start, stop], dtype=torch.int32)).tolist()
        return rows[low:high].long()

    def multiplicities(self, start: int, stop: int) -> Tensor:
        """(stop - start, G) float32: how often each gallery drew each of the rows start to stop (excluded)."""
        galleries = len(self.sorted)
        # One count over the cells of the table, numbered row by row, in place of one for each gallery.
        cells = [(self.between(g, start, stop) - start) * galleries + g for g in range(galleries)]
        counts = torch.bincount(
            torch.cat([torch.empty(0, dtype=torch.int64), *cells]), minlength=(stop - start) * galleries
        )
        return counts.view(stop - start, galleries).float()


def checked_folds(name: str, folds: Folds) -> list[Tensor]:
    """F rows of row numbers on the CPU; refused are other shapes and negative numbers."""
    if isinstance(folds, Tensor) and folds.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(folds.shape)}; one row of row numbers per fold, (F, n), is needed.")
    rows = [torch.as_tensor(fold).cpu() for fold in folds]
    for fold in rows:
        if fold.ndim != 1:
            raise ValueError(f"{name} has a fold of shape {tuple(fold.shape)}; row numbers, (n,), are needed.")
        if fold.numel() and int(fold.min()) < 0:
            raise IndexError(f"{name} names row {int(fold.min())}; row numbers begin at 0.")
    return rows


def checked_categories(categories: Tensor, rows: int) -> Tensor:
    """Whole numbers (rows,); refused are other shapes and fractions."""
    categories = torch.as_tensor(categories)
    if categories.shape != (rows,) or categories.is_floating_point():
        raise ValueError(
            f"categories is {categories.dtype} of shape {tuple(categories.shape)}; whole numbers ({rows},), one for "
            "each row of embeddings, are needed."
        )
    return categories


def _category_blocks(
    query_categories: Tensor | None, item_categories: Tensor | None
) -> Iterator[tuple[slice | Tensor, slice | Tensor]]:
    """Which queries meet which items: all do, or for each category those that have it."""
    if query_categories is None or item_categories is None:
        yield slice(None), slice(None)  # views; indices would copy all rows
        return
    for category in query_categories.unique():  # an item of another category, as -1, is met by nobody
        columns = (item_categories == category).nonzero().flatten()
        if len(columns):
            yield (query_categories == category).nonzero().flatten(), columns


def ranks_among_all(
    queries: Tensor, targets: Tensor, blocks: Iterable[tuple], n_distractors: int, categories: Tensor | None = None
) -> GalleryRanks:
    """The ranks (P, 1) of all products' targets among each other and all processes' distractors, on every process.

    Args:
        queries, targets: (P, dim) unit rows, the same on every process.
        blocks: this process's distractors, as `RankCounter.add` takes them: (n, dim) unit rows, the place of the first
            of them among all and, where there are categories, theirs.
        n_distractors: how many all processes hold.
        categories: (P,) as `RankCounter` takes them.
    """
    # One fold in which everything is drawn once.
    folds = torch.arange(len(queries))[None], [torch.arange(n_distractors)[None]]
    counter = RankCounter(queries, targets, *folds, categories)
    for block in blocks:
        counter.add(*block)
    (ranks,) = counter.ranks()
    return ranks
