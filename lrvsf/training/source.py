"""A data folder's parts, DATA/train, DATA/validation and DATA/captions, and the loader of pairs.

DATA may be a URL, such as hf://.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from configuration_condvit import CondViTConfig
from lrvsf.data.folders import place_of
from lrvsf.data.names import quoted
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards, target_images
from lrvsf.data.stream import PairLoader, ProductBatches
from lrvsf.data.testset import ProductTestSet
from lrvsf.data.wording import Wording
from lrvsf.durable import whole_folder
from lrvsf.embedding.captions import CaptionStore, encoder_digest, sentence_embedder
from lrvsf.paths import TRAINING, no_training_folder
from lrvsf.processes import on_main_process
from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.launch.agreement import check_same
from modeling_condvit import CondViTModel

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


def training_products(folder: str, args: CondViTTrainingArguments, config: CondViTConfig) -> ProductShards:
    """The shards in a folder, scanned for what a model is asked by.

    Raises ValueError: flags that it cannot heed, or processes that find other products.
    """
    if config.condition != "text" and (args.text_from or args.caption_store):
        name = "text_from" if args.text_from else "caption_store"
        value = args.text_from or args.caption_store
        raise ValueError(f"{name}={value!r}, but condition={config.condition!r}: add --condition text, or leave it out")
    categories = config.categories if config.condition == "category" else None
    shards = ProductShards.scan(folder, categories, args.tolerance, words=config.condition == "text")
    # Files may be as large and hold other rows: each process would read its share of another order.
    found = f"{shards.usable:,} products ({shards.fingerprint[:8]})"
    check_same("content of data", found, "All machines need the same files: copy them anew")
    return shards


def wording_of(args: CondViTTrainingArguments, config: CondViTConfig) -> Wording | None:
    """How a run asks in words; None for a model that reads no texts."""
    return Wording.parse(args.text_from, config.text_template) if config.condition == "text" else None


def caption_store(
    args: CondViTTrainingArguments,
    root: str,
    model: CondViTModel,
    tokenizer: Any,
    validation: ProductTestSet | None,
) -> CaptionStore | None:
    """The embeddings of all texts that may ask, in training and validation; None for a model that reads no texts.

    Texts that earlier runs left out are embedded now, by the main process; all others wait for it.
    """
    wording = wording_of(args, model.config)
    if wording is None:
        return None
    if wording.caption_share < 1 and (alike := model.categories_alike()):
        raise ValueError(
            f"text_from={' '.join(args.text_from)} asks by categories, but the text encoder gives one embedding to "
            f"{', '.join(map(quoted, alike))}. Name categories in words that it knows, or ask by captions alone"
        )
    default = Path(args.output_dir) if "://" in root else Path(root)
    place, dim = Path(args.caption_store or default / "captions"), model.config.text_dim

    def texts() -> Iterator[str]:
        yield from [] if validation is None else validation.texts(wording.template)
        for image in target_images(training_folder(root)):
            yield from wording.drawable(image)

    def begin() -> tuple[Path, Iterator[int]]:
        encoder = model.sentence_encoder()
        store = CaptionStore(place / encoder_digest(encoder, tokenizer), dim)
        embed = sentence_embedder(encoder, tokenizer, args.device)
        return store.folder, store.add(texts(), embed, model.config.text_encoder)

    # Part by part: processes that waited for a million captions at once would take the main one for dead.
    working: list[Any] = []

    def go_on() -> tuple[str, int | None]:
        if not working:
            working.extend(begin())
        try:
            return str(working[0]), next(working[1], None)
        except OSError as error:
            raise OSError(f"{error}. If {place} cannot be written to, name a folder with --caption_store") from error

    folder, added, total = "", 0, 0
    while added is not None:
        folder, added = on_main_process(go_on)
        total += added or 0
    model.forget_sentence_encoder()  # gigabytes that no step needs
    model.to("cpu")  # the main process has a tower of the model's own on the device; Trainer brings all there
    if total and PartialState().is_main_process:
        print(f"embedded {total:,} texts into {folder}")
    return CaptionStore(Path(folder), dim)


def pair_loader(
    args: CondViTTrainingArguments,
    shards: ProductShards,
    config: CondViTConfig,
    texts: CaptionStore | None = None,
    places: np.ndarray | None = None,
) -> PairLoader:
    """This process's batches of pairs for a model, as the flags ask for them.

    `texts` are a text model's; `places`: where targets are embedded already, as `PairMaker` takes them.
    """
    state, size, parts = PartialState(), args.per_device_train_batch_size, args.categories_per_batch
    batches = ProductBatches(
        shards, size, args.seed, state.process_index, state.num_processes, parts, tolerance=args.tolerance
    )
    return PairLoader(
        batches,
        PairMaker(
            config.image_size,
            config.categories if config.condition == "category" else None,
            args.seed,
            wording_of(args, config),
            places,
        ),
        args.dataloader_num_workers,
        texts,
        # Without a GPU there is nothing to pin for, and torch would warn.
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
    )
