"""From a test set's encoded images to embeddings, on any number of processes, a few batches of pixels at a time.

Rows are embedded range by range. Threads decode, pad and resize (Pillow releases the GIL), only a few batches ahead of
the model, across the ranges' borders; pixels travel to the device as uint8 and are normalised there. A bad image is
skipped and counted; a product is skipped as a whole. Rows keep their order, and a batch never reaches over the end of
its range, so that a range's embeddings are the same bits whatever is embedded before or after it.

Here embeddings stay in memory, each process's slice with it; `lrvsf.embedding.store` keeps them on the disk.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from lrvsf.data.images import USUAL, BadImage, BadImageCounter, Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.processes import own_share

THREADS = min(8, os.cpu_count() or 1)
BATCHES_AHEAD = 2


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


def embed_products(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, tolerance: Tolerance = USUAL
) -> Embedded:
    """This process's products, as "query" and "target". One whose query or target cannot be read is dropped.

    Raises TooManyBadImages: more of them than the tolerance allows. (So does `embed_distractors`.)
    """
    return _embed_slice(encoder, Products(test_set), batch_size, tolerance)


def embed_distractors(
    encoder: Encoder, test_set: ProductTestSet, batch_size: int, tolerance: Tolerance = USUAL
) -> Embedded:
    """This process's distractors, as "distractor": 2 KB each at 512 dimensions."""
    return _embed_slice(encoder, Distractors(test_set), batch_size, tolerance)


def _embed_slice(encoder: Encoder, part: Products | Distractors, batch_size: int, tolerance: Tolerance) -> Embedded:
    counter = BadImageCounter(part.what, tolerance)
    (embedded,) = embed_ranges(encoder, part, [own_share(part.total)], batch_size, counter)
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
