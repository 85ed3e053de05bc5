"""Checkpoints that are whole or absent.

One is written aside, sealed with a manifest of every file's size and hash, flushed to the disk, and only then given its
name. A folder without a manifest, or with other bytes than its manifest says, is passed over. The manifest also says
what run it belongs to: a run that reads other data, or in another order, would go on with something else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from configuration_condvit import CondViTConfig
from lrvsf.data.stream import ProductBatches
from lrvsf.durable import follow_umask, publish_folder
from lrvsf.embedding.fingerprint import describe_model, differences
from lrvsf.training.arguments import CondViTTrainingArguments

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STAGING = "checkpoint.unfinished"
UNSAID = {"layer_decay": 1.0}  # what checkpoints mean that do not name it
NEEDED = ("optimizer", "scheduler", "rng_state", "trainer_state.json")  # how names begin


class Checkpoints:
    """Those of the run in the folder `output`: the one that it resumes from, and where Trainer writes new ones.

    Args:
        limit: how many may stay; see `rotate`.
        run: what identifies the run; see `run_identity`.
    """

    def __init__(self, output: Path, limit: int | None, run: dict[str, Any]):
        self.output, self.limit, self.run = output, limit, run
        self.place = output  # where Trainer writes; aside while a checkpoint is saved

    def find(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to resume from, whole and of this run.

        Args:
            asked: True for the newest, "auto" for the newest if there is one, a checkpoint's folder, or None for none.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not whole or of another run, or none was asked for where an earlier run left some.
        """
        shutil.rmtree(self.output / STAGING, ignore_errors=True)  # what an interrupted save left
        there = checkpoints_in(self.output)
        if not asked and there:
            raise ValueError(
                f"{self.output} holds {there[0].name} of an earlier run; add --resume_from_checkpoint True to go on "
                "with it, take another --output_dir, or remove it"
            )
        if asked and asked not in (True, "auto"):
            folder = Path(asked)
            if not folder.is_dir():
                known = ", ".join(path.name for path in there) or "none"
                raise FileNotFoundError(f"there is no checkpoint {folder}; {self.output} has: {known}")
            if why := why_not_whole(folder):
                raise ValueError(f"{folder} cannot be resumed from: {why}. Take another with --resume_from_checkpoint")
        elif (folder := newest_whole(self.output)) is None:
            if asked is True:
                raise FileNotFoundError(
                    f"{self.output} holds no whole checkpoint to resume from; leave out --resume_from_checkpoint to "
                    "begin anew"
                )
            return None
        saved = json.loads((folder / MANIFEST).read_text())["run"]
        if other := differences({**UNSAID, **saved}, {**UNSAID, **self.run}):
            listed = "\n".join(other)
            raise ValueError(
                f"{folder} is of another run:\n{listed}\nResume with the same, or take another output_dir."
            )
        return folder

    @contextmanager
    def saving(self, state: TrainerState) -> Iterator[None]:
        """Trainer's save goes aside, and the main process publishes it when every process has written its own.

        Raises RuntimeError: it could not be written; names those that were kept.
        """
        staging, name = self.output / STAGING, name_of(state.global_step)
        try:
            self.place = staging
            try:
                yield
            finally:
                self.place = self.output
            if state.best_global_step == state.global_step:
                state.best_model_checkpoint = str(self.output / name)  # Trainer noted the place aside
            PartialState().wait_for_everyone()  # each process writes its own random state
            if PartialState().is_main_process:
                state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
                follow_umask(staging / name)
                seal(staging / name, self.run)
                publish_folder(staging / name, self.output / name)
                staging.rmdir()
                rotate(self.output, self.limit, state.global_step, state.best_model_checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
            kept = ", ".join(path.name for path in checkpoints_in(self.output)) or "none before it"
            raise RuntimeError(
                f"{self.output / name} could not be written ({error}); kept: {kept}. If the disk is full, free some "
                "space."
            ) from error
        PartialState().wait_for_everyone()


def run_identity(
    args: CondViTTrainingArguments, batches: ProductBatches, phase1_steps: int, config: CondViTConfig
) -> dict[str, Any]:
    """What a resumed run must have in common with the one that it resumes, by names that every checkpoint keeps."""
    # `decay_matrices_only` and `layer_decay` group the optimizer's state, too.
    asked = {name: getattr(args, name) for name in ("seed", "matryoshka_dims", "decay_matrices_only")}
    order = {"global_batch": batches.global_size, "categories_per_batch": batches.parts, "phase1_steps": phase1_steps}
    if args.layer_decay != 1:  # which earlier checkpoints do not name
        asked["layer_decay"] = args.layer_decay
    if config.condition == "text":
        asked["text_from"] = args.text_from or ["captions"]
    return {**asked, **order, "data": batches.shards.fingerprint, **describe_model(config)}


def name_of(step: int) -> str:
    """A checkpoint's folder, by Trainer's convention."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoints_in(output: Path) -> list[Path]:
    """Folders that look like checkpoints, newest step first."""
    found = [path for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted((path for path in found if path.is_dir()), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def seal(folder: Path, run: dict[str, Any]) -> None:
    """Writes the manifest of a finished folder: its files, and what identifies its run."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
    (folder / MANIFEST).write_text(json.dumps({"run": run, "files": files}, indent=1) + "\n")


def why_not_whole(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or None if it is."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not finished"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} is damaged ({error})"
    for needed in NEEDED:
        if not any(name.startswith(needed) for name in files):
            return f"it was saved without {needed}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:  # first: what was cut short need not be read
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if _digest(path) != expected["sha256"]:
            return f"{name} has other bytes than were written"
    return None


def newest_whole(output: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; newer ones that are not are named in the log."""
    for folder in checkpoints_in(output):
        if (reason := why_not_whole(folder)) is None:
            return folder
        logger.warning("Passed over %s: %s.", folder, reason)
    return None


def rotate(output: Path, limit: int | None, step: int, best: str | None) -> None:
    """Removes checkpoints beyond the limit, by their steps: a clock may jump back, and a copy has other times.

    The one of this step, which was just saved, stays, and so does the best. Those of later steps go first: the run went
    back to before them, and the next would resume from them. Then the oldest go.

    Args:
        limit: how many may stay, this and the best at least; None or 0 keeps all.
        best: the best checkpoint's folder, if there is one.
    """
    if not limit or limit < 0:
        return
    stay = {name_of(step), Path(best).name if best else name_of(step)}
    # What is worth keeping comes first: these two, then earlier steps, then later ones, each from the newest on.
    worth = sorted(checkpoints_in(output), key=lambda path: (path.name not in stay, _step(path) > step))
    for path in worth[max(limit, len(stay)) :]:
        if _step(path) > step:
            logger.warning("Removed %s: the run went back to a step before it.", path)
        shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
