"""Embedding by actors of Ray: the bytes of one process, whatever dies, and nothing twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from drawn import BAD, Drawn, fill_on_ray, store_of
from made import squares, tiny_condvit, write_table
from waiting import is_alive, wait_for

pytest.importorskip("ray")

import search_catalog
from lrvsf.data.images import Tolerance, TooMuchDamage
from lrvsf.embedding.store import EmbeddingStore
from lrvsf.scale import cluster as cluster_module
from lrvsf.scale.cluster import check_nodes, take_pool
from lrvsf.scale.ray_embed import _runs
from lrvsf.search.catalog import Catalog


@pytest.fixture
def by_one(like_actors, tmp_path):
    """The bytes that one process makes of the drawn pictures, three of them bad."""
    store = store_of(Drawn(tmp_path / "plain"), "one")
    store.fill()
    return contents(store.folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".safetensors", ".parquet")}


def twice(drawn):
    """The rows that were embedded more than once."""
    counts = Counter(row for _, rows in drawn.log() for row in rows)
    assert max(counts.values()) <= 2 and sorted([*counts, *drawn.bad]) == list(range(drawn.total))
    return {row for row, count in counts.items() if count > 1}


def test_a_catalog_has_the_bytes_of_one_process(cluster, like_actors, tmp_path):
    """Pictures in a table, two of them bad, in row groups that end within shards; then it grows, from an address."""
    tiny_condvit().save_pretrained(tmp_path / "model")
    pictures = [squares(number) if number not in (3, 12) else b"<html>" for number in range(60)]
    table = {"id": [f"x{number}" for number in range(60)], "image": pictures, "price": list(range(60))}
    for name, rows in (("items", slice(44)), ("more", slice(40, None))):
        columns = {key: cells[rows] for key, cells in table.items()}
        write_table(tmp_path / f"shop/{name}.parquet", columns, row_group_size=10)
    for out, engine in (("one", []), ("many", ["--engine", "ray", "--actors", "2"])):
        flags = [str(tmp_path / out), "--batch_size", "3", "--max_bad_fraction", "0.2", *engine]
        search_catalog.main(["index", str(tmp_path / "model"), str(tmp_path / "shop/items.parquet"), *flags])
        # Four of these pictures are known, and not embedded again.
        search_catalog.main(["add", f"file://{tmp_path}/shop/more.parquet", *flags, "--replace"])
    one, many = tmp_path / "one", tmp_path / "many"
    assert contents(one / "segments") == contents(many / "segments")
    first, second = (Catalog.open(out).search(squares(100), k=5) for out in (one, many))
    assert [(hit.id, hit.score) for hit in first] == [(hit.id, hit.score) for hit in second]


def test_two_actors_in_batches_of_any_size(cluster, like_actors, tmp_path):
    """In those of one process, its bits; in others, their last ones may differ. float32."""

    def embeds(name, fill, batch_size):
        store = store_of(Drawn(tmp_path / "drawn", total=60), name, batch_size=batch_size)
        fill(store)
        return store.whole("item"), contents(store.folder)

    plain, files = embeds("one", EmbeddingStore.fill, 3)
    assert plain.dtype == torch.float32 and len(plain) == 60 - len(BAD)
    assert embeds("same", fill_on_ray, 3)[1] == files
    for batch_size in (1, 7):
        many, written = embeds(f"many-{batch_size}", fill_on_ray, batch_size)
        assert (many - plain).abs().max() <= 1e-6
        assert embeds(f"one-{batch_size}", EmbeddingStore.fill, batch_size)[1] == written


@pytest.mark.survives(
    "a worker of a cluster that dies while it embeds", "its rows are given to another, whole shards not"
)
def test_a_killed_worker(cluster, tmp_path, by_one):
    drawn = Drawn(tmp_path, fault="killed", at=38)
    store = store_of(drawn, "many")
    fill_on_ray(store)
    assert contents(store.folder) == by_one and store.bad("pictures") == [(row, "not an image") for row in BAD]
    # A run of the rows 24 to 47 died in its second shard: 24 to 31 were whole, of 32 to 39 a batch was not stored.
    assert twice(drawn) == {32, 33, 34}


@pytest.mark.survives(
    "the command that embeds on a cluster, killed", "the next one embeds what is missing, nothing twice"
)
def test_a_killed_driver(cluster, tmp_path, by_one):
    drawn = Drawn(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("driver.py")), str(tmp_path), "100"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert wait_for(lambda: not any(is_alive(process) for process, _ in drawn.log()))
    whole = {int(path.stem[-5:]) for path in (tmp_path / "many").glob("*.safetensors")}
    assert len(whole) >= 8
    store = store_of(drawn, "many")
    fill_on_ray(store)
    assert contents(store.folder) == by_one
    assert not whole & {row // 8 for row in twice(drawn)}


def test_too_many_bad_pictures(cluster, like_actors, tmp_path):
    """Judged in the order of the rows: with the words of one process."""
    drawn, few = Drawn(tmp_path, bad=tuple(range(60, 70))), Tolerance(0.5, 7)
    with pytest.raises(TooMuchDamage) as by_one:
        store_of(drawn, "one", few).fill()
    with pytest.raises(TooMuchDamage, match="7 in a row, the last one row 66") as by_many:
        fill_on_ray(store_of(drawn, "many", few))
    assert str(by_many.value) == str(by_one.value)
    assert take_pool(2, 1, 0).actors == 2, "its actors have gone"


def test_what_an_actor_refuses_is_said_here(cluster, like_actors, tmp_path):
    model = tiny_condvit()
    with torch.no_grad():
        model.visual_projection.weight[0] = float("nan")
    with pytest.raises(RuntimeError, match=r"process \d+ on .*: Row \d+ of the pictures: .* has length nan"):
        fill_on_ray(store_of(Drawn(tmp_path), "many", model=model))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((3, 1, 0), r"3 actor\(s\) of 1 CPU each: .* has 2 CPU, and 2 CPU is free. Take --actors 2, fewer"),
        ((2, 2, 0), r"2 actor\(s\) of 2 CPU each: .* Take --actors 1, fewer"),
        ((None, 3, 0), r"1 actor\(s\) of 3 CPU each: .* Take fewer --cpus_per_actor or more nodes"),
        ((None, 1, 1), "no node of the cluster has a GPU; leave out --device cuda"),
    ],
)
def test_what_would_wait_for_ever_is_refused(cluster, asked, says):
    began = time.monotonic()
    with pytest.raises(ValueError, match=says):
        take_pool(*asked)
    assert time.monotonic() - began < 10
    assert take_pool(None, 1, 0).actors == 2


def test_a_node_that_differs_is_named(cluster, tmp_path, monkeypatch):
    here = os.getpid()

    def sees_nothing():
        if os.getpid() != here:
            raise FileNotFoundError(2, "No such file or directory", "/shop")

    with pytest.raises(ValueError, match="node .* does not see what this machine sees: .*'/shop'. Give paths"):
        check_nodes(tmp_path, sees_nothing)
    with pytest.raises(ValueError, match=f"node .* reads .* where this machine reads {here}"):
        check_nodes(tmp_path, os.getpid)
    check_nodes(tmp_path, int)
    monkeypatch.setattr(cluster_module, "code_facts", lambda: {"code of lrvsf": "x", "torch": torch.__version__})
    with pytest.raises(ValueError, match="has code of lrvsf [0-9a-f]{12} there, x here. Install the same"):
        check_nodes(tmp_path, int)
    assert not list(tmp_path.iterdir())


def test_neighbouring_ranges_are_given_together():
    ranges = [(0, 8), (8, 16), (24, 32), (32, 40), (40, 44)]
    assert _runs(ranges, actors=2) == ranges
    many = [(start, start + 8) for start in range(0, 800, 8) if start != 400]
    runs = _runs(many, actors=2)
    assert runs[0] == (0, 64) and (384, 400) in runs and (408, 472) in runs and runs[-1][1] == 800
    assert sum(stop - start for start, stop in runs) == 8 * len(many)
