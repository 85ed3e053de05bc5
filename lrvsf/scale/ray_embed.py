"""Shards of an embedding store made by actors of a Ray cluster: the same bytes as on one machine, in the same folder.

The driver opens the store, as ever: lock, manifest, which shards are missing. Ranges of rows, two numbers each, go
through Ray Data to actors. An actor has the model and the listing of the pictures; it reads, decodes and embeds a range
and writes the shard, whole or not at all, where the driver sees it. What comes back is which rows are bad. So no
picture ever travels, memory does not grow with their number, and whatever dies loses at most a shard of each actor: Ray
gives its ranges to another one, which passes over what is whole, and so does the next run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import ray
import ray.data
import torch
from accelerate import PartialState
from tqdm import tqdm

from lrvsf.command import explain, is_refusal
from lrvsf.data.images import BadImage, BadImageCounter, Tolerance
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Part
from lrvsf.embedding.store import Bad, DamagedShard, EmbeddingStore, Range
from lrvsf.processes import has_fast_bf16
from lrvsf.scale.cluster import Pool, check_nodes, connected, on_each_gpu, stand_in, take_pool
from lrvsf.scale.engine import Cluster

LONGEST_RUN = 8  # shards that one actor makes of neighbouring rows; not tuned
RUNS_EACH = 4  # for each actor, if there are so many shards: else some would wait for the slowest; not tuned
FIRST_ROWS = 4  # that each node must read as this machine does
ALL = Tolerance(1.0, sys.maxsize)  # an actor counts its own rows only; the driver judges


@contextmanager
def embedding_on_ray(cluster: Cluster, gpu: bool) -> Iterator[RayEmbedding]:
    """What `EmbeddingStore.fill` takes, for as long as the cluster is connected.

    Args:
        gpu: whether each actor takes a GPU, too.

    Raises ValueError, ConnectionError: the cluster has no room for the actors, or does not answer.
    """
    with connected(cluster.address):
        pool = take_pool(cluster.actors, cluster.cpus, int(gpu))
        yield RayEmbedding(pool, gpu and on_each_gpu(_is_fast_in_bf16))


class RayEmbedding:
    """Has ranges embedded by a pool of actors; called as `EmbeddingStore.embed_and_save` is.

    Attributes:
        bf16: whether the model is to run in bfloat16: on GPUs, where all have it.
    """

    def __init__(self, pool: Pool, bf16: bool) -> None:
        self.pool, self.bf16 = pool, bf16

    def __call__(
        self, store: EmbeddingStore, part: Part, ranges: list[Range], counter: BadImageCounter
    ) -> Iterator[None]:
        """
        Raises:
            ValueError: a node lacks something.
            RuntimeError: an actor could not embed or write a range.
            TooMuchDamage: as soon as the counter does, which sees the ranges in their order.
        """
        if not ranges:
            return
        there = ray.put(store)
        check_nodes(store.folder, partial(_first_rows, there, part.what))
        missing, made = sum(stop - start for start, stop in ranges), {}
        bar = tqdm(desc=part.what, total=part.total, initial=part.total - missing, unit="row")
        with bar, closing(self._stream(there, part.what, _runs(ranges, self.pool.actors))) as records:
            for span in ranges:
                # Whichever comes first; bad rows are judged in their order all the same.
                while span not in made:
                    record = next(records)
                    if "error" in record:
                        raise RuntimeError(f"{record['by']}: {record['error']}")
                    start, stop = record["rows"]
                    made[start, stop] = [(row, reason) for row, reason in record["bad"]]
                    bar.update(stop - start)
                counter.count(*span, made.pop(span))
                yield

    def _stream(self, store: ray.ObjectRef, what: str, runs: list[Range]) -> Iterator[dict[str, Any]]:
        """The records of all runs, in whatever order they come."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of each stream's beginning and end
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False  # ours counts pictures
        context.target_max_block_size = 1  # a block for each record: it arrives when its shard is whole
        with ray.data.DataContext.current(context):
            items = [{"start": start, "stop": stop} for start, stop in runs]
            records = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                ShardEmbedder,
                fn_constructor_args=(store, what, self.pool),
                # One run at a time: else the actor that has started first is given all of a few runs, and others wait.
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.pool.actors, len(items)), max_tasks_in_flight_per_actor=1
                ),
                batch_size=1,
                num_cpus=self.pool.cpus,
                num_gpus=self.pool.gpus,
            )
            # None ahead, which would keep a record back until the next shard is whole. Closed with this generator: an
            # error of ours ends the actors.
            with closing(iter(records.iter_batches(batch_size=1, prefetch_batches=0))) as batches:
                for batch in batches:
                    yield json.loads(batch["record"][0])


