"""Clusters of this machine, with little memory."""

import logging
import os
from pathlib import Path

import pytest
import torch

OBJECT_STORE = 80 * 2**20  # bytes; Ray takes no fewer than 75 MiB


@pytest.fixture(scope="module")
def environment():
    """What Ray and its processes find there when they start."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here.parents[1], here.parent, here))))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # they would yield to all others, and starve on a busy machine
        yield


@pytest.fixture(scope="module")
def cluster(environment, request):
    """Two CPUs, or the CPUS that a module names, connected to for its tests."""
    ray = pytest.importorskip("ray")
    options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "logging_level": logging.ERROR}
    # "local": never a cluster of somebody else that runs here
    ray.init("local", num_cpus=getattr(request.module, "CPUS", 2), **options)
    yield
    ray.shutdown()


@pytest.fixture
def like_actors(monkeypatch):
    """Shards of eight rows, and one thread: with other numbers, the last bits may be others."""
    from lrvsf.embedding import store
    from lrvsf.search import segments

    monkeypatch.setattr(store, "ROWS", 8)
    monkeypatch.setattr(segments, "ROWS", 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
