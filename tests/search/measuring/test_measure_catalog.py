"""measure: what it counts is what evaluate_lrvsf.py counts; what is missing, unreadable or not asked is said."""

import json
import shutil

import numpy as np
import pytest
import torch
from made import edit_rows, rows_of, squares, tiny_condvit, write_csv, write_file, write_test_set

from lrvsf.data.images import TooMuchDamage
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.store import renormalised
from lrvsf.evaluation.embedded import EmbeddedTestSet, StoredTestSet
from lrvsf.evaluation.pages.conditions import hits_of
from lrvsf.evaluation.results import FIRST_KS
from lrvsf.search import index
from lrvsf.search.catalog import Catalog
from lrvsf.search.commands import KS
from lrvsf.search.measuring import latency
from lrvsf.search.measuring.asked_queries import CONDITIONED, products_named
from lrvsf.search.measuring.measure_catalog import WAYS
from lrvsf.search.measuring.measured_table import as_tables
from lrvsf.search.own_model import load_encoder
from lrvsf.search.vectors import Selection
from lrvsf.search.verdicts.standing import Scale


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(latency, "LEAST_ROUNDS", 2)


@pytest.fixture
def indexed(tmp_path, telling_model, step, capsys):
    """`indexed(test_set, ...)` makes a catalog of a test set, and gives its folder; further words go to `index`."""

    def make(images, *words):
        step("index", telling_model, images, tmp_path / "catalog", *words)
        capsys.readouterr()
        return tmp_path / "catalog"

    return make


@pytest.fixture
def measured(step, capsys):
    """`measured(catalog, test_set, ...)`: what `measure --json` prints."""

    def measure(catalog, test_set, *words):
        step("measure", catalog, "--testset", test_set, "--json", *words)
        return json.loads(capsys.readouterr().out)

    return measure


def counted_by_evaluation(model, test_set, folder):
    """{way: {K: R@K}} of the gallery of all targets and distractors, as evaluate_lrvsf.py counts ranks."""
    encoder = load_encoder(str(model), None, "cpu", conditioned=True)
    recall = {}
    for way, conditioning, filtered in (
        ("condition", "category", False),
        ("both", "category", True),
        ("neither", "none", False),
        ("filter", "none", True),
    ):
        asking = Encoder(encoder.model, conditioning)
        data = EmbeddedTestSet(StoredTestSet(folder / conditioning, asking, ProductTestSet(test_set)))
        data.fill()
        hits = hits_of(data, data.queries, filtered).mean(0).tolist()
        recall[way] = dict(zip(map(str, FIRST_KS), hits, strict=True))
    return recall


def test_recall_is_what_the_evaluation_counts(tmp_path, telling_model, indexed, measured):
    """Ties included: of two targets there are copies among the distractors, one of them three times. Some scenes are
    their targets' pictures, so that there is something to find."""
    copies = {number: squares(target, quality=95) for number, target in ((0, 1), (7, 1), (9, 1), (21, 4))}
    scenes = {number: squares(number, quality=95) for number in range(24) if number % 3}
    test_set = write_test_set(tmp_path / "test", 24, 36, {"jpg": copies, "COMPLEX_IMG": scenes})
    everything = measured(indexed(test_set), test_set)
    found = everything["target_recall"]
    assert everything["no_close_match"] is None and "not calibrated" in everything["not_measured"][-1]
    expected = counted_by_evaluation(telling_model, test_set, tmp_path)
    assert list(found) == list(WAYS) and KS == FIRST_KS
    for way, by_k in expected.items():
        assert found[way] == pytest.approx(by_k, abs=1e-12), way
    assert found["neither"]["1"] == 14 / 24, (
        "16 scenes are their targets' pictures, and of two of these there are copies"
    )
    assert len({json.dumps(by_k) for by_k in found.values()}) > 1


