"""What must be the same on all processes is compared, and a difference is told with its places."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from lrvsf.processes import every

SHOWN = 4  # values, and machines of each, that a message names


def check_same(name: str, value: str, remedy: str) -> None:
    """Compares a value over all processes, each of which must call it.

    Raises ValueError: it differs; the same sentence on every process.
    """
    hosts, values = zip(*every((socket.gethostname(), value)), strict=True)
    if told := differing([{name: value} for value in values], hosts, {name: remedy}):
        raise ValueError(told[0])


def differing(everybody: Sequence[Mapping[str, str]], hosts: Sequence[str], remedies: Mapping[str, str]) -> list[str]:
    """A sentence for each fact that differs: its values, each with its places, and the remedy.

    Args:
        everybody, hosts: of each process, in rank order.
    """
    told = []
    for name in dict.fromkeys(name for facts in everybody for name in facts):
        ranks: dict[str, list[int]] = {}
        for rank, facts in enumerate(everybody):
            ranks.setdefault(facts.get(name, "nothing"), []).append(rank)
        if len(ranks) > 1:
            values = [f"{value} on {places(own, hosts)}" for value, own in ranks.items()]
            told.append(f"{name} differs: {'; '.join(_first(values))}. {remedies[name]}.")
    return told


def places(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Where processes run: the machines, with numbers where not all of a machine's processes are meant.

    >>> places([1, 2, 3], ["a", "a", "b", "b"])
    'a (process 1), b'
    """
    named = []
    for host in dict.fromkeys(hosts[rank] for rank in ranks):
        own = [str(rank) for rank in ranks if hosts[rank] == host]
        whole = len(own) == list(hosts).count(host)
        named.append(host if whole else f"{host} (process{'es' * (len(own) > 1)} {', '.join(_first(own))})")
    return ", ".join(_first(named))


def _first(texts: list[str]) -> list[str]:
    return [*texts[:SHOWN], *([f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])]
