import numpy as np
import pytest

from lrvsf.data.order import batches_of_one_group, epoch_order

STARTS = np.array([0, 3, 3, 10, 12, 20])  # an empty row group among them
ROWS = np.array([0, 2, 3, 4, 5, 8, 9, 10, 12, 13, 14, 18, 19])


def unit_of(row):
    return next(u for u in range(5) if STARTS[u] <= row < STARTS[u + 1])


@pytest.mark.parametrize("window", [1, 4, 100])
def test_every_row_once_within_windows_of_units(window):
    order = epoch_order(STARTS, ROWS, seed=1, epoch=2, window=window)
    assert sorted(order) == ROWS.tolist()
    assert order.tolist() == epoch_order(STARTS, ROWS, 1, 2, window).tolist()
    start, cuts = 0, []
    for stop in range(1, len(order) + 1):  # cut where whole row groups fill a window
        units = {unit_of(row) for row in order[start:stop]}
        if stop - start >= window and stop - start == sum(unit_of(row) in units for row in ROWS):
            cuts.append(stop - start)
            start = stop
    assert all(cut < window + 5 for cut in cuts) and len(order) - start < window, (
        "at most a row group more than the window"
    )


def test_orders_of_seeds_and_epochs_differ():
    orders = {tuple(epoch_order(STARTS, ROWS, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_shuffle_is_uniform_over_places():
    rows = np.arange(8)
    first = np.bincount([epoch_order(np.arange(9), rows, 0, epoch)[0] for epoch in range(4000)], minlength=8)
    assert abs(first - 500).max() < 5 * np.sqrt(500), "each of 8 rows comes first in about 500 of 4,000 epochs"


def test_parts_share_a_group_and_stand_where_they_were_completed():
    assert batches_of_one_group(np.array([0, 1, 0, 1, 1, 0, 2, 0, 1]), 2).tolist() == [0, 2, 1, 3, 5, 7, 4, 8]
    assert batches_of_one_group(np.array([0, 1, 2]), 1).tolist() == [0, 1, 2]
    assert batches_of_one_group(np.array([0, 1, 2]), 2).tolist() == []
