"""From a test set's encoded images to embeddings, on any number of processes, a few batches of pixels at a time.

Rows are embedded range by range. Threads decode, pad and resize (Pillow releases the GIL), only a few batches ahead of
the model, across the ranges' borders; pixels travel to the device as uint8 and are normalised there. A bad image is
skipped and counted; a product is skipped as a whole. Rows keep their order, and a batch never reaches over the end of
its range, so that a range's embeddings are the same bits whatever is embedded before or after it.

Here embeddings stay in memory, each process's slice with it; `lrvsf.evaluation.store` keeps them on the disk.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm
from transformers import PretrainedConfig

from lrvsf.data.images import BadImage, BadImageCounter, decode_image
from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.baselines import Baseline, load_baseline
from lrvsf.paths import check_model
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD, pad_and_resize

THREADS = min(8, os.cpu_count() or 1)
BATCHES_AHEAD = 2

# A config.json may name an attention kernel of a stranger, which transformers would fetch and run.
_LOADING = {"dtype": torch.float32, "attn_implementation": "sdpa"}

Item = tuple[int, tuple[bytes | None, ...]]  # a row number and its encoded images


@dataclass
class Embedded:
    """What was made of a range of rows, of which n could be read.

    Attributes:
        rows: their row numbers in the test set, ascending.
        embeds: name -> (n, dim) float32 unit rows on the CPU: "query" and "target", or "distractor".
        bad: (row number, reason) of those that could not be read, ascending.
    """

    rows: list[int]
    embeds: dict[str, Tensor]
    bad: list[tuple[int, str]]

    @property
    def skipped(self) -> dict[str, int]:
        """Counts by reason of the rows that could not be read."""
        return dict(Counter(reason for _, reason in self.bad))


def load_model(path: str) -> CondViTModel | Baseline:
    """Loads CondViT, CLIP, which becomes an unconditioned CondViT, or another baseline, from a folder or the Hub."""
    check_model(path)
    model_type = PretrainedConfig.get_config_dict(path)[0].get("model_type")
    if model_type == "condvit":
        model, loaded = CondViTModel.from_pretrained(path, **_LOADING, output_loading_info=True)
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"{path} lacks the weights {', '.join(missing[:5])}. Restore its model.safetensors.")
        return model
    if model_type in ("clip", "clip_vision_model"):
        return CondViTModel.from_clip(path, attn_implementation="sdpa", condition="none")
    return load_baseline(path)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are much faster than float32 here: on GPUs that have them, and on CPUs with AMX.

    (AVX-512's bf16 instructions alone gain little at a small model's width, so they are left to who asks for them.)
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def runs_in_bf16(asked: bool | None, protocol: str, device: torch.device) -> bool:
    """Whether a protocol runs the model in bfloat16, unless asked: the published scores are of float32."""
    return has_fast_bf16(device) and protocol == "bootstrap" if asked is None else asked


class Encoder:
    """A model on a device that turns uint8 pixels into embeddings.

    Args:
        model: put into evaluation mode and on `device`.
        conditioning: "category" or "none"; it decides for queries only, targets and distractors never have a condition.
        bf16: run the tower under bfloat16 autocast. Embeddings are normalised and returned in float32 all the same.
        dims: keep so many first dimensions, normalised again, for a model trained with `matryoshka_dims`; None all.

    Raises:
        ValueError: conditioning by category asked of a model that has none, more dimensions than it has.
    """

    def __init__(
        self,
        model: CondViTModel | Baseline,
        conditioning: str,
        bf16: bool = False,
        device: torch.device | None = None,
        dims: int | None = None,
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
        self.dim: int = model.config.projection_dim if dims is None else dims
        if not 0 < self.dim <= model.config.projection_dim:
            raise ValueError(f"dims={dims} must be above 0 and at most the model's {model.config.projection_dim}.")
        self.mean, self.std = (model.mean, model.std) if isinstance(model, Baseline) else (IMAGE_MEAN, IMAGE_STD)
        self._mean = 255 * torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        self._std = 255 * torch.tensor(self.std, device=self.device).view(3, 1, 1)

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
        with _exact_convolution(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeds = self.model(pixel_values=(batch - self._mean) / self._std, category_indices=indices).image_embeds
        if self.dim < embeds.shape[1]:
            embeds = torch.nn.functional.normalize(embeds[:, : self.dim], dim=1)
        return embeds.float().cpu()


@contextmanager
def _exact_convolution() -> Iterator[None]:
    """GPUs round a float32 convolution's inputs to TF32 unless told not to: the patch embedding would lose 13 bits."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Products:
    """The products of a test set as rows to embed: their two images, as "query" and "target"."""

    what, kinds = "products", ("query", "target")

    def __init__(self, test_set: ProductTestSet) -> None:
        self.test_set, self.total = test_set, test_set.n_products
        self._categories = test_set.categories()

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for product in self.test_set.products(start, stop):
            yield product.row, (product.query_image, product.target_image)

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        queries, targets = pixels
        categories = [self._categories[row] for row in rows]
        return {"query": encoder.embed(queries, categories), "target": encoder.embed(targets)}


