"""The whole path in small: damaged shards -> train_hf.py -> a Hub folder -> evaluate_lrvsf.py."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from made import as_flags
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

import evaluate_lrvsf
import train_hf
from lrvsf.data.images import TooMuchDamage
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import InUse
from lrvsf.training.guards import NonFinite


def test_one_bad_image_and_one_lonely_product_end_nothing(train, mini, tmp_path, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        train(tmp_path, save_steps=6, max_steps=6)
    said = capsys.readouterr().out
    assert "mini-0-train-000005" in caplog.text and "1  no scene image" in caplog.text
    assert "mini-0-train-000003" in caplog.text and "truncated" in caplog.text
    assert "images of training products are bad" in said and "trained 6 steps" in said


def test_both_limits_of_bad_images_are_flags(train, tmp_path):
    with pytest.raises(TooMuchDamage, match="truncated\n1 in a row, the last one an image of .*train-0*3"):
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
    places = {"model": folder, "data_root": mini / "test", "output_dir": tmp_path}
    evaluate_lrvsf.main(as_flags(**places, folds=2, gallery_sizes=[10, 20]))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["n_products"] == 9 and results["skipped"]["products"] == {"not an image": 1}
    assert 0 <= results["galleries"]["20"]["recall"]["1"]["mean"] <= 1


def test_two_runs_with_one_seed_give_the_same_losses_and_another_seed_others(train, trained, tmp_path):
    _, losses = trained
    assert len(losses) == 6
    assert train(tmp_path / "again", save_steps=6, max_steps=6) == losses
    assert train(tmp_path / "other", save_steps=6, max_steps=6, seed=1) != losses


@pytest.mark.survives("two trainings, or two evaluations, in one folder", "the second is refused, and names the first")
def test_one_run_at_a_time(train, trained, mini, tmp_path, locked_elsewhere):
    by = "is in use by a rehearsal: .*, process {} on .*Wait until it has ended"
    with locked_elsewhere(tmp_path) as other:
        with pytest.raises(InUse, match=by.format(other)):
            train(tmp_path)
        places = {"model": trained[0], "data_root": mini / "test", "output_dir": tmp_path}
        with pytest.raises(InUse, match=by.format(other)):
            evaluate_lrvsf.main(as_flags(**places, gallery_sizes=20))
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_of_few_steps_is_warned_of(train, tmp_path, caplog):
    train(tmp_path, max_steps=2)
    assert "This run has 2 steps, of 7 pairs each: a model hardly moves in fewer than 50. Take a smaller" in caplog.text


@pytest.mark.survives("weights run away: loss or gradient is not finite", "the run ends, names step and products")
def test_numbers_that_are_none_end_the_run(train, tmp_path):
    with pytest.raises(NonFinite, match="step 2: the loss is nan .*Products of this process's batch: mini-0-train-0"):
        train(tmp_path, learning_rate=1e38, phase1_steps=0)


def test_a_validation_set_of_other_categories_is_refused_before_training(train, mini, tmp_path):
    row, other = next(
        (row, name) for row, name in enumerate(ProductTestSet(mini / "validation").categories()) if name != "Feet"
    )
    with pytest.raises(ValueError, match=f"row {row}: category '{other}' is not one of the model's: Feet\\."):
        train(tmp_path, categories="Feet", eval_strategy="steps", max_bad_fraction=1)


def test_a_condvit_that_lost_a_weight_is_not_trained_on(train, trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "lossy", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(tmp_path / "lossy/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "lossy/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lossy lacks the weights visual_projection.weight; restore"):
        train(tmp_path / "on", model=tmp_path / "lossy")


def test_bad_requests_are_refused_with_the_remedy(train, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_lrvsf.py"):
        train(tmp_path, data=tmp_path / "nothing")
    with pytest.raises(ValueError, match="set a smaller phase1_steps"):
        train(tmp_path, max_steps=2, phase1_steps=3)
    with pytest.raises(FileNotFoundError, match="no recipe recipes/nothing.yaml"):
        train_hf.main(["recipes/nothing.yaml"])


def test_the_committed_model_carries_today_s_code():
    root = Path(__file__).parents[2]
    for name in ("configuration_condvit.py", "modeling_condvit.py", "processing_condvit.py", "text_condvit.py"):
        copy = root / "assets/mini-condvit" / name
        assert copy.read_text() == (root / name).read_text(), f"copy {name} into assets/mini-condvit again"
