"""A Ray cluster: connecting to it, and refusing at once what would else wait for ever, or be wrong on some node.

A node must see the same folders (a shared disk), and have the same code and libraries, because it writes what the
others go on from. Both are tried on each node before work begins.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import lrvsf
from lrvsf.command import explain, is_refusal

HUB_FILES = ("configuration_condvit", "modeling_condvit", "processing_condvit", "text_condvit")
LIBRARIES = ("torch", "transformers", "pillow", "numpy", "pyarrow", "ray")
FREED_WITHIN = 5.0  # seconds until what an earlier run has left is free; not tuned
ANSWERED_WITHIN = 120.0  # seconds that a node has for its check, imports of torch included; not tuned
LOCAL = "local"  # Ray's word for a cluster of this machine alone, which ends with this process


@dataclass(frozen=True)
class Pool:
    """Actors that the cluster has room for.

    Attributes:
        actors: how many.
        cpus, gpus: of each of them.
        folder: this process's, from which relative paths lead.
    """

    actors: int
    cpus: int
    gpus: int
    folder: str = field(default_factory=os.getcwd)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster; one that the process has already is used and left open.

    Args:
        address: "auto", the cluster that this machine is a node of; HOST:PORT; or "local".

    Raises ConnectionError: there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    # Without an address Ray would join whatever cluster it finds here.
    options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address}; start one with `ray start --head`, or leave --address out to use "
            "this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def take_pool(actors: int | None, cpus: int, gpus: int) -> Pool:
    """Actors of this size, as many as there is room for now, or just as many as asked.

    Ray itself would wait until there is room, for ever if there is never.

    Raises ValueError: there is less room.
    """
    at_best, end = _room(ray.cluster_resources(), cpus, gpus), time.monotonic() + FREED_WITHIN
    wanted = actors or at_best
    while (free := _room(ray.available_resources(), cpus, gpus)) < min(wanted, at_best) and time.monotonic() < end:
        time.sleep(0.2)
    if free >= (actors or 1):
        return Pool(actors or free, cpus, gpus)
    nodes = _nodes()
    if gpus and not any(node["Resources"].get("GPU") for node in nodes):
        raise ValueError("no node of the cluster has a GPU; leave out --device cuda, or start nodes that have one")
    there = ", ".join(f"{node['NodeManagerHostname']} has {_in_words(node['Resources'])}" for node in nodes)
    size, left = _in_words({"CPU": cpus, "GPU": gpus}), _in_words(ray.available_resources())
    raise ValueError(
        f"there is no room for {actors or 1} actor(s) of {size} each: {there or 'no node works'}, and {left} is free. "
        f"Take {f'--actors {free}, ' if free else ''}fewer --cpus_per_actor or more nodes, or wait for other jobs"
    )


def _room(resources: dict[str, float], cpus: int, gpus: int) -> int:
    """How many actors of this size fit into that much of the cluster. One never reaches over two nodes."""
    sizes = {"CPU": cpus, "GPU": gpus}

    def fit(there: dict[str, float]) -> int:
        return min(int(there.get(name, 0) // size) for name, size in sizes.items() if size)

    return min(fit(resources), sum(fit(node["Resources"]) for node in _nodes()))


def _in_words(resources: dict[str, float]) -> str:
    """ "4 CPU, 1 GPU"; of what there is none is not spoken."""
    return ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)) or "0 CPU"


def check_nodes(folder: Path | None, look: Callable[[], Any]) -> None:
    """Tries on each node that can work whether it sees a folder, may write there, and is a twin of this machine.

    Args:
        folder: None where nodes only read.
        look: gives something that must be the same on each node as here, such as the first rows that are to be read.

    Raises ValueError: a node is none; all such nodes are named with what they lack.
    """
    mark = folder and folder.absolute() / f".seen-{secrets.token_hex(8)}"
    if mark:
        mark.write_text(mark.name)
    here = (code_facts(), look())
    look = partial(_look_from, os.getcwd(), look)
    try:
        nodes = [node["NodeID"] for node in _nodes()]
        asked = {node: _look_around.options(scheduling_strategy=_on(node)).remote(mark, look) for node in nodes}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWERED_WITHIN)
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
        faults = [(names[node], _fault(mark, node, answer, here)) for node, answer in asked.items()]
    finally:
        for left in folder.glob(f"{mark.name}*") if folder else ():
            left.unlink(missing_ok=True)
    if any(fault for _, fault in faults):
        raise ValueError("\n".join(f"node {name} {fault}" for name, fault in faults if fault))


@ray.remote(num_cpus=0, max_retries=0)
def _look_around(mark: Path | None, look: Callable[[], Any]) -> tuple[dict[str, str], Any] | str:
    """What this node has and sees, or why it sees nothing; and a file beside the mark, if that can be seen."""
    try:
        if mark:
            mark.read_text()
            _beside(mark, ray.get_runtime_context().get_node_id()).write_text("")
        return code_facts(), look()
    except Exception as error:
        if is_refusal(error):
            return explain(error)
        raise


def _look_from(folder: str, look: Callable[[], Any]) -> Any:
    stand_in(folder)
    return look()


def stand_in(folder: str) -> None:
    """Makes it this process's folder, if the node has it: Ray starts processes elsewhere, and paths may be relative."""
    if os.path.isdir(folder):  # without it, full paths may lead to what is asked for all the same
        os.chdir(folder)


