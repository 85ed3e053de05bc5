"""What the evaluation tells mteb and the Hub of its recall."""

import json

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from made import write_teller, write_test_set

import evaluate_lrvsf
import publish_lrvsf
from lrvsf.hub.mteb_result import TASK, as_mteb, mteb_result


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a model and its results by the paper's protocol."""
    folder = tmp_path_factory.mktemp("measured")
    write_teller(folder / "model", "category")
    write_test_set(folder / "test")
    flags = ["--model", "model", "--data_root", "test", "--output_dir", "results", "--protocol", "paper"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate_lrvsf.main([*flags, "--allow_unmatched_categories", "True"])
    return folder


def test_the_largest_gallery_is_mtebs(measured):
    results = json.loads((measured / "results/results.json").read_text())
    (scores,) = json.loads((measured / f"results/{TASK}.json").read_text())["scores"]["test"]
    assert {k: scores[f"recall_at_{k}"] for k in (1, 5, 10, 20, 50)} == {
        int(k): round(recall["mean"], 5) for k, recall in results["galleries"]["40"]["recall"].items()
    }
    assert as_mteb({**results, "protocol": "leaderboard"}) is None  # its galleries are others


def test_the_step_puts_the_main_score_where_the_hub_looks(measured, capsys):
    publish_lrvsf.main(["mteb_result", str(measured / "model"), str(measured / "results"), "me/fashion"])
    path = measured / "model/.eval_results/mteb.yaml"
    assert str(path) in capsys.readouterr().out
    entries = parse_eval_result_entries(yaml.safe_load(path.read_text("utf-8")))
    (scores,) = json.loads((measured / f"results/{TASK}.json").read_text())["scores"]["test"]
    assert [(one.dataset_id, one.task_id) for one in entries] == [
        ("me/fashion", f"{TASK}_default_test"), ("me/fashion", TASK),
    ]  # fmt: skip
    assert [one.value for one in entries] == [pytest.approx(100 * scores["main_score"], abs=1e-5)] * 2
    assert "conditioning category" in entries[0].notes


def test_refusals(measured, tmp_path):
    model, results = measured / "model", measured / "results"
    with pytest.raises(ValueError, match="'fashion' is no dataset's name"):
        mteb_result(model, results, "fashion")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        mteb_result(tmp_path, results, "me/fashion")
    with pytest.raises(FileNotFoundError, match="has no results.json: give the folder"):
        mteb_result(model, tmp_path, "me/fashion")
    (tmp_path / "results.json").write_text('{"protocol": "bootstrap"}')
    with pytest.raises(ValueError, match="protocol 'bootstrap'. Evaluate with --protocol paper"):
        mteb_result(model, tmp_path, "me/fashion")
    other = json.loads((results / "results.json").read_text()) | {"model_weights": "others"}
    (tmp_path / "results.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="whose weights are not"):
        mteb_result(model, tmp_path, "me/fashion")
