"""A checkpoint is whole, or it is not resumed from."""

import json
import logging
import os
import time

import pytest

from lrvsf.durable import publish_folder
from lrvsf.training import checkpoints
from lrvsf.training.checkpoints import MANIFEST, Checkpoints, newest_whole, seal, why_not_whole

RUN = {"seed": 0, "global_batch": 8}
FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture
def save(tmp_path):
    """save(step): a checkpoint as a finished save leaves it."""

    def write(step, run=RUN, files=FILES):
        staged = tmp_path / "unfinished" / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        for name in files:
            (staged / name).write_text(f"{name} of step {step}")
        seal(staged, run)
        publish_folder(staged, tmp_path / staged.name)
        return tmp_path / staged.name

    return write


@pytest.fixture
def find(tmp_path):
    """find(asked): the checkpoint that a run in the folder resumes from."""
    return Checkpoints(tmp_path, None, RUN).find


def cut(path):
    path.write_bytes(path.read_bytes()[:5])


def change(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def remove(path):
    path.unlink()


@pytest.mark.survives("any file of a checkpoint cut short, changed or missing", "resumes from the one before, says so")
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", [cut, change, remove])
def test_a_damaged_checkpoint_is_passed_over_by_name(save, find, tmp_path, caplog, name, damage):
    whole, newest = save(2), save(10)
    assert newest_whole(tmp_path) == newest and why_not_whole(newest) is None
    damage(newest / name)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == whole
    assert "checkpoint-10" in caplog.text and name in caplog.text
    with pytest.raises(ValueError, match="checkpoint-10 cannot be resumed from"):
        find(str(newest))


@pytest.mark.parametrize("name", FILES[1:])
def test_a_checkpoint_needs_everything_that_a_resumed_run_does(save, name):
    assert f"without {name.partition('.')[0]}" in why_not_whole(save(1, files=[file for file in FILES if file != name]))


def test_an_older_one_of_the_same_step_is_replaced(save):
    remove(save(3) / "optimizer.pt")
    assert why_not_whole(save(3)) is None


def test_which_one_is_found(save, find, tmp_path):
    assert find("auto") is None
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        find(True)
    save(9), save(10)
    assert find(True) == find("auto") == tmp_path / "checkpoint-10"
    assert find(str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"
    with pytest.raises(FileNotFoundError, match="checkpoint-8; .* has: checkpoint-10, checkpoint-9"):
        find(str(tmp_path / "checkpoint-8"))


@pytest.mark.survives("resuming with other data, seed, global batch or model", "refused, with both values")
@pytest.mark.parametrize("name, value", [("seed", 1), ("global_batch", 16), ("data", "b"), ("model.width", 5)])
def test_another_run_is_refused(save, tmp_path, name, value):
    run = {"seed": 0, "global_batch": 8, "data": "a", "model.width": 4}
    save(1, run)
    with pytest.raises(ValueError, match=f"{name}: {run[name]!r} then, {value!r} now"):
        Checkpoints(tmp_path, None, {**run, name: value}).find(True)


def test_the_manifest_is_written_last_and_tells_every_file(save):
    folder = save(1)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted(FILES) and manifest["run"] == RUN
    assert checkpoints.checkpoints_in(folder.parent) == [folder]


@pytest.mark.survives("a clock that jumps back", "checkpoints are kept and resumed from by their steps")
@pytest.mark.parametrize(
    "there, step, best, left",
    [
        ([2, 4], 6, None, [4, 6]),
        ([8, 9], 10, None, [9, 10]),  # by number, not by name
        ([2, 4], 6, 2, [2, 6]),
        ([4, 8, 10], 6, None, [4, 6]),  # gone back from 10 to 4
        ([4, 8, 10], 6, 8, [6, 8]),
        ([], 6, 6, [6]),
    ],
)
def test_the_checkpoint_that_was_just_saved_stays_whatever_the_clock_says(save, tmp_path, there, step, best, left):
    for number in there:
        os.utime(save(number), times=(time.time() + 10**6, time.time() + 10**6 - number))
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    save(step)
    checkpoints.rotate(tmp_path, 2, step, best)
    assert [path.name for path in checkpoints.checkpoints_in(tmp_path)][::-1] == [f"checkpoint-{n}" for n in left]
    assert newest_whole(tmp_path).name == f"checkpoint-{left[-1]}"


@pytest.mark.parametrize("limit, left", [(None, 4), (0, 4), (9, 4), (1, 1), (3, 3)])
def test_as_many_checkpoints_stay_as_were_asked_for(save, tmp_path, limit, left):
    for step in (1, 2, 3, 4):
        save(step)
    checkpoints.rotate(tmp_path, limit, 4, None)
    steps = [path.name for path in checkpoints.checkpoints_in(tmp_path)]
    assert steps == ["checkpoint-4", "checkpoint-3", "checkpoint-2", "checkpoint-1"][:left]
