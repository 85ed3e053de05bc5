"""img2dataset as a process: its environment, what it leaves undone or alive, and the bodies that its runner reads."""

import http.client
import io
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made import write_table
from waiting import is_alive, wait_for

from lrvsf.prepare.laion import img2dataset
from lrvsf.prepare.laion.img2dataset import ensure_environment, run_img2dataset
from lrvsf.prepare.laion.outcomes import reason


def test_an_environment_is_made_only_where_nothing_is(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(ValueError, match="mine is not empty and has no img2dataset 1.47.0; name another folder"):
        ensure_environment(tmp_path / "mine")
    called = []
    monkeypatch.setattr(img2dataset, "_call", called.append)
    for _ in range(2):  # a half-made one of ours is made again
        with pytest.raises(OSError, match="no img2dataset 1.47.0; delete"):
            ensure_environment(tmp_path / "new")
    assert (
        called[2:]
        == called[:2]
        == [
            [sys.executable, "-m", "venv", str(tmp_path / "new")],
            [str(tmp_path / "new/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            + list(img2dataset.PINS),
        ]
    )
    assert img2dataset.PINS[0] == "img2dataset==1.47.0"


def test_a_failing_installation_shows_pip_s_words():
    with pytest.raises(OSError, match="(?s)exit code 1:.*No matching distribution.*name it with --environment"):
        img2dataset._call([sys.executable, "-c", "import sys; sys.exit('ERROR: No matching distribution')"])


@pytest.fixture(scope="module")
def fake_environment(tmp_path_factory):
    """A virtual environment whose `img2dataset.download` marks file 0 as done and then sleeps, or ends at once."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "img2dataset.py").write_text(
        "import multiprocessing, os, pathlib, time\n"
        "def download(output_folder, sleep):\n"
        "    folder = pathlib.Path(output_folder)\n"
        "    child = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(sleep,))\n"
        "    child.start()\n"
        "    (folder / 'pids').write_text(f'{os.getpid()} {child.pid}')\n"
        "    print('hello from img2dataset')\n"
        "    (folder / '00000.parquet').write_bytes((folder / 'template').read_bytes())\n"
        "    (folder / '00000_stats.json').write_text('{}')\n"
        "    child.join()\n"
    )
    return folder / "bin/python"


@pytest.fixture
def output(tmp_path):
    write_table(tmp_path / "round-1/template", {"key": ["0"]})
    return tmp_path / "round-1"


def test_files_that_img2dataset_leaves_undone_end_the_run(tmp_path, fake_environment, output):
    settings = {"output_folder": str(output), "sleep": 0}
    run_img2dataset(fake_environment, settings, [5], tmp_path / "log", "round 1")
    (output / "pids").unlink()
    run_img2dataset(fake_environment, settings, [5], tmp_path / "log", "round 1")
    assert not (output / "pids").exists()  # all was there: nothing was started
    with pytest.raises(OSError, match="(?s)code 0 and left 1 of 2 files undone.*number 1.*hello from img2dataset"):
        run_img2dataset(fake_environment, settings, [5, 5], tmp_path / "log", "round 1")
    with pytest.raises(OSError, match="(?s)code 1 .*No module named 'img2dataset'"):
        run_img2dataset(Path(sys.executable), settings, [5, 5], tmp_path / "log", "round 1")


def test_a_file_without_its_end_is_fetched_again(tmp_path, fake_environment, output):
    (output / "00000.parquet").write_bytes(b"PAR1 cut")
    (output / "00000_stats.json").write_text("{}")
    run_img2dataset(fake_environment, {"output_folder": str(output), "sleep": 0}, [5], tmp_path / "log", "round 1")
    assert pq.read_metadata(output / "00000.parquet").num_rows == 1


def test_no_process_outlives_a_killed_run(tmp_path, fake_environment, output):
    code = (
        "import sys; from pathlib import Path; from lrvsf.prepare.laion.img2dataset import run_img2dataset\n"
        "python, out, log = map(Path, sys.argv[1:])\n"
        "run_img2dataset(python, {'output_folder': str(out), 'sleep': 600}, [5], log, 'round 1')"
    )
    command = [sys.executable, "-c", code, str(fake_environment), str(output), str(tmp_path / "log")]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: (output / "00000_stats.json").exists())
    pids = [int(pid) for pid in (output / "pids").read_text().split()]
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not any(is_alive(pid) for pid in pids))


class Wire:
    """A socket that has one answer in it."""

    def __init__(self, answer):
        self.answer = answer

    def makefile(self, _):
        return io.BytesIO(self.answer)


@pytest.mark.survives("a server that sends without end, or a byte a second", "given up: too large, or timeout")
def test_bodies_are_bounded(monkeypatch):
    def body(head, content):
        response = http.client.HTTPResponse(Wire(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + content))
        response.begin()
        return read(response)

    monkeypatch.setattr(http.client.HTTPResponse, "read", http.client.HTTPResponse.read)  # puts it back at the end
    read = runpy.run_path(str(img2dataset.RUNNER))["read"]
    assert http.client.HTTPResponse.read is read
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    for head, content in (
        (b"Content-Length: 5", b"abcde"),
        (b"Transfer-Encoding: chunked", chunks),
        (b"X: y", b"abcde"),
    ):
        assert body(head, content) == b"abcde"
    for head, content in ((b"Content-Length: 6", b"abcde"), (b"Transfer-Encoding: chunked", chunks[:9])):
        with pytest.raises(http.client.IncompleteRead):
            body(head, content)
    bounds = read.__globals__
    monkeypatch.setitem(bounds, "MAX_BYTES", 4)
    with pytest.raises(ValueError, match="body over 0 MiB") as error:
        body(b"X: y", b"abcde")
    assert reason("failed_to_download", str(error.value)) == "too large"
    monkeypatch.setitem(bounds, "MAX_SECONDS", -1)
    with pytest.raises(TimeoutError) as error:
        body(b"X: y", b"abcd")
    assert reason("failed_to_download", str(error.value)) == "timeout"
