"""`worker_map` on a cluster: jobs of a step done by actors of Ray, their results in the order of the jobs.

A job is a function and where its input lies, on a disk that all nodes see. An actor that dies is started again, and
does once more what it had not given back. What a job gives depends on its input alone, so nobody sees that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from lrvsf.command import explain, is_refusal
from lrvsf.scale.cluster import Pool, answer_of, check_nodes, connected, take_pool
from lrvsf.scale.engine import Cluster

AHEAD = 64  # jobs of each actor whose results nobody has taken yet: it works on while the driver writes; not tuned
TRIES = 4  # of a job whose actor dies, before the step ends


@contextmanager
def cluster_map(cluster: Cluster) -> Iterator[Callable]:
    """A `map` that keeps the order, for as long as the cluster is connected.

    Raises ValueError, ConnectionError: the cluster has no room for the actors, or does not answer.
    """
    with connected(cluster.address):
        yield RayMap(take_pool(cluster.actors, cluster.cpus, 0))


class RayMap:
    """A `map` whose jobs are done by a pool of actors."""

    def __init__(self, pool: Pool) -> None:
        actor = Worker.options(num_cpus=pool.cpus, max_restarts=-1, max_task_retries=TRIES - 1)
        self.workers = [actor.remote() for _ in range(pool.actors)]

    def __call__(self, job: Callable, *items: Iterable[Any]) -> Iterator[Any]:
        """What the job gives for each item, in their order.

        Raises:
            ValueError: on some node the first job does not come to what it comes to here.
            RuntimeError: a job failed, or an actor died again and again.
        """
        calls = list(zip(*items, strict=True))
        check_nodes(None, partial(job, *calls[0]))
        results: deque[ray.ObjectRef] = deque()
        for number, call in enumerate(calls):
            results.append(self.workers[number % len(self.workers)].do.remote(job, call))
            if len(results) > AHEAD * len(self.workers):
                yield _result(results.popleft())
        while results:
            yield _result(results.popleft())


@ray.remote
class Worker:
    """An actor that does whatever job comes."""

    def do(self, job: Callable, call: tuple[Any, ...]) -> tuple[Any, str | None]:
        """What it gives; or None, and why it cannot be done."""
        try:
            return job(*call), None
        except Exception as error:
            if is_refusal(error):
                return None, explain(error)
            raise


def _result(done: ray.ObjectRef) -> Any:
    result, why_not = answer_of(done, "an actor")
    if why_not is not None:
        raise RuntimeError(f"a job on the cluster could not be done: {why_not}")
    return result
