"""A data folder's parts: DATA/train, DATA/validation, and the loader of pairs. DATA may be a URL, such as hf://."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import PartialState

from configuration_condvit import CondViTConfig
from lrvsf.data.folders import place_of
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards
from lrvsf.data.stream import PairLoader, ProductBatches
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import whole_folder
from lrvsf.paths import TRAINING, no_training_folder
from lrvsf.training.arguments import CondViTTrainingArguments

COPIED_FROM = "copied-from.txt"  # in a copy of a validation set: its root


def training_folder(root: str) -> str:
    """The folder of product shards or tars below `root`, refused with the remedy if there is none."""
    filesystem, path = place_of(root)
    for name in TRAINING:
        if filesystem.isdir(f"{path}/{name}"):
            return f"{root.rstrip('/')}/{name}"
    raise FileNotFoundError(no_training_folder(root))


def catalog_categories(root: str) -> list[str] | None:
    """The categories that `prepare_lrvsf.py catalog` found, from its `catalog.json` below `root`; None without one.

    Raises ValueError: it found none, or the file cannot be read.
    """
    filesystem, path = place_of(root)
    if not filesystem.isfile(f"{path}/catalog.json"):
        return None
    try:
        categories = list(json.loads(filesystem.cat_file(f"{path}/catalog.json"))["categories"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{root}/catalog.json does not say which categories there are ({error!r}); name them with --categories, or "
            "write it again with prepare_lrvsf.py catalog"
        ) from error
    if not categories:
        raise ValueError(f"{root} has no category, says its catalog.json; train without one: --condition none")
    return categories


def validation_set(root: str, cache: str | Path) -> ProductTestSet:
    """The validation set below `root`; one behind a URL is copied into `cache`, once for all processes of a machine.

    Raises ValueError: the copy there is another root's: scores would be of other data than the run's.
    """
    if "://" not in root:
        return ProductTestSet(Path(root, "validation"))
    copy = Path(cache, "validation")
    with PartialState().local_main_process_first():
        if not copy.is_dir():
            filesystem, path = place_of(root)
            with whole_folder(copy) as writing:
                filesystem.get(f"{path}/validation/", f"{writing}/", recursive=True)
                (writing / COPIED_FROM).write_text(root, encoding="utf-8")
    source = (copy / COPIED_FROM).read_text(encoding="utf-8") if (copy / COPIED_FROM).is_file() else "another place"
    if source != root:
        raise ValueError(f"{copy} is a copy from {source}, not from {root}; remove it, or take another --output_dir")
    return ProductTestSet(copy)


def pair_loader(args: CondViTTrainingArguments, shards: ProductShards, config: CondViTConfig) -> PairLoader:
    """This process's batches of pairs for a model, as the flags ask for them."""
    state, size, parts = PartialState(), args.per_device_train_batch_size, args.categories_per_batch
    batches = ProductBatches(
        shards, size, args.seed, state.process_index, state.num_processes, parts, tolerance=args.tolerance
    )
    return PairLoader(
        batches,
        PairMaker(config.image_size, config.categories if config.condition == "category" else None, args.seed),
        args.dataloader_num_workers,
        # Without a GPU there is nothing to pin for, and torch would warn.
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
    )
