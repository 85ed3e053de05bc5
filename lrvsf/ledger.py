"""What a step leaves out or passes on, counted by reason, with the first few names of each: the same in every report.

skips = Ledger()
skips.add("no image", "line 7")
skips.report("not used")      {"not used": {"no image": 1}, "not used, the first": {"no image": "line 7"}}
skips.examples()              {"no image": {"count": 1, "such as": "line 7"}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from lrvsf.data.names import printable

EXAMPLES = 3


class Ledger:
    """Counts by reason.

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
