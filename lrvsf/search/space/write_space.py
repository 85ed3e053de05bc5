"""A catalog, its model and the page as a folder that runs from anywhere and can be pushed as a Hugging Face Space.

    FOLDER/app.py, requirements.txt, README.md     the page, what it needs, the Space's metadata
    FOLDER/lrvsf/, *_condvit.py                    the rooms of this library that search stands on
    FOLDER/catalog/                                the generation that answers, alone, as one segment
    FOLDER/model/                                  its model: weights, configurations, calibrations, code
    FOLDER/examples/                               pictures to pick from

It may be pushed for all to see, so it has nothing of the machine that made it and nothing that was removed from the
catalog: no paths, no sources, no removed items, no EXIF of the examples.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import RepoCard, snapshot_download

import lrvsf
from lrvsf.command import Command
from lrvsf.data.foreign.picture_files import SUFFIXES, read_file
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import BadImage
from lrvsf.durable import whole_folder
from lrvsf.search.build_catalog import write_generation
from lrvsf.search.catalog import Catalog
from lrvsf.search.commands import IndexKind
from lrvsf.search.generations import MANIFEST, REMOVED, Generation, Generations, Segment
from lrvsf.search.segments import merge_segments, thumbnail

DEMO = "spaces/demo"
ROOMS = ("data", "embedding", "search", "scale")  # of the library; of the last, the flags that steps import
# Not all that a model's folder holds: what a training or an evaluation left there names folders of this machine.
MODEL_FILES = (
    *("config.json", "*processor_config.json", "*.safetensors", "*.safetensors.index.json", "*_condvit.py"),
    *("tokenizer*.json", "special_tokens_map.json"),  # of a text model
)
CARD = "README.md"
EXAMPLES, SIDE = 12, 1024  # pictures to pick from, one screen of them; pixels of their longer side
# The Hub takes binary files by LFS only, and a Space's other files may be 1 GB together.
BY_LFS = ("*.safetensors", "*.parquet", "*.faiss", "*.npy", "*.jpg")


def write_space(out: Path, folder: Path, examples: Path | None, model: str | None) -> dict[str, Any]:
    """Writes the folder, whole or not at all.

    Args:
        examples: a folder of photos, of which the first few by name travel, upright and at most `SIDE` pixels large.
        model: where the catalog's model is now, if it was moved.

    Raises:
        FileNotFoundError: there is no catalog; the model is gone.
        ValueError: the model is another one, has no safetensors, or reads texts by a folder of this machine; an example
            is no picture.
        OSError: the folder cannot be written; the Hub was not reached.
    """
    catalog = Catalog.open(out, model, "cpu")
    _ = catalog.encoder  # refuses another model, which the page would only do at its first question
    generation, source = catalog.generation, _model_folder(catalog.encoder.model.name_or_path)
    pictures = _pictures(examples) if examples else []
    with whole_folder(folder) as place:
        for name in ("app.py", "requirements.txt"):
            shutil.copyfile(shipped(f"{DEMO}/{name}"), place / name)
        _copy_library(place)
        _copy_model(source, place / "model")
        _copy_catalog(generation, place / "catalog")
        for number, path in enumerate(pictures[:EXAMPLES], 1):
            _copy_example(path, place / f"examples/{number:02d}.jpg")
        (place / CARD).write_text(_card(generation, source), "utf-8")
        rules = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in BY_LFS)
        (place / ".gitattributes").write_text(rules)
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    report = {
        "space": str(folder),
        "items": len(generation),
        "model": _public_name(generation.manifest["model"]["name"]),
    }
    if pictures:
        report["examples"] = f"{len(pictures[:EXAMPLES])} of {len(pictures)}"
    report["megabytes"] = round(taken / 1e6, 1)
    report["to try it"] = Command(["python", folder / "app.py"])
    report["to publish it"] = Command(["hf", "upload", "OWNER/NAME", folder, ".", "--repo-type", "space"])
    return report


def shipped(name: str) -> Path:
    """A file of this project that is no module: in a checkout at its place, otherwise where the wheel has put it.

    Raises FileNotFoundError: it is in neither.
    """
    if (path := Path(lrvsf.__file__).parents[1] / name).is_file():
        return path
    try:
        found = [file for file in distribution("lrvsf").files or () if file.as_posix().endswith(f"/{name}")]
    except PackageNotFoundError:
        found = []
    if not found:
        raise FileNotFoundError(
            f"this installation of lrvsf has no {name}; run the step in a checkout of its repository"
        )
    return Path(found[0].locate())


def _copy_library(place: Path) -> None:
    library = Path(lrvsf.__file__).parent
    (place / library.name).mkdir()
    for path in library.glob("*.py"):
        shutil.copyfile(path, place / library.name / path.name)
    for room in ROOMS:
        shutil.copytree(library / room, place / library.name / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path in library.parent.glob("*_condvit.py"):
        shutil.copyfile(path, place / path.name)
    shutil.copyfile(shipped("LICENSE"), place / library.name / "LICENSE")


def _model_folder(name: str) -> Path:
    """The folder of a model, which may be on the Hub. Raises ValueError: its weights are not in safetensors."""
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, CARD]))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{name} has no .safetensors; save the model anew with transformers' save_pretrained")
    return folder


def _copy_model(source: Path, place: Path) -> None:
    place.mkdir()
    for path in (path for pattern in MODEL_FILES for path in sorted(source.glob(pattern))):
        shutil.copyfile(path, place / path.name)
    config = json.loads((place / "config.json").read_text("utf-8"))
    changed = config.pop("_name_or_path", None)  # older versions of transformers noted where a model was loaded from
    if (about := config.get("text_encoder")) and Path(about["name"]).is_absolute():
        if not (config["text_encoder_in_checkpoint"] and (place / "tokenizer_config.json").is_file()):
            raise ValueError(
                f"{source} reads texts by the folder {about['name']}, which is of this machine alone; take a model "
                "that has its text encoder and its tokenizer in its folder, or whose encoder is on the Hub"
            )
        changed = about["name"] = _public_name(about["name"])
    if changed:
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _copy_catalog(generation: Generation, place: Path) -> None:
    """The rows that are left, in their order, as one segment of the same bits, and the index over them."""
    copy, keep = Generations(place), np.ones(generation.total, bool)
    keep[generation.removed] = False
    segment = merge_segments(copy, [_unsourced(one) for one in generation.segments], keep)
    facts = {name: generation.manifest[name] for name in ("model", "dims", "index")}
    facts["model"] = facts["model"] | {"name": _model_name(generation)}
    if len(generation.removed):
        name = write_generation(copy, facts, [segment], IndexKind(**facts["index"]["asked"]))
    else:  # rows have the numbers that they had, so the index is the same, and so is what it finds
        with copy.writing(facts, [segment], generation.removed) as folder:
            for path in generation.folder.iterdir():
                if path.name not in (MANIFEST, REMOVED):
                    shutil.copyfile(path, folder / path.name)
        name = facts["name"]
    copy.switch(name)


def _unsourced(segment: Segment) -> Segment:
    """A segment whose manifest tells of each source no more than the last part of its name."""
    names = [_public_name(source["name"]).rpartition("/")[2] for source in segment.manifest["sources"]]
    sources = [{"name": name, "images": None, "split": None, "fingerprint": ""} for name in names]
    return replace(segment, manifest={"items": len(segment), "sources": sources})


def _public_name(name: str) -> str:
    """A name of the Hub as it is, and a folder's without where it is."""
    return Path(name).name if Path(name).is_absolute() else name


