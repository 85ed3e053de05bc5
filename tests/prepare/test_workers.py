"""Processes that decode: they end with their parent, and Ctrl-C is the parent's alone."""

import multiprocessing
import os
import signal
import time

import pytest
from waiting import is_alive, wait_for

from lrvsf.prepare.workers import worker_map

FORK = multiprocessing.get_context("fork")


def handler_and_pid(_):
    time.sleep(0.02)  # so that each worker gets one
    return signal.getsignal(signal.SIGINT), os.getpid()


def work_for_ever(pids):
    with worker_map(3) as mapper:
        pids.put({pid for _, pid in mapper(handler_and_pid, range(12))})
        list(mapper(time.sleep, [100] * 6))


@pytest.mark.survives("a step of prepare_lrvsf.py is killed (SIGKILL, SIGTERM)", "its workers end with it")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(kill):
    pids = FORK.SimpleQueue()
    parent = FORK.Process(target=work_for_ever, args=(pids,))
    parent.start()
    workers = pids.get()
    assert len(workers) == 3 and all(map(is_alive, workers))
    os.kill(parent.pid, kill)
    parent.join(10)
    assert wait_for(lambda: not any(map(is_alive, workers)))


@pytest.mark.survives("Ctrl-C while images are decoded", "ends the step; no worker dies with the queue's lock")
def test_ctrl_c_is_the_parent_s_alone():
    with worker_map(2) as mapper:
        handlers = {handler for handler, _ in mapper(handler_and_pid, range(4))}
    assert handlers == {signal.SIG_IGN}
    with pytest.raises(KeyboardInterrupt), worker_map(2) as mapper:
        for done, _ in enumerate(mapper(handler_and_pid, range(1000))):
            if done == 3:
                raise KeyboardInterrupt
