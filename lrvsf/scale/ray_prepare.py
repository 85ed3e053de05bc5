"""`worker_map` on a cluster: jobs of a step done by processes of Ray, their results in the order of the jobs.

A job is a function and where its input lies, on a disk that all nodes see; what it writes, it writes there, whole or
not at all. A job whose process dies is done once more, by another one. What it gives and writes depends on its input
alone, so nobody sees that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from lrvsf.command import explain, is_refusal
from lrvsf.scale.cluster import Pool, answer_of, check_nodes, connected, take_pool
from lrvsf.scale.engine import Cluster

TRIES = 4  # of a job whose process dies, before the step ends


@contextmanager
def cluster_map(cluster: Cluster, folder: Path, look: Callable[[], Any]) -> Iterator[Callable]:
    """A `map` that keeps the order, for as long as the cluster is connected.

    Args:
        folder: where jobs write; made if it is not there.
        look: gives something of the input that must be the same on each node as here.

    Raises:
        ConnectionError: the cluster does not answer.
        ValueError: it has no room for the processes, or a node does not see what this one sees.
    """
    with connected(cluster.address):
        pool = take_pool(cluster.actors, cluster.cpus, 0)
        folder.mkdir(parents=True, exist_ok=True)
        check_nodes(folder, look)
        yield RayMap(pool)


class RayMap:
    """A `map` whose jobs are done by processes of a cluster, as many at a time as the pool has actors."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __call__(self, job: Callable, *items: Iterable[Any]) -> Iterator[Any]:
        """What the job gives for each item, in their order.

        Raises RuntimeError: a job failed, or its process died again and again.
        """
        task = _do.options(num_cpus=self.pool.cpus, max_retries=TRIES - 1)
        calls = enumerate(zip(*items, strict=True))
        at_work: dict[ray.ObjectRef, int] = {}
        done: dict[int, ray.ObjectRef] = {}
        number = 0  # of the result that is due
        more = True
        while more or at_work or done:
            while more and len(at_work) < self.pool.actors:
                if (call := next(calls, None)) is None:
                    more = False
                else:
                    at_work[task.remote(job, call[1])] = call[0]
            if number in done:
                yield _result(done.pop(number))
                number += 1
            elif at_work:
                # Not the one that is due, but whichever ends: a slow job keeps nobody from work.
                (ended, *_), _ = ray.wait(list(at_work))
                done[at_work.pop(ended)] = ended


@ray.remote
def _do(job: Callable, call: tuple[Any, ...]) -> tuple[Any, str | None]:
    """What the job gives; or None, and why it cannot be done."""
    try:
        return job(*call), None
    except Exception as error:
        if is_refusal(error):
            return None, explain(error)
        raise


def _result(done: ray.ObjectRef) -> Any:
    result, why_not = answer_of(done, "a process")
    if why_not is not None:
        raise RuntimeError(f"a job on the cluster could not be done: {why_not}")
    return result
