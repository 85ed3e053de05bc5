"""Processes that decode: they end with their parent, Ctrl-C is the parent's alone, and two runs do not mix."""

import multiprocessing
import os
import resource
import signal
import time

import pyarrow.parquet as pq
import pytest
from made import download_row, jpeg, write_download, write_shop
from waiting import is_alive, wait_for

from lrvsf.data.workers import worker_map
from lrvsf.durable import InUse, locked
from lrvsf.prepare.catalog.catalog import catalog
from lrvsf.prepare.laion import downloaded
from lrvsf.prepare.laion.write_products import products

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


def hold(folder, ready, done):
    with locked(folder, "a test"):
        ready.set()
        done.wait(30)


@pytest.mark.survives("two steps write one data folder at once", "the second is refused and names the first")
def test_two_runs_in_one_folder(tmp_path):
    rows = [download_row("a", kind, jpeg(i)) for i, kind in enumerate(("SIMPLE", "COMPLEX"))]
    write_download(tmp_path / "in/0.parquet", rows)
    shop = write_shop(tmp_path / "shop")
    ready, done = FORK.Event(), FORK.Event()
    other = FORK.Process(target=hold, args=(tmp_path / "out", ready, done))
    other.start()
    assert ready.wait(30)
    try:
        for step, source in ((products, tmp_path / "in"), (catalog, shop)):
            with pytest.raises(InUse, match=f"is in use by a test: .*process {other.pid} on "):
                step(source, tmp_path / "out", processes=1)
    finally:
        done.set()
        other.join(30)
    assert products(tmp_path / "in", tmp_path / "out", processes=1)["products"]["complete"] == 1


@pytest.mark.survives("few files may be open at once (ulimit -n)", "fewer partitions; the same shards")
def test_few_open_files(tmp_path, monkeypatch):
    kinds = ("SIMPLE", "COMPLEX")
    rows = [download_row(f"p{i // 2}", kinds[i % 2], jpeg(i)) for i in range(200)]
    write_download(tmp_path / "in/0.parquet", rows)
    products(tmp_path / "in", tmp_path / "many", processes=1)
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 48))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    counts = []
    of = downloaded.Partitions.of
    monkeypatch.setattr(downloaded.Partitions, "of", lambda *args: counts.append(of(*args)) or counts[-1])
    products(tmp_path / "in", tmp_path / "few", processes=1)
    assert asked == [(48, 48)] and len(counts[0].files) == 48 - downloaded.OTHER_FILES
    shards = [pq.read_table(tmp_path / name / "train/00000.parquet") for name in ("many", "few")]
    assert shards[0].equals(shards[1])
