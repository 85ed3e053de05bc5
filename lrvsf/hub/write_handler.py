"""A model folder -> the same folder as a Hub inference endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from lrvsf.durable import write_whole
from lrvsf.hub.push_model import model_files

HANDLER = Path(__file__).with_name("handler.py")


def handler(
    folder: Annotated[Path, Argument(help="model folder that train_hf.py, or the step convert, left")],
) -> str:
    """Write handler.py into a model folder, for inference endpoints of the Hub; `push` takes it along."""
    model_files(folder)  # refuses a folder from which no endpoint could load a model
    write_whole(folder / HANDLER.name, HANDLER.read_bytes())
    return f"Wrote {folder / HANDLER.name}."
