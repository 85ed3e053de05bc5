"""The thread that works off what waits: in order, in batches up to a size, each fault its own."""

import threading

import pytest

from lrvsf.search.serving.batching import Batcher


class Work:
    """Adds one to each job, and waits where it is told to; jobs below 0 are faults."""

    def __init__(self):
        self.batches, self.begun, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, jobs):
        self.batches.append(list(jobs))
        self.begun.set()
        assert self.go_on.wait(60)
        if any(job < 0 for job in jobs):
            raise ArithmeticError(f"of {jobs}")
        return [job + 1 for job in jobs]


@pytest.fixture
def work():
    return Work()


def busy(work, most=8):
    """A batcher that is at work on a first job, so that others wait."""
    batcher = Batcher(work, most, "test")
    first = batcher.submit(0)
    assert work.begun.wait(60)
    return batcher, first


def test_what_came_meanwhile_is_one_batch(work):
    batcher, first = busy(work)
    futures = [batcher.submit(job) for job in range(10, 15)]
    work.go_on.set()
    assert [future.result(60) for future in (first, *futures)] == [1, 11, 12, 13, 14, 15]
    assert work.batches == [[0], [10, 11, 12, 13, 14]]
    batcher.close()


def test_batches_keep_their_size_and_order(work):
    batcher, _ = busy(work)
    sizes = [3, 4, 2, 20, 1, 8]
    futures = [batcher.submit(place, size) for place, size in enumerate(sizes)]
    work.go_on.set()
    assert [future.result(60) for future in futures] == [1, 2, 3, 4, 5, 6]
    assert work.batches[1:] == [[0, 1], [2], [3], [4], [5]], "a job that is too large is alone"
    batcher.close()


def test_a_fault_is_its_own_jobs_alone(work):
    batcher, _ = busy(work)
    futures = [batcher.submit(job) for job in (1, -1, 2)]
    work.go_on.set()
    assert (futures[0].result(60), futures[2].result(60)) == (2, 3)
    with pytest.raises(ArithmeticError, match=r"of \[-1\]"):
        futures[1].result(60)
    assert batcher.submit(5).result(60) == 6
    batcher.close()


def test_who_has_gone_costs_nothing(work):
    batcher, _ = busy(work)
    futures = [batcher.submit(job) for job in (1, 2)]
    assert futures[0].cancel()
    work.go_on.set()
    assert futures[1].result(60) == 3
    assert work.batches == [[0], [2]]
    batcher.close()


def test_closing_finishes_what_waits(work):
    batcher, first = busy(work)
    last = batcher.submit(7)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    work.go_on.set()
    closing.join()
    assert (first.result(0), last.result(0)) == (1, 8)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)
