"""What a process knows of its run before the model is loaded, as facts that all processes can compare.

Each takes milliseconds, or one listing of a remote folder. Rows are compared later, when the shards are scanned anyway.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lrvsf
from lrvsf.data.folders import names_and_sizes
from lrvsf.data.parquet import describe_files
from lrvsf.data.products import product_files
from lrvsf.data.testset import ProductTestSet
from lrvsf.paths import CONFIG, WEIGHTS
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments
from lrvsf.training.source import training_folder

DATA, VALIDATION, MODEL, CODE = "data", "validation set", "model", "code"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "pillow")  # that the numbers depend on
OF_THE_MACHINE = ("use_cpu", "bf16", "torch_compile")  # flags that a machine's hardware decides where nobody does
# What machines may have each in its own way: places, loading processes, logs; and names, which may be secrets.
UNCOMPARED = (
    "model",
    "data",
    "license",
    "dataset_name",
    "local",
    "log",
    "disable",
    "_",
    "dataloader",
    "ddp",
    "hub",
    "push",
)

SAME_FILES = "All machines need the same files: copy them anew, or name one folder that all share, or a URL"
REMEDIES = defaultdict(
    lambda: "Start all machines with the same command and the same recipe",
    {DATA: SAME_FILES, VALIDATION: SAME_FILES, MODEL: SAME_FILES}
    | {CODE: "Bring this repository to the same version on all machines"}
    | dict.fromkeys(("python", *PACKAGES), "Install the same versions on all machines")
    | {f"--{name}": f"The machines are not alike: say --{name} True or False for all" for name in OF_THE_MACHINE},
)


def facts_of(args: ModelArguments, training: CondViTTrainingArguments) -> dict[str, str]:
    """Name -> value, equal on processes that may train together. No weights and no rows are read.

    Raises OSError, ValueError: the data cannot be reached, or are no folder of shards.
    """
    folder = training_folder(args.data)
    facts = {DATA: names_and_sizes(folder, {name.rpartition("/")[2] for name in product_files(folder)})}
    if training.eval_strategy != "no" and "://" not in args.data:  # of a URL all read the copy of one process
        files = ProductTestSet(Path(args.data, "validation")).files
        facts[VALIDATION] = describe_files([*files["products"], *files["distractors"]])
    facts[MODEL] = args.model
    if Path(args.model).is_dir():
        facts[MODEL] = names_and_sizes(args.model, [CONFIG, WEIGHTS])
    facts |= {CODE: code_digest(), "python": platform.python_version()}
    facts |= {name: version(name) for name in PACKAGES}
    return facts | {f"--{name}": repr(value) for name, value in _flags(args, training).items()}


def code_digest() -> str:
    """Of the library's sources and the Hub files, whatever version they claim to be."""
    library = Path(lrvsf.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*library.rglob("*.py"), *library.parent.glob("*_condvit.py")]):
        digest.update(f"{path.relative_to(library.parent)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _flags(args: ModelArguments, training: CondViTTrainingArguments) -> dict[str, Any]:
    """Those that all processes must have in common: all of the model's, and the numbers and switches of the training.

    A text of the training's may be a token, which no message should show.
    """
    asked = {field.name: getattr(training, field.name) for field in dataclasses.fields(training)}
    asked = {name: value for name, value in asked.items() if value is None or isinstance(value, int | float | list)}
    return {name: value for name, value in {**vars(args), **asked}.items() if not name.startswith(UNCOMPARED)}
