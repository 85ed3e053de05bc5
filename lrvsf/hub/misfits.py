"""What of a checkpoint does not fit: all of it is told at once, so that it is corrected at once."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = 20  # of each kind; a checkpoint of another network has a thousand keys


class Misfits:
    """Names by kind, in the order in which the kinds came.

    >>> misfits = Misfits()
    >>> misfits.add("Missing", ["ln_pre.bias"])
    >>> misfits.check()
    Traceback (most recent call last):
    ValueError: The checkpoint does not fit. Missing (1): ln_pre.bias.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def add(self, kind: str, names: Iterable[str]) -> None:
        for name in names:
            self.names.setdefault(kind, []).append(name)

    def check(self) -> None:
        """Raises ValueError: something does not fit."""
        if self.names:
            told = " ".join(f"{kind} ({len(names):,}): {listed(names)}." for kind, names in self.names.items())
            raise ValueError(f"The checkpoint does not fit. {told}")


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
