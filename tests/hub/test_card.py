"""The card is read back as the Hub reads it."""

import ast
import re
from types import SimpleNamespace

import pytest
from examples import blocks_of, replaced, run_each
from huggingface_hub import ModelCard
from made import encode, noise, write_file, write_teller
from transformers import TrainerState

from lrvsf.embedding.encoder import load_model
from lrvsf.hub.card import (
    EVAL_RESULTS,
    LRVSF,
    SAMPLE,
    hub_dataset,
    plain,
    python_string,
    write_converted_card,
    write_training_card,
)
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments
from processing_condvit import CondViTProcessor

CLIP = "openai/clip-vit-base-patch32"
VALIDATION = SimpleNamespace(n_products=500, n_distractors=1000)
LOG = [
    {"step": 10, "loss": 3.0},
    {"step": 10, "eval_R@1": 0.5, "eval_R@5": 0.75, "eval_R@10": 0.875},
    {"step": 20, "eval_R@1": 0.40625, "eval_R@5": 0.625, "eval_R@10": 0.8},
    {"step": 25, "loss": 2.0},
]


@pytest.fixture
def write(tmp_path, make_model):
    """write(log, steps, **training flags) -> the card of a run that ended at this step."""

    def write(log, data="data/mini", model=CLIP, categories=None, folder=tmp_path, own=None, steps=25, **flags):
        args = ModelArguments(model=str(model), data=data, **(own or {}))
        training = CondViTTrainingArguments(output_dir=str(folder), use_cpu=True, **flags)
        best = {"best_metric": 0.5, "best_global_step": 10, "best_model_checkpoint": "runs/checkpoint-10"}
        state = TrainerState(global_step=steps, log_history=log, **best)
        trained = make_model(**({} if categories is None else {"categories": categories}))
        write_training_card(folder, args, training, state, trained, VALIDATION)
        return ModelCard.load(folder / "README.md")

    return write


def numbers(card):
    return [(r.metric_type, r.metric_value, r.metric_args["step"]) for r in card.data.eval_results]


def test_the_metadata_are_explicit(write):
    data = write(LOG, steps=20, data="hf://datasets/me/shop@main/small", hub_model_id="me/bags").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert data.base_model == "openai/clip-vit-base-patch32"
    assert data.datasets == ["me/shop"] and data.model_name == "bags"
    assert {"visual-search", "sentence-transformers", "custom_code", "arxiv:2306.02928"} == set(data.tags)


@pytest.mark.parametrize("data, own", [("data/lrvsf", {}), ("s3://all/of/it", {"dataset_name": LRVSF})])
def test_what_lrvsf_trains_is_for_its_leaderboard_and_not_commercial(write, data, own):
    card = write(LOG, steps=20, data=data, own=own)
    assert card.data.license == "cc-by-nc-4.0" and {"lrvsf-benchmark", "fashion"} <= set(card.data.tags)
    assert "| licence | cc-by-nc-4.0, because LRVS-Fashion has it |" in card.text


def test_the_card_of_an_own_catalog_claims_nothing_of_lrvsf(write, tmp_path):
    (tmp_path / "customers of Ada").mkdir()
    card = write(LOG, steps=20, data=str(tmp_path / "customers of Ada"))
    assert card.data.license is None and "licen" not in card.content.split("## Source")[0]
    assert not {"lrvsf-benchmark", "fashion"} & set(card.data.tags)
    assert card.data.eval_results[0].dataset_type == "custom" and card.data.datasets is None
    assert str(tmp_path) not in card.content and "| data | customers of Ada |" in card.text
    assert write(LOG, own={"license": "mit"}).data.license == "mit"


@pytest.mark.parametrize("stated, kept", [("cc-by-nc-4.0", True), ("cc-by-sa-4.0", True), ("apache-2.0", False)])
def test_a_binding_licence_of_the_start_is_kept_with_a_word(write, tmp_path, caplog, stated, kept):
    start = tmp_path / "start"
    (start / "checkpoint-3").mkdir(parents=True)
    (start / "config.json").write_text("{}")
    (start / "README.md").write_text(f"---\nlicense: {stated}\n---\n# Start\n")
    for model in (start, start / "checkpoint-3"):
        card = write(LOG, steps=20, model=model)
        assert card.data.license == (stated if kept else None)
        assert (f"| licence | {stated}, because {model.name} has it |" in card.text) == kept
    assert "is under" not in caplog.text
    assert write(LOG, model=start, own={"license": "mit"}).data.license == "mit", "the owner's word"
    assert (f"license=mit, but start is under {stated}" in caplog.text) == kept
    assert write(LOG, model="Slep/CondViT-B32", data="data/shop").data.license == "cc-by-nc-4.0"


AWKWARD = [
    'a", return_tensors="pt")); import os; os.system("id") #',
    "<script>alert(1)</script> & 'so' | on",
    "two\nlines\r\n---\nlicense: mit",
    "```\n# no `code` *bold* [a](b) $x$ ![c](d)",
    "back\\slash \x1b]0;t\x07 \u202e {braces} é",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_no_name_spoils_the_sample_the_markdown_or_the_metadata(write, tmp_path, name):
    folder = tmp_path / name.replace("/", "")
    folder.mkdir()
    card = write(LOG, categories=[name, "Bags"], folder=folder, data=name, model=name, hub_model_id=name)
    assert card.data.license is None and card.data.pipeline_tag == "image-feature-extraction"
    ((_, sample),) = blocks_of(card.text)
    sample = ast.parse(sample)
    strings = [node.value for node in ast.walk(sample) if isinstance(node, ast.Constant) and node.value == name]
    assert len(strings) == 2, "the path and the category, each a string and nothing else"
    assert "<script>" not in card.text and "\x1b" not in card.text and "\u202e" not in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows), rows
    assert [line for line in card.text.splitlines() if line.startswith("#")][0] == f"# {plain(name)}"
    assert card.text.count("\n```") == 4, "two fences"


