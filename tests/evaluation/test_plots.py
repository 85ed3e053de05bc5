"""Plots are written whole; what they show is computed by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from lrvsf.evaluation.plots import PLOTS, plot_all, plot_recall, rank_shares
from lrvsf.evaluation.queries import QueryTable
from lrvsf.evaluation.recall import GalleryRanks


def results(mean, sizes, categories=("Bags", "Feet")):
    recall = {k: {"mean": mean, "std": 0.01} for k in ("1", "5", "10")}
    by_category = {name: {"mean": mean, "queries": 7} for name in categories}
    return {"galleries": {str(size): {"recall": recall, "recall_at_1_by_category": by_category} for size in sizes}}


def queries(sizes, tmp_path):
    table = QueryTable()
    for size in sizes:
        ranks = GalleryRanks(torch.tensor([[0], [4]]), torch.zeros(2, 1, dtype=int), torch.tensor([[1.0], [1.0]]))
        table.add(size, ranks, [0, 1], ["Bags", "Feet"], "galleries")
    table.save(tmp_path / "queries.parquet")
    return table.table()


def test_models_of_different_sizes_and_categories_share_each_plot(tmp_path):
    named = {"a": results(0.5, (500, 2000)), "b": results(0.3, (500,), ("Bags", "Neck"))}
    tables = {"a": queries((500, 2000), tmp_path), "b": queries((500,), tmp_path)}
    plot_all(named, tables, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(PLOTS)
    for name in PLOTS:
        picture = np.asarray(Image.open(tmp_path / "new" / name).convert("RGB"))
        blue, orange = ((picture == colour).all(-1).sum() for colour in ((31, 119, 180), (255, 127, 14)))
        assert blue > 100 and orange > 100, f"{name} shows both models"


def test_galleries_from_nothing_to_millions(tmp_path):
    plot_recall({"a": results(0.5, (0, 1000, 500_000, 2_000_015))}, tmp_path / "recall.png")
    assert Image.open(tmp_path / "recall.png").size == (1575, 630)


def test_ranks_fall_into_bins_that_double():
    ranks, draws = np.array([1, 1.5, 2, 2.5, 4, 9.0]), np.array([1, 2, 1, 1, 3, 2])
    assert rank_shares(ranks, draws).tolist() == pytest.approx([0.1, 0.3, 0.4, 0, 0.2])
