"""A file gets its name when its bytes are on the disk, and not before; one run at a time works in a folder."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lrvsf.durable import LOCK, InUse, locked, whole_file, whole_folder, write_whole

ROOT = Path(__file__).parent.parent


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
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["shard"]


def test_a_failed_block_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "new/file", b"before")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for place, name in ((whole_file, "new/file"), (whole_folder, "link")):
        with pytest.raises(KeyboardInterrupt), place(tmp_path / name) as written:
            (written if place is whole_file else written / "other").write_bytes(b"half")
            raise KeyboardInterrupt
        assert (tmp_path / "new/file").read_bytes() == b"before" and sorted(os.listdir(tmp_path)) == ["link", "new"]


def test_a_folder_is_replaced_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    write_whole(tmp_path / "set/old", b"before")
    write_whole(tmp_path / "set.writing/leftover", b"of a killed run")
    flushed, fsync = set(), os.fsync

    def flush(descriptor):
        flushed.add(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    with whole_folder(tmp_path / "set") as writing:
        (writing / "part").mkdir()
        (writing / "part/file").write_bytes(b"new")
        monkeypatch.setattr(os, "fsync", flush)
    assert flushed == {"set.writing", "set.writing/part", "set.writing/part/file", "."}
    assert os.listdir(tmp_path) == ["set"] and os.listdir(tmp_path / "set") == ["part"]


@pytest.fixture
def other_run(tmp_path):
    """other_run(folder): a process that has locked the folder; ends with the test."""
    running = []

    def start(folder, says="print(flush=True)"):
        code = "import sys; from pathlib import Path; from lrvsf.durable import locked\n"
        code += "folder = Path(sys.argv.pop(1)); sys.argv[0] = 'rehearse.py'\n"
        code += f"with locked(folder, 'a rehearsal'): {says}; sys.stdin.read()"
        command = [sys.executable, "-c", code, str(folder), "mini.yaml", "--hub_token", "secret"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        running.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        running[-1].said = running[-1].stdout.readline()
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.survives("two runs in one folder", "the second is refused; its message names the first")
def test_one_run_at_a_time_and_the_message_names_the_other(other_run, tmp_path):
    other = other_run(tmp_path / "new/folder")
    by = "new/folder is in use by a rehearsal: rehearse.py mini.yaml, process "
    by += re.escape(f"{other.pid} on {socket.gethostname()}, since 2") + ".*[.] Wait until it has ended"
    for _ in range(2):
        with pytest.raises(InUse, match=by), locked(tmp_path / "new/folder", "a test"):
            pass
    assert "secret" not in (tmp_path / "new/folder" / LOCK).read_text()
    with locked(tmp_path, "a test"):  # another folder
        pass
    other.communicate("")
    with locked(tmp_path / "new/folder", "a test"):
        assert os.listdir(tmp_path / "new/folder") == [LOCK]
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_was_made_for_nothing_goes(tmp_path):
    for name in ("empty", "used"):
        with locked(tmp_path / name, "a test"):
            if name == "used":
                (tmp_path / name / "file").touch()
    assert os.listdir(tmp_path) == ["used"]


def test_a_killed_run_holds_nothing_nor_do_its_forks(other_run, tmp_path):
    other = other_run(tmp_path, "import os, time; child = os.fork(); child or time.sleep(60); print(child, flush=True)")
    other.kill()
    other.wait()
    os.kill(child := int(other.said), 0)  # it lives
    with locked(tmp_path, "a test"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    os.kill(child, signal.SIGKILL)


def test_nested_in_one_process(other_run, tmp_path):
    with locked(tmp_path, "outer"):
        with locked(tmp_path, "inner"):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_file_that_its_run_removed_is_not_the_lock(tmp_path, monkeypatch):
    """Between opening and locking, the run before ends, and another begins with a new file."""
    lock, opened = fcntl.lockf, []

    def lock_late(file, how):
        opened.append(os.fstat(file.fileno()).st_ino)
        if len(opened) == 1:
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).write_text("the other's")
        return lock(file, how)

    monkeypatch.setattr(fcntl, "lockf", lock_late)
    with locked(tmp_path, "a test"):
        assert (tmp_path / LOCK).stat().st_ino == opened[1] != opened[0]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with locked(tmp_path, "a test"):
        pass
    assert f"{tmp_path} cannot be locked (No locks available): see to it" in caplog.text
