"""The whole path in small: damaged shards -> train_hf.py -> a Hub folder -> evaluate_lrvsf.py."""

import json
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

import evaluate_lrvsf
import train_hf
from lrvsf.data.images import TooManyBadImages
from lrvsf.data.pairs import PairMaker
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.durable import InUse
from lrvsf.mini.build import MiniSize, build_mini, draw_looks, product_row
from lrvsf.training import checkpoints
from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.checkpoints import newest_whole
from lrvsf.training.guards import NonFinite
from lrvsf.training.loss import info_nce
from lrvsf.training.trainer import CondViTTrainer
from modeling_condvit import CondViTModel

MINI_CLIP = Path(__file__).parent.parent / "assets/mini-clip"
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """24 products, one with corrupt scene images, one without a scene; a test query is corrupt too."""
    folder = tmp_path_factory.mktemp("mini")
    build_mini(folder, MiniSize(products=24, test_products=10, distractors=20, image_size=48), processes=1)
    shard = folder / "train/00000.parquet"
    rows = pq.read_table(shard).to_pylist()
    for image in rows[3]["images"][1:]:
        image["image"]["bytes"] = image["image"]["bytes"][:200]
    del rows[5]["images"][1:]
    pq.write_table(pa.Table.from_pylist(rows, schema=PRODUCT_FEATURES.arrow_schema), shard)
    products = pq.read_table(folder / "test/products.parquet")
    rows = products.to_pylist()
    rows[2]["COMPLEX_IMG"] = b"<html>404</html>"
    pq.write_table(pa.Table.from_pylist(rows, schema=products.schema), folder / "test/products.parquet")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def train(mini, clip):
    """train(folder, **flags) runs train_hf.py in this process and gives the logged losses."""

    def run(folder, without=(), **flags):
        flags = {
            "model": clip, "data": mini, "output_dir": folder, "max_steps": 6, "phase1_steps": 2, "use_cpu": True,
            "per_device_train_batch_size": 7, "learning_rate": 1e-3, "logging_steps": 1, "bf16": False,
            "dataloader_num_workers": 0, "disable_tqdm": True, "report_to": "none", **flags,
        }  # fmt: skip
        flags = {name: value for name, value in flags.items() if name not in without}
        train_hf.main([token for name, value in flags.items() for token in (f"--{name}", str(value))])
        checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        log = json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"] if checkpoints else []
        return [entry["loss"] for entry in log if "loss" in entry]

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
    return folder, train(folder, **flags)


def test_one_bad_image_and_one_lonely_product_end_nothing(train, mini, tmp_path, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        train(tmp_path, save_steps=6, max_steps=6)
    said = capsys.readouterr().out
    assert "mini-0-train-000005" in caplog.text and "1  no scene image" in caplog.text
    assert "mini-0-train-000003" in caplog.text and "truncated" in caplog.text
    assert "images of training products are bad" in said and "trained 6 steps" in said


def test_both_limits_of_bad_images_are_flags(train, tmp_path):
    with pytest.raises(TooManyBadImages, match="truncated\n1 in a row, the last one an image of .*train-0*3"):
        train(tmp_path, max_bad_in_a_row=1)
    with pytest.raises(ValueError, match="max_bad_fraction=2.0 must be in 0..1"):
        train(tmp_path, max_bad_fraction=2)


def test_the_output_is_a_complete_hub_folder(trained, mini):
    folder, _ = trained
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "preprocessor_config.json"} <= names
    assert {"configuration_condvit.py", "modeling_condvit.py", "processing_condvit.py"} <= names
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert processor.categories == model.config.categories and processor.size["height"] == 32
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card and "arXiv:2306.02928" in card


