"""Runs that are interrupted, moved or started again: what is left of them, and what they end with."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from lrvsf.training import checkpoints
from lrvsf.training.checkpoints import newest_whole
from lrvsf.training.trainer import CondViTTrainer
from modeling_condvit import CondViTModel

EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}


def evaluated(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return {entry["step"]: entry["eval_R@1"] for entry in state["log_history"] if "eval_R@1" in entry}


def test_a_resumed_run_ends_where_the_uninterrupted_one_did(train, tmp_path):
    whole = train(tmp_path / "whole", save_steps=2)
    resumed = train(tmp_path / "resumed", save_steps=2, resume_from_checkpoint=tmp_path / "whole/checkpoint-4")
    assert resumed == whole
    by_epochs = train(tmp_path / "epochs", save_steps=2, max_steps=-1, num_train_epochs=2)
    assert by_epochs == whole, "two epochs are these six steps"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed", "epochs")]
    assert weights[0] == weights[1] == weights[2]


def test_layers_of_their_own_rates_are_resumed(train, tmp_path):
    flags = {"save_steps": 2, "save_total_limit": 9, "layer_decay": 0.5}
    whole = train(tmp_path / "whole", **flags)
    assert whole != train(tmp_path / "alike", save_steps=2)
    resumed = train(tmp_path / "resumed", **flags, resume_from_checkpoint=tmp_path / "whole/checkpoint-4")
    assert resumed == whole
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert first == second
    assert "| of each layer, as a share of the next one's | 0.5 |" in (tmp_path / "whole/README.md").read_text()
    for other in (0.6, 1.0):
        with pytest.raises(ValueError, match=f"layer_decay: 0.5 then, {other} now"):
            again = {**flags, "layer_decay": other, "resume_from_checkpoint": tmp_path / "whole/checkpoint-4"}
            train(tmp_path / "other", **again)


def test_a_checkpoint_has_the_files_and_the_identity_of_every_version_before(trained):
    """These names are in checkpoints that people have: another one, or one more, and none of them is resumed."""
    manifest = json.loads((trained[0] / "checkpoint-6/manifest.json").read_text())
    files = {"config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert files <= set(manifest["files"])
    assert set(manifest["run"]) == {
        "seed", "global_batch", "categories_per_batch", "phase1_steps", "matryoshka_dims", "decay_matrices_only",
        "data", "model.categories", "model.condition", "model.hidden_act", "model.hidden_size", "model.image_size",
        "model.intermediate_size", "model.model_type", "model.num_attention_heads", "model.num_condition_tokens",
        "model.num_hidden_layers", "model.patch_size", "model.projection_dim",
    }  # fmt: skip
    optimizer = torch.load(trained[0] / "checkpoint-6/optimizer.pt", weights_only=True)
    names = [name for name, _ in CondViTModel.from_pretrained(trained[0]).named_parameters()]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [len(names), 0], "all decay, as published"


@pytest.mark.survives("another seed, or a folder with an earlier run's checkpoints", "refused before the first step")
def test_a_run_goes_on_only_with_what_it_began_with(train, trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="seed: 42 then, 1 now"):
        train(tmp_path, resume_from_checkpoint=folder / "checkpoint-6", seed=1)
    with pytest.raises(ValueError, match="phase1_steps: 2 then, 3 now"):
        train(tmp_path, resume_from_checkpoint=folder / "checkpoint-6", phase1_steps=3)
    with pytest.raises(ValueError, match="checkpoint-6 of an earlier run; add --resume_from_checkpoint True"):
        train(folder)


@pytest.mark.survives("a run that has ended, within an epoch or stopped early, is started again", "no step more")
def test_a_run_that_has_ended_takes_no_step_more(train, scripted, tmp_path, capfd):
    for flags, last in (({"max_steps": 4}, 4), ({"max_steps": 9, "early_stopping_patience": 2, **EACH_STEP}, 3)):
        folder = tmp_path / str(last)
        scripted(0.5)
        losses = train(folder, save_total_limit=9, **{"save_steps": 2, **flags})
        weights = (folder / "model.safetensors").read_bytes()
        capfd.readouterr()
        assert train(folder, save_total_limit=9, resume_from_checkpoint="auto", **{"save_steps": 2, **flags}) == losses
        assert max(int(path.name[11:]) for path in folder.glob("checkpoint-*")) == len(losses) == last
        assert (folder / "model.safetensors").read_bytes() == weights
        assert "no step was taken now" in capfd.readouterr().out


def test_the_best_model_is_found_where_it_was_moved_to(train, scripted, tmp_path, monkeypatch):
    scripted(0.1, 0.5, 0.2)
    train(tmp_path / "then", max_steps=3, **EACH_STEP)
    (tmp_path / "then").rename(tmp_path / "now")
    best = (tmp_path / "now/checkpoint-2/model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    train(Path("now"), resume_from_checkpoint=True, **EACH_STEP)
    assert {path.name for path in Path("now").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    assert Path("now/model.safetensors").read_bytes() == best
    train(tmp_path / "other", resume_from_checkpoint="now/checkpoint-6", max_steps=7, **EACH_STEP)
    assert (tmp_path / "other/model.safetensors").read_bytes() == best

    shutil.rmtree("now/checkpoint-2")
    with pytest.raises(FileNotFoundError, match=r"checkpoint-2, the best checkpoint so far \(0.5000\), is not in now"):
        train(Path("now"), resume_from_checkpoint=True, max_steps=7, **EACH_STEP)


def test_early_stopping_may_be_asked_for_when_resuming(train, scripted, tmp_path):
    scripted(0.5, 0.1)
    train(tmp_path, max_steps=2, **EACH_STEP)
    for patience, last in ((2, 4), (3, 5)):  # it has waited since step 3; the flag of today counts
        train(tmp_path, max_steps=9, resume_from_checkpoint=True, early_stopping_patience=patience, **EACH_STEP)
        assert max(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*")) == last


@pytest.mark.survives("killed in the evaluation that follows a checkpoint", "evaluated first when it resumes")
def test_an_evaluation_that_was_interrupted_is_made_up(train, scripted, tmp_path):
    flags = {"eval_strategy": "epoch", "save_steps": 3, "load_best_model_at_end": False, "save_total_limit": 9}
    scripted(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, **flags)
    scripted(0.5, 0.1)
    train(tmp_path, resume_from_checkpoint=True, **flags)
    assert evaluated(tmp_path / "checkpoint-3") == {} and evaluated(tmp_path / "checkpoint-6") == {3: 0.5}
    train(tmp_path, resume_from_checkpoint=True, **flags)  # the last epoch's came after the last checkpoint
    assert "validation | R@1 0.0 %" in (tmp_path / "README.md").read_text()


def test_sigterm_is_not_kept_waiting_by_an_evaluation(train, scripted, tmp_path, monkeypatch):
    step = CondViTTrainer.training_step

    def step_and_signal(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CondViTTrainer, "training_step", step_and_signal)
    scripted(0.1, AssertionError("evaluated before the checkpoint"))
    with pytest.raises(SystemExit):
        train(tmp_path, **EACH_STEP)
    monkeypatch.setattr(CondViTTrainer, "training_step", step)
    scripted(0.2, 0.3)
    train(tmp_path, resume_from_checkpoint=True, max_steps=3, **EACH_STEP)
    assert evaluated(tmp_path / "checkpoint-3") == {1: 0.1, 2: 0.2, 3: 0.3}


@pytest.mark.parametrize(
    "error, raised", [(OSError("no space"), "checkpoint-1 could not be written .no space"), (KeyError("bug"), "bug")]
)
def test_only_what_cannot_be_written_is_called_so(train, tmp_path, monkeypatch, error, raised):
    def seal(*_):
        raise error

    monkeypatch.setattr(checkpoints, "seal", seal)
    with pytest.raises((RuntimeError, KeyError), match=raised):
        train(tmp_path, save_steps=1)


@pytest.mark.survives("the disk is full while a checkpoint is saved", "the run ends; the one before is whole, is named")
def test_a_full_disk_leaves_the_checkpoint_before(train, tmp_path, monkeypatch):
    """A limit on file sizes stands in for the full disk: writing fails in the middle of a file."""
    save = CondViTTrainer._save_checkpoint
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_full_disk(self, model, trial):
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, unlimited[1]))
        try:
            save(self, model, trial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    monkeypatch.setattr(CondViTTrainer, "_save_checkpoint", save_on_a_full_disk)
    with pytest.raises(RuntimeError, match="checkpoint-4 could not be written .*; kept: checkpoint-3, checkpoint-2"):
        train(tmp_path, save_steps=1)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-3"
    monkeypatch.undo()
    resumed, whole = train(tmp_path, save_steps=6, resume_from_checkpoint=True), train(tmp_path / "whole", save_steps=6)
    assert resumed == whole
