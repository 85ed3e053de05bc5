"""How long a catalog takes to answer: decoding, model, search and all of it, for one query and for several at once."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import numpy as np
import torch

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.search.catalog import Catalog

STAGES = ("decode", "model", "search", "end to end", "filtered search")
ROUNDS, LEAST_ROUNDS = 100, 5  # of which p50 and p95 are taken; the fewer once SECONDS have passed (not tuned)
SECONDS = 10.0

Query = tuple[bytes, str | None]  # an encoded picture, and its condition


def latencies(catalog: Catalog, queries: list[Query], together: int, k: int, where: str | None) -> dict[str, Any]:
    """Times of questions of `together` queries each, in ms.

    Args:
        queries: at least one; they take turns.
        where: the filter of "filtered search", which is no part of the others; None: it is not timed.

    Returns: `rounds`, and for each of STAGES its `p50` and `p95`.
    """
    turns, taken = itertools.cycle(queries), []
    _times(catalog, list(itertools.islice(turns, together)), k, where)  # what is loaded at the first question
    begin = time.perf_counter()
    while len(taken) < ROUNDS and (len(taken) < LEAST_ROUNDS or time.perf_counter() - begin < SECONDS):
        taken.append(_times(catalog, list(itertools.islice(turns, together)), k, where))
    names = STAGES if where else STAGES[:-1]
    halves = np.percentile(1000 * np.array(taken), (50, 95), axis=0)  # (2, stages)
    stages = {name: {"p50": round(p50, 3), "p95": round(p95, 3)} for name, p50, p95 in zip(names, *halves, strict=True)}
    return {"rounds": len(taken), **stages}


def _times(catalog: Catalog, queries: list[Query], k: int, where: str | None) -> list[float]:
    """Seconds of each stage, as `Catalog.search` goes through them."""
    images, conditions = zip(*queries, strict=True)
    clock = _Laps()
    pixels = [catalog.encoder.pixels_of(decode_shown(image)) for image in images]
    decode = clock.lap()
    rows = catalog.embed_pixels(pixels, conditions)
    model = clock.lap()
    catalog.nearest(rows, k, conditions=conditions)
    search = clock.lap()
    stages = [decode, model, search, decode + model + search]
    if where:
        catalog.nearest(rows, k, where, conditions=conditions)
        stages.append(clock.lap())
    return stages


class _Laps:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or the beginning."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def machine(catalog: Catalog) -> dict[str, Any]:
    """What the times are of: the cores that this process may use, and the GPU of the model, if it is on one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
    gpu = torch.cuda.get_device_name() if catalog.encoder.device.type == "cuda" else None
    return {"cores": cores, "threads": torch.get_num_threads(), "gpu": gpu}