def test_what_was_trained_evaluates_with_the_bad_query_counted(trained, mini, tmp_path):
    folder, _ = trained
    flags = ["--model", folder, "--data_root", mini / "test", "--output_dir", tmp_path, "--folds", 2]
    evaluate_lrvsf.main([*map(str, flags), "--gallery_sizes", "10", "20"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["n_products"] == 9 and results["skipped"]["products"] == {"not an image": 1}
    assert 0 <= results["galleries"]["20"]["recall"]["1"]["mean"] <= 1


def test_two_runs_with_one_seed_give_the_same_losses_and_another_seed_others(train, trained, tmp_path):
    _, losses = trained
    assert len(losses) == 6
    assert train(tmp_path / "again", save_steps=6, max_steps=6) == losses
    assert train(tmp_path / "other", save_steps=6, max_steps=6, seed=1) != losses


def test_a_resumed_run_ends_where_the_uninterrupted_one_did(train, tmp_path):
    whole = train(tmp_path / "whole", save_steps=2)
    resumed = train(tmp_path / "resumed", save_steps=2, resume_from_checkpoint=tmp_path / "whole/checkpoint-4")
    assert resumed == whole
    by_epochs = train(tmp_path / "epochs", save_steps=2, max_steps=-1, num_train_epochs=2)
    assert by_epochs == whole, "two epochs are these six steps"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed", "epochs")]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.survives("another seed, or a folder with an earlier run's checkpoints", "refused before the first step")
def test_a_run_goes_on_only_with_what_it_began_with(train, trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="seed: 42 then, 1 now"):
        train(tmp_path, resume_from_checkpoint=folder / "checkpoint-6", seed=1)
    with pytest.raises(ValueError, match="phase1_steps: 2 then, 3 now"):
        train(tmp_path, resume_from_checkpoint=folder / "checkpoint-6", phase1_steps=3)
    with pytest.raises(ValueError, match="checkpoint-6 of an earlier run; add --resume_from_checkpoint True"):
        train(folder)


@pytest.mark.survives("two trainings, or two evaluations, in one folder", "the second is refused, and names the first")
def test_one_run_at_a_time(train, trained, mini, tmp_path, locked_elsewhere):
    by = "is in use by a rehearsal: .*, process {} on .*Wait until it has ended"
    with locked_elsewhere(tmp_path) as other:
        with pytest.raises(InUse, match=by.format(other)):
            train(tmp_path)
        flags = ["--model", trained[0], "--data_root", mini / "test", "--output_dir", tmp_path, "--gallery_sizes", 20]
        with pytest.raises(InUse, match=by.format(other)):
            evaluate_lrvsf.main([*map(str, flags)])
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_chunks_change_nothing_but_the_memory(train, trained, tmp_path):
    """Batches of 7 in chunks of 3, 3 and 1."""
    _, losses = trained
    assert train(tmp_path, save_steps=6, grad_cache_chunk=3) == pytest.approx(losses, rel=1e-4)


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


@pytest.fixture
def scripted(monkeypatch):
    """scripted(R@1, ...): what the next evaluations find, 0 when there are no more; an exception is raised. Of a pair
    the second is the loss."""

    def script(*values):
        values = list(values)

        def found(*_):
            value = values.pop(0) if values else 0.0
            if isinstance(value, BaseException):
                raise value
            value, loss = value if isinstance(value, tuple) else (value, 1 - value)
            return {"R@1": value, "R@5": value, "R@10": value, "loss": loss}

        monkeypatch.setattr("lrvsf.training.trainer.validate", found)

    return script


EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}


def state_of(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())


def evaluated(checkpoint):
    return {entry["step"]: entry["eval_R@1"] for entry in state_of(checkpoint)["log_history"] if "eval_R@1" in entry}


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


@pytest.fixture(scope="module")
def weights_of_step(train, tmp_path_factory):
    """The weights after each of three steps, as bytes of a file."""
    folder = tmp_path_factory.mktemp("each")
    train(folder, max_steps=3, save_steps=1, save_total_limit=3)
    return {step: (folder / f"checkpoint-{step}/model.safetensors").read_bytes() for step in (1, 2, 3)}


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


def test_a_run_of_few_steps_is_warned_of(train, tmp_path, caplog):
    train(tmp_path, max_steps=2)
    assert "This run has 2 steps, of 7 pairs each: a model hardly moves in fewer than 50. Take a smaller" in caplog.text


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


@pytest.mark.survives("weights run away: loss or gradient is not finite", "the run ends, names step and products")
def test_numbers_that_are_none_end_the_run(train, tmp_path):
    with pytest.raises(NonFinite, match="step 2: the loss is nan .*Products of this process's batch: mini-0-train-0"):
        train(tmp_path, learning_rate=1e38, phase1_steps=0)


def test_phase1_is_one_epoch_unless_told_otherwise(train, clip, tmp_path):
    train(tmp_path, max_steps=-1, num_train_epochs=2, without=["phase1_steps"], save_strategy="epoch")
    tower = [AutoModel.from_pretrained(p, trust_remote_code=True) for p in (tmp_path / "checkpoint-3", tmp_path)]
    start = CLIPModel.from_pretrained(clip).vision_model.post_layernorm.weight
    weights = [model.vision_model.post_layernorm.weight for model in tower]
    assert torch.equal(weights[0], start) and not torch.equal(weights[1], start)


def test_a_validation_set_of_other_categories_is_refused_before_training(train, tmp_path):
    with pytest.raises(ValueError, match="category 'Bags' is not one of the model's: Feet\\."):
        train(tmp_path, categories="Feet", eval_strategy="steps", max_bad_fraction=1)


def test_phase1_leaves_the_tower_alone(train, clip, tmp_path):
    train(tmp_path, max_steps=2, phase1_steps=2, save_steps=2)
    before, after = CLIPModel.from_pretrained(clip), AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    tower = before.vision_model.state_dict()
    assert all(torch.equal(tower[name], value) for name, value in after.vision_model.state_dict().items())
    assert not torch.equal(before.visual_projection.weight, after.visual_projection.weight)


def test_more_condition_tokens_and_nested_dimensions(train, trained, tmp_path):
    folder, losses = trained
    once = {"max_steps": 1, "phase1_steps": 0, "save_steps": 1}
    assert train(tmp_path / "tokens", num_condition_tokens=3, **once) != losses[:1]
    assert json.loads((tmp_path / "tokens/config.json").read_text())["num_condition_tokens"] == 3
    assert train(tmp_path / "nested", matryoshka_dims=4, **once) != losses[:1]
    with pytest.raises(ValueError, match=r"matryoshka_dims=\[16\] must be above 0 and below the embedding's 16"):
        train(tmp_path / "whole", matryoshka_dims=16)
    with pytest.raises(ValueError, match="num_condition_tokens=1, the run asks for 3"):
        train(tmp_path / "on", model=folder, num_condition_tokens=3)
    with pytest.raises(ValueError, match="num_condition_tokens=2 with condition='none'"):
        train(tmp_path / "none", condition="none", num_condition_tokens=2)


def test_a_condvit_that_lost_a_weight_is_not_trained_on(train, trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "lossy", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(tmp_path / "lossy/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "lossy/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lossy lacks the weights visual_projection.weight; restore"):
        train(tmp_path / "on", model=tmp_path / "lossy")


def test_the_unconditioned_baseline_trains_by_the_same_recipe(train, tmp_path):
    losses = train(tmp_path, condition="none", save_steps=6, max_steps=6)
    assert len(losses) == 6
    assert json.loads((tmp_path / "config.json").read_text())["condition"] == "none"


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.survives("several products with one photo", "are never each other's negatives, and are in one split")
def test_products_of_one_photo_have_nothing_to_learn_from_each_other(train, tmp_path, chunk):
    """A batch of seven ids with one photo: no negatives, so the loss is log 1."""
    build_mini(tmp_path / "data", MiniSize(products=7, test_products=1, distractors=1, image_size=48), processes=1)
    shard = tmp_path / "data/train/00000.parquet"
    rows = pq.read_table(shard).to_pylist()
    for row in rows:
        row["images"][0]["image"] = rows[0]["images"][0]["image"]
    pq.write_table(pa.Table.from_pylist(rows, schema=PRODUCT_FEATURES.arrow_schema), shard)
    flags = {} if chunk is None else {"grad_cache_chunk": chunk}
    assert train(tmp_path / "run", data=tmp_path / "data", max_steps=1, phase1_steps=0, save_steps=1, **flags) == [0.0]


def test_bf16_loss_is_close_to_float32():
    """Mini CLIP on a full batch of 128 drawn pairs: the relative difference is about 1e-4."""
    size = MiniSize(products=128, test_products=1, distractors=1, image_size=96)
    rows = [product_row(size, job) for job in enumerate(draw_looks(size)["train"])]
    torch.manual_seed(0)
    model = CondViTModel.from_clip(str(MINI_CLIP), attn_implementation="eager")
    batch = PairMaker(96, model.config.categories, seed=0).batch(0, rows, [])
    pixels, targets = (batch[key] / 127.5 - 1 for key in ("pixel_values", "target_pixel_values"))
    losses = []
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(pixels, batch["category_indices"], targets)
            losses.append(info_nce(output.image_embeds, output.target_embeds, model.logit_scale).item())
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 1e-3


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"per_device_train_batch_size": 1}, "take 2 or more"),
        ({"gradient_accumulation_steps": 2}, "another objective"),
        ({"phase1_steps": -1}, "must be 0 or more"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "'checkpoint' would push pickles"),
        ({"metric_for_best_model": "R@20"}, "'R@20' is not measured; choose one of R@1"),
        ({"grad_cache_chunk": 0}, "must be 1 or more"),
        ({"early_stopping_patience": 2}, "needs --load_best_model_at_end"),
        ({"save_strategy": "best"}, "save_strategy=best without an eval_strategy"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "=True without an eval_strategy"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 10},
            "save_steps=10 and eval_steps=5: the best model may be one that is not saved",
        ),
        ({"fsdp": "full_shard"}, "fsdp='full_shard': take --shard_weights True"),
        ({"shard_weights": True}, "on one process: there is nobody to share with"),
        ({"auto_find_batch_size": True}, "must not change by itself"),
        ({"label_smoothing_factor": 0.1}, "the contrastive loss has none"),
        ({"warmup_steps": 10}, "set phase1_steps"),
        ({"lr_scheduler_type": "cosine"}, "phase1_steps shapes it"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "the published schedule takes none"),
        ({"train_sampling_strategy": "sequential"}, "drawn by seed"),
        ({"data_seed": 5}, "drawn by seed"),
        ({"save_only_model": True}, "cannot be resumed from"),
        ({"save_on_each_node": True}, "share one output_dir"),
        ({"remove_unused_columns": True}, "not dataset columns"),
        ({"ddp_find_unused_parameters": True}, "in one step"),
        ({"logging_nan_inf_filter": True}, "hides losses"),
    ],
)
def test_arguments_that_would_train_something_else_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


