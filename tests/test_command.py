"""A refusal is one line and exit status 2; a fault of the program keeps its traceback."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lrvsf import command
from lrvsf.paths import check_model


def made(code):
    """A function of this project, whose body is `code`."""
    names = {"__name__": "lrvsf.made"}
    exec(f"def f():\n    {code}", names)
    return names["f"]


@pytest.fixture
def run(monkeypatch, capsys):
    """run(main, *arguments): the exit status, and what stands on stderr."""

    def start(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        with pytest.raises(SystemExit) as end:
            command.run(main, "script.py")
        return end.value.code, capsys.readouterr().err

    return start


def test_a_refusal_is_one_line(run):
    assert run(made("raise ValueError('seed=-1 must be 0 or more')")) == (2, "script.py: seed=-1 must be 0 or more\n")
    status, said = run(lambda: check_model("./nowhere"))
    assert status == 2 and said.startswith("script.py: there is no folder ./nowhere") and said.count("\n") == 1
    assert run(Path("nowhere").read_bytes) == (2, "script.py: [Errno 2] No such file or directory: 'nowhere'\n")


@pytest.mark.parametrize("flags", [["--debug"], ["--debug", "--seed", "3"], ["--seed", "3", "--debug"]])
def test_debug_brings_the_traceback_and_is_no_flag_of_the_script(monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    with pytest.raises(FileNotFoundError, match=f"there is no folder ./{len(flags) - 1} words"):
        command.run(lambda: check_model(f"./{len(sys.argv) - 1} words"), "script.py")
    assert sys.argv[1:] == flags, "as it was, for the rest of the script"


def test_trainer_s_own_debug_keeps_its_value(run):
    status, said = run(lambda: check_model(f"./{sys.argv[1:]}"), "--debug", "underflow_overflow")
    assert status == 2 and "['--debug', 'underflow_overflow']" in said


@pytest.mark.parametrize(
    "fault",
    [
        made("return int('x')"),
        made("return {}['x']"),
        made("a, b = [1]"),
        made("raise AssertionError('never')"),
        lambda: np.zeros(2) @ np.zeros(3),
        lambda: torch.zeros(2) @ torch.zeros(3),
        lambda: torch.nn.Linear(2, 2)(torch.zeros(3)),
    ],
)
def test_a_fault_of_the_program_keeps_its_traceback(fault, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(Exception) as raised:
        command.run(fault, "script.py")
    assert not isinstance(raised.value, SystemExit)


@pytest.mark.survives("the disk is full, or too many files are open", "one line, with the remedy")
@pytest.mark.parametrize(
    "error, remedy",
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.parquet"), "`ulimit -n 4096`"),
        (RuntimeError("unable to open shared memory: Too many open files (24)"), "`ulimit -n 4096`"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.parquet"), "Free some space"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"), "--grad_cache_chunk"),
    ],
)
def test_what_the_system_says_comes_with_a_remedy(run, error, remedy):
    def main():
        raise error

    status, said = run(main)
    assert status == 2 and remedy in said and said.count("\n") == 1


class Unreachable(Exception):
    """An error of the library that huggingface_hub asks the network by."""

    __module__ = "httpx2"


@pytest.mark.survives("the Hub cannot be reached", "one line, with the remedy")
@pytest.mark.parametrize(
    "error", [Unreachable("[Errno -2] Name or service not known"), OSError("We couldn't connect to\n'the Hub'.")]
)
def test_a_hub_out_of_reach_is_called_so(run, error):
    def main():
        raise error

    status, said = run(main)
    assert status == 2 and said.startswith("script.py: the Hub was not reached: ") and said.count("\n") == 1
    assert str(error).split()[-1].rstrip(".") in said and "with which proxy, or name a folder instead" in said


def test_of_several_processes_the_first_one_speaks(run, monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr(command.time, "sleep", waited.append)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(made("raise ValueError('told')")) == (2, "script.py: told\n")
        assert waited == [command.WAIT] * int(rank)
        assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "script.py: told"


def test_an_interrupted_script_says_so(run):
    assert run(made("raise KeyboardInterrupt")) == (130, "script.py: interrupted\n")


def script(body, **options):
    """A process of its own, which imports nothing but lrvsf.command."""
    code = f"import os, sys\nfrom lrvsf import command\ndef main():\n    {body}\ncommand.run(main, 'script.py')"
    root = Path(__file__).parent.parent
    return subprocess.run([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.survives("nobody reads what is printed any more, as after `| head`", "the script ends quietly")
def test_a_closed_pipe_ends_it_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = script("print('x' * 100_000)", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_told():
    done = script("a, b = os.pipe(); os.close(a); os.write(b, b'x')", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "script.py: [Errno 32] Broken pipe\n")


def test_any_text_can_be_printed_anywhere():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = script(r"print('R@1 19.0 \u00b1 1.0')", stdout=subprocess.PIPE, env=env)
    assert (done.returncode, done.stdout) == (0, "R@1 19.0 \\xb1 1.0\n")


def test_closed_streams_are_not_written_into_files(tmp_path):
    body = f"file = open({str(tmp_path / 'f')!r}, 'w'); print('to nobody'); file.write('data')"
    root = Path(__file__).parent.parent
    code = f"from lrvsf import command\ndef main():\n    {body}\ncommand.run(main, 'script.py')"
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=root).returncode == 0
    assert (tmp_path / "f").read_text() == "data"


def test_an_argument_beyond_the_locale_names_the_remedy(run):
    status, said = run(made("return None"), "data/caf\udcc3\udca9")
    assert status == 2 and "Set PYTHONUTF8=1" in said


def test_a_printed_command_folds_before_a_flag():
    words = ["accelerate", "launch", "train_hf.py", "--data", "my shop", "--categories", "chairs", "floor lamps"]
    folded = command.fold([*words, "--per_device_train_batch_size", 32])
    assert folded == (
        "accelerate launch train_hf.py --data 'my shop' \\\n"
        "    --categories chairs 'floor lamps' --per_device_train_batch_size 32"
    )
    assert shlex.split(folded.replace("\\\n", "")) == [*words, "--per_device_train_batch_size", "32"]
    many = ["x", "--categories", *(f"category {number}" for number in range(30)), "--seed", "1"]
    folded = command.fold(many)
    assert max(map(len, folded.splitlines())) <= 80 and shlex.split(folded.replace("\\\n", "")) == many
