"""What a step did, in numbers: a JSON file for programs, a table for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrvsf.command import WIDTH, Command
from lrvsf.data.names import printable
from lrvsf.durable import write_whole


def write_report(path: str | Path, report: dict[str, Any]) -> None:
    """Writes the report as JSON, whole or not at all."""
    # A name that is not UTF-8 has halves of characters in it; their escapes are JSON too.
    write_whole(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def as_table(report: dict[str, Any], indent: int = 0) -> str:
    """The report as lines of name and value, numbers aligned to the right, nested dicts indented below their name.

    What cannot be seen in a name, such as the controls of a terminal, is written out. A long command stands below its
    name.

    >>> print(as_table({"urls": 1200, "failed": {"404": 3}}))
    urls    1,200
    failed
      404       3
    """
    lines = list(_lines(report, indent))
    width = max((len(name) for name, _, _ in lines), default=0)
    digits = max((len(value) for _, value, number in lines if number), default=0)
    # Only numbers are aligned to the right, so that thousands stand below thousands.
    rows = (
        name + value if value.startswith("\n") else f"{name:<{width}}  {value:>{digits * number}}".rstrip()
        for name, value, number in lines
    )
    return "\n".join(rows)


def _lines(report: dict[str, Any], indent: int):
    for name, value in report.items():
        if isinstance(value, dict):
            yield " " * indent + printable(str(name)), "", False
            yield from _lines(value, indent + 2)
        # A command is there to be pasted, so it is folded where a shell goes on.
        elif isinstance(value, Command) and len(value) > WIDTH - 20:  # beside most names
            yield (
                " " * indent + printable(str(name)),
                "\n" + "\n".join(map(printable, value.folded("    ").split("\n"))),
                False,
            )
        else:
            number = isinstance(value, int | float)  # a bool would be one too; reports say yes or no
            text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if number else printable(str(value))
            yield " " * indent + printable(str(name)), text, number
