"""Draws docs/house.png, the figure of docs/architecture.md: python tools/draw_house.py

Columns are scripts with their rooms, arrows what one leaves to the next; bars below are what they stand on. Numbers are
the steps of a picture's way from a CSV line to a rank.
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Script, rooms, what the rooms do, each with the number of its step or 0; what the script leaves to the next.
COLUMNS = [
    (
        "prepare_lrvsf.py",
        "prepare/  mini/",
        [(1, "any source:\ntables, listing, splits"), (2, "a row of each product:\nrows, writers")],
        "product shards,\ntest sets",
    ),
    (
        "train_hf.py",
        "training/",
        [(4, "pairs become a loss:\ntrainer, loss"), (0, "checkpoints, resuming")],
        "model\nfolder",
    ),
    (
        "evaluate_lrvsf.py",
        "evaluation/  pages/",
        [(6, "ranks are counted:\nranks, recall"), (0, "results.json: tables,\nplots, pages")],
        "",
    ),
    (
        "search_catalog.py",
        "search/  spaces/",
        [
            (0, "pictures become a catalog:\nsources, index, generations"),
            (0, "a photo and a condition\nfind: catalog, page"),
        ],
        "",
    ),
    (
        "publish_lrvsf.py",
        "hub/",
        [(0, "published checkpoints in"), (0, "models, cards, results out")],
        "",
    ),
]
# From and to which column, name, what stands there, colour.
BARS = [
    (1, 4, "embedding/", [(5, "bytes become unit rows: pipeline, encoder, store")], "#dcebdd"),
    (0, 4, "data/", [(3, "from a file to a batch: products, order, stream, pairs")], "#dde6f2"),
    (0, 4, "processes  durable  signals  command  flags  recipe", [(0, "small files that all may use")], "#eeeeee"),
    (
        0,
        4,
        "configuration_  modeling_  processing_condvit",
        [(0, "Hub files: they know nothing of the rest")],
        "#f6e9d2",
    ),
]
WIDTH, GAP, STEP = 3.3, 1.5, 4.8  # of a column, between two, from one to the next
INK = "#222222"


def box(ax, left, bottom, width, height, color):
    ax.add_patch(
        FancyBboxPatch((left, bottom), width, height, "round,pad=0,rounding_size=0.12", fc=color, ec=INK, lw=1)
    )


def lines(ax, left, y, numbered):
    for number, text in numbered:
        if number:
            ax.text(
                left + 0.14, y, str(number), ha="center", va="center", fontsize=8, color="white", weight="bold",
                bbox={"boxstyle": "circle,pad=0.22", "fc": "#a33b2f", "ec": "none"},
            )  # fmt: skip
        ax.text(left + (0.4 if number else 0), y + 0.13, text, va="top", fontsize=8.5, color=INK, linespacing=1.4)
        y -= 0.42 * (1 + text.count("\n"))


def draw(path: Path) -> None:
    figure, ax = plt.subplots(figsize=(15.4, 5.6))
    ax.set_xlim(-0.2, (len(COLUMNS) - 1) * STEP + WIDTH + 0.2)
    ax.set_ylim(-0.2, 7.6)
    ax.axis("off")
    for place, (script, rooms, does, leaves) in enumerate(COLUMNS):
        left = place * STEP
        box(ax, left, 6.6, WIDTH, 0.75, "#ffffff")
        ax.text(left + WIDTH / 2, 6.97, script, ha="center", va="center", fontsize=11, weight="bold", color=INK)
        box(ax, left, 4.15, WIDTH, 2.2, "#f3dfdc")
        ax.text(left + 0.15, 6.02, rooms, va="center", fontsize=10.5, weight="bold", color=INK)
        lines(ax, left + 0.15, 5.55, does)
        ax.plot([left + WIDTH / 2] * 2, [6.35, 6.6], color=INK, lw=1)
        if leaves:
            arrow = {"arrowstyle": "-|>", "mutation_scale": 14, "color": INK}
            ax.add_patch(FancyArrowPatch((left + WIDTH, 6.97), (left + STEP, 6.97), **arrow))
            ax.text(left + WIDTH + GAP / 2, 7.1, leaves, ha="center", va="bottom", fontsize=8.5, color=INK)
    for place, (first, last, name, does, color) in enumerate(BARS):
        left, bottom = first * STEP, 3.15 - 1.0 * place
        width = last * STEP + WIDTH - left
        box(ax, left, bottom, width, 0.8, color)
        ax.text(left + 0.15, bottom + 0.4, name, va="center", fontsize=10.5, weight="bold", color=INK)
        lines(ax, max(left + width - 6.9, left + 2.2), bottom + 0.4, does)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.1, facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).parent.parent / "docs" / "house.png")
