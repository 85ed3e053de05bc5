"""Product shards prepared on a cluster: those of one machine, by any number of processes, whatever is killed."""

import os
import random
import signal
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from made import download_row, jpeg, write_download

pytest.importorskip("ray")

from lrvsf.prepare import writers
from lrvsf.prepare.laion import write_products
from lrvsf.prepare.laion.write_products import products
from lrvsf.prepare.writers import ProductShardWriter
from lrvsf.scale import ray_prepare
from lrvsf.scale.cluster import Pool
from lrvsf.scale.ray_prepare import RayMap

CPUS = 3
SHARD_BYTES = 6_000  # some products


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def one(tmp_path, monkeypatch):
    """What one process makes of products in three files, some pictures broken: shards, and the report."""
    rows = []
    for number in range(20):
        kinds = ("SIMPLE", "COMPLEX", "PARTIAL_COMPLEX")
        data = [b"<html>" if (number, kind) == (7, 1) else jpeg(3 * number + kind) for kind in range(3)]
        rows += [download_row(f"p{number}", *each) for each in zip(kinds, data, strict=True)]
    random.Random(0).shuffle(rows)
    for number in range(3):
        write_download(tmp_path / f"downloaded/{number}.parquet", rows[number::3])
    monkeypatch.setattr(write_products, "ProductShardWriter", partial(ProductShardWriter, shard_bytes=SHARD_BYTES))
    monkeypatch.setattr(writers, "SHARD_BYTES", SHARD_BYTES)
    products(tmp_path / "downloaded", tmp_path / "one", processes=1)
    made = contents(tmp_path / "one/train")
    assert len(made) > 3
    return made, (tmp_path / "one/products-train.json").read_text()


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_the_shards_are_those_of_one_machine(cluster, one, tmp_path, monkeypatch, actors):
    """Files, manifest and report, to the last byte; and nothing else is left."""
    monkeypatch.chdir(tmp_path)
    products(tmp_path / "downloaded", (tmp_path / "many").relative_to(tmp_path), engine="ray", actors=actors)
    assert contents(tmp_path / "many/train") == one[0]
    report = (tmp_path / "many/products-train.json").read_text()
    assert one[1].replace("/one/", "/many/").replace(f"{tmp_path}/", "") == report
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"train", "products-train.json"}


def dying(folder, job, *call):
    """Does a job. Once for each kind of job that writes, its process dies as it gives the first file its name."""
    # A survey writes nothing: its process would live, and die of a later job.
    if job.__name__ != "survey":
        with suppress(FileExistsError):  # of two processes that begin together one alone makes it
            os.close(os.open(folder / job.__name__, os.O_CREAT | os.O_EXCL))
            from lrvsf import durable

            durable.flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    with open(folder / "log", "a") as log:
        log.write(f"{job.__name__}\n")
    return job(*call)


def test_a_process_that_is_killed_costs_its_job(cluster, one, tmp_path, monkeypatch):
    """One that spreads a file dies, and one that writes a shard: their jobs are done once more, and no other."""
    whole = ray_prepare.cluster_map
    marks = tmp_path / "marks"
    marks.mkdir()

    @contextmanager
    def dying_map(*args):
        with whole(*args) as mapper:
            yield lambda job, *items: mapper(partial(dying, marks, job), *items)

    monkeypatch.setattr(ray_prepare, "cluster_map", dying_map)
    products(tmp_path / "downloaded", tmp_path / "many", engine="ray", actors=2)
    assert contents(tmp_path / "many/train") == one[0]
    jobs = (marks / "log").read_text().splitlines()
    assert jobs.count("spread_file") == 3 + 1 and jobs.count("write_shard") == len(one[0]) - 1 + 1


def doubled(folder, number):
    """Dies once, at number 5."""
    if number == 5 and (folder / "kill").exists():
        (folder / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.survives(
    "an actor of a cluster that dies while it decodes", "its pictures are decoded anew; none is twice"
)
def test_results_come_in_order_and_once(cluster, tmp_path):
    mapper = RayMap(Pool(2, 1, 0))
    (tmp_path / "kill").touch()
    assert list(mapper(doubled, [tmp_path] * 20, range(20))) == [2 * number for number in range(20)]
    assert not (tmp_path / "kill").exists()


def test_flags_that_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="--processes are this machine's"):
        products(tmp_path, tmp_path / "out", engine="ray", processes=2)
    with pytest.raises(ValueError, match="--actors says something of a cluster"):
        products(tmp_path, tmp_path / "out", actors=2)