def test_plain_text_is_text():
    assert plain("<b>&") == "&lt;b&gt;&amp;" and plain("a|b\n\t`c`") == r"a\|b \`c\`"
    assert plain("openai/clip-vit-base-patch32, é") == "openai/clip-vit-base-patch32, é"


def test_the_model_index_is_the_last_evaluation(write):
    card = write(LOG, steps=20)
    assert numbers(card) == [("recall_at_1", 40.62, 20), ("recall_at_5", 62.5, 20), ("recall_at_10", 80.0, 20)]
    first = card.data.eval_results[0]
    assert (first.task_type, first.dataset_type, first.dataset_split) == (
        "image-feature-extraction",
        "custom",
        "validation",
    )
    assert first.dataset_args == {"products": 500, "distractors": 1000}
    row = "| validation | R@1 40.6 %, R@5 62.5 %, R@10 80.0 % (500 products, 1,000 distractors, step 20) |"
    assert row in card.text and "| steps | 20 of" in card.text
    assert card.data.datasets is None, "a folder is no name on the Hub"


def test_a_k_that_reaches_the_validations_gallery_is_not_published(write, monkeypatch):
    few = SimpleNamespace(n_products=4, n_distractors=6)
    monkeypatch.setitem(globals(), "VALIDATION", few)
    card = write(LOG, steps=20)
    assert [kind for kind, _, _ in numbers(card)] == ["recall_at_1", "recall_at_5"]
    assert "R@5 62.5 % (4 products, 6 distractors" in card.text


def test_where_the_best_model_is_kept_the_model_index_is_its_evaluation(write):
    flags = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    card = write(LOG, **flags)
    assert numbers(card) == [("recall_at_1", 50.0, 10), ("recall_at_5", 75.0, 10), ("recall_at_10", 87.5, 10)]


def test_without_an_evaluation_of_these_weights_there_is_no_model_index(write):
    card = write(LOG)  # of 25 steps; the evaluation of step 20 was of other weights
    assert card.data.eval_results is None and "model-index" not in card.content and "| validation |" not in card.text


def test_the_data_may_be_named_by_hand(write):
    card = write(LOG, steps=20, own={"dataset_name": "me/shop"})
    assert card.data.datasets == ["me/shop"] and card.data.eval_results[0].dataset_type == "me/shop"


@pytest.mark.parametrize(
    "data, name",
    [
        ("hf://datasets/me/shop", "me/shop"),
        ("hf://datasets/me/shop@v1/a/b", "me/shop"),
        ("hf://buckets/me/shop", None),
        ("data/me/shop", None),
        ("s3://datasets/me/shop", None),
    ],
)
def test_only_a_hub_address_names_a_dataset(data, name):
    assert hub_dataset(data) == name


def test_results_of_an_earlier_model_do_not_stay(write, tmp_path, caplog):
    """They would be pushed as this one's."""
    results = tmp_path / EVAL_RESULTS
    results.parent.mkdir()
    results.write_text("- value: 93.4\n")
    write(LOG)
    assert not results.exists() and "held results of the model that was there before" in caplog.text


def test_the_card_of_a_text_model_asks_in_words(make_model, tmp_path):
    args = ModelArguments(model=CLIP, data="data/mini")
    training = CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    about = {"name": "someone/sentences", "revision": None, "dense": [], "pooling": "mean", "normalize": True}
    model = make_model(condition="text", text_dim=9, text_encoder=about)
    write_training_card(tmp_path, args, training, TrainerState(), model)
    text = (tmp_path / "README.md").read_text()
    assert 'processor(scene, texts="the red handbag", return_tensors="pt")' in text
    assert "A category is the text of its name" in text and "Bags, Feet" in text


def test_the_examples_run(write, tmp_path):
    """Those of a training's card and of a converted model's, whose second one goes on from the first; without our
    files on the path."""
    asked = {"category": {"categories": "Bags"}, "text": {"texts": SAMPLE}, "none": {}}
    blocks, expected = [], []
    for number, name in enumerate(("scene", "product")):
        write_file(tmp_path / f"{name}.jpg", encode(noise(40, 30, number), "JPEG"))
    for condition, words in asked.items():
        folder = write_teller(tmp_path / condition, condition)
        model, processor = load_model(str(folder)), CondViTProcessor.from_pretrained(folder)
        write_converted_card(folder, "someone/bags", "condvit.pth", model, "mit")
        first, second = (code for _, code in blocks_of((folder / "README.md").read_text()))
        placed = {python_string("someone/bags"): python_string(condition)}
        blocks.append(replaced(first, placed) + second)
        query = model(**processor(tmp_path / "scene.jpg", **words)).image_embeds.tolist()
        product = model(**processor(tmp_path / "product.jpg")).image_embeds.tolist()
        expected.append({"query": query, "target": product, "embeds": query})
    ((_, trained),) = blocks_of(write(LOG, hub_model_id="someone/bags").text)
    blocks.append(replaced(trained, {python_string("someone/bags"): python_string("category")}))
    expected.append({name: expected[0][name] for name in ("query", "target")})
    found = run_each(blocks, tmp_path, "query", "target", "embeds")
    for name, (told, made), rows in zip([*asked, "trained"], found, expected, strict=True):
        assert made == {key: [pytest.approx(row, abs=1e-5)] for key, (row,) in rows.items()}, name
        assert told.startswith("tensor([[")
