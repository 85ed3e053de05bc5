import json

import pytest

from lrvsf.evaluation import compare


def results(recall):
    return {"galleries": {"500": {"recall": {k: {"mean": recall, "std": 0.01} for k in ("1", "5", "10")}}}}


def test_a_table_of_several_models(tmp_path, capsys):
    for name, recall in (("a", 0.25), ("b", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(recall)))
    compare.main([f"first={tmp_path / 'a'}", f"second={tmp_path / 'b'}"])
    table = capsys.readouterr().out
    assert "first" in table and "25.0" in table and "50.0" in table


def test_what_does_not_compare_is_refused(tmp_path):
    for name, more in (("a", {"protocol": "paper"}), ("b", {"protocol": "bootstrap"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({**results(0.5), **more}))
    models = [f"{name}={tmp_path / name}" for name in "ab"]
    with pytest.raises(ValueError, match="different protocols"):
        compare.main(models)
    with pytest.raises(ValueError, match="does not say what test set it is of. Evaluate the model again"):
        compare.main([models[0], f"again={tmp_path / 'a'}", "--paired"])
    (tmp_path / "a/results.json").write_text("{")
    with pytest.raises(ValueError, match="a/results.json is damaged .* Evaluate the model again"):
        compare.main(models)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json"):
        compare.main([f"first={tmp_path}"])
