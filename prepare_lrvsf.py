"""Prepares data for train_hf.py and evaluate_lrvsf.py: product shards and test sets, from any source.

python prepare_lrvsf.py STEP --help
"""

from __future__ import annotations

from lrvsf import command
from lrvsf.mini.draw_mini import mini, mini_sheet, mini_shop
from lrvsf.mini.train_clip import mini_clip
from lrvsf.prepare.catalog.write_catalog import catalog
from lrvsf.prepare.check import check
from lrvsf.prepare.convert_tars import tars
from lrvsf.prepare.laion.download import download
from lrvsf.prepare.laion.urls import urls
from lrvsf.prepare.laion.write_products import products
from lrvsf.prepare.laion.write_testset import testset
from lrvsf.prepare.push_dataset import push
from lrvsf.report import as_table
from lrvsf.steps import run_step, step_name

STEPS = (catalog, urls, download, products, testset, tars, check, push, mini, mini_shop, mini_clip, mini_sheet)


def main(arguments: list[str] | None = None) -> None:
    run_step(__doc__, STEPS, arguments, show=as_table)


if __name__ == "__main__":
    command.run(main, step_name())
