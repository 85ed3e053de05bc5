"""What a condition changes: against matrices in NumPy, and a page that holds it all."""

import json

import numpy as np
import pytest
import torch
from made import as_flags

import evaluate_lrvsf
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.columns import join_categories
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.pages.conditions import WAYS, measure_conditions, write_conditions

ASKED = ["Bags", "Feet", "Neck"]  # of the model's ten, those that a product has


@pytest.fixture
def measured(make_test_set, tiny_model, make_store):
    """Nine products, the query of one of them bad, so that rows are not places, and 40 distractors, one bad."""
    with torch.no_grad():  # else an untrained model hardly heeds its condition
        tiny_model.condition_embedding.mul_(40)
    test_set = ProductTestSet(make_test_set(products=9, bad={"COMPLEX_IMG": {2: b""}, "jpg": {5: b"no"}}))
    store = make_store(Encoder(tiny_model, "category"), test_set, 4, 0.5)
    return store, measure_conditions(EmbeddedTestSet(store), batch_size=3)


@pytest.fixture
def scores(measured):
    """Condition -> (P, items) float64; the items' categories; the products' categories, as numbers."""
    store, _ = measured
    encoder, rows = store.encoder, [0, 1, 3, 4, 5, 6, 7, 8]
    targets = store.whole("target")
    items = torch.cat([targets, *(embeds for embeds, _ in store.blocks("distractor"))]).double()
    pixels = [encoder.pixels(next(store.test_set.products(row, row + 1)).query_image) for row in rows]
    asked = {name: encoder.embed(pixels, [name] * len(rows)) for name in ASKED} | {None: encoder.embed(pixels)}
    joined = join_categories(store.test_set)
    kinds = torch.cat([joined.products[rows], joined.distractors[store.rows("distractors")]])
    return {name: (queries.double() @ items.T).numpy() for name, queries in asked.items()}, kinds.numpy()


def test_equals_full_matrices(measured, scores):
    _, found = measured
    by_condition, kinds = scores
    own = kinds[:8]
    assert found["categories"] == ASKED and found["queries"] == [3, 3, 2] and found["n_distractors"] == 39
    places = np.arange(8)
    meant = np.stack([by_condition[ASKED[kind]][place] for place, kind in enumerate(own)])
    among = {WAYS[0]: meant, WAYS[1]: by_condition[None]}
    among[WAYS[2]] = np.where(kinds == own[:, None], by_condition[None], -np.inf)
    first = {}
    for way, table in among.items():
        ranks = 1 + (table > table[places, places][:, None]).sum(1)
        first[way] = ranks <= 1
        for k in (1, 5, 10):
            assert found["ways"][way]["recall"][str(k)] == pytest.approx((ranks <= k).mean())
        for number, name in enumerate(ASKED):
            share = (ranks[own == number] <= 1).mean()
            assert found["ways"][way]["recall_at_1_by_category"][name] == pytest.approx(share)
    for way in WAYS[1:]:
        gain = found["gain"][way]
        difference = first[WAYS[0]].mean() - first[way].mean()
        assert gain["difference"] == pytest.approx(difference) and gain["low"] <= difference <= gain["high"]

    for way in WAYS[:2]:
        top = np.argsort(-among[way], axis=1)[:, :10]
        naive = [[(kinds[top[own == row]] == column).mean() for column in range(3)] for row in range(3)]
        np.testing.assert_allclose(found["confusion"][way], naive)


def test_asked_for_another_category(measured, scores):
    _, found = measured
    by_condition, kinds = scores
    own, best = kinds[:8], np.stack([by_condition[name].argmax(1) for name in ASKED], axis=1)  # (P, C)
    answers = kinds[best] == np.arange(3)
    naive = [[answers[own == row, column].mean() for column in range(3)] for row in range(3)]
    np.testing.assert_allclose(found["swap"]["answers"], naive)
    pairs = [(place, column) for place in range(8) for column in range(3) if column != own[place]]
    asked_for = np.mean([answers[pair] for pair in pairs])
    same = np.mean([best[place, column] == best[place, own[place]] for place, column in pairs])
    assert found["swap"]["asked_for"] == pytest.approx(asked_for) and found["swap"]["same"] == pytest.approx(same)
    assert same < 1, "the condition changes something here"


def test_the_page_holds_the_figures_and_fetches_nothing(measured, tmp_path):
    found = json.loads(json.dumps(measured[1]))
    write_conditions(found, tmp_path / "new/page.html", "<model>")
    page = (tmp_path / "new/page.html").read_text()
    assert "&lt;model&gt;" in page and "<model>" not in page and "http" not in page and "src=" not in page
    for name in ASKED:
        assert page.count(f"<th>{name}</th>") == 4
    assert f"{100 * found['swap']['asked_for']:.1f} %" in page
    assert page.count('class="own"') == 3 * 3


def test_a_category_whose_product_cannot_be_read_has_no_figure(make_test_set, tiny_model, make_store, tmp_path):
    test_set = ProductTestSet(make_test_set(products=3, bad={"SIMPLE_IMG": {1: b""}}))  # the only one of Feet
    found = measure_conditions(EmbeddedTestSet(make_store(Encoder(tiny_model, "category"), test_set, 4, 0.5)))
    assert found["queries"] == [1, 0, 1] and found["ways"][WAYS[0]]["recall_at_1_by_category"]["Feet"] is None
    write_conditions(json.loads(json.dumps(found, allow_nan=False)), tmp_path / "page.html", "")
    assert "<td>-</td>" in (tmp_path / "page.html").read_text()


def test_a_k_that_reaches_the_gallery_has_no_figure(make_test_set, tiny_model, make_store):
    """Three products and twelve distractors: of one category there are four."""
    test_set = ProductTestSet(make_test_set(products=3, distractors=12))
    found = measure_conditions(EmbeddedTestSet(make_store(Encoder(tiny_model, "category"), test_set, 4)))
    assert max(found["items"]) == 4
    given = {way: [k for k, recall in found["ways"][way]["recall"].items() if recall is not None] for way in WAYS}
    assert given == {WAYS[0]: ["1", "5", "10"], WAYS[1]: ["1", "5", "10"], WAYS[2]: ["1"]}


def test_a_model_without_conditions_is_refused(make_test_set, tiny_model, make_store):
    with pytest.raises(ValueError, match="needs a model that is asked by category or text; .*conditioning='none'"):
        measure_conditions(EmbeddedTestSet(make_store(Encoder(tiny_model, "none"), ProductTestSet(make_test_set()))))


def test_by_flag(make_test_set, tiny_model, tmp_path, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": make_test_set(), "output_dir": tmp_path / "out"}
    evaluate_lrvsf.main(as_flags(**places, gallery_sizes=10, folds=2, conditioning_page=1))
    assert "conditioning.html" in capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["conditions"]["ways"]) == list(WAYS)
