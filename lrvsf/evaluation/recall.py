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
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 4096  # rows and columns of one block of scores: 64 MB of float32
PAIRS = 65536  # pairs scored in float64 at a time: 270 MB at 512 dimensions
NORM_TOLERANCE = 1e-3  # float16 and bfloat16 storage included: rounding errors of many coordinates cancel


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
        product_folds: (F, draws) row numbers of products, repeats allowed.
        distractor_folds: for each gallery size, (F, size) row numbers of distractors, repeats allowed.
    """

    def __init__(
        self, query_embeds: Tensor, target_embeds: Tensor, product_folds: Tensor, distractor_folds: Sequence[Tensor]
    ) -> None:
        self.queries = _unit_rows("query_embeds", query_embeds)
        self.targets = _unit_rows("target_embeds", target_embeds)
        if self.queries.shape != self.targets.shape:
            raise ValueError(
                f"query_embeds {tuple(self.queries.shape)} and target_embeds {tuple(self.targets.shape)} differ in "
                "shape: row i of one must belong to row i of the other, from the same model."
            )
        product_folds = _rows("product_folds", product_folds)
        self.folds = len(product_folds)
        for size, folds in enumerate(distractor_folds):
            if len(folds) != self.folds:
                raise ValueError(f"product_folds has {self.folds} folds but distractor_folds[{size}] has {len(folds)}.")
        products, device = len(self.queries), self.queries.device
        drawn = _Draws(product_folds)
        if drawn.largest >= products:
            raise IndexError(f"product_folds names row {drawn.largest}, but there are {products} products.")
        self.weights = drawn.multiplicities(0, products).to(device)  # (P, F)
        self._draws = [_Draws(_rows("distractor_folds", folds)) for folds in distractor_folds]
        self._above = torch.zeros(products, len(self._draws) * self.folds, dtype=torch.int64, device=device)
        self._tied = torch.zeros_like(self._above)
        self._added = torch.zeros(1, dtype=torch.int64, device=device)

    def add(self, embeds: Tensor, first_row: int) -> None:
        """Counts the distractors of rows first_row, first_row + 1, ...: (B, dim) unit rows. Add each row once."""
        embeds = _unit_rows("distractor_embeds", embeds, first_row)
        if embeds.shape[1] != self.queries.shape[1]:
            raise ValueError(
                f"Distractors have {embeds.shape[1]} dimensions but queries {self.queries.shape[1]}: another model's?"
            )
        for start in range(0, len(embeds), BLOCK):
            block = embeds[start : start + BLOCK].to(self.queries.device)
            first = first_row + start
            drawn = [draws.multiplicities(first, first + len(block)) for draws in self._draws]  # S times (B, F)
            above, tied = count_above(self.queries, self.targets, block, torch.cat(drawn, dim=1).to(block.device))
            self._above += above  # (P, S * F)
            self._tied += tied
        self._added += len(embeds)

    def ranks(self) -> list[GalleryRanks]:
        """The ranks for each gallery size, in the order given. Every process must call it; all get the same. Only once.

        Raises:
            IndexError: fewer distractors were added than the folds name, so that ranks would be too good.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for counts in (self._above, self._tied, self._added):
                dist.all_reduce(counts)  # integers: the sum does not depend on the number of processes
        largest = max((draws.largest for draws in self._draws), default=-1)
        if largest >= self._added.item():
            raise IndexError(f"distractor_folds names row {largest}, but there are {self._added.item()} distractors.")
        present = (self.weights > 0).float()
        above, tied = count_above(
            self.queries, self.targets, self.targets, present, own=True
        )  # (P, F): alike for every size
        columns = zip(self._above.split(self.folds, dim=1), self._tied.split(self.folds, dim=1), strict=True)
        return [GalleryRanks((a + above).cpu(), (t + tied).cpu(), self.weights.cpu()) for a, t in columns]