def test_sharding_by_accelerate_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "True")  # as `accelerate launch --use_fsdp` does
    with pytest.raises(ValueError, match="told to use FSDP, .* add --shard_weights True"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def test_a_precision_that_only_accelerate_knows_of_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # as a saved configuration does
    with pytest.raises(ValueError, match="told mixed_precision=fp16, .* launch with --mixed_precision no"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("other", [{"torch_compile": True}, {"optim": "adamw_torch_8bit"}])
def test_what_split_weights_were_never_tried_with_is_refused(tmp_path, monkeypatch, other):
    monkeypatch.setattr(CondViTTrainingArguments, "world_size", 2)
    ((name, value),) = other.items()
    with pytest.raises(ValueError, match=f"shard_weights=True with {name}={value} was never tried"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, shard_weights=True, **other)


def test_one_process_does_not_split_its_batch_over_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(CondViTTrainingArguments, "n_gpu", 4)
    with pytest.raises(ValueError, match="one process sees 4 GPUs .* --num_processes 4"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("metric, greater", [("R@1", True), ("R@10", True), ("loss", False)])
def test_the_best_model_has_the_largest_recall_or_the_smallest_loss(tmp_path, metric, greater):
    args = CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric)
    assert args.greater_is_better is greater


def test_bad_requests_are_refused_with_the_remedy(train, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_lrvsf.py"):
        train(tmp_path, data=tmp_path / "nothing")
    with pytest.raises(ValueError, match="set a smaller phase1_steps"):
        train(tmp_path, max_steps=2, phase1_steps=3)
    with pytest.raises(FileNotFoundError, match="no recipe recipes/nothing.yaml"):
        train_hf.main(["recipes/nothing.yaml"])


def test_the_committed_model_carries_today_s_code():
    root = MINI_CLIP.parent.parent
    for name in ("configuration_condvit.py", "modeling_condvit.py", "processing_condvit.py"):
        copy = root / "assets/mini-condvit" / name
        assert copy.read_text() == (root / name).read_text(), f"copy {name} into assets/mini-condvit again"


def test_a_trial_of_two_steps_has_both_phases_and_others_may_read_its_weights(train, clip, tmp_path, capsys):
    """An epoch has three steps. Half of two are phase 1; then the tower moves."""
    umask = os.umask(0o027)
    try:
        train(tmp_path, max_steps=2, save_steps=1, without=["phase1_steps"])
    finally:
        os.umask(umask)
    assert "the run's 2 steps are less than an epoch's 3: phase 1 has 1 of them" in capsys.readouterr().out
    before = CLIPModel.from_pretrained(clip).vision_model.state_dict()
    for checkpoint, same in (("checkpoint-1", True), ("checkpoint-2", False)):
        after = load_file(tmp_path / checkpoint / "model.safetensors")
        equal = [torch.equal(value, after[f"vision_model.{name}"]) for name, value in before.items()]
        assert all(equal) is same
    weights = [tmp_path / "model.safetensors", *tmp_path.glob("checkpoint-*/model.safetensors")]
    assert [path.stat().st_mode & 0o777 for path in weights] == [0o640] * 3
    train(tmp_path, max_steps=3, phase1_steps=1, resume_from_checkpoint=True)
    assert f"going on from {tmp_path / 'checkpoint-2'}, step 2 of 3" in capsys.readouterr().out
