"""The order of an epoch: a pure function of (seed, epoch) and of what is in the shards.

Units, the row groups of Parquet shards, are shuffled whole; rows are shuffled within windows of consecutive units, so
that reading stays sequential inside a unit and memory is bounded by the window. Processes and workers do not enter.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

WINDOW = 2048  # rows; at 100 kB a row 200 MB


def epoch_order(starts: np.ndarray, rows: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """All of `rows`, shuffled: (n,) row numbers.

    Args:
        starts: (units + 1,) row number where each unit begins; the last entry is the end of all.
        rows: (n,) ascending numbers of the rows to use.
        window: a window takes whole units until it holds this many rows or more.
    """
    rng = np.random.default_rng([seed, epoch])
    bounds = np.searchsorted(rows, starts)  # (units + 1,) where each unit's part of `rows` begins
    order, taken, count = [], [], 0
    for unit in rng.permutation(len(starts) - 1):
        taken.append(rows[bounds[unit] : bounds[unit + 1]])
        count += len(taken[-1])
        if count >= window:
            order.append(rng.permutation(np.concatenate(taken)))
            taken, count = [], 0
    if count:
        order.append(rng.permutation(np.concatenate(taken)))
    return np.concatenate(order) if order else rows[:0]


def in_parts(groups: np.ndarray, size: int) -> np.ndarray:
    """Positions reordered so that each `size` of them in turn share a group, less those that fill no such part.

    Args:
        groups: (n,) group of each position.

    Returns:
        (m,) positions, m a multiple of `size`; a part stands where its last member stood.
    """
    waiting: dict[int, list[int]] = defaultdict(list)
    order: list[int] = []
    for position, group in enumerate(groups.tolist()):
        waiting[group].append(position)
        if len(waiting[group]) == size:
            order += waiting.pop(group)
    return np.array(order, dtype=np.int64)
