"""A file gets its name when its bytes are on the disk, and not before."""

import os

import pytest

from lrvsf.durable import write_whole


def test_flushed_before_it_is_named_and_its_folder_after(tmp_path, monkeypatch):
    path, done = tmp_path / "shard", []
    path.with_name("shard.part").write_text("a killed writer's leftover, longer than what is written now")
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def named(part, final):
        assert part.read_bytes() == b"whole", "as another process sees it"
        done.append("named")
        replace(part, final)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", named)
    write_whole(path, b"whole")
    assert done == [f"{path}.part", "named", str(tmp_path)]
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["shard"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, step):
    path = tmp_path / "shard"
    write_whole(path, b"before")

    def fails(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
