"""The order of an epoch: a pure function of (seed, epoch) and of what is in the shards.

Row groups are shuffled whole; rows are shuffled within windows of consecutive row groups, so that reading stays
sequential inside a row group and memory is bounded by the window. Processes and workers do not enter.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

WINDOW = 2048  # rows; at 100 kB a row 200 MB


def epoch_order(starts: np.ndarray, rows: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """All of `rows`, shuffled: (n,) row numbers.

    Args:
        starts: (row groups + 1,) row number where each begins; the last entry is the end of all.
        rows: (n,) ascending numbers of the rows to use.
        window: a window takes whole row groups until it holds this many rows or more.
    """
    rng = np.random.default_rng([seed, epoch])
    bounds = np.searchsorted(rows, starts)  # (row groups + 1,) where each one's part of `rows` begins
    order, taken, count = [], [], 0
    for group in rng.permutation(len(starts) - 1):
        taken.append(rows[bounds[group] : bounds[group + 1]])
        count += len(taken[-1])
        # Windows are cut here alone. A window that a number of processes or a batch size decided would make the order
        # another one on another machine, and a resumed run would read some products twice.
        if count >= window:
            order.append(rng.permutation(np.concatenate(taken)))
            taken, count = [], 0
    if count:
        order.append(rng.permutation(np.concatenate(taken)))
    return np.concatenate(order) if order else rows[:0]


def batches_of_one_group(groups: np.ndarray, size: int) -> np.ndarray:
    """Positions reordered so that each `size` of them in turn share a group; those that fill no batch are left out.

    Args:
        groups: (n,) group of each position.

    Returns:
        (m,) positions, m a multiple of `size`; a batch stands where its last member stood.
    """
    # One pass in the order given, so the shuffled order decides who is with whom, and a batch needs no row that comes
    # later than its place: what waits for a reader stays below `size` rows a group.
    waiting: dict[int, list[int]] = defaultdict(list)
    order: list[int] = []
    for position, group in enumerate(groups.tolist()):
        waiting[group].append(position)
        if len(waiting[group]) == size:
            order += waiting.pop(group)
    return np.array(order, dtype=np.int64)
