"""What `measure` found, for people: tables of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lrvsf.command import WIDTH
from lrvsf.data.names import printable
from lrvsf.report import as_table

LABEL, CELL = 17, 8  # columns of the terminal: commands.MOST_KS cells fit a line


def as_tables(measured: Mapping[str, Any]) -> str:
    """Everything that `measure_catalog` gives."""
    parts = [as_table(_ground(measured)), *_recall_tables(measured), _latency_table(measured["latency_ms"])]
    parts += [textwrap.fill(printable(note), WIDTH) for note in measured["not_measured"]]
    return "\n\n".join(parts)


def _ground(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on what."""
    catalog, queries, machine = measured["catalog"], measured["queries"], measured["machine"]
    there, missing = queries["with_target_in_catalog"], queries["without_target_in_catalog"]
    gpu = f"model on {machine['gpu']}" if machine["gpu"] else "no GPU"
    ground = {
        "catalog": catalog["folder"],
        "generation": f"{catalog['generation']}, {catalog['items']:,} items",
        "index": "exact search" if measured["index_recall"] is None else catalog["index"],
        "model": catalog["model"],
        "test set": queries["test_set"],
        "queries": f"{queries['asked']:,} of {queries['in_test_set']:,}",
        "targets": f"{there:,} are in the catalog, {missing:,} are not",
        "machine": f"{machine['cores']} cores, of which torch takes {machine['threads']}; {gpu}",
    }
    bad = {reason: f"{one['count']:,} ({one['such as']})" for reason, one in queries["unreadable"].items()}
    return ground | ({"unreadable": bad} if bad else {})


def _recall_tables(measured: Mapping[str, Any]) -> list[str]:
    counted = measured["queries"]["with_target_in_catalog"]
    if counted:
        title = f"R@K in %, of {counted:,} queries whose target is there"
        tables = [_grid(title, "R@", measured["target_recall"])]
    else:
        tables = ["No R@K: the catalog has no item with the id of a target of this test set."]
    if measured["index_recall"] is not None:
        title = "recall@K in %: what the index finds of the first K of the exact search"
        tables.append(_grid(title, "K=", measured["index_recall"]))
    if measured["no_close_match"]:
        tables.append(_verdict_table(measured["no_close_match"]))
    return tables


def _verdict_table(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    asked = next(iter(verdicts.values()))["queries"]
    names = ("precision", "recall", "said wrongly")
    lines = [f'"No close match" in %, of {asked:,} queries with their targets and without']
    lines.append(" " * LABEL + "".join(f"{name:>{2 * CELL}}" for name in names))
    for way, told in verdicts.items():
        shares = (told["precision"], told["recall"], told["said_with_target"] / told["queries"])
        lines.append(f"{way:<{LABEL}}" + "".join(f"{_percent(share):>{2 * CELL}}" for share in shares))
    return "\n".join(lines)


def _grid(title: str, prefix: str, shares: Mapping[str, Mapping[str, float | None]]) -> str:
    ks = list(next(iter(shares.values())))
    lines = [title, _line("", [prefix + k for k in ks])]
    for way, by_k in shares.items():
        lines.append(_line(way, [_percent(by_k[k]) for k in ks]))
    return "\n".join(lines)


def _latency_table(latency: Mapping[str, Any]) -> str:
    sizes = [size for size in latency if size != "k"]
    names = ["1 query" if size == "1" else f"{size} queries" for size in sizes]
    stages = [stage for stage in latency[sizes[0]] if stage != "rounds"]
    lines = [
        f"Time to answer in ms, {latency['k']} hits",
        " " * LABEL + "".join(f"{name:>{2 * CELL}}" for name in names),
        _line("", ["p50", "p95"] * len(sizes)),
    ]
    for stage in stages:
        lines.append(_line(stage, [f"{latency[size][stage][p]:,.1f}" for size in sizes for p in ("p50", "p95")]))
    lines.append(" " * LABEL + "".join(f"{_rounds(latency[size]['rounds']):>{2 * CELL}}" for size in sizes))
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _rounds(count: int) -> str:
    return f"{count} times"


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{LABEL}}" + "".join(f"{cell:>{CELL}}" for cell in cells)
