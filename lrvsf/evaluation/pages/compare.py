"""Several models' results in one table and in plots; two models' difference with its interval.

    evaluate_lrvsf.py compare --plots runs/mini NAME=FOLDER [NAME=FOLDER ...]
    evaluate_lrvsf.py compare --paired NAME=FOLDER NAME=FOLDER

A FOLDER holds what evaluate_lrvsf.py wrote. With --paired, a NAME may come as
often as it has runs, one a seed: the first of one is compared with the first
of the other, and their means as well.
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
    runs: dict[str, list[str]] = {}
    for model in args.models:
        name, equals, folder = model.partition("=")
        path = Path(folder, "results.json")
        if not equals or not path.is_file():
            raise FileNotFoundError(
                f"{model!r}: no {path}; give NAME=FOLDER with a folder that evaluate_lrvsf.py wrote"
            )
        runs.setdefault(name, []).append(folder)
    if twice := [name for name, folders in runs.items() if len(folders) > 1 and not args.paired]:
        raise ValueError(f"{twice[0]!r} names two models; give each a name of its own")
    if args.paired and len(runs) != 2:
        raise ValueError(f"--paired compares two models; {len(runs)} are given")
    named = {
        name if len(folders) == 1 else f"{name}, run {number}": folder
        for name, folders in runs.items()
        for number, folder in enumerate(folders, 1)
    }
    results = {name: load_results(Path(folder, "results.json")) for name, folder in named.items()}
    if len(protocols := {measured.get("protocol") for measured in results.values()}) > 1:
        raise ValueError(f"These are results of different protocols, {protocols}, whose numbers do not compare.")
    differences = compare_pair(*runs.values()) if args.paired else None
    print("Recall at K in %\n\n" + comparison_table(results))
    if differences:
        firsts = {name: load_results(Path(folders[0], "results.json")) for name, folders in runs.items()}
        print("\n" + differences_table(firsts, differences))
    if args.plots:
        plot_all(results, {name: load_queries(folder) for name, folder in named.items()}, args.plots)
