"""`prepare_lrvsf.py check`: a prepared folder that cannot be used is refused, with the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.data.images import USUAL, Tolerance
from lrvsf.prepare.checked_folders import check_folders


def check(
    path: Annotated[
        Path, Argument(help="product shards, a test set, or a data folder with train/, validation/, test/")
    ],
    quick: Annotated[bool, Option("--quick", help="read no images")] = False,
    max_bad_fraction: Annotated[
        float, Option(min=0, max=1, help="largest tolerated share of bad images")
    ] = USUAL.fraction,
    report: Annotated[Path | None, Option(help="file to write the report to, as JSON")] = None,
    processes: Annotated[int | None, Option(help="processes that decode images; all cores by default")] = None,
) -> dict[str, Any]:
    """Say what a prepared folder holds, what is damaged, and whether it can be trained and evaluated on."""
    return check_folders(path, quick, Tolerance(max_bad_fraction), processes, report)
