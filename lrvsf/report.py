"""What a step did, and what it left out: counts with first names; as JSON for programs, as a table for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lrvsf.command import WIDTH, Command
from lrvsf.data.names import printable
from lrvsf.durable import write_whole

EXAMPLES = 3


class Ledger:
    """What a step leaves out or passes on, counted by reason, with the first few names of each.

    >>> skips = Ledger()
    >>> skips.add("no image", "line 7")
    >>> skips.report("not used")
    {'not used': {'no image': 1}, 'not used, the first': {'no image': 'line 7'}}

    Attributes:
        counts: reason -> how often, in the order in which the reasons came.
        first: reason -> the first `EXAMPLES` names, as a terminal may show them. Names may be millions, so no more are
            kept.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return self.counts.total() > 0

    def add(self, reason: str, name: str | None = None) -> None:
        self.add_all(reason, [name])

    def add_all(self, reason: str, names: Iterable[str | None]) -> None:
        """Counts one for each name; a None counts without a name."""
        for name in names:
            self.counts[reason] += 1
            if name is not None:
                self._keep(reason, printable(name))  # names are other people's; a terminal obeys some

    def take(self, reason: str, other: Ledger, its: str) -> None:
        """Counts here under `reason` what the other one counted under `its`."""
        if count := other.counts.get(its):
            self.counts[reason] += count
            for name in other.first.get(its, ()):
                self._keep(reason, name)

    def merge(self, other: Ledger) -> None:
        """Adds what another one, such as a worker's, has counted."""
        # In the order of the jobs, not of their ends: so the first names are the same with any number of workers.
        for reason in other.counts:
            self.take(reason, other, reason)

    def _keep(self, reason: str, name: str) -> None:
        if len(kept := self.first.setdefault(reason, [])) < EXAMPLES:
            kept.append(name)

    def table(self) -> dict[str, int]:
        """The counts alone, most frequent first."""
        return {reason: count for reason, count in self.counts.most_common() if count}

    def report(self, title: str) -> dict[str, Any]:
        """Two parts of a report, counts and names; empty if nothing was counted."""
        table = self.table()
        first = {reason: "; ".join(self.first[reason]) for reason in table if reason in self.first}
        return ({title: table} if table else {}) | ({f"{title}, the first": first} if first else {})

    def examples(self) -> dict[str, dict[str, Any]]:
        """reason -> its count and first names, most frequent first."""
        return {r: {"count": n, "such as": ", ".join(self.first.get(r, ()))} for r, n in self.table().items()}


def write_report(path: str | Path, report: dict[str, Any]) -> None:
    """Writes the report as JSON, whole or not at all."""
    # A name that is not UTF-8 has halves of characters in it; their escapes are JSON too.
    write_whole(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def as_table(report: dict[str, Any]) -> str:
    """The report as lines of name and value, numbers aligned to the right, nested dicts indented below their name.

    What cannot be seen in a name, such as the controls of a terminal, is written out. A long command stands below its
    name.

    >>> print(as_table({"urls": 1200, "failed": {"404": 3}}))
    urls    1,200
    failed
      404       3
    """
    lines = list(_lines(report))
    width = max((len(name) for name, _, _ in lines), default=0)
    digits = max((len(value) for _, value, number in lines if number), default=0)
    # Only numbers are aligned to the right, so that thousands stand below thousands.
    rows = (
        name + value if value.startswith("\n") else f"{name:<{width}}  {value:>{digits * number}}".rstrip()
        for name, value, number in lines
    )
    return "\n".join(rows)


def _lines(report: dict[str, Any], indent: int = 0) -> Iterator[tuple[str, str, bool]]:
    """(name, value, whether it is a number) of each line."""
    for name, value in report.items():
        label = " " * indent + printable(str(name))
        if isinstance(value, dict):
            yield label, "", False
            yield from _lines(value, indent + 2)
        # A command is there to be pasted, so it is folded where a shell goes on.
        elif isinstance(value, Command) and len(value) > WIDTH - 20:  # beside most names
            yield label, "\n" + "\n".join(map(printable, value.folded("    ").split("\n"))), False
        else:
            number = isinstance(value, int | float)  # a bool would be one too; reports say yes or no
            text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if number else printable(str(value))
            yield label, text, number
