"""Makes a catalog of pictures searchable and answers from it: this photo, the shoes.

python search_catalog.py STEP --help
"""

from __future__ import annotations

import logging
import sys

from lrvsf import command
from lrvsf.report import as_table
from lrvsf.scale.lance_step import lance
from lrvsf.search.commands import (
    add,
    calibrate,
    compact,
    index,
    info,
    measure,
    query,
    remove,
    rollback,
    serve,
    space,
    switch,
)
from lrvsf.search.exporting.export_step import export
from lrvsf.signals import end_at_once
from lrvsf.steps import run_step, step_name
from lrvsf.terminal import never_refuse

STEPS = (index, add, remove, info, compact, switch, rollback, calibrate, query, measure, serve, space, export, lance)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    never_refuse()
    run_step(__doc__, STEPS, arguments, show=lambda told: told if isinstance(told, str) else as_table(told))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("index", "add"):
        end_at_once("what is embedded stays, and the same command goes on from it.")
    command.run(main, step_name())
