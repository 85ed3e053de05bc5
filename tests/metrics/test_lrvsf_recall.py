"""The `evaluate` module, loaded from its folder as a user would, against the core and the published code's numbers."""

import importlib.util
import re
import socket
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from evaluate.utils.gradio import parse_readme
from examples import examples
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from safetensors.torch import load_file

from lrvsf.evaluation.recall import bootstrap_recall

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "metrics" / "lrvsf_recall"


@pytest.fixture(scope="module")
def load_metric(tmp_path_factory):
    """Loads it with empty caches, in another working directory, without network."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])  # evaluate adds its cache to it
        patch.setattr(socket.socket, "connect", refuse)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        cache = str(tmp_path_factory.mktemp("cache"))
        yield lambda: evaluate.load(str(FOLDER), cache_dir=cache)


@pytest.mark.parametrize("size", [300, 1500, 4000])
def test_equals_the_published_code(load_metric, golden, size):
    published = load_file(golden / "bootstrap.safetensors")
    scores = load_metric().compute(
        predictions=published["query_embeds"],
        references=published["target_embeds"],
        distractor_embeds=published["distractor_embeds"],
        product_folds=published["product_folds"],
        distractor_folds=published[f"distractor_folds.{size}"],
        ks=range(1, 101),
    )
    assert len(scores) == 200
    for name, end in (("recall_mean", ""), ("recall_std", "_std")):
        ours = torch.tensor([scores[f"recall_at_{k}{end}"] for k in range(1, 101)])
        torch.testing.assert_close(ours, published[f"{name}.{size}"], rtol=0, atol=1e-6)


def test_the_example_of_the_card(load_metric, monkeypatch, tmp_path, golden):
    """From the checkout's folder, as the path is given from there; it has what `compute` of the metric has."""
    (block,) = examples("metrics/lrvsf_recall/README.md", "lrvsf_recall", 1)
    published = load_file(golden / "bootstrap.safetensors")
    names = {name: published[name] for name in ("query_embeds", "target_embeds", "distractor_embeds", "product_folds")}
    names["distractor_folds"] = published["distractor_folds.300"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    exec(block, names)
    assert list(names["scores"]) == re.findall(r'"(recall_\w+)": \.\.\.', block)
    for name, k in {"recall_at_1": 1, "recall_at_10": 10}.items():
        assert names["scores"][name] == pytest.approx(published["recall_mean.300"][k - 1].item(), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_core_on_random_rows_in_batches(load_metric, seed):
    draw = np.random.default_rng(seed)
    targets, noise, distractors = (torch.as_tensor(draw.normal(size=(n, 8))).float() for n in (23, 23, 60))
    rows = (targets + 1.5 * noise, targets, distractors)
    queries, targets, distractors = (torch.nn.functional.normalize(each) for each in rows)
    folds = torch.as_tensor(draw.integers(0, 23, (4, 17))), torch.as_tensor(draw.integers(0, 60, (4, 45)))
    metric = load_metric()
    for batch in (slice(0, 9), slice(9, 23)):
        metric.add_batch(predictions=queries[batch].numpy(), references=targets[batch].tolist())
    scores = metric.compute(
        distractor_embeds=distractors.numpy(), product_folds=folds[0].tolist(), distractor_folds=folds[1], ks=[1, 7]
    )
    mean, std = bootstrap_recall(queries, targets, distractors, *folds, max_k=7)
    assert list(scores) == ["recall_at_1", "recall_at_1_std", "recall_at_7", "recall_at_7_std"]
    assert list(scores.values()) == [mean[0], std[0], mean[6], std[6]]
    assert 0 < scores["recall_at_1"] < scores["recall_at_7"] < 1


def test_without_folds_everything_counts_once(load_metric):
    """Query 0 finds its target first; a distractor beats query 1's, two beat query 2's."""
    eye = torch.eye(4)
    targets = torch.stack([eye[0], 0.6 * eye[1] + 0.8 * eye[3], eye[3]])
    distractors = torch.stack([eye[1], eye[2], 0.8 * eye[2] + 0.6 * eye[3]])
    inputs = {"predictions": eye[:3], "references": targets, "distractor_embeds": distractors}
    scores = load_metric().compute(**inputs, ks=[3, 1, 2])
    assert [scores[f"recall_at_{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert scores["recall_at_1_std"] == 0
    assert list(load_metric().compute(**inputs))[::2] == [f"recall_at_{k}" for k in (1, 5, 10, 20, 50)]


def test_without_distractors_the_targets_are_the_gallery(load_metric):
    """Query 0 finds its target first; query 1 finds the other one's before its own."""
    eye = torch.eye(3)
    scores = load_metric().compute(predictions=eye[[0, 0]], references=eye[[0, 1]], ks=[1, 2])
    assert (scores["recall_at_1"], scores["recall_at_2"]) == (0.5, 1.0)


def test_the_card_is_a_spaces(load_metric):
    """What the Hub reads of a metric's Space, by the Hub's own reader; its files are there."""
    card = RepoCard.load(FOLDER / "README.md", ignore_metadata_errors=False)
    told = card.data.to_dict()
    assert (told["sdk"], told["app_file"]) == ("gradio", "app.py") and {"evaluate", "metric"} <= set(told["tags"])
    assert told["title"] and told["emoji"] and told["license"] == "apache-2.0" and len(told["short_description"]) <= 60
    assert {"app.py", "requirements.txt", "lrvsf_recall.py"} <= {path.name for path in FOLDER.iterdir()}
    assert parse_readme(FOLDER / "README.md").startswith("# lrvsf_recall")  # evaluate's own
    ours, needed = (
        {Requirement(line).name: Requirement(line).specifier for line in path.read_text().splitlines() if line}
        for path in (ROOT / "requirements.txt", FOLDER / "requirements.txt")
    )
    assert {name: bounds for name, bounds in needed.items() if ours.get(name) != bounds}.keys() == {"gradio"}


def test_refusals(load_metric):
    eye = torch.eye(4)
    with pytest.raises(ValueError, match="query_embeds: row 1 has norm 2"):
        load_metric().compute(predictions=eye[:2] * torch.tensor([[1], [2]]), references=eye[:2], distractor_embeds=eye)
    with pytest.raises(ValueError, match=r"ks=\[1, 0\]"):
        load_metric().compute(predictions=eye, references=eye, distractor_embeds=eye, ks=[1, 0])


def test_without_the_package_the_error_says_where_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "lrvsf.evaluation.recall", None)  # as if it were not installed
    spec = importlib.util.spec_from_file_location("lrvsf_recall", FOLDER / "lrvsf_recall.py")
    with pytest.raises(ImportError, match="run `pip install .` in its checkout"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    # evaluate's own scan, whose advice would be another, sees only what requirements.txt lists.
    libraries = [name for _, name, _, _ in evaluate.loading.get_imports(str(FOLDER / "lrvsf_recall.py"))]
    assert libraries == ["collections", "datasets", "evaluate", "torch"]
