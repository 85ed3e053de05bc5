import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate_lrvsf
from lrvsf.evaluation.pages import compare

ROOT = Path(__file__).parents[3]


def results(recall):
    return {"galleries": {"500": {"recall": {k: {"mean": recall, "std": 0.01} for k in ("1", "5", "10")}}}}


def test_a_table_of_several_models(tmp_path, capsys):
    for name, recall in (("a", 0.25), ("b", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(recall)))
    compare.main([f"first={tmp_path / 'a'}", f"second={tmp_path / 'b'}"])
    table = capsys.readouterr().out
    assert "first" in table and "25.0" in table and "50.0" in table


def test_the_script_compares_without_torch(tmp_path):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; status = 0\n"
    code += "try: runpy.run_path('evaluate_lrvsf.py', run_name='__main__')\n"
    code += "except SystemExit as end: status = end.code\n"
    code += "print(status, 'torch' in sys.modules)"
    (tmp_path / "results.json").write_text(json.dumps(results(0.25)))
    for words, says in (([f"a={tmp_path}"], "a       25.0   25.0   25.0\nNone False\n"), ([], "2 False\n")):
        command = [sys.executable, "-c", code, "evaluate_lrvsf.py", "compare", *words]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.endswith(says)


def test_a_misspelt_step_is_named():
    with pytest.raises(ValueError, match="there is no step 'comapre'. Did you mean 'compare'"):
        evaluate_lrvsf.main(["comapre", "a"])


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
