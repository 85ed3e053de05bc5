"""Prepares data for train_hf.py and evaluate_lrvsf.py: product shards and test sets, from any source.

python prepare_lrvsf.py STEP --help
"""

from __future__ import annotations

import functools
import sys

import typer

from lrvsf.data.names import printable
from lrvsf.data.prepare.catalog import catalog
from lrvsf.data.prepare.check import check
from lrvsf.data.prepare.download import download
from lrvsf.data.prepare.mini import mini
from lrvsf.data.prepare.products import products
from lrvsf.data.prepare.push import push
from lrvsf.data.prepare.report import as_table
from lrvsf.data.prepare.tars import tars
from lrvsf.data.prepare.testset import testset
from lrvsf.data.prepare.urls import urls

STEPS = (catalog, urls, download, products, testset, tars, check, push, mini)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def command(step):
    """The step as a command: its report on the screen, its refusals as one line."""

    @functools.wraps(step)
    def run(*args, **kwargs):
        try:
            print(as_table(step(*args, **kwargs)))
        except (ValueError, OSError) as error:
            text = "\n".join(map(printable, str(error).split("\n")))
            sys.exit(f"prepare_lrvsf.py {step.__name__}: {text}")

    return run


for step in STEPS:
    # --test_products, as the other scripts write flags, is the same as --test-products.
    app.command(step.__name__, context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})(
        command(step)
    )


@app.callback()
def main() -> None:
    """Without this, Typer would make a lone step the whole program."""
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without umlauts still gets its report


if __name__ == "__main__":
    app()
