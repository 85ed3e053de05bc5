"""From encoded images to embeddings, on any number of processes, a few batches of pixels at a time.

Rows are embedded range by range. Threads decode, pad and resize (Pillow releases the GIL), only a few batches ahead of
the model, across the ranges' borders; pixels travel to the device as uint8 and are normalised there. A row with a bad
image is skipped and counted. Rows keep their order, and a batch never reaches over the end of
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

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from lrvsf.data.images import USUAL, BadImage, BadImageCounter, Tolerance
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Decoded, Item, Part
from lrvsf.processes import own_share

THREADS = min(8, os.cpu_count() or 1)  # not tuned
BATCHES_AHEAD = 2  # not tuned; what waits is pixels, 150 kB an image of 224 pixels


@dataclass
class Embedded:
    """What was made of a range of rows, of which n could be read.

    Attributes:
        rows: their row numbers, ascending.
        embeds: kind -> (n, dim) float32 unit rows on the CPU: "query" and "target", or "distractor".
        extras: what the part's `decode` kept of each of them.
        bad: (row number, reason) of those that could not be read, ascending.
    """

    rows: list[int]
    embeds: dict[str, Tensor]
    extras: list[Any]
    bad: list[tuple[int, str]]

    @property
    def skipped(self) -> dict[str, int]:
        """Counts by reason of the rows that could not be read."""
        return dict(Counter(reason for _, reason in self.bad))


def embed_share(encoder: Encoder, part: Part, batch_size: int, tolerance: Tolerance = USUAL) -> Embedded:
    """This process's rows of a part, in memory: 2 KB each at 512 dimensions. One that cannot be read is dropped.

    Raises TooMuchDamage: more of them than the tolerance allows.
    """
    counter = BadImageCounter(part.what, tolerance)
    (embedded,) = embed_ranges(encoder, part, [own_share(part.total)], batch_size, counter)
    counter.finish()
    return embedded


def embed_ranges(
    encoder: Encoder,
    part: Part,
    ranges: Sequence[tuple[int, int]],
    batch_size: int,
    counter: BadImageCounter,
    quiet: bool = False,
) -> Iterator[Embedded]:
    """Each range of rows, (start, stop), in the order given. What follows it is decoded while the model is at work.

    Args:
        quiet: show no progress, as one of many processes that another one counts.

    Raises TooMuchDamage as soon as the counter does.
    """

    def decode(item: Item) -> Decoded:
        return part.decode(encoder, item[1])

    # One stream over all ranges, so that the threads decode the next one while the model has the end of this one.
    items = (item for start, stop in _joined(ranges) for item in part.items(start, stop))
    decoded = prefetch_map(decode, items, ahead=BATCHES_AHEAD * batch_size)
    total = sum(stop - start for start, stop in ranges)
    silent = quiet or not total or not PartialState().is_main_process
    with closing(decoded), tqdm(desc=part.what, total=total, unit="row", disable=silent) as bar:
        for start, stop in ranges:
            # islice, as it ends without taking the first row of the next range.
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
    part: Part,
    decoded: Iterable[tuple[Item, Future]],
    batch_size: int,
    counter: BadImageCounter,
    bar: tqdm,
) -> Embedded:
    """What the decoded rows give, without those that have a bad image, which are counted."""
    embedded = Embedded([], {}, [], [])
    batches = [{kind: torch.empty(0, encoder.dim) for kind in part.kinds}]  # as no row may be readable

    def readable() -> Iterator[tuple[int, Decoded]]:
        for (row, _), future in decoded:
            bar.update()
            try:
                found = future.result()
            except BadImage as error:
                embedded.bad.append((row, error.reason))
                counter.add_bad(f"row {row} of the {part.what}", error)
            else:
                counter.add_good()
                yield row, found

    good = readable()
    while batch := list(islice(good, batch_size)):
        rows = [row for row, _ in batch]
        columns = zip(*(found.pixels for _, found in batch), strict=True)  # B images of each kind
        batches.append(part.embed(encoder, rows, list(map(list, columns))))
        embedded.rows += rows
        embedded.extras += [found.extra for _, found in batch]
    embedded.embeds = {kind: torch.cat([embeds[kind] for embeds in batches]) for kind in part.kinds}
    return embedded


def prefetch_map(function: Callable[[Item], Any], items: Iterable[Item], ahead: int) -> Iterator[tuple[Item, Future]]:
    """(item, its future) in the order of the items, computed by threads that are at most `ahead` items early."""
    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[tuple[Item, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            # The oldest first, whichever is done first; and nothing is begun while `ahead` wait for their reader.
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        # Also where the reader has failed, or has had enough: what is not begun is never decoded.
        pool.shutdown(wait=True, cancel_futures=True)
