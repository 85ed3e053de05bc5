"""Checkpoints that are whole or absent.

One is written aside, sealed with a manifest of every file's size and hash, flushed to the disk, and only then given its
name. A folder without a manifest, or with other bytes than its manifest says, is passed over. The manifest also says
what run it belongs to: a run that reads other data, or in another order, would go on with something else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lrvsf.durable import flush

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STAGING = "checkpoint.unfinished"
NEEDED = ("optimizer", "scheduler", "rng_state", "trainer_state.json")  # how names begin


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
    """Writes the manifest of a finished folder and flushes everything to the disk.

    Args:
        run: what identifies the run, of JSON's types.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
        flush(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"run": run, "files": files}, indent=1) + "\n")
    for path in (manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush(path)


def publish(staged: Path, final: Path) -> None:
    """Gives a sealed folder its name, in place of one that was passed over."""
    if final.exists():
        shutil.rmtree(final)
    os.rename(staged, final)
    flush(final.parent)


def fault(folder: Path) -> str | None:
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
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if _digest(path) != expected["sha256"]:
            return f"{name} has other bytes than were written"
    return None


def newest_whole(output: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; newer ones that are not are named in the log."""
    for folder in checkpoints_in(output):
        if (reason := fault(folder)) is None:
            return folder
        logger.warning("Passed over %s: %s.", folder, reason)
    return None


def find(output: Path, asked: str | bool, run: dict[str, Any]) -> Path | None:
    """The checkpoint to resume from, whole and of this run.

    Args:
        output: the run's folder.
        asked: True for the newest, "auto" for the newest if there is one, or a checkpoint's folder.
        run: as `seal` was told.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the one that was named is not whole, or it belongs to another run.
    """
    if asked is True or asked == "auto":
        folder = newest_whole(output)
        if folder is None and asked is True:
            raise FileNotFoundError(
                f"{output} holds no whole checkpoint to resume from; leave out --resume_from_checkpoint to begin anew"
            )
        if folder is None:
            return None
    else:
        folder = Path(asked)
        if not folder.is_dir():
            known = ", ".join(path.name for path in checkpoints_in(output)) or "none"
            raise FileNotFoundError(f"there is no checkpoint {folder}; {output} has: {known}")
        if reason := fault(folder):
            raise ValueError(f"{folder} cannot be resumed from: {reason}. Take another with --resume_from_checkpoint")
    saved = json.loads((folder / MANIFEST).read_text())["run"]
    if other := [name for name in {**saved, **run} if saved.get(name) != run.get(name)]:
        listed = "\n".join(f"  {name}: {saved.get(name)!r} then, {run.get(name)!r} now" for name in other)
        raise ValueError(f"{folder} is of another run:\n{listed}\nResume with the same, or take another output_dir.")
    return folder


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
    worth = sorted(checkpoints_in(output), key=lambda path: (path.name not in stay, _step(path) > step))
    for path in worth[max(limit, len(stay)) :]:
        if _step(path) > step:
            logger.warning("Removed %s: the run went back to a step before it.", path)
        shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