def count_above(
    queries: Tensor, targets: Tensor, items: Tensor, multiplicities: Tensor, own: bool = False
) -> tuple[Tensor, Tensor]:
    """How many items beat each query's target, and how many tie with it, in each of G galleries.

    Args:
        queries, targets: (P, dim) float32 unit rows, paired.
        items: (B, dim) float32 unit rows.
        multiplicities: (B, G) float32 whole numbers, how often gallery g holds item b. Exact as long as a column's sum
            over one block stays below 2^24.
        own: whether item i is target i, which is then not compared with itself.

    Returns:
        above, tied: (P, G) int64.
    """
    above = torch.zeros(len(queries), multiplicities.shape[1], dtype=torch.int64, device=queries.device)
    tied = torch.zeros_like(above)
    # Bounds the rounding error of a float32 dot product of unit rows (Cauchy-Schwarz), with room for their tolerance.
    margin = 1.01 * (queries.shape[1] + 8) * 2.0**-24
    for q in range(0, len(queries), BLOCK):
        rows = slice(q, q + BLOCK)
        score = (queries[rows].double() * targets[rows].double()).sum(1, keepdim=True).float()  # (p, 1)
        for start in range(0, len(items), BLOCK):
            held = multiplicities[start : start + BLOCK]  # (b, G)
            excess = queries[rows] @ items[start : start + BLOCK].T - score  # (p, b)
            above[rows] += ((excess > margin).float() @ held).long()
            near = (excess.abs_() <= margin).nonzero()  # a few pairs, except where a model collapsed
            near = near + near.new_tensor([q, start])
            if own:
                near = near[near[:, 0] != near[:, 1]]
            for pairs in near.split(PAIRS):
                _count_near(queries, targets, items, multiplicities, pairs, above, tied)
    return above, tied


def _count_near(
    queries: Tensor, targets: Tensor, items: Tensor, multiplicities: Tensor, pairs: Tensor, above: Tensor, tied: Tensor
) -> None:
    """Adds pairs (query, item) that float32 cannot tell apart from the target, decided in float64."""
    query, item = pairs.T
    ahead = (queries[query].double() * (items[item].double() - targets[query].double())).sum(1)  # (pairs,)
    for counts, chosen in ((above, ahead > 0), (tied, ahead == 0)):
        counts.index_add_(0, query[chosen], multiplicities[item[chosen]].long())


def fold_recall(ranks: Tensor, weights: Tensor, max_k: int) -> Tensor:
    """Recall at K = 1..max_k in each fold, as (F, max_k) float64, from ranks (P, F) and the weights of the queries (P,
    F)."""
    weights = weights.double()
    hits = [((ranks <= k) * weights).sum(0) for k in range(1, max_k + 1)]  # each (F,)
    return torch.stack(hits, dim=1) / weights.sum(0)[:, None]


def mean_and_std(recall: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over folds (F, K) -> (K,), (K,). One fold has no deviation: 0 is given."""
    return recall.mean(0), recall.std(0) if len(recall) > 1 else torch.zeros_like(recall[0])


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


class _Draws:
    """The draws of F folds, sorted, so that the multiplicities of any slice of rows are found without a table over all
    rows."""

    def __init__(self, folds: Tensor) -> None:
        self.sorted = folds.sort(dim=1).values.to(torch.int32)  # half of what twenty folds of a million would take
        self.largest = int(self.sorted.max()) if self.sorted.numel() else -1

    def multiplicities(self, start: int, stop: int) -> Tensor:
        """(stop - start, F) float32: how often each fold drew each of the rows start to stop (excluded)."""
        bounds = torch.tensor([[start, stop]], dtype=torch.int32).expand(len(self.sorted), 2).contiguous()
        columns = [
            torch.bincount(fold[low:high] - start, minlength=stop - start)
            for fold, (low, high) in zip(self.sorted, torch.searchsorted(self.sorted, bounds).tolist(), strict=True)
        ]
        return torch.stack(columns, dim=1).float()


def _unit_rows(name: str, embeds: Tensor, first_row: int = 0) -> Tensor:
    """Embeddings (n, dim) as float32; refused are other shapes, and rows that are not finite or not of length 1."""
    embeds = torch.as_tensor(embeds).float()
    if embeds.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}; one row per image, (n, dim), is needed.")
    norms = torch.linalg.vector_norm(embeds, dim=1)
    wrong = ~((norms - 1).abs() <= NORM_TOLERANCE)  # also true where a norm is NaN or infinite
    if wrong.any():
        row = int(wrong.nonzero()[0])
        problem = f"has norm {norms[row]:.4f}" if norms[row].isfinite() else "is not finite"
        raise ValueError(f"{name}: row {first_row + row} {problem}. Embeddings must be finite and L2-normalised.")
    return embeds


def _rows(name: str, folds: Tensor) -> Tensor:
    """Row numbers (F, n) on the CPU; refused are other shapes and negative numbers."""
    folds = torch.as_tensor(folds).cpu()
    if folds.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(folds.shape)}; one row of row numbers per fold, (F, n), is needed.")
    if folds.numel() and int(folds.min()) < 0:
        raise IndexError(f"{name} names row {int(folds.min())}; row numbers begin at 0.")
    return folds
