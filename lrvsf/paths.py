"""The folders and files that flags name: a wrong one is refused before torch is imported, and before any work."""

from __future__ import annotations

import difflib
import os
import shlex
from argparse import Namespace
from pathlib import Path

from lrvsf.data.wording import Wording

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRAINING = ("train", "TRAIN")  # ours, and the published layout's
PRODUCTS = "products.parquet"


def check_training(asked: Namespace) -> None:
    """Refuses what train_hf.py cannot read or write. What lies behind a URL is left to be tried."""
    check_model(asked.model)
    _check_categories(asked.categories or [])
    Wording.parse(asked.text_from)
    if "://" not in asked.data and not any(Path(asked.data, name).is_dir() for name in TRAINING):
        raise FileNotFoundError(no_training_folder(asked.data))
    validation = Path(asked.data, "validation")
    if asked.eval_strategy != "no" and "://" not in asked.data and not (validation / PRODUCTS).is_file():
        raise FileNotFoundError(
            f"eval_strategy={asked.eval_strategy}, but there is no {validation / PRODUCTS}; make one with "
            "prepare_lrvsf.py, or add --eval_strategy no"
        )
    check_output(Path(asked.output_dir))
    resumed = asked.resume_from_checkpoint
    if resumed is None:
        _check_unfinished(Path(asked.output_dir))
    elif resumed.lower() not in ("true", "auto") and not Path(resumed).is_dir():
        raise FileNotFoundError(
            f"resume_from_checkpoint={resumed} is no folder{near(Path(resumed))}; give a checkpoint's, or True for "
            "the newest in output_dir"
        )


def _check_categories(names: list[str]) -> None:
    """A list written with commas would be names that no product has."""
    joined = names[0].split(",") if len(names) == 1 else [name.rstrip(",") for name in names]
    if len(joined) > 1 and any("," in name if len(names) == 1 else name.endswith(",") for name in names):
        meant = [name.strip() for name in joined if name.strip()]
        raise ValueError(
            f"categories={names}: names are parted by blanks, not by commas. Write --categories "
            f"{shlex.join(meant)}, or in a recipe categories: [{', '.join(meant)}]"
        )


def check_model(name: str) -> None:
    """Refuses a folder that is not there, instead of asking the Hub for it, and one without a model.

    A name of the Hub is OWNER/NAME, and no folder OWNER is here. All else is a folder's.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            inner = sorted(str(other.parent) for other in path.glob(f"*/{CONFIG}"))
            meant = f". Did you mean {inner[-1]}?" if inner else ""
            raise FileNotFoundError(f"{name} has no {CONFIG}: give the model folder that training wrote{meant}")
        return
    if path.exists():
        raise NotADirectoryError(f"{name} is a file: give the folder of a model")
    if name.startswith("~") and (found := path.expanduser()).is_dir():
        raise FileNotFoundError(f"there is no folder {name}: the shell has left the ~ as it is. Write {found}")
    # The Hub's own words for a name that it cannot have would speak of repositories, not of a folder.
    owner, slash, rest = name.partition("/")
    if not slash or not owner or not rest or "/" in rest or owner.startswith((".", "~")) or "\\" in name:
        raise FileNotFoundError(f"there is no folder {name}{near(path)}, and a name on the Hub looks like OWNER/MODEL")
    if Path(owner).is_dir():
        raise FileNotFoundError(
            f"{name} is read as a folder, as {owner}/ is one here, and there is no {rest} in it{near(path)}. If you "
            f"mean the Hub's {name}, give its downloaded folder (`hf download {name}` prints it)"
        )


def no_training_folder(root: str) -> str:
    """What to say of a folder that has no training data."""
    path = Path(root)
    if path.name in TRAINING and path.is_dir():
        return f"{root} has no train/ folder, it is one: you mean --data {path.parent}"
    meant = "" if path.is_dir() or "://" in root else near(path)
    return f"{root} has no train/ folder{meant}; write one with prepare_lrvsf.py, or name another folder with --data"


def public_name(source: str) -> str:
    """A model or data set as a card names it: where a folder lies on this machine is nobody's business."""
    return Path(source).resolve().name if Path(source).exists() else source


def near(path: Path) -> str:
    """What to say of a name like it that is there: " (did you mean ...?)"; nothing if there is none."""
    there = [str(other) for other in path.parent.iterdir() if other != path] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), there, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def table_of(folder: str | Path) -> tuple[Path, str | None] | None:
    """The Lance table that is named, and which version: TABLE or TABLE@VERSION. None where it is no such table."""
    name, _, version = str(folder).rpartition("@")
    for path, asked in ((Path(folder), None), (Path(name or folder), version)):
        if (path / "_versions").is_dir():
            return path, asked
    return None


def check_output(folder: Path, flag: str = "output_dir") -> None:
    """Refuses a folder to write to that is a file, lies in one, or cannot be written to."""
    # The nearest folder above that is there decides: what is missing will be made in it.
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    if not there.is_dir():
        raise NotADirectoryError(f"{flag}={folder}: {there} is a file. Give a folder's name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{flag}={folder}: {there} cannot be written to. Name another folder")


def check_new_folder(folder: Path, flag: str, catalog: Path) -> None:
    """Refuses a folder to write that holds something already, or lies in the catalog that is read."""
    check_output(folder, flag)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder, or remove it")
    if folder.resolve().is_relative_to(catalog.resolve()):
        raise ValueError(f"{folder} is inside {catalog}, which is a catalog's alone; choose another folder")


def _check_unfinished(folder: Path) -> None:
    if (folder / WEIGHTS).is_file() and not any(folder.glob("checkpoint-*")):  # which have a refusal of their own
        raise FileExistsError(
            f"{folder} holds a finished model, which this run would replace; take another --output_dir, or remove it"
        )
