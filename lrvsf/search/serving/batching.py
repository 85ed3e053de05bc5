"""Jobs of many threads that one thread works off together.

Nobody waits for a batch to fill. What came while the last batch was at work is the next one: under a light load every
job is alone and starts at once, and the heavier the load, the larger the batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")


@dataclass(frozen=True)
class Waiting(Generic[Job]):
    job: Job
    size: int
    future: Future = field(default_factory=Future)


class Batcher(Generic[Job]):
    """A thread with a queue before it. The queue is not bounded: whoever lets requests in bounds it.

    Args:
        run: jobs -> a result for each, in order. Called on the thread, one call at a time.
        most: the size of a batch; a job that is larger is a batch of its own.
        name: the thread's.
    """

    def __init__(self, run: Callable[[Sequence[Job]], Sequence[Any]], most: int, name: str) -> None:
        self._run, self._most = run, most
        self._waiting: deque[Waiting[Job]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon, as a model that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job, size: int = 1) -> Future:
        """A future of the job's result. One that is cancelled before its batch begins is passed over."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            entry = Waiting(job, size)
            self._waiting.append(entry)
            self._changed.notify()
        return entry.future

    def close(self) -> None:
        """Takes no more jobs, and returns when those that it has are done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        # Without the lock, which the thread takes for its last batches.
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            # A client may have gone, or have waited too long; from here on a future cannot be cancelled.
            if batch := [entry for entry in batch if entry.future.set_running_or_notify_cancel()]:
                self._answer(batch)

    def _next(self) -> list[Waiting[Job]]:
        """What waits, up to the size of a batch; empty when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch, size = [], 0
            # In order, though a smaller job behind might fit: none waits for ever.
            while self._waiting and (not batch or size + self._waiting[0].size <= self._most):
                batch.append(self._waiting.popleft())
                size += batch[-1].size
            return batch

    def _answer(self, batch: list[Waiting[Job]]) -> None:
        try:
            results = self._run([entry.job for entry in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for entry in batch:  # each alone, so that one job's fault stays its own
                self._answer([entry])
            return
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)
