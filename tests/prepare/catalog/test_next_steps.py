"""The recipe that a catalog gets, and what its owner is told."""

import pytest
import yaml

from lrvsf.flags import FlagParser
from lrvsf.prepare.catalog.next_steps import batch_and_steps, few_queries, next_steps, recipe_of
from lrvsf.recipe import parse_classes, read_arguments
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments


def report(products=760, queries=95, categories=("Bags",), **parts):
    sets = {
        name: {"queries": queries, "distractors": 2 * queries} for name in ("validation", "test") if queries is not None
    }
    counts = dict.fromkeys(("train", "validation", "test"), 9)
    return {
        "train": {"products": products},
        "products": {"complete": products + 2 * (queries or 0)},
        "categories": {name: counts for name in categories},
        "settings": {"validation": 0.1, "test": 0.1},
        **sets,
        **parts,
    }


@pytest.mark.parametrize(
    "products, expected",
    [(2, (2, 300)), (8, (2, 300)), (100, (25, 300)), (1000, (250, 300)), (1024, (256, 300)), (10_000, (256, 1170))],
)
def test_batch_and_steps_fit_the_number_of_products(products, expected):
    """A quarter of the products at most; 30 epochs, as published, and 300 steps at least."""
    assert batch_and_steps(products) == expected


def test_the_recipe_is_one_that_training_takes(tmp_path):
    """Names that YAML would take for something else come back as they were."""
    names = ["No", "010", "1e3", "null", 'Kids\' & "more": #1', "Möbel", "a, b", "[x]"]
    path = tmp_path / "train.yaml"
    path.write_text(recipe_of(tmp_path / "no", report(categories=names)), "utf-8")
    assert yaml.safe_load(path.read_text())["categories"] == names

    classes = (ModelArguments, CondViTTrainingArguments)
    parser = FlagParser("", "", *((one.__module__, one.__name__) for one in classes))
    flags = read_arguments(parser, [str(path), "--use_cpu", "True", "--bf16", "False"])
    args, training = parse_classes(classes, *flags)
    assert args.categories == names and args.data == str(tmp_path / "no") and args.condition == "category"
    assert args.model == "openai/clip-vit-base-patch32" and training.output_dir == "runs/no"
    assert (training.per_device_train_batch_size, training.max_steps, training.phase1_steps) == (190, 300, 30)
    assert args.condition_init == "clip"
    assert training.learning_rate == 1e-5 and training.load_best_model_at_end and training.eval_on_start
    assert (training.eval_steps, training.save_steps, training.metric_for_best_model) == (30, 30, "R@1")
    assert "the best by R@1; of 95 queries, partly by luck" in path.read_text()
    assert "luck" not in recipe_of(tmp_path, report(queries=200))


def test_what_is_not_there_is_not_in_the_recipe(tmp_path):
    plain = yaml.safe_load(recipe_of(tmp_path, report(queries=None, categories=())))
    assert plain["condition"] == "none" and "categories" not in plain and "license" not in plain
    assert plain["eval_strategy"] == "no" and "load_best_model_at_end" not in plain
    lonely = report(validation={"queries": 9, "distractors": 0})
    assert yaml.safe_load(recipe_of(tmp_path, lonely))["eval_strategy"] == "no"


def test_a_recipe_that_was_changed_is_kept(tmp_path):
    next_steps(tmp_path, report(queries=200))
    path = tmp_path / "train.yaml"
    assert "note" not in next_steps(tmp_path, report(queries=200))
    path.write_text(path.read_text() + "weight_decay: 0\n")
    assert "train.yaml is kept as you have it" in next_steps(tmp_path, report(queries=200))["note"]
    assert path.read_text().endswith("weight_decay: 0\n")


def test_few_queries_say_how_little_they_tell():
    """1.96 x sqrt(2 x 0.5 x 0.5 / n): 46 points for 9 queries, 10 for 200."""
    assert few_queries(9, 95, 0.1) == (
        "test has 9 queries, so a difference of less than 46 points of R@1 means nothing; "
        "take --test 0.3 and another OUT, or list more products"
    )
    assert few_queries(99, 990, 0.1).endswith(
        "14 points of R@1 means nothing; take --test 0.21 and another OUT, or list more products"
    )
    assert few_queries(30, 100, 0.3).endswith("means nothing; list more products")


def test_notes_name_what_to_know_before_going_on(tmp_path):
    (tmp_path / "b").mkdir()
    said = next_steps(tmp_path, report(products=9000, queries=1000))
    assert "note" not in said and set(said) == {"to train", "to evaluate"}
    shared = {"products": 60, "groups": 1, "in the largest group": 60, "such as": "a, b"}
    counts = {"Bags": {"train": 9, "validation": 0, "test": 0}, "Neck": {"train": 9, "validation": 1, "test": 1}}
    found = report(queries=300, categories=(), **{"products that share a picture": shared}) | {"categories": counts}
    note = next_steps(tmp_path / "b", found | {"test": {"queries": 300, "distractors": 0}})["note"]
    assert "validation has none of Bags; test has none of Bags; test has no distractors" in note
    assert "60 products hang together" in note
    both = report(products=9000, queries=1000, categories=("rug", "Rugs", "watch", "Watches", "glass", "Lower Body"))
    (tmp_path / "c").mkdir()
    note = next_steps(tmp_path / "c", both)["note"]
    assert note.startswith("'rug' next to 'Rugs', 'watch' next to 'Watches': two categories")
