"""A user's own products: to shards and test sets, to a trained and an evaluated model."""

import csv
import json
import shlex

import pytest
import yaml
from made import as_flags, jpeg, tiny_clip, write_catalog, write_csv, write_file, write_shop
from shops import distractors_of, place, queries_of, same_parquet, shards_of
from waiting import killed_at

import evaluate_lrvsf
import lrvsf.prepare.catalog.write_catalog as step
import train_hf
from lrvsf.data.products import ProductShards
from lrvsf.data.testset import ProductTestSet
from lrvsf.prepare.catalog.splits import Shares
from lrvsf.prepare.catalog.write_catalog import catalog

SETS = ("validation", "test")
PARTS = ("train", *SETS)


@pytest.fixture
def shop(tmp_path):
    return write_shop(tmp_path / "shop")


def test_every_product_is_in_its_place_once(shop, tmp_path):
    report = catalog(shop, tmp_path / "out", validation=0.2, test=0.3, processes=1)
    out = tmp_path / "out"
    parts = [shards_of(out), queries_of(out, "validation"), queries_of(out, "test")]
    assert sorted(name for part in parts for name in part) == sorted(f"p{i}" for i in range(40))

    # Of the 20 products of each category the first 6 by place are in test, the next 4 in validation.
    lines = [sorted((f"p{i}" for i in range(first, 40, 2)), key=place) for first in (0, 1)]
    assert set(parts[2]) == {name for line in lines for name in line[:6]}
    assert set(parts[1]) == {name for line in lines for name in line[6:10]}

    for name, images in parts[0].items():
        number = int(name[1:])
        category = "Hand bags" if number % 2 else "Men's shoes"
        assert [(i["type"], i["category"], i["captions"], i["image"]["bytes"]) for i in images] == [
            ("SIMPLE", category, [f"the {name}"], jpeg(2 * number)),
            ("COMPLEX", None, [], jpeg(2 * number + 1)),
        ]
    for name, row in (parts[1] | parts[2]).items():
        number = int(name[1:])
        assert (row["SIMPLE_IMG"], row["COMPLEX_IMG"]) == (jpeg(2 * number), jpeg(2 * number + 1))
        assert (row["CATEGORY"], row["blip2_caption1"]) == (
            "Hand bags" if number % 2 else "Men's shoes",
            f"the {name}",
        )

    # The ten products without scene are distractors of one set or the other, as their place says: 3 parts to 2.
    assert report["products"] == {"usable": 50, "complete": 40, "without scene": 10}
    lonely = {name: {f"l{i}" for i in range(10) if (place(f"l{i}") < 0.6) == (name == "test")} for name in SETS}
    for name, other in (("validation", parts[2]), ("test", parts[1])):
        expected = set(lonely[name])
        if len(expected) < report[name]["queries"]:
            expected |= set(other)
            assert report[name]["of them products of the other test set"] == len(other)
        found = distractors_of(out, name)
        assert {row["PRODUCT_ID"] for row in found} == expected and len(found) == report[name]["distractors"]
        assert {row["TYPE"] for row in found} == {"SIMPLE"}
    counts = report["categories"]["Hand bags"]
    assert sum(counts.values()) == 20 and list(report["categories"]) == ["Hand bags", "Men's shoes"]
    assert json.loads((out / "catalog.json").read_text()) == report
    assert {path.name for path in out.iterdir()} == {*PARTS, "train.yaml", "catalog.json"}


def test_enough_distractors_of_its_own_need_no_others(tmp_path):
    rows = [(f"l{i}", f"{i}.jpg", "product", "Bags", "") for i in range(60)]
    rows += [(f"p{i // 2}", f"{60 + i}.jpg", ("product", "scene")[i % 2], "Bags", "") for i in range(60)]
    report = catalog(write_catalog(tmp_path / "t.csv", rows), tmp_path / "out", processes=1)
    for name in SETS:
        assert report[name]["distractors"] >= report[name]["queries"]
        assert "of them products of the other test set" not in report[name]
    assert sum(report[name]["distractors"] for name in SETS) == 60


def test_products_added_later_move_no_old_one(shop, tmp_path):
    catalog(shop, tmp_path / "before", processes=1)
    with shop.open("a") as file:
        for i in range(30):
            write_file(shop.parent / f"new{i}.jpg", jpeg(500 + 2 * i))
            write_file(shop.parent / f"new{i}s.jpg", jpeg(501 + 2 * i))
            file.write(f"new{i},new{i}.jpg,product,New,\nnew{i},new{i}s.jpg,scene,,\n")
    catalog(shop, tmp_path / "after", processes=1)
    for name in SETS:
        before, after = (queries_of(tmp_path / when, name) for when in ("before", "after"))
        assert set(before) == {product for product in after if not product.startswith("new")}
    catalog(shop, tmp_path / "other", seed=1, processes=1)
    assert set(queries_of(tmp_path / "other", "test")) != set(queries_of(tmp_path / "after", "test"))


def test_shares_are_rounded_and_a_few_products_are_enough_for_one_of_each():
    shares = Shares(validation=0.1, test=0.3, seed=5)
    expected = {0: (0, 0), 1: (0, 0), 2: (0, 1), 4: (0, 1), 5: (1, 2), 15: (2, 5), 10_000: (1000, 3000)}
    for products, (validation, test) in expected.items():
        assert shares.counts(products) == {"validation": validation, "test": test}
    assert Shares(0.1, 0.1, seed=0).counts(4) == {"validation": 0, "test": 0}
    assert Shares(0.1, 0.1, seed=0).counts(5) == {"validation": 1, "test": 1}
    assert Shares(0.0, 0.1, seed=0).counts(5) == {"validation": 0, "test": 1}
    assert sum(Shares(0.5, 0.45, seed=0).counts(5).values()) == 4, "one is left to train on"


