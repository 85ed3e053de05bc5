"""Millions of pairs are compared by blocks: against one pair at a time, and against the rule that searches use."""

import numpy as np
import pytest

from lrvsf.search.copies import DIFFERENT, same_picture


def test_pairs_are_compared_as_searches_compare_them(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    import bench_copies

    monkeypatch.setattr(bench_copies, "BLOCK", 3)
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(2, 4, 8)).astype(np.float32)
    pictures = rng.uniform(0, 255, (4, 1024, 3)).astype(np.float32)
    # Each other picture is the first one's with more and more noise: on both sides of the rule.
    theirs = pictures[:1] + np.array([0.0, 20, 60, 200]).reshape(4, 1, 1) * rng.uniform(-1, 1, (4, 1024, 3))
    theirs = theirs.astype(np.float32)
    places = np.array([0, 0, 0, 0, 1, 2, 3]), np.array([0, 1, 2, 3, 0, 2, 1])
    cosines, differences = bench_copies.compared(rows, pictures, others, theirs, places)
    for one, two, cosine, difference in zip(*places, cosines, differences, strict=True):
        assert cosine == pytest.approx(float(rows[one] @ others[two]), rel=1e-5)
        contrast = max(np.linalg.norm(grid - grid.mean(0)) for grid in (pictures[one], theirs[two]))
        assert difference == pytest.approx(np.linalg.norm(pictures[one] - theirs[two]) / contrast, rel=1e-5)
        grids = (grid.reshape(32, 32, 3) for grid in (pictures[one], theirs[two]))
        assert same_picture(*grids) == (difference <= DIFFERENT)
    assert (differences[:4] <= DIFFERENT).tolist() == [True, True, False, False]
