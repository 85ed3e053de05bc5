"""A catalog made by a Ray cluster: its pictures embedded there (`ray_embed`), its index filled there (`faiss_shards`).

This process trains the index and merges the shards. Between, a shard is filled by a process of the cluster, which reads
the vectors from the catalog's folder and writes the shard into it, whole or, if it dies, not at all; Ray then has
another one fill it. So the index has the bytes that one process would have given it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import faiss
import ray

from lrvsf.command import explain, is_refusal
from lrvsf.scale import faiss_shards
from lrvsf.scale.cluster import Pool, answer_of, check_nodes
from lrvsf.scale.engine import Cluster
from lrvsf.scale.faiss_shards import build_in_shards, can_be_merged, grow_in_shards
from lrvsf.scale.ray_embed import embedding_on_ray
from lrvsf.search.commands import HowToEmbed
from lrvsf.search.index import EXACT, Progress, VectorIndex, default_factory, made
from lrvsf.search.vectors import SHARDS, Vectors


@contextmanager
def indexing_on_ray(cluster: Cluster, how: HowToEmbed) -> Iterator[HowToEmbed]:
    """How a catalog is made there, for as long as the cluster is connected.

    Raises ValueError, ConnectionError: the cluster has no room for the actors, or does not answer.
    """
    with embedding_on_ray(cluster, gpu=how.device == "cuda") as embed:
        build, grow = (partial(job, embed.pool) for job in (build_on_ray, grow_on_ray))
        yield replace(how, embed=embed, device="cpu", bf16=embed.bf16, build=build, grow=grow)


def build_on_ray(
    pool: Pool,
    folder: Path,
    segments: list[Path],
    factory: str | None,
    storage: str | None,
    seed: int,
    progress: Progress | None,
) -> VectorIndex:
    """`VectorIndex.build`, by way of shards that a cluster fills; here if the kind has none, or one would do.

    Args:
        folder: of the shards, which stay there.

    Raises:
        ValueError: as `VectorIndex.build`; a node lacks something.
        RuntimeError: a shard could not be filled, or its process died each time that it was started.
    """
    vectors = Vectors.open(segments)
    factory = factory or default_factory(len(vectors), storage)
    if factory == EXACT or not _is_shared(made(vectors.shape[1], factory), len(vectors)):
        return VectorIndex.build(vectors, factory, storage, seed, progress)
    folder, segments = _seen_by_all(folder, segments)
    return build_in_shards(folder, segments, factory, storage, seed, partial(fill_on_ray, pool), progress)


def grow_on_ray(pool: Pool, folder: Path, index: VectorIndex, segments: list[Path], progress: Progress | None) -> None:
    """`VectorIndex.add` of the rows that an index lacks of some segments. Otherwise as `build_on_ray`."""
    vectors, first_row = Vectors.open(segments), len(index.vectors)
    if index.index is None or not _is_shared(index.index, len(vectors) - first_row):
        index.add(vectors, first_row, progress)
        return
    folder, segments = _seen_by_all(folder, segments)
    grow_in_shards(folder, index, segments, partial(fill_on_ray, pool), progress)


def _is_shared(kind: faiss.Index, rows: int) -> bool:
    """Whether processes share in adding rows: they are several shards, and the kind has any."""
    return rows > faiss_shards.SHARD_ROWS and can_be_merged(kind)


def _seen_by_all(folder: Path, segments: list[Path]) -> tuple[Path, list[Path]]:
    """The same folders, by full paths. Raises ValueError: a node sees others, or may not write into the first."""
    folder, segments = folder.absolute(), [segment.absolute() for segment in segments]
    folder.mkdir(parents=True, exist_ok=True)
    check_nodes(folder, partial(_digest, segments))
    return folder, segments


def fill_on_ray(pool: Pool, fill: Callable[[int], int], numbers: list[int]) -> Iterator[int]:
    """What `fill` gives for each number, as they are done, by as many processes as the pool has actors.

    They wait for their room until the actors that embedded have left it.
    """
    filling, sent = _fill.options(num_cpus=pool.cpus), ray.put(fill)
    waiting, at_work = numbers[::-1], []
    while waiting or at_work:
        # No more at a time than were asked for: Ray alone would take all CPUs.
        while waiting and len(at_work) < pool.actors:
            at_work.append(filling.remote(sent, waiting.pop(), pool.cpus))
        (done,), at_work = ray.wait(at_work)
        rows, why_not = answer_of(done, "a process that fills the index")
        if why_not is not None:
            raise RuntimeError(f"the index could not be filled: {why_not}")
        yield rows


@ray.remote
def _fill(fill: Callable[[int], int], number: int, threads: int) -> tuple[int, str | None]:
    """The rows of a shard that is now filled; or 0, and why it cannot be."""
    faiss.omp_set_num_threads(threads)
    try:
        return fill(number), None
    except Exception as error:
        if is_refusal(error):
            return 0, explain(error)
        raise


def _digest(segments: list[Path]) -> str:
    """What a node reads in the first shard of vectors."""
    first = min(segments[0].glob(SHARDS))
    return hashlib.sha256(first.read_bytes()).hexdigest()[:12]
