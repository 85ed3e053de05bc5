"""Rows of a catalog's vectors, on the disk; selections of them; and the exact best among them.

A catalog's vectors are never loaded: they stay float16 in the segments' shards, memory-mapped, and what is read often
the system keeps. A row's number is its place over all segments in order.

The exact search is one float32 product that finds who may be among the best, and exact scores (`lrvsf.embedding.top`)
of those few. It gives what exact scores of all rows would give, ties by row number included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrvsf.embedding.store import renormalised
from lrvsf.embedding.top import TopItems

SHARDS = "item-*.safetensors"
SCANNED = 2048  # rows that are converted and multiplied at a time: 4 MB of float32 at 512 dimensions stay in the cache
PICKED = 1024  # of scattered rows, which are copied first: the larger copies cost more than they save
DENSE = 4  # from one allowed row in four on, all rows are scored
SCORES = 2**24  # approximate scores in memory at a time, 64 MB


class Selection:
    """Which rows may be answered.

    Args:
        mask: (n,) bool, of all rows.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = np.ascontiguousarray(mask, dtype=bool)

    def __and__(self, other: Selection) -> Selection:
        return Selection(self.mask & other.mask)

    @cached_property
    def rows(self) -> np.ndarray:
        """(count,) int64, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def count(self) -> int:
        return int(np.count_nonzero(self.mask))


class Vectors:
    """(n, dim) float16 rows of length nearly 1, in several pieces.

    Args:
        pieces: (n_i, dim) float16 tensors, at least one; they may be memory-mapped.
    """

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        dims = {piece.shape[1:] for piece in pieces}
        if len(dims) != 1 or len(dim := dims.pop()) != 1:
            raise ValueError(f"Pieces of one dimension are needed, not of {sorted(tuple(d) for d in dims)}.")
        self._pieces = [piece for piece in pieces if len(piece)]
        self._arrays = [piece.numpy() for piece in self._pieces]
        self._starts = np.cumsum([0, *map(len, self._pieces)])
        self.shape = (int(self._starts[-1]), int(dim[0]))

    @classmethod
    def open(cls, segments: Sequence[Path]) -> Vectors:
        """The shards of all segments, in order, mapped into memory.

        Raises:
            FileNotFoundError: a segment has no shard.
            ValueError: a shard is damaged, or not float16.
        """
        pieces = []
        for segment in segments:
            paths = sorted(Path(segment).glob(SHARDS))
            if not paths:
                raise FileNotFoundError(f"{segment} has no {SHARDS}, which hold its vectors.")
            pieces += [_mapped(path) for path in paths]
        return cls(pieces)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows (m,) by number, in any order -> (m, dim) float32 unit rows.

        Raises IndexError: a number is negative, or there is no such row.
        """
        return renormalised(self.stored(np.asarray(rows, dtype=np.int64))).numpy()

    def blocks(self, size: int, first_row: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The rows from one on, in order: the number of a block's first, and (b, dim) float32 unit rows, b <= size."""
        for start, stored in self._scan(size, first_row):
            yield start, renormalised(stored).numpy()

    def block_starts(self, size: int, first_row: int = 0) -> list[int]:
        """The number of the first row of each of these blocks; nothing is read."""
        return [start for start, _ in self._scan(size, first_row)]

    @cached_property
    def lengths(self) -> Tensor:
        """(n,) float32: rounding to float16 has moved them away from 1."""
        lengths = torch.empty(len(self))
        for start, stored in self._scan(
            SCANNED
        ):  # into its place: small results between large ones would riddle the heap
            torch.linalg.vector_norm(stored.float(), dim=1, out=lengths[start : start + len(stored)])
        return lengths

    def stored(self, rows: np.ndarray) -> Tensor:
        """(m,) -> (m, dim) float16 as stored. Raises IndexError as `take` does."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} of {len(self)} were asked for.")
        return self._picked(rows)

    def _picked(self, rows: np.ndarray) -> Tensor:
        """(m,) numbers of rows that are there -> (m, dim) float16."""
        taken = np.empty((len(rows), self.shape[1]), dtype=np.float16)
        piece_of = np.searchsorted(self._starts, rows, side="right") - 1
        if len(rows) < 4 * len(self._arrays):  # scattered, as candidates are: sorting them by piece takes longer
            inside = rows - self._starts[piece_of]
            for place, (piece, row) in enumerate(zip(piece_of.tolist(), inside.tolist(), strict=True)):
                taken[place] = self._arrays[piece][row]
            return torch.from_numpy(taken)
        by_piece = np.argsort(piece_of, kind="stable")
        pieces, firsts = np.unique(piece_of[by_piece], return_index=True)
        for piece, places in zip(pieces, np.split(by_piece, firsts[1:]), strict=True):
            taken[places] = self._arrays[piece][rows[places] - self._starts[piece]]
        return torch.from_numpy(taken)

    def _scan(self, size: int, first_row: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(first row, (b, dim) float16 views) of all rows from one on."""
        for start, piece in zip(self._starts, self._pieces, strict=False):
            skipped = min(max(first_row - int(start), 0), len(piece))
            for place in range(skipped, len(piece), size):
                yield int(start) + place, piece[place : place + size]

    def best(self, queries: Tensor, k: int, allowed: Selection | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The exact best of all rows, or of the allowed ones.

        Args:
            queries: (Q, dim) float32 unit rows.

        Returns: (Q, min(k, n)) float64 scores, best first; int64 rows. Of equal scores the smaller row comes first.
        """
        total = len(self) if allowed is None else allowed.count
        scores, best = np.empty((len(queries), min(k, total))), np.empty((len(queries), min(k, total)), dtype=np.int64)
        if scores.size:
            together = max(1, SCORES // len(self))  # queries
            for first in range(0, len(queries), together):
                part = slice(first, first + together)
                found = self._near_best(queries[part], min(k, total), allowed)
                top = TopItems(queries[part], min(k, total))
                for block in np.array_split(found, -(-len(found) // SCANNED)):
                    top.add(torch.from_numpy(self.take(block)), torch.from_numpy(block))
                scores[part], best[part] = top.scores.numpy(), top.items.numpy()
        return scores, best

    def _near_best(self, queries: Tensor, k: int, allowed: Selection | None) -> np.ndarray:
        """The rows that may be among the best k of a query; ascending, those of all queries together.

        A float32 product of unit rows is off by dim roundings at most, each of half a last bit; the length adds a few.
        What is this much below the k-th best approximate score, twice, cannot be among the best k.
        """
        # Many of the rows are sooner multiplied with the others, in place, than copied out of them.
        rows = None if allowed is None or DENSE * allowed.count >= len(self) else allowed.rows
        scores = torch.empty(len(queries), len(self) if rows is None else len(rows))
        done = 0
        for stored in self._stored_blocks(rows):
            torch.matmul(queries, stored.float().T, out=scores[:, done : done + len(stored)])
            done += len(stored)
        scores /= self.lengths if rows is None else self.lengths[torch.from_numpy(rows)]
        if allowed is not None and rows is None:
            scores[:, torch.from_numpy(~allowed.mask)] = -torch.inf
        margin = 2 * (self.shape[1] + 8) * 2.0**-24
        last = scores.topk(k, dim=1).values[:, -1:]
        near = (scores >= last - margin).any(0).nonzero()[:, 0].numpy()
        return near if rows is None else rows[near]

    def _stored_blocks(self, rows: np.ndarray | None) -> Iterator[Tensor]:
        if rows is None:
            yield from (stored for _, stored in self._scan(SCANNED))
        else:
            yield from (self.stored(rows[start : start + PICKED]) for start in range(0, len(rows), PICKED))


def _mapped(path: Path) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            embeds = file.get_tensor("embeds")  # mapped, not read
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    if embeds.dtype != torch.float16 or embeds.ndim != 2:
        raise ValueError(
            f"{path} has embeds of shape {tuple(embeds.shape)}, {embeds.dtype}; (n, dim) float16 are needed."
        )
    return embeds
