"""Embedding by actors of Ray: the bytes of one process, whatever dies, and nothing twice."""

import pytest
import torch
from made import squares, tiny_condvit, write_table

pytest.importorskip("ray")

import search_catalog
from lrvsf.data.images import Tolerance
from lrvsf.embedding import store as store_module
from lrvsf.scale.ray_embed import _runs
from lrvsf.search import segments
from lrvsf.search.catalog import Catalog

HALF = Tolerance(0.5)


@pytest.fixture(autouse=True)
def one_thread():
    """As actors of one CPU have, for whose threads the last bits may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "ROWS", 8)
    monkeypatch.setattr(segments, "ROWS", 8)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.[sp]a*"))}


def test_a_catalog_has_the_bytes_of_one_process(cluster, small_shards, tmp_path):
    """Pictures in a table, two of them bad, in row groups that end within shards."""
    tiny_condvit().save_pretrained(tmp_path / "model")
    pictures = [squares(number) if number not in (3, 12) else b"<html>" for number in range(44)]
    table = {"id": [f"x{number}" for number in range(44)], "image": pictures, "price": list(range(44))}
    write_table(tmp_path / "shop/items.parquet", table, row_group_size=10)
    words = ["index", str(tmp_path / "model"), str(tmp_path / "shop/items.parquet")]
    flags = ["--batch_size", "3", "--max_bad_fraction", "0.2"]
    search_catalog.main([*words, str(tmp_path / "one"), *flags])
    search_catalog.main([*words, str(tmp_path / "two"), *flags, "--engine", "ray", "--actors", "2"])
    assert contents(tmp_path / "one/segments") == contents(tmp_path / "two/segments")
    one, two = (Catalog.open(tmp_path / name).search(squares(100), k=5) for name in ("one", "two"))
    assert [(hit.id, hit.score) for hit in one] == [(hit.id, hit.score) for hit in two]


def test_neighbouring_ranges_are_given_together():
    ranges = [(0, 8), (8, 16), (24, 32), (32, 40), (40, 44)]
    assert _runs(ranges, actors=2) == ranges
    many = [(start, start + 8) for start in range(0, 800, 8) if start != 400]
    runs = _runs(many, actors=2)
    assert runs[0] == (0, 64) and (384, 400) in runs and (408, 472) in runs and runs[-1][1] == 800
    assert sum(stop - start for start, stop in runs) == 8 * len(many)
