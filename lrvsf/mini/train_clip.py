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
    training.resume_from_checkpoint = checkpoint_of(training.resume_from_checkpoint, Path(training.output_dir))
    return train(args, training, shards)


def checkpoint_of(asked: str | None, output: Path) -> str | None:
    """The folder to go on from, by the words of train_hf.py: True is the newest of `output`, auto that or none.

    Raises ValueError: it is not there; said before any picture is decoded.
    """
    from transformers.trainer_utils import get_last_checkpoint

    if asked is None or asked.lower() == "false":
        return None
    if asked.lower() not in ("true", "auto"):
        if not Path(asked).is_dir():
            raise ValueError(f"resume_from_checkpoint={asked}: no such folder; True takes the newest of {output}")
        return asked
    found = get_last_checkpoint(output) if output.is_dir() else None
    if found is None and asked.lower() == "true":
        raise ValueError(f"resume_from_checkpoint=True: {output} has no checkpoint; auto begins anew where it has none")
    return found
