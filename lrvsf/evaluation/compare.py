"""Several models' results in one table and one plot.

python -m lrvsf.evaluation.compare --plot runs/mini/recall.png "NAME=FOLDER" ["NAME=FOLDER" ...]

A FOLDER holds the results.json that evaluate_lrvsf.py wrote.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lrvsf.evaluation.report import comparison_table, load_results, plot_recall


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="a row's name, and where its results.json is")
    parser.add_argument("--plot", help="PNG to write: R@1 against gallery size, one line per model")
    args = parser.parse_args(arguments)
    results = {}
    for model in args.models:
        name, equals, folder = model.partition("=")
        path = Path(folder, "results.json")
        if not equals or not path.is_file():
            sys.exit(f"{model!r}: no {path}; give NAME=FOLDER with a folder that evaluate_lrvsf.py wrote")
        results[name] = load_results(path)
    print("Recall at K in %\n\n" + comparison_table(results))
    if args.plot:
        plot_recall(results, args.plot)


if __name__ == "__main__":
    main()