def test_targets_that_the_catalog_lacks_are_counted_and_left_out(tmp_path, indexed, measured, step, capsys):
    test_set = write_test_set(tmp_path / "test", 12, 20, same=True)
    catalog = indexed(test_set)
    step("remove", catalog, "p0", "p3", "p4", "p7", "p11")
    capsys.readouterr()
    found = measured(catalog, test_set)
    assert (found["queries"]["with_target_in_catalog"], found["queries"]["without_target_in_catalog"]) == (7, 5)
    assert found["target_recall"]["neither"]["1"] == 1, "a query is its target's picture, and all that are there count"


def test_rows_without_product_id_are_found_by_their_numbers(tmp_path, indexed, measured):
    test_set = write_test_set(tmp_path / "test", 8, 20, same=True)
    edit_rows(test_set / "products.parquet", lambda rows: [row.update(PRODUCT_ID=None) for row in rows[::2]])
    found = measured(indexed(test_set), test_set)
    assert found["queries"]["with_target_in_catalog"] == 8 and found["target_recall"]["neither"]["1"] == 1


def test_a_catalog_of_something_else_has_no_recall_of_targets(tmp_path, shop, step, capsys):
    """Nor has it a column of categories; what it has, times, is told."""
    test_set = write_test_set(tmp_path / "test", 6, 8)
    step("measure", shop / "catalog", "--testset", test_set)
    told = " ".join(capsys.readouterr().out.split())
    assert "0 are in the catalog, 6 are not" in told and "No R@K" in told and "end to end" in told
    assert "no column `category` of texts, so nothing is filtered" in told and "filtered search" not in told


def test_a_column_of_numbers_is_no_column_of_categories(tmp_path, indexed, measured):
    rows = [(f"p{row}", f"{row}.jpg", row) for row in range(6)]
    for row in range(6):
        write_file(tmp_path / f"{row}.jpg", squares(row))
    catalog = indexed(write_csv(tmp_path / "shop.csv", rows, ("id", "image", "category")))
    found = measured(catalog, write_test_set(tmp_path / "test", 6, 8))
    assert list(found["target_recall"]) == ["condition", "neither"]


