"""The training stream: every process takes its slice of every global batch of one planned order.

The order of an epoch is known before it is read (lrvsf/data/order.py). So all processes get the same number of equal
batches, the last partial global batch is dropped on all of them, and a resumed run starts where it stopped and reads
nothing that came before. One reader feeds any number of decoding workers.

A batch drawn over all categories compares a bag with few other bags. One of few categories is full of hard negatives:
products that the condition does not tell apart.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrvsf.data.images import USUAL, Tolerance
from lrvsf.data.order import WINDOW, batches_of_one_group, epoch_order
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards

SPARES = 8  # products that may replace unreadable ones in one batch, and more of larger batches: see `ProductBatches`
GROUPS_AHEAD = 4  # row groups that are read while earlier ones are used
BATCH_WITHIN = 120  # seconds that a batch is waited for, and one more for each of its pairs (not tuned)
SHARED_PAGES = 32  # 128 KB; two loading processes work with 256
TRAINER_SEEN_EVERY = 1.0  # seconds after which a loading process looks whether its trainer lives

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else a stream's end sleeps for seconds

Batch = tuple[int, list[dict], list[dict]]  # epoch, rows, spares
RowsOfTexts = Callable[[np.ndarray], Tensor]  # hashes of texts, uint64 (B,) -> their sentence embeddings (B, E)


class ProductBatches:
    """A batch sampler whose "indices" are the rows themselves: (epoch, rows, spares) for each of this rank's batches.

    It holds at most a window of rows, `GROUPS_AHEAD` row groups and, with `categories_per_batch`, one part of every
    category; of these only what this rank will use.

    Args:
        shards: what to read; products that give no pair are left out.
        batch_size: rows of one process's batch.
        seed: of the order.
        rank, world_size: this process and how many there are.
        categories_per_batch: a global batch takes equal parts from this many categories, as they come in the stream (by
            chance two parts may be of one category); None takes products as they come.
        tolerance: of bad images: six times the tolerated share of `batch_size` is spare, and `SPARES` more, so
            that chance does not make a batch of tolerable data unfillable.

    Attributes:
        epoch: the epoch that the next iteration gives.
        unread: batches that the next iteration gives as None without reading them: a resumed run drops them.
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
        tolerance: Tolerance = USUAL,
    ):
        self.shards, self.batch_size, self.seed = shards, batch_size, seed
        self.rank, self.world_size, self.global_size = rank, world_size, batch_size * world_size
        self.parts = categories_per_batch
        self.spares = SPARES + math.ceil(6 * tolerance.fraction * batch_size)
        self.epoch = self.unread = 0
        if self.parts is not None and (self.parts < 1 or self.global_size % self.parts):
            raise ValueError(
                f"categories_per_batch={self.parts} must divide the global batch of {world_size} x {batch_size}"
            )
        if len(self) == 0:
            grouped = f" from {self.parts} categories" if self.parts else ""
            raise ValueError(
                f"{shards.usable} usable products do not fill one global batch of {world_size} x {batch_size}"
                f"{grouped}; take a smaller per_device_train_batch_size or more products"
            )

    def __len__(self) -> int:
        if self.parts is None:
            return self.shards.usable // self.global_size
        part = self.global_size // self.parts
        return int((np.bincount(self.shards.category_codes) // part).sum()) // self.parts

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers: this rank's batches (batches, batch_size), and its share of what the epoch leaves out (n,)."""
        shards = self.shards
        order = epoch_order(shards.starts, shards.rows, self.seed, epoch, WINDOW)
        if self.parts is not None:
            codes = shards.category_codes[np.searchsorted(shards.rows, order)]
            whole = batches_of_one_group(codes, self.global_size // self.parts)
            order = np.concatenate([order[whole], np.delete(order, whole)])  # the incomplete ones are left out, below
        used = len(self) * self.global_size
        batches = order[:used].reshape(len(self), self.global_size)  # equal on all processes, who each take columns
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return batches[:, mine], order[used:][self.rank :: self.world_size][: self.batch_size]

    def __iter__(self) -> Iterator[Batch | None]:
        epoch, unread, self.unread = self.epoch, self.unread, 0
        # A resumed run's loader counts its batches from the epoch's beginning: those before cost nothing.
        for _ in range(unread):
            yield None
        plan, left_out = self.plan(epoch)
        # One batch earlier than needed: it gives spares, and a resumed run must have the ones that it had before.
        first = max(unread - 1, 0)
        rows = RowReader(self.shards, np.concatenate([plan[first:].ravel(), left_out]))
        before = list(rows.take((unread - first) * self.batch_size))
        batch = list(rows.take(self.batch_size))
        for _ in plan[unread:]:
            # A sliding window of three batches: the ones before and after this one are its spares, and at the epoch's
            # end what it leaves out. All are this rank's own rows of other global batches, so no product is in a
            # global batch twice, and no process needs to ask another which spares it took.
            following = list(rows.take(self.batch_size))
            # A row that a damaged shard lost takes a spare for certain: it must not use up those for bad images.
            lost = sum(not row["images"] for row in batch)
            spares = [row for row in (*following, *before) if row["images"]]
            yield epoch, batch, spares[: self.spares + lost]
            before, batch = batch, following


class RowReader:
    """Gives rows in a planned order, reading each row group once, a few ahead, and keeping what is still to come.

    Args:
        shards: where the rows are.
        plan: (n,) row numbers, each at most once.
    """

    def __init__(self, shards: ProductShards, plan: np.ndarray):
        self.shards = shards
        self.order = iter(plan.tolist())
        self.wanted = np.zeros(shards.starts[-1], dtype=bool)  # a byte a row of the whole set
        self.wanted[plan] = True
        self.held: dict[int, dict] = {}
        groups = np.searchsorted(shards.starts, plan, side="right") - 1
        _, first = np.unique(groups, return_index=True)
        self.groups = iter(groups[np.sort(first)].tolist())  # in the order in which they are first needed
        self.pool = ThreadPoolExecutor(GROUPS_AHEAD)  # threads: they wait for the disk or the network, not for Python
        self.coming: deque = deque()

    def take(self, count: int) -> Iterator[dict]:
        """The next `count` rows, or those that are left."""
        for _, number in zip(range(count), self.order, strict=False):
            while number not in self.held:
                self._next_group()
            yield self.held.pop(number)

    def _next_group(self) -> None:
        while len(self.coming) < GROUPS_AHEAD and (group := next(self.groups, None)) is not None:
            self.coming.append(self.pool.submit(self._read, group))
        self.held.update(self.coming.popleft().result())  # in their order, whichever is read first
        if not self.coming:
            self.pool.shutdown()

    def _read(self, group: int) -> dict[int, dict]:
        rows = {number: row | {"row": number} for number, row in self.shards.read(group) if self.wanted[number]}
        for number in range(self.shards.starts[group], self.shards.starts[group + 1]):
            if self.wanted[number] and number not in rows:  # lost to damage: a product without images
                rows[number] = {"product_id": f"row {number}: {self.shards.row_groups[group]}", "images": []}
        return rows


class _Pairs(Dataset):
    """Lets DataLoader's workers turn the sampler's rows into batches."""

    def __init__(self, maker: PairMaker, products: int, rows_of_texts: RowsOfTexts | None):
        self.maker, self.products, self.rows_of_texts = maker, products, rows_of_texts

    def __len__(self) -> int:
        """Trainer asks for it, to know how long an epoch is."""
        return self.products

    def __getitems__(self, item: tuple[int, list[dict], list[dict]]) -> dict[str, Any]:
        with _one_thread():
            batch = self.maker.batch(*item)
        if (hashes := batch.pop("text_hashes", None)) is not None:
            batch["text_embeds"] = self.rows_of_texts(hashes)  # (B, E)
        return _beyond_dev_shm(batch)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch's work: to wake others for a single picture costs more than scaling it, and much more where
    they must wait for a core. A loading process has one anyway; the training process needs all for its step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _as_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _beyond_dev_shm(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch's tensors in memory that another process may map, as torch would put them, but not in /dev/shm.

    That has 64 MB in a container unless somebody thought of it, less than one batch of 256 pairs, and torch's thread
    that meets its end drops the batch: whoever waits for it waits for ever. An anonymous file has no such limit.
    """
    if torch.utils.data.get_worker_info() is None or not hasattr(os, "memfd_create"):  # macOS has no /dev/shm
        return batch

    def moved(tensor: Tensor) -> Tensor:
        file = os.memfd_create("batch")
        try:
            os.ftruncate(file, tensor.nbytes)
            storage = torch.UntypedStorage._new_shared_fd_cpu(file, tensor.nbytes)
        finally:
            os.close(file)  # the storage has opened it once more
        return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape).copy_(tensor)

    return {name: moved(value) if isinstance(value, Tensor) else value for name, value in batch.items()}


def check_shared_memory() -> None:
    """Refuses a machine whose /dev/shm cannot take even what stays there: semaphores, and a number for each of the
    streams that `datasets` opens, a page each.

    Raises OSError.
    """
    try:
        _ = [multiprocessing.Semaphore(), *(torch.zeros(1).share_memory_() for _ in range(SHARED_PAGES))]
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"/dev/shm takes no {SHARED_PAGES} small objects, which loading data needs ({error}). Make it larger, with "
            "`docker run --shm-size=64m` or `mount -o remount,size=64m /dev/shm`, and see that it may be written to"
        ) from error


def _obey_the_trainer(worker: int) -> None:
    """Keeps a loading process alive through a signal sent to the whole group; only its trainer, or its death, ends it.

    The trainer still needs it then: it finishes its step and saves a checkpoint. So SIGTERM is not handled (torch's
    handler would end the process) but waited for, by a thread that looks who sent it, and whether the trainer lives.
    """
    trainer = multiprocessing.parent_process().pid

    def wait() -> None:
        told = None
        while os.getppid() == trainer and not (told and told.si_pid == trainer):
            if hasattr(signal, "sigtimedwait"):
                told = signal.sigtimedwait({signal.SIGTERM}, TRAINER_SEEN_EVERY)
            else:  # macOS: there SIGTERM to all processes ends the run without a checkpoint
                time.sleep(TRAINER_SEEN_EVERY)
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def explained_stall() -> Iterator[None]:
    """Says what to look at where the loading processes gave no batch in time."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader timed out" not in str(error):
            raise
        raise RuntimeError(
            f"no loading process gave a batch in time ({error}). Their last words are above, if they had any: memory, "
            "open files (ulimit -n) or /dev/shm may be at an end, or a processor hang. Take fewer of them with "
            "--dataloader_num_workers, or 0, which loads in the training process; then resume from the newest "
            "checkpoint."
        ) from error


class PairLoader(DataLoader):
    """The finished loader of one process. Trainer must not prepare it a second time: it is already split."""

    def __init__(
        self,
        batches: ProductBatches,
        maker: PairMaker,
        num_workers: int = 0,
        rows_of_texts: RowsOfTexts | None = None,
        **options: Any,
    ):
        """`options` are DataLoader's; those of loading processes count only where there are such. A `maker` whose pairs
        ask in words needs `rows_of_texts`."""
        if num_workers == 0:
            options = {**options, "prefetch_factor": None, "persistent_workers": False}
        super().__init__(
            _Pairs(maker, batches.shards.usable, rows_of_texts),
            batch_sampler=batches,
            collate_fn=_as_is,
            num_workers=num_workers,
            worker_init_fn=_obey_the_trainer,
            timeout=BATCH_WITHIN + batches.batch_size if num_workers else 0,
            **options,
        )

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
