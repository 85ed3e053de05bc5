"""The flags of `--engine ray`, for every step that has it. Ray itself is imported when a cluster is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from typer import Option

Engine = Annotated[str | None, Option(help="ray: work on the machines of a Ray cluster")]
Address = Annotated[str | None, Option(help="of the cluster: auto, or HOST:PORT; this machine alone by default")]
Actors = Annotated[int | None, Option(help="how many processes work there; as many as there is room for by default")]
CpusPerActor = Annotated[int | None, Option(help="CPUs of each of them; 1 by default")]


@dataclass(frozen=True)
class Cluster:
    """A cluster as the flags name it.

    Attributes:
        address: "auto", the cluster that this machine is a node of; HOST:PORT; or "local", this machine alone.
        actors: None: as many as there is room for.
        cpus: of each actor.
    """

    address: str
    actors: int | None
    cpus: int


def cluster_asked(engine: str | None, address: str | None, actors: int | None, cpus: int | None) -> Cluster | None:
    """What the flags ask for; None without --engine.

    Raises:
        ValueError: they do not go together.
        ImportError: Ray is not installed.
    """
    if engine not in (None, "ray"):
        raise ValueError(f"engine={engine} is unknown; take ray, or leave it out to work in this process")
    given = {"address": address, "actors": actors, "cpus_per_actor": cpus}
    for name, value in given.items():
        if value is not None and engine is None:
            raise ValueError(f"--{name} says something of a cluster; give --engine ray, too")
        if name != "address" and value is not None and value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
    if engine is None:
        return None
    if find_spec("ray") is None:
        raise ImportError('--engine ray needs Ray: pip install "lrvsf[ray]"')
    return Cluster(address or "local", actors, cpus or 1)