def test_photos_of_one_product_are_one_item(tmp_path, indexed, measured):
    """Each product of the shop has two photos; ids of photos and of products both name it."""
    test_set = write_test_set(tmp_path / "test", 6, 8, same=True)
    rows = [(f"p{row // 2}", f"photo {row}", f"{row}.jpg", "Bags") for row in range(12)]
    for row in range(12):
        write_file(tmp_path / f"{row}.jpg", squares(row // 2 if row % 2 else 500 + row, quality=95))
    table = write_csv(tmp_path / "shop.csv", rows, ("product_id", "id", "image", "Category"))
    catalog = indexed(table)
    found = measured(catalog, test_set)
    assert found["target_recall"]["neither"] == {"1": 1, "5": 1, "10": 1}
    assert products_named(Catalog.open(catalog), ["photo 5", "p5", "photo 12"]) == ["p2", "p5", None]
    assert found["target_recall"]["filter"]["1"] == pytest.approx(1 / 3), "all are called Bags, and a third is asked so"
    assert found["not_measured"][0].endswith("a filter finds none: Feet 2, Neck 2.")
    assert found["no_close_match"] is None


def test_what_an_approximate_index_loses_is_told_way_by_way(tmp_path, indexed, measured, monkeypatch):
    """An index that has forgotten every third row: its recall is the share of the others among the exact hits."""
    search = index.VectorIndex.search

    def forgetful(self, queries, k, allowed=None):
        left = np.arange(len(self.vectors)) % 3 > 0
        if self.factory != index.EXACT:
            allowed = Selection(left if allowed is None else left & allowed.mask)
        return search(self, queries, k, allowed)

    monkeypatch.setattr(index.VectorIndex, "search", forgetful)
    test_set = write_test_set(tmp_path / "test", 12, 60)
    folder = indexed(test_set, "--factory", "HNSW4")
    found = measured(folder, test_set, "--k", 1, "--k", 4)
    catalog, rows = Catalog.open(folder), rows_of(test_set / "products.parquet")
    every = catalog.vectors.take(np.arange(72)).astype(np.float64)
    categories = np.array(catalog.metadata["category"].to_pylist())
    pixels = [catalog.encoder.pixels(row["COMPLEX_IMG"]) for row in rows]
    for way, (kind, filtered) in WAYS.items():
        # All at once, as `measure` embeds them: another batch would move last bits, which tell items apart here.
        asked = catalog.embed_pixels(pixels, [row["CATEGORY"] if kind == CONDITIONED else None for row in rows])
        scores = renormalised(torch.from_numpy(asked).half()).double().numpy() @ every.T
        if filtered:
            scores[categories != np.array([[row["CATEGORY"]] for row in rows])] = -1
        best = np.argsort(-scores, axis=1)
        for k in (1, 4):
            share = np.mean(best[:, :k] % 3 > 0)
            assert found["index_recall"][way][str(k)] == pytest.approx(share) and share < 1, (way, k)


def test_queries_that_cannot_be_read_are_skipped_and_named(tmp_path, indexed, measured, step, capsys, caplog):
    bad = {"COMPLEX_IMG": {2: b"<html>", 5: b"", 7: b"<html>"}}
    test_set = write_test_set(tmp_path / "test", 12, 20, bad)
    catalog = indexed(test_set)
    queries = measured(catalog, test_set)["queries"]
    assert queries["unreadable"] == {
        "not an image": {"count": 2, "such as": "row 2, row 7"},
        "empty": {"count": 1, "such as": "row 5"},
    }
    assert queries["asked"] == 9 and "Skipped row 2 of the products (not an image" in caplog.text
    step("measure", catalog, "--testset", test_set)
    assert "unreadable not an image 2 (row 2, row 7) empty 1 (row 5)" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(TooMuchDamage, match="3 in a row"):
        many = write_test_set(tmp_path / "many", 12, 20, {"COMPLEX_IMG": dict.fromkeys(range(3, 9), b"<html>")})
        step("measure", catalog, "--testset", many, "--max_bad_in_a_row", 3)
    with pytest.raises(ValueError, match="no query that can be read: 4 empty"):
        step(
            "measure",
            catalog,
            "--testset",
            write_test_set(tmp_path / "x", 4, 8, {"COMPLEX_IMG": dict.fromkeys(range(4), b"")}),
        )


def test_a_sample_is_drawn_by_its_seed(tmp_path, indexed, measured):
    test_set = write_test_set(tmp_path / "test", 20, 8)
    catalog = indexed(test_set)
    five = [measured(catalog, test_set, "--queries", 5, "--seed", seed) for seed in (1, 1, 2)]
    assert [one["queries"]["asked"] for one in five] == [5, 5, 5] and five[0]["queries"]["in_test_set"] == 20
    assert five[0]["target_recall"] == five[1]["target_recall"]


def test_other_categories_are_refused(tmp_path, indexed, step):
    test_set = write_test_set(tmp_path / "test", 6, 8)
    catalog = indexed(test_set)
    edit_rows(test_set / "products.parquet", lambda rows: rows[1].update(CATEGORY="bags"))
    with pytest.raises(ValueError, match="category 'bags' is not one of the model's: Bags, .* Did you mean 'Bags'"):
        step("measure", catalog, "--testset", test_set)


def test_a_model_without_conditions_is_asked_without(tmp_path, measured, step, capsys):
    tiny_condvit(condition="none").save_pretrained(tmp_path / "plain")
    test_set = write_test_set(tmp_path / "test", 6, 8, same=True)
    edit_rows(test_set / "products.parquet", lambda rows: rows[0].update(CATEGORY="Men's shoes"))
    step("index", tmp_path / "plain", test_set, tmp_path / "catalog")
    capsys.readouterr()
    found = measured(tmp_path / "catalog", test_set)
    assert list(found["target_recall"]) == ["filter", "neither"] and found["target_recall"]["filter"]["5"] == 1
    assert found["not_measured"] == ["The model knows no conditions, so nothing is asked under one."]
    edit_rows(test_set / "products.parquet", lambda rows: rows[1].update(CATEGORY=None))
    found = measured(tmp_path / "catalog", test_set)
    assert list(found["target_recall"]) == ["neither"]
    assert found["not_measured"][1] == "1 queries have no category, so nothing is filtered by it."


def test_the_verdict_is_that_of_searches_without_the_target(tmp_path, indexed, measured, step, capsys, monkeypatch):
    """Naively, each query's product is filtered out by its id. The floor is the median score of what is then found."""
    test_set = write_test_set(tmp_path / "test", 24, 36)
    catalog = Catalog.open(indexed(test_set))
    found = {"with": [], "without": []}
    for row in rows_of(test_set / "products.parquet"):
        for side, where in (("with", None), ("without", f"id <> '{row['PRODUCT_ID']}'")):
            found[side].append(catalog.search(row["COMPLEX_IMG"], row["CATEGORY"], 1, where)[0].score)
    floor = float(np.median(found["without"]))
    monkeypatch.setattr(Catalog, "scale", lambda self, condition: condition and Scale(np.array([floor]), floor))
    said = {side: sum(score < floor for score in scores) for side, scores in found.items()}
    everything = measured(tmp_path / "catalog", test_set)
    told = everything["no_close_match"]["condition"]
    assert (told["said_with_target"], told["said_without_target"]) == (said["with"], said["without"])
    assert told["queries"] == 24 and said["without"] == 12
    assert set(everything["no_close_match"]) == {"condition", "both"} and not everything["not_measured"]
    step("measure", tmp_path / "catalog", "--testset", test_set)
    assert '"No close match" in %, of 24 queries' in capsys.readouterr().out


def test_json_has_all_numbers_and_the_tables_fit(tmp_path, telling_model, measured, step, capsys, monkeypatch):
    shutil.copytree(telling_model, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    write_test_set(tmp_path / "test", 6, 60)
    step("index", "tiny", "test", "catalog", "--factory", "HNSW4")
    capsys.readouterr()
    found = measured("catalog", "test")
    shape = {"catalog", "queries", "machine", "not_measured", "target_recall", "index_recall", "latency_ms"}
    assert set(found) == shape | {"no_close_match"} and found["catalog"]["index"] == "HNSW4"
    assert found["machine"]["cores"] >= 1 and found["machine"]["gpu"] is None
    times = found["latency_ms"]
    assert times["k"] == 10 and set(times) == {"k", "1", "32"} and times["1"]["rounds"] == 2
    for stage in latency.STAGES:
        assert 0 < times["32"][stage]["p50"] <= times["32"][stage]["p95"]
    assert times["32"]["end to end"]["p95"] >= times["32"]["model"]["p50"]
    words = [word for k in (1, 2, 3, 5, 10, 100, 1000) for word in ("--k", k)]
    step("measure", "catalog", "--testset", "test", *words)
    lines = capsys.readouterr().out.splitlines()
    lines += as_tables(_of_a_large_catalog(found)).splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    assert [line.split()[0] for line in lines if line and line.split()[0] in WAYS] == 4 * list(WAYS) + ["both"]


def _of_a_large_catalog(measured):
    """The same with numbers as wide as they come."""
    machine = {"cores": 128, "threads": 128, "gpu": "NVIDIA H100 80GB HBM3"}
    counts = dict.fromkeys(("asked", "in_test_set", "with_target_in_catalog", "without_target_in_catalog"), 1_000_000)
    verdict = {"queries": 1_000_000, "said_with_target": 0, "precision": None, "recall": 1.0}
    times = measured["latency_ms"] | {"32": {name: {"p50": 54321.0, "p95": 54321.0} for name in latency.STAGES}}
    times["32"]["rounds"] = 100
    return measured | {
        "machine": machine,
        "queries": measured["queries"] | counts,
        "no_close_match": {"both": verdict},
        "latency_ms": times,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--k", 0), "k=0 must be 1 or more"),
        ([word for k in range(1, 9) for word in ("--k", k)], "at most 7 different ones"),
        (("--queries", 0), "queries=0 must be 1 or more"),
        (("--testset", "nowhere"), "products.parquet does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(shop, step, tmp_path, words, message):
    given = () if "--testset" in words else ("--testset", write_test_set(tmp_path / "test", 3, 4))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        step("measure", shop / "catalog", *given, *words)
