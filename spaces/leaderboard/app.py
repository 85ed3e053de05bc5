"""The leaderboard as a page: a Space, or local, with folders of one's own cards and results beside the Hub's.

python spaces/leaderboard/app.py [FOLDER ...] [--no_hub] [--port 7861]
"""

from __future__ import annotations

import argparse
import html
import os
from pathlib import Path

import gradio as gr
from collect import Board, Entry, Point, collect
from matplotlib.figure import Figure

ABOUT = """# LRVS-F leaderboard

Referred visual search on [LAION-RVS-Fashion](https://huggingface.co/datasets/Slep/LAION-RVS-Fashion): recall at K in %
among 1,000 products and the distractors that a column names, mean ± deviation over 20 published folds. A model is
listed when its card has the tag `lrvsf-benchmark`. The first rows are scores that their authors published. Distractors
are drawn anew and links die, so read differences of a few tenths of a point as none.
"""


def sizes_of(board: Board) -> list[int]:
    return sorted({size for entry in board.entries for _, size in entry.scores})


def recalls_of(board: Board) -> list[int]:
    return sorted({k for entry in board.entries for k, _ in entry.scores})


def short(number: int) -> str:
    """10000 -> 10K, 1000000 -> 1M; others as they are."""
    for unit, letter in ((1_000_000, "M"), (1_000, "K")):
        if number and number % unit == 0:
            return f"{number // unit}{letter}"
    return f"{number:,}"


def linked(entry: Entry) -> str:
    """The model's name as HTML. Names of folders may hold anything."""
    name = html.escape(entry.model)
    return f'<a href="{html.escape(entry.url)}" target="_blank" rel="noopener">{name}</a>' if entry.url else name


def chosen(board: Board, conditionings: list[str]) -> list[Entry]:
    return [entry for entry in board.entries if entry.conditioning in conditionings]


def table(board: Board, k: int, sizes: list[int], conditionings: list[str]) -> dict:
    """The rows, best first by the largest gallery; then those without a score there, best first by the next, and so on.

    Numbers are numbers, not text, so that the page sorts them as such.
    """
    sizes = sorted(sizes)
    headers = ["Model", "Condition", "Dim."]
    for size in sizes:
        headers += [f"R@{k} {short(size)}", f"± {short(size)}"]
    rows = []
    for entry in chosen(board, conditionings):
        found = [entry.scores.get((k, size)) for size in sizes]
        if any(found) or not sizes:
            numbers = [number for score in found for number in (score or (None, None))]
            rows.append([linked(entry), entry.conditioning, entry.dim, *numbers])
    rows.sort(key=lambda row: [-1.0 if mean is None else mean for mean in row[3::2][::-1]], reverse=True)
    return {"headers": headers, "data": rows}


def datatypes(sizes: list[int]) -> list[str]:
    return ["html", "str", "number", *("number" for _ in range(2 * len(sizes)))]


def plot(board: Board, k: int, conditionings: list[str]) -> Figure:
    """R@K against the gallery's size, a line for each model."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for entry in chosen(board, conditionings):
        points: list[Point] = sorted(point for point in entry.scores if point[0] == k)
        if points:
            means = [entry.scores[point][0] for point in points]
            spreads = [entry.scores[point][1] or 0 for point in points]
            label = entry.model[:40].replace("$", r"\$")  # matplotlib would take it for mathematics
            axes.errorbar([size for _, size in points], means, spreads, marker="o", capsize=3, label=label)
    axes.set(xscale="log", xlabel="distractors", ylabel=f"R@{k} in %")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="small")
    return figure


def problems_table(board: Board) -> list[list[str]]:
    return [[problem.model, problem.reason] for problem in board.problems]


def build(folders: list[Path], hub: bool, endpoint: str | None = None) -> gr.Blocks:
    """The page. Everything is collected when it opens and when somebody asks for it again."""
    with gr.Blocks(title="LRVS-F leaderboard") as page:
        board = gr.State()
        gr.Markdown(ABOUT)
        with gr.Row():
            k = gr.Radio([], label="K", elem_id="k")
            sizes = gr.CheckboxGroup([], label="Distractors", elem_id="sizes")
            conditionings = gr.CheckboxGroup([], label="Conditioning", elem_id="conditionings")
        scores = gr.Dataframe(label="Scores", interactive=False, elem_id="scores", wrap=True)
        curve = gr.Plot(label="Recall by gallery size", elem_id="curve")
        with gr.Accordion("What could not be read", open=True) as unread:
            problems = gr.Dataframe(headers=["Model", "Reason"], interactive=False, elem_id="problems", wrap=True)
        again = gr.Button("Collect again", elem_id="again")

        def fill():
            found = collect(folders, hub, endpoint)
            ks, all_sizes = recalls_of(found), sizes_of(found)
            kinds = sorted({entry.conditioning for entry in found.entries})
            first = 1 if 1 in ks else ks[0]
            return (
                found,
                gr.Radio([(f"R@{one}", one) for one in ks], value=first),
                gr.CheckboxGroup([(short(one), one) for one in all_sizes], value=all_sizes),
                gr.CheckboxGroup(kinds, value=kinds),
                *show(found, first, all_sizes, kinds),
                problems_table(found),
                gr.Accordion(f"What could not be read ({len(found.problems)})", open=bool(found.problems)),
            )

        def show(found, one, some, kinds):
            made = table(found, one, some, kinds)
            frame = gr.Dataframe(made["data"], headers=made["headers"], datatype=datatypes(some))
            return frame, plot(found, one, kinds)

        everything = [board, k, sizes, conditionings, scores, curve, problems, unread]
        page.load(fill, None, everything)
        again.click(fill, None, everything)
        for choice in (k, sizes, conditionings):
            # By default a choice that is made while an earlier one is being answered would be dropped.
            choice.input(show, [board, k, sizes, conditionings], [scores, curve], trigger_mode="always_last")
    return page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="models, folders of models, evaluations' outputs")
    parser.add_argument("--no_hub", action="store_true", help="do not ask the Hub")
    parser.add_argument("--endpoint", help="another Hub; https://huggingface.co by default")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on by default")
    args = parser.parse_args(arguments)
    page = build(args.folders, not args.no_hub, args.endpoint)
    # A Space is reached from outside its container; a local page is this machine's alone.
    page.launch(server_name="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1", server_port=args.port)


if __name__ == "__main__":
    main()
