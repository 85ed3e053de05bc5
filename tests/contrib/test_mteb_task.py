"""The files of contrib/mteb, run by mteb's own runner as their README says; recall is the evaluation's."""

import json
import re
import sys
from pathlib import Path

import pytest
from made import write_teller, write_test_set

import evaluate_lrvsf
import publish_lrvsf
from lrvsf.hub.mteb_result import MAIN_SCORE, TASK

mteb = pytest.importorskip("mteb", reason="make mteb has it")

ROOT = Path(__file__).parents[2]
README = (ROOT / "contrib/mteb/README.md").read_text()
(BLOCK,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split() for line in re.findall(r"^python (.*?)$", README.replace("\\\n", ""), re.MULTILINE)]
KS = (1, 5, 10, 20, 50)


@pytest.fixture(params=["category", "text"])
def conditioning(request):
    return request.param


@pytest.fixture
def measured(tmp_path, monkeypatch, conditioning):
    """What the README's commands and its example find, with a tiny model in the Mini model's place: (mteb, ours)."""
    places = {"assets/mini-condvit": tmp_path / "model", "data/mini/test": tmp_path / "test"}
    places |= {"runs/mini-mteb": tmp_path / "data", "runs/mini-paper": tmp_path / "paper"}
    write_teller(tmp_path / "model", conditioning)
    # A damaged picture of each kind: both must leave out the same.
    bad = {"SIMPLE_IMG": {3: b"x"}, "jpg": {5: b"y"}}
    write_test_set(tmp_path / "test", products=31, distractors=70, bad=bad)

    def placed(text):
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    (publish,) = (words for words in COMMANDS if words[:2] == ["publish_lrvsf.py", "mteb_dataset"])
    publish_lrvsf.main([*map(placed, publish[1:]), "--conditioning", conditioning])
    (evaluate,) = (words for words in COMMANDS if words[0] == "evaluate_lrvsf.py")
    told = ["--allow_unmatched_categories", "True", "--max_bad_fraction", "0.5"]  # as so small a test set needs
    evaluate_lrvsf.main([*map(placed, evaluate[1:]), *told])
    names = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the example adds to it
    exec(placed(BLOCK), names)
    names["ours"] = json.loads((tmp_path / f"paper/{TASK}.json").read_text())
    names["results"] = json.loads((tmp_path / "paper/results.json").read_text())
    return names


def test_mtebs_recall_is_the_evaluations(measured):
    (theirs,) = measured["found"].task_results[0].scores["test"]
    gallery = measured["results"]["galleries"][str(measured["results"]["n_distractors"])]
    assert measured["results"]["n_products"] == 30 and measured["results"]["n_distractors"] == 69
    for k in KS:
        low, high = (gallery[f"recall_{end}"][str(k)]["mean"] for end in ("pessimistic", "optimistic"))
        assert round(low, 5) <= theirs[f"recall_at_{k}"] <= round(high, 5)
    assert gallery["ties"]["tied_queries"] == 0  # so that the two bounds are one number
    (ours,) = measured["ours"]["scores"]["test"]
    assert {name: theirs[name] for name in ours} == ours and ours["main_score"] == theirs[MAIN_SCORE]


def test_mteb_reads_the_evaluations_result_file(measured, tmp_path):
    read = mteb.TaskResult.from_disk(tmp_path / f"paper/{TASK}.json")
    (theirs,) = measured["found"].task_results
    assert read.task_name == theirs.task_name == TASK and read.get_score(splits=["test"]) == theirs.get_score()
