"""How many items beat each query's target: one product of a block, then comparisons, never a sort.

Every decision is the sign of query · (item - target) in float64, whatever the product was computed in:

1. a product is off by at most a known bound, so an item whose score differs from the target's by more is decided by it;
2. the few items within the bound are decided by a more exact product of those pairs alone: after bfloat16 comes
   float32, after float32 comes float64 of the difference, which is exactly 0 for an item equal to the target.

The bound of a bfloat16 product is not the worst case of its format (0.0101 for unit vectors) but follows, by
Cauchy-Schwarz, from the lengths of what rounding took from these very rows, about 0.003, so fewer pairs are left over.
The product's own rounding to bfloat16 needs no bound: rounding keeps order, so the limits are rounded alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

ROWS, COLUMNS = 512, 1024  # of one block of scores: 2 MB of float32, so that comparisons find it in the cache
PAIRS = 16384  # pairs scored one by one at a time: 70 MB of float64 at 512 dimensions, three times
SPARSE = 24  # below one win in so many scores, adding up rows of multiplicities is faster than a matrix product
MANY_NEAR = 200  # above one pair in so many, a float32 product of the block is faster than scoring the pairs


def count_above(
    queries: Tensor, targets: Tensor, items: Tensor, multiplicities: Tensor, own: bool = False, bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """How many items beat each query's target, and how many tie with it, in each of G galleries.

    Args:
        queries, targets: (P, dim) float32 unit rows, paired.
        items: (B, dim) float32 unit rows.
        multiplicities: (B, G) float32 whole numbers, how often gallery g holds item b. Exact as long as a column's sum
            over one block stays below 2^24.
        own: whether item i is target i, which is then not compared with itself.
        bf16: multiply in bfloat16 first. The counts are the same; it is faster where the hardware has such products.

    Returns:
        above, tied: (P, G) int64.
    """
    above = torch.zeros(len(queries), multiplicities.shape[1], dtype=torch.int64, device=queries.device)
    tied = torch.zeros_like(above)
    with _full_precision():
        for q in range(0, len(queries), ROWS):
            rows = slice(q, q + ROWS)
            block = _Block(queries[rows], targets[rows], bf16)
            for start in range(0, len(items), COLUMNS):
                columns = slice(start, start + COLUMNS)
                diagonal = q - start if own else None
                block.count(items[columns], multiplicities[columns], above[rows], tied[rows], diagonal)
    return above, tied


class _Block:
    """p queries with their targets, against blocks of items."""

    def __init__(self, queries: Tensor, targets: Tensor, bf16: bool) -> None:
        self.queries, self.targets, self.bf16 = queries, targets, bf16
        self.score = (queries.double() * targets.double()).sum(1).float()  # (p,)
        # Bounds the rounding error of a float32 dot product of unit rows, with room for their tolerance.
        self.margin = 1.01 * (queries.shape[1] + 8) * 2.0**-24
        if bf16:
            self.rounded = queries.bfloat16()
            self.lost = torch.linalg.vector_norm(queries - self.rounded.float(), dim=1)  # (p,)

    def count(self, items: Tensor, held: Tensor, above: Tensor, tied: Tensor, diagonal: int | None) -> None:
        """Adds to above and tied (p, G) what the items (b, dim) of multiplicities held (b, G) make.

        With `diagonal`, query i's own target is item i + diagonal.
        """
        coarse = self.bf16
        wins, query, item = _sorted_out(*(self._coarse(items) if coarse else self._fine(items)))
        if coarse and MANY_NEAR * len(query) > len(self.queries) * len(items):
            coarse = self.bf16 = False  # for what else meets these queries too: their targets lie in the crowd
            wins, query, item = _sorted_out(*self._fine(items))
        if isinstance(wins, Tensor):
            above += (wins.float() @ held).long()
        else:
            _add(above, held, *wins)
        if diagonal is not None:
            other = item != query + diagonal
            query, item = query[other], item[other]
        for pairs in zip(query.split(PAIRS), item.split(PAIRS), strict=True):
            self._decide(items, held, *pairs, above, tied, in_float32=coarse)

    def _fine(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (p, b) in float32; below the first limit (p,) an item is behind, above the second it is ahead."""
        return self.queries @ items.T, self.score - self.margin, self.score + self.margin

    def _coarse(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same in bfloat16.

        q·x - q'·x' = (q - q')·x + q'·(x - x'), with q', x' the rounded rows; their product adds up in float32.
        """
        rounded = items.bfloat16()
        lost = torch.linalg.vector_norm(items - rounded.float(), dim=1).max()
        margin = 1.01 * (self.lost + lost) + 2 * self.margin  # lengths may be 1.001
        low, high = ((self.score + sign * margin).bfloat16() for sign in (-1, 1))
        return self.rounded @ rounded.T, low, high

    def _decide(
        self, items: Tensor, held: Tensor, query: Tensor, item: Tensor, above: Tensor, tied: Tensor, in_float32: bool
    ) -> None:
        """Adds pairs, sorted by query, that a product could not tell apart from the target."""
        if in_float32:
            excess = (self.queries[query] * items[item]).sum(1) - self.score[query]
            wins, near = excess > self.margin, excess.abs() <= self.margin
            _add(above, held, query[wins], item[wins])
            query, item = query[near], item[near]
        ahead = (self.queries[query].double() * (items[item].double() - self.targets[query].double())).sum(1)
        for counts, chosen in ((above, ahead > 0), (tied, ahead == 0)):
            _add(counts, held, query[chosen], item[chosen])


def _sorted_out(scores: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor, Tensor]:
    """What is ahead of the target, as (p, b) or, where that is rare, as (queries, items); queries, items too near."""
    reached = scores >= low[:, None]  # (p, b)
    if SPARSE * int(reached.count_nonzero()) > scores.numel():
        wins = scores > high[:, None]
        query, item = (reached ^ wins).nonzero().T
        return wins, query, item
    query, item = reached.nonzero().T
    ahead = scores[query, item] > high[query]
    return (query[ahead], item[ahead]), query[~ahead], item[~ahead]


def _add(counts: Tensor, held: Tensor, query: Tensor, item: Tensor) -> None:
    """Adds to each query's row of counts the multiplicities of its items; queries ascend."""
    if len(query):
        of_each = torch.bincount(query, minlength=len(counts))
        counts += embedding_bag(item, held, of_each.cumsum(0) - of_each, mode="sum").long()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products that keep what their bounds suppose: float32 not cut down to TF32 or bfloat16, sums in float32."""
    before = torch.get_float32_matmul_precision()
    matmul = torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        matmul.allow_bf16_reduced_precision_reduction = reduced
