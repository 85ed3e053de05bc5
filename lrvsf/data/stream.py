"""The training stream: `datasets` reads undecoded rows, every process takes its slice of every global batch.

The order of an epoch depends on (seed, epoch) and on the global batch alone, not on processes or workers: all of them
read the same undecoded stream, which is cheap, and decode only their own share, which is not. So all processes get the
same number of equal batches, and the last partial global batch is dropped on all of them alike.

A batch drawn over all categories compares a bag with few other bags. One of few categories is full of hard negatives:
products that the condition does not tell apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
from torch.utils.data import DataLoader, Dataset

from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards, category_of
from lrvsf.data.schema import PRODUCT_FEATURES

SHUFFLE_BUFFER = 2048  # rows; at 100 kB a row 200 MB
SPARES = 8  # products that may replace unreadable ones in one batch

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else every epoch of a shuffled stream ends with five idle seconds


class ProductBatches:
    """A batch sampler whose "indices" are the rows themselves: (epoch, rows, spares) for each of this rank's batches.

    It iterates in the main process, so that one reader feeds any number of decoding workers, and skipping the first
    batches of an epoch (resuming) decodes nothing.

    Args:
        shards: what to read; faulty products are left out.
        batch_size: rows of one process's batch.
        rank, world_size: this process and how many there are.
        seed: of the order.
        categories_per_batch: a global batch takes equal parts from this many categories, as they come in the stream (by
            chance two parts may be of one category); None takes products as they come.
    """

    drop_last = True

    def __init__(
        self,
        shards: ProductShards,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        categories_per_batch: int | None = None,
    ):
        self.shards, self.batch_size, self.rank, self.world_size = shards, batch_size, rank, world_size
        self.epoch = 0
        self.parts = categories_per_batch
        if self.parts is not None and (self.parts < 1 or batch_size * world_size % self.parts):
            raise ValueError(
                f"categories_per_batch={self.parts} must divide the global batch of {world_size} x {batch_size}"
            )
        if len(self) == 0:
            grouped = f" from {self.parts} categories" if self.parts else ""
            raise ValueError(
                f"{shards.usable} usable products do not fill one global batch of {world_size} x {batch_size}"
                f"{grouped}; take a smaller per_device_train_batch_size or more products"
            )
        features = datasets.Features(
            {
                "product_id": PRODUCT_FEATURES["product_id"],
                "images": datasets.List({**PRODUCT_FEATURES["images"].feature, "image": datasets.Image(decode=False)}),
            }
        )
        stream = datasets.load_dataset(
            "parquet", data_files=[str(f) for f in shards.files], split="train", streaming=True, features=features
        )
        self.stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)

    def __len__(self) -> int:
        global_size = self.batch_size * self.world_size
        if self.parts is None:
            return self.shards.usable // global_size
        part = global_size // self.parts
        return sum(size // part for size in self.shards.sizes.values()) // self.parts

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, list[dict], list[dict]]]:
        self.stream.set_epoch(self.epoch)
        rows = (row for row in self.stream if row["product_id"] not in self.shards.faulty)
        if self.parts is not None:
            rows = in_parts(rows, self.batch_size * self.world_size // self.parts)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        global_size = self.batch_size * self.world_size
        before, batch = [], list(islice(rows, global_size))
        for _ in range(len(self)):
            # Spares come from a neighbouring batch, each rank's own: no product is in a global batch twice.
            following = list(islice(rows, global_size))  # at last the partial batch that the epoch drops
            spares = (following or before)[self.rank :: self.world_size]
            yield self.epoch, batch[mine], spares[:SPARES]
            before, batch = batch, following


def in_parts(rows: Iterator[dict], size: int) -> Iterator[dict]:
    """The rows, reordered so that each `size` of them in turn share a category; last those that fill no such part."""
    waiting: dict[str | None, list[dict]] = defaultdict(list)
    for row in rows:
        images = row["images"]
        category = category_of([image["type"] for image in images], [image["category"] for image in images])
        waiting[category].append(row)
        if len(waiting[category]) == size:
            yield from waiting.pop(category)
    for part in waiting.values():
        yield from part


class _Pairs(Dataset):
    """Lets DataLoader's workers turn the sampler's rows into batches."""

    def __init__(self, maker: PairMaker):
        self.maker = maker

    def __getitems__(self, item: tuple[int, list[dict], list[dict]]) -> dict[str, Any]:
        return self.maker.batch(*item)


def _as_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


class PairLoader(DataLoader):
    """The finished loader of one process. Trainer must not prepare it a second time: it is already split."""

    def __init__(self, batches: ProductBatches, maker: PairMaker, num_workers: int = 0, pin_memory: bool = False):
        options = {"prefetch_factor": 2} if num_workers else {}
        super().__init__(
            _Pairs(maker),
            batch_sampler=batches,
            collate_fn=_as_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            **options,
        )

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
