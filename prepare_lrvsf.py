"""Prepares data for train_hf.py and evaluate_lrvsf.py: product shards and test sets, from any source.

python prepare_lrvsf.py STEP --help
"""

from __future__ import annotations

import functools
import sys

import typer

from lrvsf.command import run
from lrvsf.prepare.catalog.catalog import catalog
from lrvsf.prepare.check import check
from lrvsf.prepare.convert_tars import tars
from lrvsf.prepare.draw_mini import mini
from lrvsf.prepare.laion.download import download
from lrvsf.prepare.laion.urls import urls
from lrvsf.prepare.laion.write_products import products
from lrvsf.prepare.laion.write_testset import testset
from lrvsf.prepare.push_dataset import push
from lrvsf.prepare.step_report import as_table

STEPS = (catalog, urls, download, products, testset, tars, check, push, mini)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def command(step):
    """The step as a command: its report on the screen."""

    @functools.wraps(step)
    def reported(*args, **kwargs):
        print(as_table(step(*args, **kwargs)))

    return reported


for step in STEPS:
    # --test_products, as the other scripts write flags, is the same as --test-products.
    app.command(step.__name__, context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})(
        command(step)
    )


@app.callback()
def steps() -> None:
    """Without this, Typer would make a lone step the whole program."""


def main() -> None:
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, of which newer versions of Typer have a copy
            raise
        raise ValueError(f"{error.format_message()} --help tells the rest") from error
    if status:
        sys.exit(status)


if __name__ == "__main__":
    run(main, " ".join(["prepare_lrvsf.py", *(word for word in sys.argv[1:2] if not word.startswith("-"))]))
