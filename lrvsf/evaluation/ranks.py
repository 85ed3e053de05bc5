"""How many items beat each query's target: one product of a block, then its few wins, never a sort.

Every decision is the sign of query · (item - target) in float64, whatever the product was computed in:

1. a product is off by at most a known bound, so an item whose score differs from the target's by more is decided by it;
2. the few items within the bound are decided by a more exact product of those pairs alone: after bfloat16 comes
   float32, after float32 comes float64 of the difference, which is exactly 0 for an item equal to the target.

The product itself subtracts what a score must reach: queries have further coordinates, minus that limit, and items have
ones there. To find positive results quickly, the floats are viewed as integers, which have the same sign bit, several
per int64. So a score costs little more than the product, and rounding the result cannot change its sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

ROWS, COLUMNS = 2048, 1024  # of one block of scores: 8 MB of float32, which a CPU's cache holds
GPU_COLUMNS = 16384  # there a small block is over before its kernels are launched
PAIRS = 16384  # pairs scored one by one at a time: 70 MB of float64 at 512 dimensions, three times
SPARSE = 24  # below one win in this many scores, adding up rows of multiplicities is faster than a matrix product
MANY_NEAR = 200  # if more than 1 in this many pairs is undecided, one float32 product of the block is faster
EXTRA = 8  # further coordinates: two are used, the others are padding, so that rows stay aligned for GPU kernels
WHOLE = {torch.float32: torch.int32, torch.bfloat16: torch.int16}  # of the same size


def count_above(
    queries: Tensor, targets: Tensor, items: Tensor, multiplicities: Tensor, own: bool = False, bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """How many items beat each query's target, and how many tie with it, in each of G galleries.

    Args:
        queries, targets: (P, dim) float32 unit rows, paired.
        items: (B, dim) float32 unit rows.
        multiplicities: (B, G) float32 whole numbers, how often gallery g holds item b. Exact as long as a column's sum
            stays below 2^24.
        own: whether item i is target i, which is then not compared with itself.
        bf16: multiply in bfloat16 first. The counts are the same; it is faster where the hardware has such products.

    Returns:
        above, tied: (P, G) int64.
    """
    above = torch.zeros(len(queries), multiplicities.shape[1], device=queries.device)
    tied = torch.zeros_like(above)
    with _full_precision():
        starts = range(0, len(queries), ROWS)
        blocks = [_Queries(queries[q : q + ROWS], targets[q : q + ROWS], bf16) for q in starts]
        width = GPU_COLUMNS if items.is_cuda else COLUMNS
        for start in range(0, len(items), width):
            columns = slice(start, start + width)
            block = _Items(items[columns], multiplicities[columns])
            for q, rows in zip(starts, blocks, strict=True):
                rows.count(block, above[q : q + ROWS], tied[q : q + ROWS], q - start if own else None)
    return above.long(), tied.long()


class _Items:
    """b items and how often each gallery holds them, (b, G); for products in one precision or the other."""

    def __init__(self, rows: Tensor, held: Tensor) -> None:
        self.rows, self.held = rows, held
        self.extended: dict[torch.dtype, Tensor] = {}

    def factor(self, dtype: torch.dtype) -> Tensor:
        """(b, dim + EXTRA), rounded."""
        if dtype not in self.extended:
            ones = self.rows.new_tensor([1, 1] + [0] * (EXTRA - 2), dtype=dtype).expand(len(self.rows), EXTRA)
            self.extended[dtype] = torch.cat([self.rows.to(dtype), ones], dim=1)
        return self.extended[dtype]


class _Queries:
    """p queries with their targets, against blocks of items."""

    def __init__(self, rows: Tensor, targets: Tensor, bf16: bool) -> None:
        self.rows, self.targets, self.bf16 = rows, targets, bf16
        self.score = (rows * targets).sum(1)  # (p,)
        # Bounds the rounding of this and another float32 dot product of unit rows, with room for their tolerance.
        self.margin = 2.02 * (rows.shape[1] + EXTRA) * 2.0**-24
        self._factors: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def count(self, items: _Items, above: Tensor, tied: Tensor, diagonal: int | None) -> None:
        """Adds to above and tied (p, G) what the items make.

        With `diagonal`, query i's own target is item i + diagonal.
        """
        coarse = self.bf16
        wins, query, item = self._split_by_margin(items, torch.bfloat16 if coarse else torch.float32)
        if coarse and MANY_NEAR * len(query) > len(self.rows) * len(items.rows):
            coarse = self.bf16 = False  # for what else meets these queries too: their targets lie in the crowd
            wins, query, item = self._split_by_margin(items, torch.float32)
        if isinstance(wins, Tensor):
            above += wins.float() @ items.held
        else:
            _add(above, items.held, *wins)
        if diagonal is not None:
            other = item != query + diagonal
            query, item = query[other], item[other]
        for pairs in zip(query.split(PAIRS), item.split(PAIRS), strict=True):
            self._decide(items, *pairs, above, tied, in_float32=coarse)

    def _split_by_margin(
        self, items: _Items, dtype: torch.dtype
    ) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor, Tensor]:
        """What is ahead of the target, as (p, b) or, where that is rare, as (queries, items); queries, items too near.

        Pairs are sorted by query.
        """
        factor, width = self._factor(dtype)
        over = factor @ items.factor(dtype).T  # (p, b): by how much a score is over the lower limit, rounded
        # A positive float's bits are a positive integer; a negative one's are negative, and so are those of -0.0.
        bits = over.view(WHOLE[dtype]).clamp_(min=0)
        together = 8 // over.element_size()
        if over.shape[1] % together:  # a last block whose rows do not fall into whole int64s
            together = 1
        groups = bits.view(torch.int64) if together > 1 else bits  # (p, b / together): 0 where none is positive
        query, group = groups.nonzero().T
        if SPARSE * len(query) > groups.numel():  # many wins: to list them would cost more than to multiply
            wins = over > width[:, None]
            query, item = ((over > 0) ^ wins).nonzero().T
            return wins, query, item
        which, place = bits.unflatten(1, (-1, together))[query, group].nonzero().T
        query, item = query[which], group[which] * together + place
        ahead = over[query, item] > width[query]
        return (query[ahead], item[ahead]), query[~ahead], item[~ahead]

    def _factor(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Queries (p, dim + EXTRA) whose product with items is over 0 where they may be ahead; over the width (p,),
        where they are.

        A product of rows rounded to bfloat16, at most 2^-9 of each lost, is off by 2^-8; it adds up in float32.
        """
        if dtype not in self._factors:
            margin = 2 * self.margin  # as the limit adds up too
            if dtype == torch.bfloat16:
                margin += 1.01 * 2.0**-8 + 2.0**-16  # the last: of the limit, in two parts
            limit = margin - self.score  # (p,), in two parts: rounded, and what the rounding lost
            parts = [limit.to(dtype), (limit - limit.to(dtype).float()).to(dtype)]
            parts += [torch.zeros_like(parts[0])] * (EXTRA - 2)
            factor = torch.cat([self.rows.to(dtype), torch.stack(parts, dim=1)], dim=1)
            self._factors[dtype] = factor, torch.full_like(limit, 2 * margin).to(dtype)
        return self._factors[dtype]

    def _decide(
        self, items: _Items, query: Tensor, item: Tensor, above: Tensor, tied: Tensor, in_float32: bool
    ) -> None:
        """Adds pairs, sorted by query, that a product could not tell apart from the target."""
        if in_float32:
            excess = (self.rows[query] * items.rows[item]).sum(1) - self.score[query]
            wins, near = excess > self.margin, excess.abs() <= self.margin
            _add(above, items.held, query[wins], item[wins])
            query, item = query[near], item[near]
        # The difference is taken before the product, so that equal rows give 0 whatever the order of the sum.
        ahead = (self.rows[query].double() * (items.rows[item].double() - self.targets[query].double())).sum(1)
        for counts, chosen in ((above, ahead > 0), (tied, ahead == 0)):
            _add(counts, items.held, query[chosen], item[chosen])


def _add(counts: Tensor, held: Tensor, query: Tensor, item: Tensor) -> None:
    """Adds to each query's row of counts the multiplicities of its items; queries ascend."""
    if len(query):
        # Each query's items are one bag, beginning where those of the queries before it end.
        per_query = torch.bincount(query, minlength=len(counts))
        counts += embedding_bag(item, held, per_query.cumsum(0) - per_query, mode="sum")


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