def test_it_trains_and_evaluates_by_the_commands_it_prints(shop, tmp_path, monkeypatch):
    report = catalog(shop, tmp_path / "my data [spring]*", validation=0.2, test=0.3, processes=1)
    tiny_clip().save_pretrained(tmp_path / "clip")
    command = shlex.split(report["to train"])
    assert command == ["accelerate", "launch", "train_hf.py", str(tmp_path / "my data [spring]*/train.yaml")]
    flags = as_flags(
        model=tmp_path / "clip", max_steps=3, phase1_steps=1, use_cpu=True, bf16=False, dataloader_num_workers=0,
        disable_tqdm=True, report_to="none", eval_steps=3, save_steps=3,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)  # the commands write to runs/
    train_hf.main([*command[3:], *flags])
    config = json.loads((tmp_path / "runs/my data [spring]*/config.json").read_text())
    assert config["categories"] == ["Hand bags", "Men's shoes"]
    command = shlex.split(report["to evaluate"])
    assert command[:3] == ["accelerate", "launch", "evaluate_lrvsf.py"]
    evaluate_lrvsf.main([*command[3:], "--folds", "2"])
    results = json.loads((tmp_path / "runs/my data [spring]*/results.json").read_text())
    assert results["n_products"] == report["test"]["queries"] and results["skipped"]["products"] == {}
    assert list(results["galleries"]) == [str(report["test"]["distractors"])]


def test_without_categories_only_the_unconditioned_model_is_offered(shop, tmp_path):
    with shop.open() as file:
        rows = [(row["product_id"], row["image"], row["role"], row["text"]) for row in csv.DictReader(file)]
    table = write_csv(shop.parent / "texts.csv", rows, ("product_id", "image", "role", "text"))
    report = catalog(table, tmp_path / "out", processes=1)
    recipe = yaml.safe_load((tmp_path / "out/train.yaml").read_text())
    assert recipe["condition"] == "none" and "categories" not in recipe
    assert "without a condition" in report["note"] and report["categories"] == {}
    assert ProductShards.scan(str(tmp_path / "out/train"), None).usable == report["train"]["products"]
    assert set(ProductTestSet(tmp_path / "out/test").categories()) == {"no category"}


def test_a_distractor_is_never_the_answer(tmp_path):
    """Eight products without scene show the very image of a product in the test set, eight another image."""
    names = [f"p{i}" for i in range(8)]
    target = min(names, key=place)  # which is in the half that is tested
    rows = []
    for name in names:
        rows += [(name, f"{name}.jpg", "product", "Bags", ""), (name, f"{name}s.jpg", "scene", "", "")]
    rows += [(f"l{i}", f"{target}.jpg", "product", "Bags", "") for i in range(8)]
    rows += [(f"m{i}", "other.jpg", "product", "Bags", "") for i in range(8)]
    report = catalog(write_catalog(tmp_path / "t.csv", rows), tmp_path / "out", validation=0, test=0.5, processes=1)
    assert [row["PRODUCT_ID"][0] for row in distractors_of(tmp_path / "out", "test")] == ["m"] * 8
    assert report["images, not used"] == {"distractor that shows the product of a query": 8}


def test_a_second_run_changes_nothing_and_another_input_is_refused(shop, tmp_path):
    report = catalog(shop, tmp_path / "out", processes=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert catalog(shop, tmp_path / "out", processes=1) == report
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    for change in ({"seed": 1}, {"image_size": 0}, {"test": 0.2}):
        with pytest.raises(ValueError, match="made from other input"):
            catalog(shop, tmp_path / "out", processes=1, **change)
    write_file(shop.parent / "images/p0.jpg", jpeg(999) + b"!")
    with pytest.raises(ValueError, match="made from other input"):
        catalog(shop, tmp_path / "out", processes=1)
    write_file(tmp_path / "foreign/test/notes.txt", b"x")
    with pytest.raises(ValueError, match="foreign/test holds something"):
        catalog(shop, tmp_path / "foreign", processes=1)


@pytest.mark.parametrize(
    "function, call",
    [("fetch", 69), ("query_row", 1), ("query_row", 10), ("distractor_row", 2), ("product_row", 2)],
)
def test_a_killed_run_ends_with_the_same_result(shop, tmp_path, function, call):
    """Killed while reading, in the validation set, in the test set, in distractors, and in shards."""
    whole = catalog(shop, tmp_path / "whole", validation=0.2, test=0.3, processes=1)
    assert whole["validation"]["queries"] < 10 < whole["validation"]["queries"] + whole["test"]["queries"]
    with killed_at(step, function, call):
        catalog(shop, tmp_path / "out", validation=0.2, test=0.3, processes=1)
    assert (tmp_path / "out/validation").exists() == ((function, call) in [("query_row", 10), ("product_row", 2)])
    assert not (tmp_path / "out/train").exists() and not (tmp_path / "out/catalog.json").exists()
    write_file(tmp_path / "out/images.writing", b"left by a run that nothing could catch")
    report = catalog(shop, tmp_path / "out", validation=0.2, test=0.3, processes=1)
    assert same_parquet(tmp_path / "whole", tmp_path / "out")
    assert {name: report[name] for name in PARTS} == {name: whole[name] for name in PARTS}
    assert not list((tmp_path / "out").glob("*.writing"))


def test_a_category_that_looks_like_a_flag_is_refused(shop, tmp_path):
    shop.write_text(shop.read_text().replace("Hand bags", "-other-"))
    with pytest.raises(ValueError, match="category '-other-' begins with a dash"):
        catalog(shop, tmp_path / "out", processes=1)
