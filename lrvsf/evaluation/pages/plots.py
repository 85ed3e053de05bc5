"""Plots of one or several models' results, from results.json and queries.parquet.

recall.png      R@1, R@5 and R@10 against the number of distractors, bars of one standard deviation over folds
categories.png  R@1 by category, at the largest gallery that all models were evaluated at
ranks.png       how many queries have their target at which rank, in the same gallery
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrvsf.data.names import printable
from lrvsf.durable import whole_file
from lrvsf.evaluation.results import FIRST_KS, Results, is_trivial

KS = [str(k) for k in FIRST_KS]  # as results.json has them
PLOTS = ("recall.png", "categories.png", "ranks.png")


def plot_all(named_results: Mapping[str, Results], queries: Mapping[str, pa.Table], folder: str | Path) -> None:
    """Writes `PLOTS` into a folder.

    Args:
        named_results, queries: name of a model -> what its results.json and its queries.parquet hold.
    """
    plot_recall(named_results, Path(folder, PLOTS[0]))
    plot_categories(named_results, Path(folder, PLOTS[1]))
    plot_ranks(queries, Path(folder, PLOTS[2]))


def plot_recall(named_results: Mapping[str, Results], path: str | Path) -> None:
    """A panel for each K, a line for each model."""
    figure, panels = _panels(len(KS), width=3.5)
    sizes = sorted({int(size) for results in named_results.values() for size in results["galleries"]})
    for k, axes in zip(KS, panels, strict=True):
        for name, results in named_results.items():
            galleries = {int(size): gallery for size, gallery in results["galleries"].items()}
            shown = [n for n in sorted(galleries) if not is_trivial(galleries[n], "recall", k, results)]
            recalls = [galleries[size]["recall"][k] for size in shown]
            mean, std = (np.array([100 * recall[key] for recall in recalls]) for key in ("mean", "std"))
            within = [np.minimum(std, mean), np.minimum(std, 100 - mean)]  # a recall is between 0 and 100 %
            axes.errorbar(shown, mean, yerr=within, marker="o", markersize=4, capsize=3, label=as_label(name))
        if sizes[0]:
            axes.set_xscale("log")
        else:  # a gallery of products alone
            axes.set_xscale("symlog", linthresh=sizes[1] if len(sizes) > 1 else 1)
        axes.set_xticks(sizes, [_short(size) for size in sizes], rotation=45 if len(sizes) > 6 else 0)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distractors in the gallery")
        axes.set_ylabel(f"R@{k} (%)")
    _finish(figure, panels[0], path)


def plot_categories(named_results: Mapping[str, Results], path: str | Path) -> None:
    """A group of bars for each category, one bar for each model; how many queries a category has under its name."""
    size = max(set.intersection(*(set(map(int, results["galleries"])) for results in named_results.values())))
    by_model = [results["galleries"][str(size)]["recall_at_1_by_category"] for results in named_results.values()]
    categories = sorted({category for recalls in by_model for category in recalls})
    figure, (axes,) = _panels(1, width=max(6.4, 0.9 * len(categories)))
    width = 0.8 / len(by_model)
    for number, (name, recalls) in enumerate(zip(named_results, by_model, strict=True)):
        places = np.arange(len(categories)) + width * (number - (len(by_model) - 1) / 2)  # side by side, centred
        heights = [100 * recalls[c]["mean"] if c in recalls else 0 for c in categories]
        axes.bar(places, heights, width, label=as_label(name))
        for place, category in zip(places, categories, strict=True):
            if category not in recalls:  # else no bar would look like a recall of 0
                axes.text(place, 0, "no query", rotation=90, ha="center", va="bottom", fontsize="x-small", color="grey")
    counts = [max(recalls[c]["queries"] for recalls in by_model if c in recalls) for c in categories]
    labels = [f"{as_label(c)}\n{count:,}" for c, count in zip(categories, counts, strict=True)]
    axes.set_xticks(range(len(categories)), labels, fontsize="small")
    axes.set_ylabel(f"R@1 (%), {size:,} distractors")
    axes.set_xlabel("category, queries over all folds")
    _finish(figure, axes, path)


def plot_ranks(queries: Mapping[str, pa.Table], path: str | Path) -> None:
    """Share of the queries by their target's rank, in bins that double: 1, 2, 3-4, 5-8, ..."""
    sizes = [set(table.filter(pc.field("galleries") == "galleries")["size"].to_pylist()) for table in queries.values()]
    size = max(set.intersection(*sizes))
    shares = {}
    for name, table in queries.items():
        rows = table.filter((pc.field("galleries") == "galleries") & (pc.field("size") == size))
        shares[name] = rank_shares(rows["mean_rank"].to_numpy(), rows["draws"].to_numpy())
    bins = max(map(len, shares.values()))
    figure, (axes,) = _panels(1, width=max(6.4, 0.6 * bins))
    width = 0.8 / len(shares)
    for number, (name, share) in enumerate(shares.items()):
        places = np.arange(len(share)) + width * (number - (len(shares) - 1) / 2)
        axes.bar(places, 100 * share, width, label=as_label(name))
    axes.set_xticks(range(bins), [_bin_name(number) for number in range(bins)], fontsize="small")
    axes.set_xlabel(f"rank of the target among {size:,} distractors, mean over a query's draws")
    axes.set_ylabel("queries (%)")
    _finish(figure, axes, path)


def as_label(name: str) -> str:
    """A name as matplotlib draws it unchanged: dollars are mathematics, and a legend leaves out what begins with _."""
    return printable(name).replace("$", r"\$").replace("_", " _", name.startswith("_"))


def rank_shares(ranks: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Shares of the draws (P,) whose rank (P,), from 1, is at most 1, 2, 4, 8, ... and above the one before."""
    bins = np.ceil(np.log2(np.maximum(ranks, 1))).astype(int)  # 1 -> 0, 2 -> 1, 3 and 4 -> 2, 5 to 8 -> 3
    return np.bincount(bins, weights=draws) / draws.sum()


def _bin_name(number: int) -> str:
    return str(2**number) if number < 2 else f"{_short(2 ** (number - 1) + 1)}-\n{_short(2**number)}"


def _short(number: int) -> str:
    if number >= 1_000_000:
        return f"{number / 1_000_000:.1f}".removesuffix(".0") + "M"
    return f"{number // 1000}K" if number >= 10_000 and number % 1000 == 0 else f"{number:,}"


def _panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(count * width, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which keeps figures and asks for a display
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.3, axis="y" if count == 1 else "both")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def _finish(figure: Figure, legend_in: Axes, path: str | Path) -> None:
    """Writes a PNG so that a reader never sees half of it."""
    legend_in.legend(frameon=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png")
