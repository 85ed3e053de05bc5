"""The best items of each query, from blocks that come in any order and size, on any number of processes.

A list's top is decided by the last bits of its scores, and a rounded product has other last bits in another block, on
another machine, with another number of threads. So scores are made exact. Coordinates are rounded to multiples of
2^-26, far finer than float16 or bfloat16; a product of two is a multiple of 2^-52, and as no part of a dot product of
unit rows exceeds their lengths' product, every sum on the way is below 2 and fits into float64's 53 bits. Whatever the
order of addition, nothing is rounded: equal rows have equal scores everywhere, and among equal scores the smaller item
number is better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrvsf.processes import every, world_size

BLOCK = 4096  # items scored at a time (not tuned)
GRID = 2.0**26  # the finest whose products add up within 53 bits


def on_grid(rows: Tensor) -> Tensor:
    """Unit rows (n, dim) -> float64, whose dot products are exact."""
    return (rows.double() * GRID).round() / GRID


class TopLists:
    """The best `count` items of each of Q queries; fewer while fewer were kept.

    Attributes:
        scores: (Q, kept) float64, best first.
        items: (Q, kept) int64, their numbers.
    """

    def __init__(self, queries: int, count: int, device: torch.device | None = None) -> None:
        self.count = count
        self.scores = torch.empty(queries, 0, dtype=torch.float64, device=device)
        self.items = torch.empty(queries, 0, dtype=torch.int64, device=device)

    def keep(self, scores: Tensor, items: Tensor) -> None:
        """The best of what was kept and of exact scores (Q, B) of items (Q, B)."""
        if self.scores.shape[1] == self.count:  # what no query ranks among its best need not be sorted
            wanted = (scores >= self.scores[:, -1:]).any(0)  # (B,): equal ones too, as a smaller number wins
            scores, items = scores[:, wanted], items[:, wanted]
        scores, items = torch.cat([self.scores, scores], dim=1), torch.cat([self.items, items], dim=1)
        if scores.shape[1] > self.count:
            # topk is many times faster than a sort, but of equal scores it takes any. Where none straddles the end
            # of the list, it takes the right ones.
            best, places = scores.topk(self.count + 1, dim=1)
            if (best[:, -1] < best[:, -2]).all():
                scores, items = best[:, :-1], items.gather(1, places[:, :-1])
        # By item number first, then stably by score: among equal scores the smaller number stays in front.
        items, order = items.sort(dim=1)
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        self.scores, self.items = scores[:, : self.count], items.gather(1, order)[:, : self.count]

    def gather(self) -> None:
        """Makes the lists those of all processes' items. Every process must call it."""
        if world_size() == 1:
            return
        parts: list[tuple[Tensor, Tensor]] = every((self.scores.cpu(), self.items.cpu()))
        # From empty lists, as this process's own are among the parts: an item must not be kept twice.
        device, self.scores, self.items = self.scores.device, self.scores[:, :0], self.items[:, :0]
        for scores, items in parts:
            self.keep(scores.to(device), items.to(device))


class TopItems(TopLists):
    """Lists that score the items themselves.

    Args:
        queries: (Q, dim) unit rows.
        count: how many items to keep of each query.
    """

    def __init__(self, queries: Tensor, count: int) -> None:
        super().__init__(len(queries), count, queries.device)
        self.queries = on_grid(queries)

    def add(self, embeds: Tensor, items: Tensor) -> None:
        """Items (B,), each once, with unit rows (B, dim)."""
        for rows, numbers in zip(embeds.split(BLOCK), items.to(self.items.device).split(BLOCK), strict=True):
            scores = self.queries @ on_grid(rows.to(self.queries.device)).T  # (Q, b), exact in any order of addition
            self.keep(scores, numbers.expand(len(self.queries), -1))


NORM_TOLERANCE = 1e-3  # float16 and bfloat16 storage included: rounding errors of many coordinates cancel


def checked_unit_rows(name: str, embeds: Tensor, first_row: int = 0) -> Tensor:
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
