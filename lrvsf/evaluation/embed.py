"""From a test set's encoded images to embeddings, on any number of processes, a few batches of pixels at a time.

Each process takes a contiguous slice of the rows. Threads decode, pad and resize (Pillow releases the GIL), only a few
batches ahead of the model; pixels travel to the device as uint8 and are normalised there. A bad image is skipped and
counted; a product is skipped as a whole. Rows keep their order, so the number of processes changes nothing but the
composition of batches, and with it the last bits of an embedding.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm
from transformers import PretrainedConfig

from lrvsf.data.images import BadImage, BadImageCounter, decode_image
from lrvsf.data.testset import ProductTestSet
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD, pad_and_resize

THREADS = min(8, os.cpu_count() or 1)
BATCHES_AHEAD = 2

Item = tuple[int, tuple[bytes | None, ...]]  # a row number and its encoded images


@dataclass
class Embedded:
    """What one process made of its slice: n rows that could be read.

    Attributes:
        rows: their row numbers in the test set, ascending.
        embeds: name -> (n, dim) float32 unit rows on the CPU: "query" and "target", or "distractor".
        skipped: counts by reason of the rows that could not be read.
    """

    rows: list[int]
    embeds: dict[str, Tensor]
    skipped: dict[str, int]


def load_model(path: str) -> CondViTModel:
    """Loads CondViT from a folder or the Hub; anything else must be CLIP, which becomes an unconditioned CondViT."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{path} has no config.json: give the model folder that training wrote.")
    if not Path(path).is_dir() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"there is no folder {path}, and a name on the Hub looks like OWNER/MODEL.")
    model_type = PretrainedConfig.get_config_dict(path)[0].get("model_type")
    if model_type == "condvit":
        return CondViTModel.from_pretrained(path, dtype=torch.float32)
    return CondViTModel.from_clip(path, condition="none")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are much faster than float32 here: on GPUs that have them, and on CPUs with AMX.

    (AVX-512's bf16 instructions alone gain little at a small model's width, so they are left to who asks for them.)
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


class Encoder:
    """A model on a device that turns uint8 pixels into embeddings.

    Args:
        model: put into evaluation mode and on `device`.
        conditioning: "category" or "none"; it decides for queries only, targets and distractors never have a condition.
        bf16: run the tower under bfloat16 autocast. Embeddings are normalised and returned in float32 all the same.

    Raises:
        ValueError: conditioning by category asked of a model that has none.
    """

    def __init__(
        self, model: CondViTModel, conditioning: str, bf16: bool = False, device: torch.device | None = None
    ) -> None:
        if conditioning not in ("category", "none"):
            raise ValueError(f'conditioning={conditioning!r} is unknown. Use "category" or "none".')
        if conditioning == "category" and model.config.condition != "category":
            raise ValueError(
                f'conditioning="category" was asked of a model with condition={model.config.condition!r}. '
                'Use conditioning="none", or a model that was trained with categories.'
            )
        self.device = device or torch.device("cpu")
        self.model = model.eval().to(self.device)
        self.conditioning, self.bf16 = conditioning, bf16
        self.image_size: int = model.config.image_size
        self.dim: int = model.config.projection_dim
        self._mean = 255 * torch.tensor(IMAGE_MEAN, device=self.device).view(3, 1, 1)
        self._std = 255 * torch.tensor(IMAGE_STD, device=self.device).view(3, 1, 1)

    def pixels(self, data: bytes | None) -> np.ndarray:
        """Encoded bytes -> (3, S, S) uint8, S = the model's image size. Raises BadImage."""
        image = pad_and_resize(decode_image(data), self.image_size)
        return np.asarray(image).transpose(2, 0, 1)

    @torch.inference_mode()
    def embed(self, pixels: list[np.ndarray], categories: list[str] | None = None) -> Tensor:
        """B arrays (3, S, S) -> (B, dim) float32 unit rows on the CPU.

        `categories` are the queries' (B names); left out for targets and distractors, and unused without conditioning.
        """
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
        indices = None
        if categories is not None and self.conditioning == "category":
            known = self.model.config.categories
            indices = torch.tensor([known.index(name) for name in categories], device=self.device)  # (B,)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeds = self.model(pixel_values=(batch - self._mean) / self._std, category_indices=indices).image_embeds
        return embeds.float().cpu()


