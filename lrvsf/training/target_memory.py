"""Targets of past steps, as further negatives of the queries (cross-batch memory, arXiv 1912.06798)."""

from __future__ import annotations

import torch
from torch import Tensor

from lrvsf.processes import gather_rows


class TargetMemory:
    """The last targets of all processes, in float16, equal everywhere.

    Args:
        size: rows kept.
        max_similarity: a remembered row whose cosine with a query's own target is above this is no negative of it.
    """

    def __init__(self, size: int, max_similarity: float):
        self.size, self.max_similarity = size, max_similarity
        self.rows: Tensor | None = None  # (M, D)
        self.products: Tensor | None = None  # (M,)

    def add(self, targets: Tensor, products: Tensor) -> None:
        """Takes in the gathered targets of a step, whose oldest rows make place."""
        rows, products = gather_rows(targets.detach()).half(), gather_rows(products)
        if self.rows is None:
            self.rows, self.products = rows, products
        else:
            self.rows = torch.cat([self.rows, rows])[-self.size :]
            self.products = torch.cat([self.products, products])[-self.size :]

    def negatives(self, targets: Tensor, products: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows (M, D), and which (B, M) are none of a target's negatives: its product's, and those too like it."""
        if self.rows is None:
            return None
        rows = self.rows.float()
        alike = targets.detach().float() @ rows.T > self.max_similarity
        return rows, alike | (products[:, None] == self.products[None, :])
