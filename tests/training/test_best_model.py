"""Which weights a run leaves, by which validation, and what is said of them."""

import json

import pytest

EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}


@pytest.fixture(scope="module")
def weights_of_step(train, tmp_path_factory):
    """The weights after each of three steps, as bytes of a file."""
    folder = tmp_path_factory.mktemp("each")
    train(folder, max_steps=3, save_steps=1, save_total_limit=3)
    return {step: (folder / f"checkpoint-{step}/model.safetensors").read_bytes() for step in (1, 2, 3)}


def test_validation_tells_recall_and_loss_and_can_end_the_run(train, trained, tmp_path):
    folder, _ = trained
    state = json.loads((folder / "checkpoint-6/trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_R@1" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6]
    assert all(0 <= entry["eval_R@1"] <= entry["eval_R@5"] <= entry["eval_R@10"] <= 1 for entry in evaluations)
    assert all(entry["eval_loss"] > 0 for entry in evaluations)
    flags = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    flags |= {"metric_for_best_model": "loss", "learning_rate": 0.5, "phase1_steps": 0}
    losses = train(tmp_path, max_steps=30, early_stopping_patience=2, **flags)
    assert len(losses) < 30, "a learning rate of a half does not go well for long"


@pytest.mark.parametrize(
    "flags, step, score",
    [
        ({"save_strategy": "best"}, 2, "R@1 50.0 %"),  # what is kept as the best is what the run leaves
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, 2, "loss 0.5000"),
        ({"save_strategy": "best", "load_best_model_at_end": False}, 3, "R@1 20.0 %"),
        ({"save_strategy": "no"}, 3, "R@1 20.0 %"),
        ({"save_strategy": "epoch", "eval_strategy": "epoch"}, 3, "R@1 10.0 %"),
        ({"save_steps": 2}, 3, "R@1 20.0 %"),
        ({"save_steps": 1, "load_best_model_at_end": True}, 2, "R@1 50.0 %"),
        ({"save_strategy": "no", "eval_delay": 9}, 3, None),
    ],
)
def test_folder_card_and_last_line_speak_of_the_same_weights(
    train, scripted, weights_of_step, tmp_path, capsys, flags, step, score
):
    scripted(0.1, 0.5, 0.2)
    train(tmp_path, max_steps=3, **{"eval_strategy": "steps", "eval_steps": 1, **flags})
    said, card = capsys.readouterr().out.strip().splitlines()[-1], (tmp_path / "README.md").read_text()
    if score is None:
        assert said == f"trained 3 steps; the model is in {tmp_path}" and "| validation |" not in card
    else:
        assert said == f"trained 3 steps; the model of step {step}, validation {score}, is in {tmp_path}"
        recall = "R@1 50.0 %" if "loss" in score else score
        assert f"| validation | {recall}, " in card and f"step {step}) |" in card
    assert (tmp_path / "model.safetensors").read_bytes() == weights_of_step[step]


def test_of_equal_scores_the_one_of_lower_loss_is_the_best(train, scripted, tmp_path, capsys):
    scripted((0.1, 9), (0.5, 3), (0.5, 3), (0.5, 2), (0.5, 4), (0.4, 1))
    flags = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "save_total_limit": 9}
    train(tmp_path, max_steps=4, **flags)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert "the model of step 4, validation R@1 50.0 %" in capsys.readouterr().out
    train(tmp_path, max_steps=6, resume_from_checkpoint=True, **flags)  # the loss of step 4 is remembered
    assert "trained 6 steps; the model of step 4, " in capsys.readouterr().out


def test_the_score_before_the_first_step_is_told_beside_the_best(train, scripted, tmp_path, capsys):
    scripted(0.6, 0.1, 0.5)
    train(tmp_path, max_steps=2, eval_on_start=True, **EACH_STEP)
    assert "the model of step 2, validation R@1 50.0 % (60.0 % before the first step), is in" in capsys.readouterr().out