def _model_name(generation: Generation) -> str:
    return _public_name(generation.manifest["model"]["name"])


def _pictures(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder} has no picture; name a folder of photos, or leave --examples out")
    return found


def _copy_example(path: Path, target: Path) -> None:
    """A photo without its EXIF, which may tell where and when it was taken. Raises ValueError: it is no picture."""
    target.parent.mkdir(exist_ok=True)
    try:
        image = decode_shown(read_file(str(path), path.parent))
    except BadImage as error:
        raise ValueError(f"{path} cannot be an example ({error}); take it out of the folder") from error
    target.write_bytes(thumbnail(image, SIDE))


def _card(generation: Generation, source: Path) -> str:
    """README.md: the demo's, with the model and its licence in the metadata."""
    card, name = RepoCard.load(shipped(f"{DEMO}/{CARD}")), _model_name(generation)
    known = RepoCard.load(source / CARD).data if (source / CARD).is_file() else None
    card.data.license = getattr(known, "license", None)  # what is unsaid is nobody's to give away
    card.data.tags = ["visual-search", "condvit"]
    if "/" in name:
        card.data.models = [name]
    told = f"The catalog has {len(generation):,} items, indexed by `{name}`."
    licence = "The code is Apache-2.0; the model and the pictures have licences of their own."
    return f"{str(card).rstrip()}\n\n{told} {licence}\n"
