"""The card is read back as the Hub reads it."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerState

from lrvsf.hub.card import EVAL_RESULTS, hub_dataset, write_training_card
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments

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

    def write(log, data="data/mini", dataset_name=None, steps=25, **flags):
        args = ModelArguments(model="openai/clip-vit-base-patch32", data=data, dataset_name=dataset_name)
        training = CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
        best = {"best_metric": 0.5, "best_global_step": 10, "best_model_checkpoint": "runs/checkpoint-10"}
        state = TrainerState(global_step=steps, log_history=log, **best)
        write_training_card(tmp_path, args, training, state, make_model(), VALIDATION)
        return ModelCard.load(tmp_path / "README.md")

    return write


def numbers(card):
    return [(r.metric_type, r.metric_value, r.metric_args["step"]) for r in card.data.eval_results]


def test_the_metadata_are_explicit(write):
    data = write(LOG, steps=20, data="hf://datasets/me/shop@main/small", hub_model_id="me/bags").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", "openai/clip-vit-base-patch32")
    assert data.datasets == ["me/shop"] and data.model_name == "bags"
    assert {"visual-search", "lrvsf-benchmark", "fashion", "custom_code", "arxiv:2306.02928"} <= set(data.tags)


def test_the_model_index_is_the_last_evaluation(write):
    card = write(LOG, steps=20)
    assert numbers(card) == [("recall_at_1", 40.62, 20), ("recall_at_5", 62.5, 20), ("recall_at_10", 80.0, 20)]
    first = card.data.eval_results[0]
    assert (first.task_type, first.dataset_type, first.dataset_split) == (
        "image-feature-extraction",
        "mini",
        "validation",
    )
    assert first.dataset_args == {"products": 500, "distractors": 1000}
    row = "| validation | R@1 40.6 %, R@5 62.5 %, R@10 80.0 % (500 products, 1,000 distractors, step 20) |"
    assert row in card.text and "| steps | 20 of" in card.text
    assert card.data.datasets is None, "a folder is no name on the Hub"


def test_where_the_best_model_is_kept_the_model_index_is_its_evaluation(write):
    flags = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    card = write(LOG, **flags)
    assert numbers(card) == [("recall_at_1", 50.0, 10), ("recall_at_5", 75.0, 10), ("recall_at_10", 87.5, 10)]


def test_without_an_evaluation_of_these_weights_there_is_no_model_index(write):
    card = write(LOG)  # of 25 steps; the evaluation of step 20 was of other weights
    assert card.data.eval_results is None and "model-index" not in card.content and "| validation |" not in card.text


def test_the_data_may_be_named_by_hand(write):
    card = write(LOG, steps=20, dataset_name="Slep/LAION-RVS-Fashion")
    assert card.data.datasets == ["Slep/LAION-RVS-Fashion"]
    assert card.data.eval_results[0].dataset_type == "Slep/LAION-RVS-Fashion"


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
