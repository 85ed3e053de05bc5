"""Other processes that decode, or draw: the slow half of preparing data, and the only half that is shared out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from threading import Thread

from lrvsf.data.images import BadImage, decode_image


@contextmanager
def worker_map(processes: int | None) -> Iterator[Callable]:
    """Gives a `map` that keeps the order and runs in `processes` processes: all cores for None, this one for 1.

    Like that of ProcessPoolExecutor, it takes a chunksize: how many items a worker gets at once.

    Raises:
        OSError: a worker was killed.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes={processes} must be 1 or more")
    if processes == 1:  # in this process: a debugger stops there, and a small job does not wait for another Python
        yield lambda job, *items, chunksize=1: map(job, *items)
        return
    pool = ProcessPoolExecutor(processes or os.cpu_count(), initializer=_obey_parent)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, most likely because memory ran out; take fewer --processes") from error
    finally:
        # Where the block failed, what is queued must not be worked off before the error is seen.
        pool.shutdown(cancel_futures=True)


def _obey_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends with it, however that ends.

    A worker that Ctrl-C ends while it holds the lock of the queue would let all others wait for ever, and the parent
    for them. One whose parent was killed would do so too: it holds both ends of the pipes that it reads from.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])  # without a time: the kernel wakes it when the parent is gone
    os._exit(1)  # nothing of a worker's is worth tidying up, and its main thread may wait for the queue


def why_bad(data: bytes | None) -> str | None:
    """Why these bytes give no image (a reason of BadImage), or None if they do."""
    try:
        decode_image(data)
    except BadImage as error:
        return error.reason
    return None
