"""The metric as a page, a Space or local: two columns of embeddings in, recall at K out.

    python metrics/lrvsf_recall/app.py [--port 7860]

It is evaluate's own widget, by the parts of it that are left: `evaluate.utils.launch_gradio_widget` asks gradio for
names that gradio dropped with version 4.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import evaluate
import gradio as gr
import pandas as pd
from evaluate.utils.gradio import infer_gradio_input_types, json_to_string_type, parse_gradio_data, parse_readme

HERE = Path(__file__).resolve().parent
for folder in (HERE, *HERE.parents[1:2]):  # a Space has the library beside this file, a checkout above it
    if (folder / "lrvsf").is_dir():
        sys.path.insert(0, str(folder))
        break

EXAMPLE = [["[1.0, 0.0]", "[1.0, 0.0]"], ["[0.0, 1.0]", "[0.6, 0.8]"]]  # as JSON: a cell of evaluate's is text


def build() -> gr.Interface:
    """The page of the metric in this folder."""
    # By its file: evaluate would look in a folder for a script of the folder's name, and a Space's has another.
    metric = evaluate.load(str(HERE / "lrvsf_recall.py"))
    kinds = infer_gradio_input_types(metric.features.values())

    def compute(table: pd.DataFrame) -> dict[str, float]:
        try:
            return metric.compute(**parse_gradio_data(table, kinds))
        except Exception as error:  # evaluate and JSON raise many kinds, all of what was typed
            raise gr.Error(f"{error}") from error

    table = gr.Dataframe(EXAMPLE, headers=list(metric.features), datatype=json_to_string_type(kinds), type="pandas")
    return gr.Interface(
        compute,
        table,
        gr.JSON(label=metric.name),
        title=f"Metric: {metric.name}",
        description=metric.info.description,
        article=parse_readme(HERE / "README.md"),
        flagging_mode="never",
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, help="the first free one from 7860 on by default")
    args = parser.parse_args(arguments)
    # A Space is reached from outside its container; a local page is this machine's alone.
    build().launch(server_name="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1", server_port=args.port)


if __name__ == "__main__":
    main()
