"""Plots are written whole; what they show is computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import measured_products
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lrvsf.evaluation.pages.plots import PLOTS, plot_all, plot_categories, plot_recall, rank_shares
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
        table.add(size, ranks, measured_products([0, 1], ["Bags", "Feet"]), "galleries")
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


def texts(monkeypatch, draw, *arguments):
    """All texts of a plot, as matplotlib sets them, and whether each is mathematics."""
    shown = []

    def savefig(figure, *_, **__):
        figure.draw_without_rendering()
        shown.extend(text._preprocess_math(text.get_text()) for text in figure.findobj(Text))
        Path(_[0]).write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", savefig)
    draw(*arguments)
    return shown


@pytest.mark.survives("a category or model name that is mathematics to matplotlib", "drawn as it is written")
@pytest.mark.parametrize("name", [r"$\frac$", "$5 to $10", r"\$1 and $2$", "_hidden", "a\x1b[0m"])
def test_names_are_drawn_as_they_are_written(monkeypatch, tmp_path, name):
    shown = texts(monkeypatch, plot_categories, {name: results(0.5, (500,), (name, "Bags"))}, tmp_path / "a.png")
    assert not any(math for _, math in shown)
    words = [text.strip() for text, _ in shown]
    written = name.replace("\x1b", r"\x1b")
    assert written in words and f"{written}\n7" in words


def test_error_bars_end_at_nothing_and_at_everything(monkeypatch, tmp_path):
    ends = []
    plain = Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda *given, yerr, **named: ends.append(yerr) or plain(*given, yerr=yerr, **named)
    )
    near = {"galleries": {"9": {"recall": {k: {"mean": 0.97, "std": 0.1} for k in ("1", "5", "10")}, "items": 10}}}
    plot_recall({"a": near}, tmp_path / "recall.png")
    assert [np.round(bars, 6).tolist() for bars in ends] == [[[10], [3]], [[10], [3]], [[], []]]  # R@10 is no success
