"""Products grouped by jobs: the shards of one process, in whatever order the jobs end, and with no job done twice."""

import random
from collections import Counter
from functools import partial

import pytest
from made import download_row, jpeg, spoil_page, write_download

from lrvsf.prepare import writers
from lrvsf.prepare.laion import downloaded, write_products
from lrvsf.prepare.laion.downloaded import Source
from lrvsf.prepare.laion.spread import ShardPlan, Slice, write_by_jobs
from lrvsf.prepare.writers import ProductShardWriter

SHARD_BYTES = 8_000  # a few products


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path):
    """30 products in four files of several batches, with whatever may be wrong with a download."""
    rows = []
    for number in range(30):
        kinds = ("SIMPLE", "COMPLEX", "PARTIAL_COMPLEX")
        rows += [download_row(f"p{number}", kind, jpeg(3 * number + i)) for i, kind in enumerate(kinds)]
    broken = {
        0: {"jpg": b"<html>"},
        3: {"jpg": rows[3]["jpg"][:600]},
        7: {"jpg": None, "status": "failed_to_download", "sha256": None},
        9: {"sha256": None},
        13: {"jpg": rows[14]["jpg"], "sha256": rows[14]["sha256"]},
        16: {"split": "validation"},
        19: {"type": "OTHER"},
        22: {"product_id": None},
        25: {"jpg": None},
    }
    for number, cells in broken.items():
        rows[number] |= cells
    again = [row | {"jpg": None, "sha256": None, "status": "failed_to_download"} for row in rows[30:36]]
    random.Random(0).shuffle(rows)
    for number in range(3):
        write_download(tmp_path / f"downloaded/{number}.parquet", rows[number::3])
    write_download(tmp_path / "downloaded/3.parquet", [*again, *rows[40:44]])  # a second round
    spoil_page(tmp_path / "downloaded/1.parquet", 2, "jpg")
    (tmp_path / "downloaded/4.parquet").write_bytes(b"PAR1")
    return Source(tmp_path / "downloaded", ("train",), 0)


@pytest.fixture
def one(source, tmp_path, monkeypatch):
    """What one process writes, in several shards."""
    monkeypatch.setattr(write_products, "ProductShardWriter", partial(ProductShardWriter, shard_bytes=SHARD_BYTES))
    monkeypatch.setattr(writers, "SHARD_BYTES", SHARD_BYTES)
    write_products.products(source.folder, tmp_path / "one", processes=1)
    shards = contents(tmp_path / "one/train")
    assert len(shards) > 4
    return shards


@pytest.mark.parametrize(("partitions", "batch"), [(1, 2), (3, 4), (128, 64)])
def test_the_shards_are_those_of_one_process(source, one, tmp_path, monkeypatch, partitions, batch):
    monkeypatch.setattr(downloaded, "PARTITIONS", partitions)
    monkeypatch.setattr(downloaded, "BATCH_ROWS", batch)
    write_by_jobs(source, tmp_path / "many", tmp_path / "work", map)
    assert contents(tmp_path / "many") == one


class Stopped(Exception):
    pass


class Stopping:
    """A `map` that begins with the last job, and stops for good after some."""

    def __init__(self, left):
        self.left, self.done = left, Counter()

    def __call__(self, job, *items):
        calls = list(zip(*items, strict=True))
        results = {}
        for number in reversed(range(len(calls))):
            if not self.left:
                raise Stopped
            self.left -= 1
            results[number] = job(*calls[number])
            self.done[job.__name__] += 1
        return [results[number] for number in range(len(calls))]


def test_a_killed_run_goes_on(source, one, tmp_path, monkeypatch):
    """Killed among the files, then among the shards; neither is made twice."""
    monkeypatch.setattr(downloaded, "PARTITIONS", 3)
    folder, work = tmp_path / "many", tmp_path / "work"
    for left, rows, shards in ((2, 2, 0), (5 + 3 + 2, 5, 2)):
        with pytest.raises(Stopped):
            write_by_jobs(source, folder, work, Stopping(left))
        assert len(list(work.glob("rows/*.json"))) == rows and len(list(work.glob("shards/*.parquet"))) == shards
        assert not folder.exists()
    written = {path: path.stat().st_mtime_ns for path in work.rglob("*.[ap]*r*")}
    (work / "shards/00000.parquet.part").write_bytes(b"half a shard")
    write_by_jobs(source, folder, work, map)
    assert contents(folder) == one
    kept = {path.name: path.stat().st_mtime_ns for path in (*work.glob("rows/*.arrow"), *folder.glob("*.parquet"))}
    assert {path.name: kept[path.name] for path in written} == {path.name: time for path, time in written.items()}


def test_what_was_made_of_something_else_is_made_again(source, one, tmp_path):
    folder, work = tmp_path / "many", tmp_path / "work"
    with pytest.raises(Stopped):
        write_by_jobs(Source(source.folder, source.splits, 1), folder, work, Stopping(5))
    write_by_jobs(source, folder, work, map)
    assert contents(folder) == one


def test_shards_are_cut_where_they_are_full(monkeypatch):
    """By hand: 10 bytes fill a shard, also with one product, and a shard may reach over partitions."""
    monkeypatch.setattr(writers, "SHARD_BYTES", 10)
    plan = ShardPlan()
    for partition, sizes in {2: [4, 4, 4, 12], 3: [9], 7: [1, 3]}.items():
        for number, size in enumerate(sizes):
            plan.add(partition, number, size)
    assert plan.shards == [[Slice(2, 0, 3)], [Slice(2, 3, 4)], [Slice(3, 0, 1), Slice(7, 0, 1)], [Slice(7, 1, 2)]]


def test_without_a_complete_product_nothing_is_written(source, tmp_path):
    with pytest.raises(ValueError, match="no complete product of the split 'none'; download more"):
        write_by_jobs(Source(source.folder, ("none",), 0), tmp_path / "out", tmp_path / "work", map)
    assert not (tmp_path / "out").exists()
