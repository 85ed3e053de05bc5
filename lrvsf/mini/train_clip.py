"""`prepare_lrvsf.py mini_clip`: trains Mini CLIP, the start of every Mini run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument

from lrvsf.command import quiet_libraries
from lrvsf.data.folders import files_in
from lrvsf.flags import FlagParser, flag
from lrvsf.recipe import parse_classes, read_arguments
from lrvsf.steps import reads_flags

USAGE = "python prepare_lrvsf.py mini_clip [RECIPE.yaml] [--flag value ...]"
CLASSES = (("lrvsf.mini.train_clip", "MiniClipArguments"), ("transformers.training_args", "TrainingArguments"))


@dataclass
class MiniClipArguments:
    """What Mini CLIP is made of and from."""

    data: str = flag("data/mini", "folder that `prepare_lrvsf.py mini` wrote")
    image_size: int = flag(96, "pixels a side")
    patch_size: int = flag(16, "pixels a side of one patch")
    width: int = flag(256, "vision tower's hidden size; heads are 64 wide")
    layers: int = flag(4, "vision tower's layers")
    projection_dim: int = flag(128, "embedding dimension")


@reads_flags
def mini_clip(words: Annotated[list[str] | None, Argument(metavar="[RECIPE.yaml] [--flag value ...]")] = None):
    """Train Mini CLIP, the start of every Mini run, from a recipe and flags."""
    flags, asked = read_arguments(FlagParser(USAGE, mini_clip.__doc__, *CLASSES), words or [])
    shards = files_in(Path(asked.data, "train"), "*.parquet")
    if not shards:
        raise FileNotFoundError(
            f"no train/*.parquet in {asked.data}: draw it with `python prepare_lrvsf.py mini {asked.data}`"
        )
    # From here on torch: seconds that neither --help nor another step waits for.
    from transformers import TrainingArguments

    from lrvsf.mini.clip import train

    quiet_libraries()
    args, training = parse_classes((MiniClipArguments, TrainingArguments), flags, asked, machine=True)
    return train(args, training, shards)
