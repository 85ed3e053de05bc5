"""The paper's protocol on a small test set: every gallery against one made by hand, and what is missing is said."""

import pickle

import numpy as np
import pytest
import torch
from paper_curves import paper_curves

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation import paper
from lrvsf.evaluation.columns import join_categories
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.results import KS, results_table
from lrvsf.evaluation.stored_folds import convert


@pytest.fixture
def small_sizes(monkeypatch):
    monkeypatch.setattr(paper, "SIZES", (0, 5, 20, 100))


@pytest.fixture
def stored_folds(tmp_path):
    """Two folds; d1 is a row that cannot be read, and p99 and d99 are in no test set."""
    draws = {
        "test_subsets": [np.array(["p3", "p3", "p0", "p99"]), np.array(["p7", "p5", "p4", "p1"])],
        "dist_3_subsets": [np.array(["d2", "d2", "d99"]), np.array(["d1", "d30", "d39"])],
    }
    (tmp_path / "ids.pkl").write_bytes(pickle.dumps(draws))
    convert(tmp_path / "ids.pkl", tmp_path / "folds.safetensors")
    return tmp_path / "folds.safetensors"


class ByHand:
    """The published definition, of rows of what could be read."""

    def __init__(self, store):
        joined = join_categories(store.test_set)
        self.products = store.whole("query"), store.whole("target"), joined.products[store.rows("products")]
        ((distractors, _),) = store.blocks("distractor")
        self.distractors = distractors, joined.distractors[store.rows("distractors")]

    def curves(self, products=slice(None), distractors=slice(None), weights=None):
        queries, targets, kinds = (of_all[products] for of_all in self.products)
        items, others = (of_all[distractors] for of_all in self.distractors)
        weights = None if weights is None else torch.tensor(weights)
        return paper_curves(queries, targets, items, kinds, others, weights, max_k=50)


def at_ks(curve):
    return {str(k): pytest.approx(curve[k - 1].item(), abs=1e-12) for k in KS}


def means(gallery, key):
    return {k: value["mean"] for k, value in gallery[key].items()}


@pytest.mark.parametrize("conditioning", ["category", "none"])
def test_full_test_set(make_test_set, tiny_model, make_store, small_sizes, conditioning):
    test_set = ProductTestSet(make_test_set(bad={"jpg": {1: b""}}))
    store = make_store(Encoder(tiny_model, conditioning), test_set, 8, 0.5)
    results = evaluate_paper(EmbeddedTestSet(store))
    assert list(results["galleries"]) == ["0", "5", "20", "39"] and results["sizes_not_reached"] == [100]
    by_hand = ByHand(store)
    for size, gallery in results["galleries"].items():
        curves = by_hand.curves(distractors=slice(int(size)))
        assert means(gallery, "recall") == at_ks(curves["unfilt_r@k"])
        assert means(gallery, "recall_in_category") == at_ks(curves["filt_r@k"])
        assert means(gallery, "precision") == at_ks(curves["unfilt_acc@k"])
        assert gallery["category_accuracy"] == gallery["precision"]["1"]
        assert ("marked" in gallery) == (size == "39")
    assert results["protocol"] == "paper" and results["conditioning"] == conditioning and "stored_folds" not in results


def test_stored_folds(make_test_set, tiny_model, make_store, small_sizes, stored_folds):
    test_set = ProductTestSet(make_test_set(bad={"jpg": {1: b""}, "COMPLEX_IMG": {7: b""}}))
    store = make_store(Encoder(tiny_model, "category"), test_set, 8, 0.5)
    results = evaluate_paper(EmbeddedTestSet(store), str(stored_folds), bf16_ranks=True)
    stored = results["stored_folds"]
    assert stored["missing_draws"] == {"products": 2} and stored["products_per_fold"] == 4
    gallery = stored["galleries"]["3"]
    assert gallery["missing_draws"] == 2 and gallery["marked"] == "33.33% of the draws of distractors are missing"
    assert "marked" not in stored["galleries"]["0"]
    # rows of what could be read: product 7 and distractor 1 are left out, so later ones move up by one
    folds = [([3, 0], [1, 1], [2, 1]), ([5, 4, 1], [29, 38], None)]
    by_hand = ByHand(store)
    for key, name in (("unfilt_r@k", "recall"), ("filt_r@k", "recall_in_category"), ("unfilt_acc@k", "precision")):
        curves = torch.stack([by_hand.curves(*fold)[key] for fold in folds])
        assert means(gallery, name) == at_ks(curves.mean(0))
        assert gallery[name]["1"]["std"] == pytest.approx(curves.std(0)[0].item())


def test_table(make_test_set, tiny_model, make_store, small_sizes, stored_folds):
    store = make_store(Encoder(tiny_model, "category"), ProductTestSet(make_test_set()), 8)
    results = evaluate_paper(EmbeddedTestSet(store), str(stored_folds))
    table = results_table({"model": "a model", **results})
    assert max(map(len, table.splitlines())) <= 80
    assert table.count("R@1  ") == 4 and table.count("P@1 ") == 2
    assert "* 40: all distractors of this test set; no published size" in table
    assert "Not measured, as there are too few distractors: 100" in table
    assert "2 stored folds of 4 products, 1 draws of products missing" in table
    assert "* 3: 16.67% of the draws of distractors are missing" in table
