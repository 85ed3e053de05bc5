"""What a service tells Prometheus of itself at /metrics. No label has a value that a client chooses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Telemetry:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared = {"registry": self.registry}
        ProcessCollector(**shared)  # memory, open files, processor time
        self.requests = Counter("lrvsf_requests", "Requests by path and status.", ["path", "status"], **shared)
        self.seconds = Histogram("lrvsf_request_seconds", "Time to an answer.", ["path"], buckets=SECONDS, **shared)
        self.stages = Histogram(
            "lrvsf_stage_seconds", "Time in a stage, waiting for it included.", ["stage"], buckets=SECONDS, **shared
        )
        self.batch = Histogram("lrvsf_batch_rows", "Rows embedded at once.", buckets=(1, 2, 4, 8, 16, 32, 64), **shared)
        self.taken = Gauge("lrvsf_requests_taken", "Questions that are being answered or wait for it.", **shared)
        self.items = Gauge("lrvsf_items", "Items of the generation that answers.", ["generation"], **shared)
        self.failed_reloads = Counter("lrvsf_failed_reloads", "Generations that could not be opened.", **shared)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a part of an answer."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(time.perf_counter() - started)

    def answers(self, generation: str, items: int) -> None:
        """Notes which generation answers."""
        # Each generation is a label; that of the one before would stay as if it answered still.
        self.items.clear()
        self.items.labels(generation).set(items)
