"""Product shards prepared on a cluster: those of one machine, also when an actor is killed."""

import os
import random
import signal

import pytest
from made import download_row, jpeg, write_download

pytest.importorskip("ray")

from lrvsf.prepare.laion import downloaded
from lrvsf.prepare.laion.write_products import products
from lrvsf.scale.cluster import Pool
from lrvsf.scale.ray_prepare import RayMap


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_shards_are_those_of_one_machine(cluster, tmp_path, monkeypatch):
    """Products in three files, some pictures broken; files, manifest and report, to the last byte."""
    rows = []
    for number in range(20):
        kinds = ("SIMPLE", "COMPLEX", "PARTIAL_COMPLEX")
        data = [b"<html>" if (number, kind) == (7, 1) else jpeg(3 * number + kind) for kind in range(3)]
        rows += [download_row(f"p{number}", *each) for each in zip(kinds, data, strict=True)]
    random.Random(0).shuffle(rows)
    for number in range(3):
        write_download(tmp_path / f"downloaded/{number}.parquet", rows[number::3])
    monkeypatch.setattr(downloaded, "BATCH_ROWS", 2)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "downloaded"
    products(folder, tmp_path / "one", processes=1)
    products(folder, (tmp_path / "two").relative_to(tmp_path), engine="ray", actors=2)
    assert contents(tmp_path / "one/train") == contents(tmp_path / "two/train")
    reports = [(tmp_path / name / "products-train.json").read_text() for name in ("one", "two")]
    assert reports[0].replace("/one/", "/two/").replace(f"{tmp_path}/", "") == reports[1]


def doubled(folder, number):
    """Dies once, at number 5."""
    if number == 5 and (folder / "kill").exists():
        (folder / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


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
