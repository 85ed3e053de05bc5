"""The flags of --engine ray, and what a machine without Ray says."""

import sys

import pytest
from made import tiny_condvit

import search_catalog
from lrvsf.scale import engine
from lrvsf.scale.engine import Cluster, cluster_asked


def test_what_is_asked(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: name)
    assert cluster_asked(None, None, None, None) is None
    assert cluster_asked("ray", None, None, None) == Cluster("local", None, 1)
    assert cluster_asked("ray", "auto", 3, 2) == Cluster("auto", 3, 2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--engine", "spark"], "engine=spark is unknown; take ray"),
        (["--actors", "2"], "--actors says something of a cluster; give --engine ray, too"),
        (["--address", "auto"], "--address says"),
        (["--engine", "ray", "--actors", "0"], "actors=0 must be 1 or more"),
        (["--engine", "ray", "--cpus_per_actor", "-1"], "cpus_per_actor=-1 must be 1 or more"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, flags, says):
    tiny_condvit().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=says):
        search_catalog.main(["index", str(tmp_path / "model"), str(tmp_path), str(tmp_path / "catalog"), *flags])


def test_without_ray(tmp_path, monkeypatch):
    tiny_condvit().save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    words = ["index", str(tmp_path / "model"), str(tmp_path / "pictures"), str(tmp_path / "catalog")]
    with pytest.raises(ImportError, match=r'^--engine ray needs Ray: pip install "lrvsf\[ray\]"$'):
        search_catalog.main([*words, "--engine", "ray"])
    assert not (tmp_path / "catalog").exists()