def _beside(mark: Path, node: str) -> Path:
    return mark.with_name(f"{mark.name}-{node}")


def _fault(mark: Path | None, node: str, answer: ray.ObjectRef, here: tuple[dict[str, str], Any]) -> str | None:
    """What a node lacks, or None."""
    try:
        told = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"did not answer within {ANSWERED_WITHIN:g} seconds; look at it, or take it out of the cluster"
    except ray.exceptions.RayError as error:
        return f"cannot run this project ({_first_line(error)}); install the same version there"
    if isinstance(told, str):
        return f"does not see what this machine sees: {told}. Give paths on a disk that all nodes share"
    if mark and not _beside(mark, node).exists():
        return f"has another {mark.parent} than this machine; name a folder on a disk that all nodes share"
    differ = [f"{name} {told[0].get(name)} there, {value} here" for name, value in here[0].items()
              if told[0].get(name) != value]  # fmt: skip
    if differ:
        return f"has {'; '.join(differ)}. Install the same versions on all nodes"
    if told[1] != here[1]:
        return f"reads {told[1]} where this machine reads {here[1]}; give it the same data and libraries"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:200]  # the last line: before it stands the traceback of the node


def on_each_gpu(ask: Callable[[], bool]) -> bool:
    """Whether it is true on every node that has a GPU; the nodes' GPUs must be free."""
    nodes = [node["NodeID"] for node in _nodes() if node["Resources"].get("GPU")]
    task = ray.remote(num_cpus=0, num_gpus=1)(ask)
    return all(ray.get([task.options(scheduling_strategy=_on(node)).remote() for node in nodes]))


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def code_facts() -> dict[str, str]:
    """What a node must have in common with the others: Python, libraries, and each line of this project's code."""
    files = [Path(find_spec(name).origin) for name in HUB_FILES]
    digest = hashlib.sha256()
    for path in [*files, *sorted(Path(lrvsf.__file__).parent.rglob("*.py"))]:
        digest.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"code of lrvsf": digest.hexdigest()[:12], "python": sys.version.partition(" ")[0], **versions}


def answer_of(done: ray.ObjectRef, who: str) -> Any:
    """What a task gave; `who` did it, for the message.

    Raises:
        RuntimeError: its process died again and again.
        RayTaskError: a fault of the program, with the traceback of where it happened.
    """
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"{who} died again and again ({why}); see whether its node has memory for it, or take fewer --actors"
        ) from error


def _nodes() -> list[dict[str, Any]]:
    """The nodes that can work: a head without CPUs only directs."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
