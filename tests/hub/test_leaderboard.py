"""The card and the results file are read back as the Hub and the leaderboard read them."""

import json

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, parse_eval_result_entries

from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.hub.leaderboard import add_results, leaderboard, short


@pytest.fixture
def results(tiny_model):
    """results(**changes): what an evaluation of the folder's weights says."""
    return lambda **changes: made_up_results(**{"model_weights": weights_digest(tiny_model), **changes})


def made_up_results(**changes):
    def gallery(mean):
        return {"recall": {k: {"mean": mean, "std": 0.00834} for k in ("1", "5", "10", "20", "50")}}

    galleries = {"10000": gallery(0.93444), "100000": gallery(0.859), "500000": gallery(0.7), "1000000": gallery(0.05)}
    facts = {"model": "runs/bags", "protocol": "leaderboard", "restrict_to_category": False, "seed": 3, "folds": 20}
    facts |= {"n_distractors": 1_200_000, "embedding_dim": 512, "conditioning": "category", "galleries": galleries}
    facts |= {"product_folds": "bootstrapped_indices.pt", "products_per_fold": 1000, "compute_dtype": "float32"}
    return facts | changes


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A model folder whose card has an evaluation on a validation set, and a text."""
    validation = EvalResult(
        "image-feature-extraction", "me/shop", "me/shop, validation", "recall_at_1", 40.62, dataset_split="validation"
    )
    data = ModelCardData(
        license="cc-by-nc-4.0", tags=["fashion"], datasets=["me/shop"], model_name="Bags", eval_results=[validation]
    )
    folder = tmp_path / "bags"
    tiny_model.save_pretrained(folder)
    ModelCard(f"---\n{data.to_yaml()}\n---\n# Bags\n\nWhat é the card says.\n").save(folder / "README.md")
    return folder


def entries(folder):
    return parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / "lrvsf.yaml").read_text("utf-8")))


def test_the_card_has_what_the_leaderboard_reads(folder, results):
    """Plain dictionaries, as in the README of a published model."""
    assert add_results(folder, results()) == []
    metadata = metadata_load(folder / "README.md")
    assert metadata["tags"] == ["fashion", "lrvsf-benchmark"] and metadata["license"] == "cc-by-nc-4.0"
    (index,) = metadata["model-index"]
    validation, ours = index["results"]
    assert index["name"] == "Bags" and validation["metrics"] == [{"type": "recall_at_1", "value": 40.62}]
    assert ours["task"] == {"type": "Retrieval"}
    name = "LAION - Referred Visual Search - Fashion"
    assert ours["dataset"] == {"name": name, "type": "Slep/LAION-RVS-Fashion", "split": "test"}
    metrics = ours["metrics"]
    assert len(metrics) == 4 * 5 + 3
    assert metrics[0] == {"type": "recall_at_1|10000", "value": "93.44 ± 0.83", "name": "R@1 +10K Dist."}
    assert metrics[19] == {"type": "recall_at_50|1000000", "value": "5.00 ± 0.83", "name": "R@50 +1M Dist."}
    assert [(one["type"], one["value"]) for one in metrics[20:]] == [
        ("n_dists", 1_200_000), ("embedding_dim", 512), ("conditioning", "category"),
    ]  # fmt: skip
    assert ours["source"]["url"] == "https://huggingface.co/spaces/Slep/LRVSF-Leaderboard"


def test_the_hubs_classes_read_the_same_back(folder, results):
    add_results(folder, results())
    card = ModelCard.load(folder / "README.md")
    kept, *ours = card.data.eval_results
    assert (kept.metric_type, kept.dataset_split) == ("recall_at_1", "validation")
    numbers = {one.task_id: one for one in entries(folder)}
    recalls = [one for one in ours if one.metric_type.startswith("recall")]
    assert [one.metric_type for one in recalls] == list(numbers)
    for one in recalls:
        number = numbers[one.metric_type]
        assert number.value == pytest.approx(float(one.metric_value.split(" ± ")[0])) and one.dataset_split == "test"
        assert number.dataset_id == one.dataset_type == "Slep/LAION-RVS-Fashion"
    notes = "conditioning category, ± 0.83 over 20 folds, seed 3, 1200000 distractors available, "
    assert numbers["recall_at_1|10000"].notes == notes + "products as published, computed in float32"
    assert card.text.rstrip() == "# Bags\n\nWhat é the card says." and card.data.datasets == ["me/shop"]


def test_later_results_replace_earlier_ones(folder, results):
    add_results(folder, results())
    before = (folder / "README.md").read_text("utf-8")
    add_results(folder, results())
    assert (folder / "README.md").read_text("utf-8") == before
    add_results(folder, results(conditioning="none"), dataset="me/other")
    add_results(folder, results(conditioning="none"))
    said = [(r.dataset_type, r.metric_value) for r in ModelCard.load(folder / "README.md").data.eval_results]
    assert len(said) == 1 + 23 + 23
    assert ("me/other", "none") in said and ("Slep/LAION-RVS-Fashion", "none") in said
    assert ("Slep/LAION-RVS-Fashion", "category") not in said


def test_only_results_on_lrvsf_carry_the_leaderboard_s_tag(folder, results):
    add_results(folder, results(), dataset="me/other")
    assert ModelCard.load(folder / "README.md").data.tags == ["fashion"]


def test_a_card_without_model_index_and_tags_gets_them(folder, results):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Bags\n")
    add_results(folder, results())
    data = ModelCard.load(folder / "README.md").data
    assert data.model_name == "bags" and data.tags == ["lrvsf-benchmark"] and len(data.eval_results) == 23


def test_a_size_that_the_test_set_cannot_fill_is_left_out(folder, results, tmp_path):
    short_of = results(n_distractors=600_000)
    short_of["galleries"]["1000000"]["marked"] = "drawn with repeats from only 600000 distractors"
    (tmp_path / "results.json").write_text(json.dumps(short_of))
    assert "Left out: 1,000,000 distractors" in leaderboard(folder, tmp_path)
    types = [one.metric_type for one in ModelCard.load(folder / "README.md").data.eval_results]
    assert "recall_at_1|500000" in types and "recall_at_1|1000000" not in types and len(entries(folder)) == 15


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"protocol": "paper"}, "protocol 'paper'.* with --protocol leaderboard"),
        ({"restrict_to_category": True}, "without --restrict_to_category"),
        ({"product_folds": None}, "not drawn as published .*--product_folds bootstrapped_indices.pt"),
        ({"folds": 19}, "19 folds of 1000 were not drawn as published"),
        ({"products_per_fold": 900}, "20 folds of 900 were not drawn as published"),
        (
            {"model": "runs/shoes", "model_weights": "0123"},
            "runs/shoes, whose weights are not .*bags's. Evaluate .*bags",
        ),
        ({"galleries": {"10000": {"marked": "drawn with repeats from only 9"}}}, "10000: drawn with repeats from only"),
    ],
)
def test_other_results_are_refused_and_nothing_is_written(folder, results, tmp_path, changes, says):
    before = (folder / "README.md").read_text()
    (tmp_path / "results.json").write_text(json.dumps(results(**changes)))
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        leaderboard(folder, tmp_path)
    assert (folder / "README.md").read_text() == before and not (folder / ".eval_results").exists()


def test_a_folder_without_a_card_is_refused(tmp_path, results):
    with pytest.raises(FileNotFoundError, match="README.md does not exist. Give the model folder"):
        add_results(tmp_path, results())


def test_results_that_name_no_weights_are_refused(folder):
    with pytest.raises(ValueError, match="an older version made them. Evaluate again"):
        add_results(folder, made_up_results())


def test_missing_draws_are_noted(folder, results):
    add_results(folder, results(missing_draws={"products": 7}))
    assert all("as published, 7 of their draws missing, computed" in one.notes for one in entries(folder))


def test_a_dataset_has_an_owner(folder, results):
    with pytest.raises(ValueError, match="'LRVSF' is no dataset's name on the Hub. Give OWNER/NAME"):
        add_results(folder, results(), dataset="LRVSF")


def test_short_numbers():
    assert [short(n) for n in (10_000, 500_000, 1_000_000, 2_000_015, 500)] == ["10K", "500K", "1M", "2000015", "500"]


def test_own_draws_of_an_own_test_set_are_marked(folder, results):
    add_results(folder, results(product_folds=None), dataset="me/shop")
    assert all("products drawn from the seed" in one.notes for one in entries(folder))
