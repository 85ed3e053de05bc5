"""Several models' results in one table and in plots; two models' difference with its interval.

    evaluate_lrvsf.py compare --plots runs/mini NAME=FOLDER [NAME=FOLDER ...]
    evaluate_lrvsf.py compare --paired NAME=FOLDER NAME=FOLDER

A FOLDER holds what evaluate_lrvsf.py wrote.
"""

from __future__ import annotations

from pathlib import Path

from lrvsf.command import OneLineParser, script_name
from lrvsf.evaluation.pages.plots import PLOTS, plot_all
from lrvsf.evaluation.paired import compare_pair, differences_table
from lrvsf.evaluation.queries import load_queries
from lrvsf.evaluation.results import comparison_table, load_results
from lrvsf.terminal import never_refuse


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__, prog=f"{script_name()} compare")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="a row's name, and where its results.json is")
    parser.add_argument("--plots", help=f"folder to write {', '.join(PLOTS)} to")
    parser.add_argument("--paired", action="store_true", help="two models: their difference, query by query")
    args = parser.parse_args(arguments)
    never_refuse()
    folders, results = [], {}
    for model in args.models:
        name, equals, folder = model.partition("=")
        path = Path(folder, "results.json")
        if not equals or not path.is_file():
            raise FileNotFoundError(
                f"{model!r}: no {path}; give NAME=FOLDER with a folder that evaluate_lrvsf.py wrote"
            )
        if name in results:
            raise ValueError(f"{name!r} names two models; give each a name of its own")
        folders.append(folder)
        results[name] = load_results(path)
    if args.paired and len(folders) != 2:
        raise ValueError(f"--paired compares two models; {len(folders)} are given")
    if len(protocols := {measured.get("protocol") for measured in results.values()}) > 1:
        raise ValueError(f"These are results of different protocols, {protocols}, whose numbers do not compare.")
    differences = compare_pair(*folders) if args.paired else None
    print("Recall at K in %\n\n" + comparison_table(results))
    if differences:
        print("\n" + differences_table(results, differences))
    if args.plots:
        queries = {name: load_queries(folder) for name, folder in zip(results, folders, strict=True)}
        plot_all(results, queries, args.plots)
