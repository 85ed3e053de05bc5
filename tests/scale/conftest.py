"""A cluster of this machine: two CPUs, and no memory to speak of."""

import logging
import os

import pytest

# Ray reads these when it is imported or starts a process. Workers yield to nobody, or a busy machine starves them.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster():
    """Connected to, for the tests of a module."""
    ray = pytest.importorskip("ray")
    memory = 80 * 2**20  # the least that Ray takes is 75 MiB
    # "local": never a cluster of somebody else that runs here
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=memory, logging_level=logging.ERROR)
    yield
    ray.shutdown()