class Distractors:
    """The distractors of a test set as rows to embed."""

    what, kinds = "distractors", ("distractor",)

    def __init__(self, test_set: ProductTestSet) -> None:
        self.test_set, self.total = test_set, test_set.n_distractors

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for row, image in self.test_set.distractors(start, stop):
            yield row, (image,)

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        return {"distractor": encoder.embed(pixels[0])}


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
    return _embed_slice(encoder, Products(test_set), batch_size, max_bad, max_in_a_row)


def embed_distractors(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, max_bad: float = 0.01, max_in_a_row: int = 100
) -> Embedded:
    """This process's distractors, as "distractor": 2 KB each at 512 dimensions."""
    return _embed_slice(encoder, Distractors(test_set), batch_size, max_bad, max_in_a_row)


def _embed_slice(
    encoder: Encoder, part: Products | Distractors, batch_size: int, max_bad: float, max_in_a_row: int
) -> Embedded:
    counter = BadImageCounter(part.what, max_bad, max_in_a_row=max_in_a_row)
    (embedded,) = embed_ranges(encoder, part, [process_slice(part.total)], batch_size, counter)
    counter.finish()
    return embedded


def embed_ranges(
    encoder: Encoder,
    part: Products | Distractors,
    ranges: Sequence[tuple[int, int]],
    batch_size: int,
    counter: BadImageCounter,
) -> Iterator[Embedded]:
    """Each range of rows, (start, stop), in the order given. What follows it is decoded while the model is at work.

    Raises TooManyBadImages as soon as the counter does.
    """

    def decode(item: Item) -> tuple[int, list[np.ndarray]]:
        return item[0], [encoder.pixels(image) for image in item[1]]

    items = (item for start, stop in _joined(ranges) for item in part.items(start, stop))
    decoded = map_ahead(decode, items, ahead=BATCHES_AHEAD * batch_size)
    total = sum(stop - start for start, stop in ranges)
    silent = not total or not PartialState().is_main_process
    with closing(decoded), tqdm(desc=part.what, total=total, unit="row", disable=silent) as bar:
        for start, stop in ranges:
            yield _embed_range(encoder, part, islice(decoded, stop - start), batch_size, counter, bar)


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same rows with neighbouring ranges made one: a row group is read from its beginning for each range."""
    before: tuple[int, int] | None = None
    for start, stop in ranges:
        if before and before[1] == start:
            start = before[0]
        elif before:
            yield before
        before = start, stop
    if before:
        yield before


def _embed_range(
    encoder: Encoder,
    part: Products | Distractors,
    decoded: Iterable[tuple[Item, Future]],
    batch_size: int,
    counter: BadImageCounter,
    bar: tqdm,
) -> Embedded:
    """What the decoded rows give, without those that have a bad image, which are counted."""
    embedded = Embedded([], {}, [])
    batches = [{kind: torch.empty(0, encoder.dim) for kind in part.kinds}]
    batch: list[tuple[int, list[np.ndarray]]] = []

    def embed_batch() -> None:
        rows, pixels = _transposed(batch)
        batches.append(part.embed(encoder, rows, pixels))
        embedded.rows += rows
        batch.clear()

    for item, future in decoded:
        bar.update()
        try:
            batch.append(future.result())
        except BadImage as error:
            embedded.bad.append((item[0], error.reason))
            counter.add_bad(f"row {item[0]} of the {part.what}", error)
            continue
        counter.add_good()
        if len(batch) == batch_size:
            embed_batch()
    if batch:
        embed_batch()
    embedded.embeds = {kind: torch.cat([embeds[kind] for embeds in batches]) for kind in part.kinds}
    return embedded


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