def process_slice(rows: int) -> tuple[int, int]:
    """This process's share of the rows, as (start, stop): contiguous, sizes differ by at most one."""
    state = PartialState()
    return rows * state.process_index // state.num_processes, rows * (state.process_index + 1) // state.num_processes


def embed_products(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, max_bad: float = 0.01, max_in_a_row: int = 100
) -> Embedded:
    """This process's products, as "query" and "target". One whose query or target cannot be read is dropped.

    Raises TooManyBadImages: more than the share `max_bad` of them, or `max_in_a_row`. (So does `embed_distractors`.)
    """
    start, stop = process_slice(test_set.n_products)
    categories = test_set.categories()
    counter = BadImageCounter("products", max_bad, max_in_a_row=max_in_a_row)
    items = ((product.row, (product.query_image, product.target_image)) for product in test_set.products(start, stop))
    rows, queries, targets = [], [torch.empty(0, encoder.dim)], [torch.empty(0, encoder.dim)]
    for batch_rows, (query_pixels, target_pixels) in _batches(encoder, items, counter, stop - start, batch_size):
        rows += batch_rows
        queries.append(encoder.embed(query_pixels, [categories[row] for row in batch_rows]))
        targets.append(encoder.embed(target_pixels))
    return Embedded(rows, {"query": torch.cat(queries), "target": torch.cat(targets)}, dict(counter.reasons))


def embed_distractors(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, max_bad: float = 0.01, max_in_a_row: int = 100
) -> Embedded:
    """This process's distractors, as "distractor": 2 KB each at 512 dimensions."""
    start, stop = process_slice(test_set.n_distractors)
    counter = BadImageCounter("distractors", max_bad, max_in_a_row=max_in_a_row)
    items = ((row, (image,)) for row, image in test_set.distractors(start, stop))
    rows, embeds = [], [torch.empty(0, encoder.dim)]
    for batch_rows, (pixels,) in _batches(encoder, items, counter, stop - start, batch_size):
        rows += batch_rows
        embeds.append(encoder.embed(pixels))
    return Embedded(rows, {"distractor": torch.cat(embeds)}, dict(counter.reasons))


def _batches(
    encoder: Encoder, items: Iterator[Item], counter: BadImageCounter, total: int, batch_size: int
) -> Iterator[tuple[list[int], list[list[np.ndarray]]]]:
    """(row numbers, for each image of an item the batch's pixels), without the items that have a bad image, which are
    counted."""

    def decode(item: Item) -> tuple[int, list[np.ndarray]]:
        return item[0], [encoder.pixels(image) for image in item[1]]

    batch: list[tuple[int, list[np.ndarray]]] = []
    decoded = map_ahead(decode, items, ahead=BATCHES_AHEAD * batch_size)
    for item, future in tqdm(decoded, counter.what, total, unit="row", disable=not PartialState().is_main_process):
        try:
            batch.append(future.result())
        except BadImage as error:
            counter.add_bad(f"row {item[0]} of the {counter.what}", error)
            continue
        counter.add_good()
        if len(batch) == batch_size:
            yield _transposed(batch)
            batch = []
    if batch:
        yield _transposed(batch)
    counter.finish()


def _transposed(batch: list[tuple[int, list[np.ndarray]]]) -> tuple[list[int], list[list[np.ndarray]]]:
    rows, images = zip(*batch, strict=True)
    return list(rows), [list(column) for column in zip(*images, strict=True)]


def map_ahead(function: Callable[[Item], Any], items: Iterable[Item], ahead: int) -> Iterator[tuple[Item, Future]]:
    """(item, its future) in the order of the items, computed by threads that are at most `ahead` items early."""
    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[tuple[Item, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