class ShardEmbedder:
    """An actor: a model and the listing of the pictures, which makes the shards of one run after another.

    Args:
        store: the driver's, with its model and parts.
        what: of which part.
    """

    def __init__(self, store: ray.ObjectRef, what: str, pool: Pool) -> None:
        stand_in(pool.folder)
        torch.set_num_threads(pool.cpus)
        logging.getLogger("lrvsf").setLevel(logging.ERROR)  # the driver names bad pictures, in the order of the rows
        PartialState(cpu=not pool.gpus)
        self.store: EmbeddingStore = ray.get(store)
        self.part = self.store.part(what)
        self.store.encoder = _on_device(self.store.encoder, torch.device("cuda" if pool.gpus else "cpu"))
        self.by = f"process {os.getpid()} on {socket.gethostname()}"

    def __call__(self, run: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        """A record for each shard of a run: {"rows", "bad", "seconds", "by"}; or at the end one with an "error"."""
        try:
            for span, bad, seconds in self._make(int(run["start"][0]), int(run["stop"][0])):
                yield _record(rows=span, bad=bad, seconds=round(seconds, 3), by=self.by)
        except Exception as error:
            if not is_refusal(error):
                raise
            yield _record(error=explain(error), by=self.by)

    def _make(self, start: int, stop: int) -> Iterator[tuple[Range, Bad, float]]:
        # A run that is given to a second actor, as the first one died: what that has made is whole.
        ranges = self.store.shards(start, stop)
        found = {span: bad for span in ranges if (bad := self._found(span)) is not None}
        missing = [span for span in ranges if span not in found]
        began = time.monotonic()
        counter = BadImageCounter(self.part.what, ALL)
        with closing(self.store.embed_and_save(self.part, missing, counter, quiet=True)) as made:
            for span in ranges:
                yield span, found[span] if span in found else next(made), time.monotonic() - began
                began = time.monotonic()

    def _found(self, span: Range) -> Bad | None:
        """The bad rows of a shard that is whole."""
        try:
            return self.store.header(self.part, *span)[1]
        except (FileNotFoundError, DamagedShard):
            return None


def _record(**fields: Any) -> dict[str, list[str]]:
    return {"record": [json.dumps(fields)]}  # one text: Ray makes tables of what it is given


def _runs(ranges: list[Range], actors: int) -> list[Range]:
    """Neighbouring ranges as one, a few at a time: files are read from the beginning of a row group, or of a tar."""
    most = min(LONGEST_RUN, max(1, len(ranges) // (RUNS_EACH * actors)))
    runs: list[Range] = []
    length = 0
    for start, stop in ranges:
        if runs and runs[-1][1] == start and length < most:
            runs[-1] = runs[-1][0], stop
            length += 1
        else:
            runs.append((start, stop))
            length = 1
    return runs


def _on_device(encoder: Encoder, device: torch.device) -> Encoder:
    return Encoder(encoder.model, encoder.conditioning, encoder.bf16, device, encoder.dim, encoder.sentences)


def _is_fast_in_bf16() -> bool:
    return has_fast_bf16(torch.device("cuda"))


def _first_rows(store: ray.ObjectRef, what: str) -> list[str]:
    """What the first rows look like on this node: the digests of their pixels, or why they have none."""
    opened: EmbeddingStore = ray.get(store)
    part = opened.part(what)
    seen = []
    for _, picture in islice(part.items(0, part.total), FIRST_ROWS):
        try:
            pixels = part.decode(opened.encoder, picture).pixels
            seen.append(hashlib.sha256(b"".join(array.tobytes() for array in pixels)).hexdigest()[:12])
        except BadImage as error:
            seen.append(error.reason)
    return seen
