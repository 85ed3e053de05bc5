"""A node of a cluster of two goes while it embeds."""

import threading

import pytest
from conftest import OBJECT_STORE
from drawn import BAD, ROWS, Drawn, fill_on_ray, store_of
from waiting import wait_for


@pytest.fixture
def two_nodes(environment):
    """A cluster of two nodes with a CPU each, and the second of them."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    ray.init(cluster.address)
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.survives("a node of a cluster lost", "another makes its shards, but for those that are whole")
def test_a_lost_node(two_nodes, like_actors, tmp_path):
    cluster, second = two_nodes
    plain = store_of(Drawn(tmp_path / "plain"), "one")
    plain.fill()
    drawn = Drawn(tmp_path, fault="node lost", node=second.node_id)

    def remove():
        if wait_for((tmp_path / "fault").exists, 120):
            cluster.remove_node(second, allow_graceful=False)

    removing = threading.Thread(target=remove)
    removing.start()
    store = store_of(drawn, "many")
    fill_on_ray(store)
    removing.join()
    files = {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")}
    assert files == {path.name: path.read_bytes() for path in plain.folder.glob("*.safetensors")}
    rows = [row for _, rows in drawn.log() for row in rows]
    assert sorted({*rows, *BAD}) == list(range(ROWS))
    assert len(rows) - len(set(rows)) < 8, "of one shard, the one that was lost"
