"""The files of contrib/mteb, run by mteb's own runner as their README says; recall is the evaluation's."""

import json
import re
import sys
from types import SimpleNamespace

import datasets
import pytest
from examples import ROOT, examples
from made import noise, write_teller, write_test_set

import evaluate_lrvsf
import publish_lrvsf
from lrvsf.hub.mteb_result import MAIN_SCORE, TASK

mteb = pytest.importorskip("mteb", reason="make mteb has it")

README = (ROOT / "contrib/mteb/README.md").read_text()
(BLOCK,) = examples("contrib/mteb/README.md", "On a test set of this machine", 1)
COMMANDS = [line.split() for line in re.findall(r"^python (.*?)$", README.replace("\\\n", ""), re.MULTILINE)]
KS = (1, 5, 10, 20, 50)


@pytest.fixture(scope="module", params=["category", "text"])
def measured(request, tmp_path_factory):
    """What the README's commands and its example find, with a tiny model in the Mini model's place."""
    folder, conditioning = tmp_path_factory.mktemp(request.param), request.param
    names = {
        "assets/mini-condvit": "model",
        "data/mini/test": "test",
        "runs/mini-mteb": "data",
        "runs/mini-paper": "paper",
    }
    write_teller(folder / "model", conditioning)
    # A damaged picture of each kind: both must leave out the same.
    write_test_set(folder / "test", products=31, distractors=70, bad={"SIMPLE_IMG": {3: b"x"}, "jpg": {5: b"y"}})

    def placed(text):
        for name, place in names.items():
            text = text.replace(name, str(folder / place))
        return text

    (publish,) = (words for words in COMMANDS if words[:2] == ["publish_lrvsf.py", "mteb_dataset"])
    publish_lrvsf.main([*map(placed, publish[1:]), "--conditioning", conditioning])
    (evaluate,) = (words for words in COMMANDS if words[0] == "evaluate_lrvsf.py")
    told = ["--allow_unmatched_categories", "True", "--max_bad_fraction", "0.5"]  # as so small a test set needs
    evaluate_lrvsf.main([*map(placed, evaluate[1:]), *told])
    example = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])  # the example adds to it
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        exec(placed(BLOCK), example)
    results = json.loads((folder / "paper/results.json").read_text())
    return SimpleNamespace(
        task=example["OnThisMachine"],
        theirs=example["found"].task_results[0],
        results=results,
        file=folder / f"paper/{TASK}.json",
    )


def test_mtebs_recall_is_the_evaluations(measured):
    (theirs,) = measured.theirs.scores["test"]
    assert (measured.results["n_products"], measured.results["n_distractors"]) == (30, 69)
    gallery = measured.results["galleries"]["69"]
    for k in KS:
        low, high = (gallery[f"recall_{end}"][str(k)]["mean"] for end in ("pessimistic", "optimistic"))
        assert round(low, 5) <= theirs[f"recall_at_{k}"] <= round(high, 5)
    assert gallery["ties"]["tied_queries"] == 0  # so that the two bounds are one number
    (ours,) = json.loads(measured.file.read_text())["scores"]["test"]
    assert {name: theirs[name] for name in ours} == ours and ours["main_score"] == theirs[MAIN_SCORE]


def test_mteb_reads_the_evaluations_result_file(measured):
    read = mteb.TaskResult.from_disk(measured.file)
    assert read.task_name == measured.theirs.task_name == TASK
    assert read.get_score(splits=["test"]) == measured.theirs.get_score()


def test_the_task_is_described_as_mteb_asks(measured, tmp_path, monkeypatch):
    assert measured.task.metadata.is_filled()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    task = measured.task()
    task.load_data()
    told = task._calculate_descriptive_statistics_from_split("test")  # the public one writes into mteb's folder
    assert (told["num_queries"], told["num_documents"]) == (30, 99)
    assert told["relevant_docs_statistics"]["average_relevant_docs_per_query"] == 1


def test_the_wrapper_says_what_it_cannot_embed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "contrib/mteb/models/model_implementations"))
    from condvit_models import CondViTWrapper

    where = {"task_metadata": SimpleNamespace(name="Other"), "hf_split": "test", "hf_subset": "default"}
    asked = {**where, "prompt_type": mteb.types.PromptType.query, "show_progress_bar": False}
    model = CondViTWrapper(str(write_teller(tmp_path / "category", "category")))
    with pytest.raises(ValueError, match="embeds images, .* Other has inputs of text only"):
        model.encode([{"text": ["Bags"]}], **asked)
    with pytest.raises(ValueError, match="Unknown category 'Hats'"):
        model.encode([{"image": [noise()], "text": ["Hats"]}], **asked)
    plain = model.encode([{"image": [noise()]}], **asked)
    told = model.encode(
        [{"image": [noise()], "text": ["Bags"]}], **asked | {"prompt_type": mteb.types.PromptType.document}
    )
    assert plain.equal(told)  # what stands beside a picture that is searched among is no condition
    unconditioned = CondViTWrapper(str(write_teller(tmp_path / "none", "none")))
    assert unconditioned.encode([{"image": [noise()], "text": ["Bags"]}], **asked).shape == (1, 16)
    reader = write_teller(tmp_path / "reader", "text")
    for file in reader.glob("tokenizer*"):
        file.unlink()
    reader = CondViTWrapper(str(reader))
    assert reader.encode([{"image": [noise()], "text": ["Bags"]}], **asked).shape == (1, 16)  # a name needs no words
    with pytest.raises(ValueError, match="reads no texts"):
        reader.encode([{"image": [noise()], "text": ["the red bag"]}], **asked)
