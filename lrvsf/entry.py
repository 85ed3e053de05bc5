"""The commands of an installed package: `lrvsf-train` is `python train_hf.py`, and so on.

Each runs its script as Python runs a file, with the name `__main__`. So a script that refuses wrong flags before it
imports torch does so here, too; called as a function of an imported module it would have imported torch before.
"""

import runpy


def prepare() -> None:
    _run("prepare_lrvsf")


def train() -> None:
    _run("train_hf")


def evaluate() -> None:
    _run("evaluate_lrvsf")


def search() -> None:
    _run("search_catalog")


def publish() -> None:
    _run("publish_lrvsf")


def _run(script: str) -> None:
    runpy.run_module(script, run_name="__main__")  # sys.argv stays: messages begin with the name that was typed
