"""evaluate_lrvsf.py killed while it embeds and while it counts, on one process and on two.

Started again, it embeds what is missing and ends with the bytes of a run that nothing disturbed.
"""

import signal
from pathlib import Path

import pytest
from forks import forks_of
from made import as_flags

from lrvsf.durable import LOCK


@pytest.fixture(scope="module")
def evaluations():
    """The process that evaluations are forks of."""
    with forks_of(Path(__file__).with_name("evaluations.py")) as ask:
        yield ask


@pytest.fixture
def run(evaluations, make_test_set, make_model, tmp_path):
    """`run(folder, processes=1, fault="none", at=0)`: evaluates until the end or the fault; how many images it embeds.

    There are 12 products, one of them bad, in 2 shards, and 40 distractors, two of them bad, in 5 shards.
    """
    root = make_test_set(bad={"COMPLEX_IMG": {9: b"<html>"}, "jpg": {3: b"", 31: b"no"}})
    make_model().save_pretrained(tmp_path / "model")
    flags = {"model": tmp_path / "model", "data_root": root, "batch_size": 3, "gallery_sizes": 38, "folds": 2}
    fixed = as_flags(**flags, bf16=False, max_bad_fraction=0.2, seed=3)

    def run(folder, processes=1, fault="none", at=0):
        folder.mkdir(exist_ok=True)
        flags = [*fixed, "--output_dir", str(folder / "out")]
        statuses, said = evaluations(folder / "log", processes, fault, at, flags)
        expected = {"none": 0, "ctrl-c": 130, "terminate": 143}.get(fault, -signal.SIGKILL)
        assert statuses[-1] == expected, said[-3000:]
        assert expected < 0 or "Traceback" not in said, said
        logs = list(folder.glob("log.*"))
        embedded = sum(int(line) for path in logs for line in path.read_text().split())
        for path in logs:
            path.unlink()
        return embedded

    return run


def contents(folder):
    """Everything that an evaluation writes but the plot, and the lock's file, which a killed run may leave."""
    files = [path for path in (folder / "out").rglob("*") if path.is_file() and path.suffix != ".png"]
    files = [path for path in files if path.name != LOCK]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


EMBEDS = 2 * 11 + 38


@pytest.fixture
def whole(run, tmp_path):
    """What a run leaves that nothing disturbed."""
    assert run(tmp_path / "whole") == EMBEDS
    files = contents(tmp_path / "whole")
    assert len(files) == 2 + 1 + 2 * 2 + 5  # results, manifest, shards
    return files


@pytest.mark.survives(
    "SIGKILL while embeddings are made or stored, on one process or two",
    "embeds only what is missing; the same bytes and results",
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", ["batch", "half", "unnamed", "named"])
def test_killed_while_embedding(run, whole, tmp_path, processes, fault):
    """Each time a little later; what two processes began, they end, or one alone does."""
    folder = tmp_path / "killed"
    embedded = 0
    times = {"batch": (1, 2, 4), "named": (1, 2, 1)}  # the other of two has made its own by then
    for at in times.get(fault, (1, 2, 3)):
        embedded += run(folder, processes, fault, at)
        assert "out/results.json" not in contents(folder)
    embedded += run(folder)
    assert contents(folder) == whole
    # A death costs its shard at most, 2 * 8 images, and of two processes the other one's too.
    assert EMBEDS <= embedded <= EMBEDS + 3 * processes * 2 * 8
    assert run(folder, processes) == 0 and contents(folder) == whole


@pytest.mark.survives(
    "Ctrl-C or SIGTERM while embeddings are made", "ends at once; the next run embeds what is missing"
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", ["ctrl-c", "terminate"])
def test_ended_while_embedding(run, whole, tmp_path, processes, fault):
    folder = tmp_path / "ended"
    embedded = run(folder, processes, fault, 4)
    assert embedded and "out/results.json" not in contents(folder)
    embedded += run(folder)
    assert contents(folder) == whole and embedded <= EMBEDS + processes * 2 * 8


@pytest.mark.survives("SIGKILL while ranks are counted, on one process or two", "nothing is embedded again")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_counting(run, whole, tmp_path, processes):
    folder = tmp_path / "killed"
    assert run(folder, processes, "count", 2) == EMBEDS
    assert "out/results.json" not in contents(folder)
    assert run(folder, 3 - processes) == 0
    assert contents(folder) == whole


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_only_what_is_missing_is_embedded(run, whole, tmp_path, processes):
    """The same bytes on any number of processes."""
    folder = tmp_path / "again"
    assert run(folder, processes) == EMBEDS and contents(folder) == whole
    for name in ("target-00001.safetensors", "distractor-00000.safetensors", "distractor-00003.safetensors"):
        (folder / "out/embeds" / name).unlink()
    assert run(folder, processes) == 2 * 3 + 7 + 7
    assert contents(folder) == whole
