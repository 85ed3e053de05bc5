"""A checkpoint is whole, or it is not resumed from."""

import json
import logging

import pytest

from lrvsf.training import checkpoints
from lrvsf.training.checkpoints import MANIFEST, fault, find, newest_whole, publish, seal

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
        publish(staged, tmp_path / staged.name)
        return tmp_path / staged.name

    return write


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
def test_a_damaged_checkpoint_is_passed_over_by_name(save, tmp_path, caplog, name, damage):
    whole, newest = save(2), save(10)
    assert newest_whole(tmp_path) == newest and fault(newest) is None
    damage(newest / name)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == whole
    assert "checkpoint-10" in caplog.text and name in caplog.text
    with pytest.raises(ValueError, match="checkpoint-10 cannot be resumed from"):
        find(tmp_path, str(newest), RUN)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_checkpoint_needs_everything_that_a_resumed_run_does(save, name):
    assert f"without {name.partition('.')[0]}" in fault(save(1, files=[file for file in FILES if file != name]))


def test_an_older_one_of_the_same_step_is_replaced(save):
    remove(save(3) / "optimizer.pt")
    assert fault(save(3)) is None


def test_which_one_is_found(save, tmp_path):
    assert find(tmp_path, "auto", RUN) is None
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        find(tmp_path, True, RUN)
    save(9), save(10)
    assert find(tmp_path, True, RUN) == find(tmp_path, "auto", RUN) == tmp_path / "checkpoint-10"
    assert find(tmp_path, str(tmp_path / "checkpoint-9"), RUN) == tmp_path / "checkpoint-9"
    with pytest.raises(FileNotFoundError, match="checkpoint-8; .* has: checkpoint-10, checkpoint-9"):
        find(tmp_path, str(tmp_path / "checkpoint-8"), RUN)


@pytest.mark.survives("resuming with other data, seed, global batch or model", "refused, with both values")
@pytest.mark.parametrize("name, value", [("seed", 1), ("global_batch", 16), ("data", "b"), ("model.width", 5)])
def test_another_run_is_refused(save, tmp_path, name, value):
    run = {"seed": 0, "global_batch": 8, "data": "a", "model.width": 4}
    save(1, run)
    with pytest.raises(ValueError, match=f"{name}: {run[name]!r} then, {value!r} now"):
        find(tmp_path, True, {**run, name: value})


def test_the_manifest_is_written_last_and_tells_every_file(save):
    folder = save(1)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted(FILES) and manifest["run"] == RUN
    assert checkpoints.checkpoints_in(folder.parent) == [folder]
