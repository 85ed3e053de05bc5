"""Ranks counted by processes of a Ray cluster: the integers of one process, as counts of other distractors add up.

The driver makes the counters, with queries, targets and draws, and sends them out empty. A run of shards, names of
files alone, is counted by one call, which reads them from the folder that all nodes see and gives back what it counted:
whole or, if its process dies, not at all. Ray then calls again. So no distractor is missed or counted twice, whatever
dies and in whatever order the runs end. What comes back does not grow with the gallery: of ranks, two numbers for each
query and each draw of a gallery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from tqdm import tqdm

from lrvsf.command import explain, is_refusal
from lrvsf.embedding.store import Embed, Shard, read_shard
from lrvsf.evaluation.embedded import Counter, add_blocks
from lrvsf.scale.cluster import Pool, answer_of, check_nodes, take_pool
from lrvsf.scale.engine import Cluster
from lrvsf.scale.ray_embed import embedding_on_ray

RUNS_EACH = 4  # for each process, if there are as many shards: the slowest is waited for less; not tuned


@contextmanager
def evaluating_on_ray(cluster: Cluster, gpu: bool) -> Iterator[RayEvaluation]:
    """What `EmbeddedTestSet` takes, for as long as the cluster is connected.

    Args:
        gpu: whether each process there takes a GPU, too.

    Raises ValueError, ConnectionError: the cluster has no room for the processes, or does not answer.
    """
    with embedding_on_ray(cluster, gpu) as embed:
        yield RayEvaluation(embed.pool, embed)


class RayEvaluation:
    """Embeds and counts on a cluster: an `lrvsf.evaluation.embedded.Elsewhere`."""

    def __init__(self, pool: Pool, embed: Embed | None = None) -> None:
        self.pool, self.embed = pool, embed

    def count(self, shards: list[Shard], counters: Sequence[Counter], categories: Tensor | None) -> None:
        """Adds all shards of distractors, and the categories (N,) of all distractors, to counters.

        Raises:
            ValueError: a node lacks something, or the cluster has no longer room for the processes.
            RuntimeError: a shard could not be read, or a process died each time that it was started.
        """
        if not shards:
            return
        shards = [(path.absolute(), first) for path, first in shards]  # a process there works in another folder
        pool = take_pool(self.pool.actors, self.pool.cpus, self.pool.gpus)  # those that embedded have just left
        check_nodes(None, partial(_digest, shards[0][0]))
        counting = _count_run.options(num_cpus=pool.cpus, num_gpus=pool.gpus)
        empty, waiting = ray.put((counters, categories)), _runs(shards, RUNS_EACH * pool.actors)
        at_work: dict[ray.ObjectRef, int] = {}
        with tqdm(desc="counting", total=len(shards), unit="shard") as bar:
            while waiting or at_work:
                # No more at a time than were asked for: Ray alone would take all CPUs.
                while waiting and len(at_work) < pool.actors:
                    run = waiting.pop()
                    at_work[counting.remote(empty, run, pool.cpus)] = len(run)
                (done, *_), _ = ray.wait(list(at_work))
                for counter, counted in zip(counters, _counted(done), strict=True):
                    counter.merge(counted)
                bar.update(at_work.pop(done))


@ray.remote
def _count_run(empty: tuple[Sequence[Counter], Tensor | None], run: list[Shard], threads: int) -> list[Any] | str:
    """What each counter has counted of a run; or why a shard of it cannot be read."""
    torch.set_num_threads(threads)
    counters, categories = empty
    try:
        add_blocks(((read_shard(path), first) for path, first in run), counters, categories)
    except Exception as error:
        if is_refusal(error):
            return explain(error)
        raise
    return [counter.counted() for counter in counters]


def _counted(done: ray.ObjectRef) -> list[Any]:
    counted = answer_of(done, "a process that counts")
    if isinstance(counted, str):
        raise RuntimeError(f"ranks could not be counted: {counted}")
    return counted


def _runs(shards: list[Shard], most: int) -> list[list[Shard]]:
    """Neighbouring shards, in that many runs of nearly the same length; fewer if there are fewer shards."""
    count = min(most, len(shards))
    return [shards[len(shards) * run // count : len(shards) * (run + 1) // count] for run in range(count)]


def _digest(path: Path) -> str:
    """What a node reads in the first shard."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
