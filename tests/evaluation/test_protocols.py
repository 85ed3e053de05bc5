"""The bootstrap protocol: draws, refusals, and a whole evaluation against a naive one."""

import numpy as np
import pytest
import torch

from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.embed import Encoder, embed_distractors, embed_products
from lrvsf.evaluation.protocols import BootstrapSettings, draw_folds, evaluate_bootstrap


def test_draws_depend_on_seed_and_stream_alone():
    draws = draw_folds(50, 20, 3, seed=1, stream=500)
    assert draws.shape == (3, 20) and draws.dtype == torch.int64
    assert torch.equal(draws, draw_folds(50, 20, 3, seed=1, stream=500))
    assert not torch.equal(draws, draw_folds(50, 20, 3, seed=2, stream=500))
    assert not torch.equal(draws, draw_folds(50, 20, 3, seed=1, stream=2000))
    many = draw_folds(7, 5000, 1, seed=0, stream=0)
    assert sorted(many.unique().tolist()) == list(range(7))  # with replacement, over the whole range


def test_draws_are_frozen():
    """Results of different versions stay paired only as long as a seed means the same draws."""
    assert draw_folds(1000, 5, 1, seed=0, stream=500).tolist() == [[628, 610, 929, 67, 575]]


def test_whole_evaluation_equals_a_naive_one(make_test_set, tiny_model):
    test_set = ProductTestSet(make_test_set(products=12, distractors=40))
    encoder = Encoder(tiny_model, "category")
    settings = BootstrapSettings(gallery_sizes=[3, 40], folds=4, seed=7)
    results = evaluate_bootstrap(encoder, test_set, settings, batch_size=5)
    products = embed_products(encoder, test_set, 12).embeds
    distractors = embed_distractors(encoder, test_set, 40).embeds["distractor"].numpy()
    queries, targets = products["query"].numpy(), products["target"].numpy()
    product_folds = draw_folds(12, 12, 4, 7, 0).numpy()
    for size in (3, 40):
        recalls = []
        for products_drawn, drawn in zip(product_folds, draw_folds(40, size, 4, 7, size).numpy(), strict=True):
            gallery = np.concatenate([targets[np.unique(products_drawn)], distractors[drawn]])
            position = np.searchsorted(np.unique(products_drawn), products_drawn)
            order = np.argsort(-(queries[products_drawn] @ gallery.T), axis=1)
            recalls.append([np.mean((order[:, :k] == position[:, None]).any(1)) for k in (1, 5, 10, 20, 50)])
        measured = results["galleries"][str(size)]["recall"]
        assert [measured[k]["mean"] for k in ("1", "5", "10", "20", "50")] == pytest.approx(
            np.mean(recalls, 0).tolist()
        )
        assert [measured[k]["std"] for k in ("1", "5", "10", "20", "50")] == pytest.approx(
            np.std(recalls, 0, ddof=1).tolist()
        )
    by_category = results["galleries"]["40"]["recall_at_1_by_category"]
    assert sum(part["queries"] for part in by_category.values()) == 4 * 12
    pooled = sum(part["mean"] * part["queries"] for part in by_category.values()) / 48
    assert pooled == pytest.approx(results["galleries"]["40"]["recall"]["1"]["mean"])


def test_same_image_as_query_and_target_is_found(make_test_set, make_model):
    test_set = ProductTestSet(make_test_set(same=True))
    results = evaluate_bootstrap(Encoder(make_model(), "none"), test_set, BootstrapSettings([40], folds=2))
    assert results["galleries"]["40"]["recall"]["1"] == {"mean": 1.0, "std": 0.0}
    assert results["conditioning"] == "none" and results["embedding_dim"] == 16
    assert results["n_products"] == results["products_per_fold"] == 12 and results["n_distractors"] == 40


def test_collapsed_model_is_called_out(make_test_set, make_model, caplog):
    model = make_model()
    with torch.no_grad():  # every image becomes the same point
        model.vision_model.post_layernorm.weight.zero_()
        model.vision_model.post_layernorm.bias.fill_(1)
    gallery = evaluate_bootstrap(
        Encoder(model, "category"), ProductTestSet(make_test_set()), BootstrapSettings([40], folds=2)
    )["galleries"]["40"]
    assert gallery["recall"]["10"]["mean"] == 0
    assert gallery["recall_optimistic"]["1"]["mean"] == 1 and gallery["recall_pessimistic"]["20"]["mean"] == 0
    assert gallery["ties"]["tied_queries"] == gallery["ties"]["queries"] == 24
    assert "24 of 24 queries tie" in caplog.text


def test_skipped_images_are_counted_and_sizes_checked_again(make_test_set, tiny_model):
    root = make_test_set(bad={"COMPLEX_IMG": {0: b""}, "jpg": {3: b"", 30: b"no"}})
    encoder, test_set = Encoder(tiny_model, "category"), ProductTestSet(root)
    results = evaluate_bootstrap(encoder, test_set, BootstrapSettings([38], folds=2), 8)
    assert results["n_products"] == 11 and results["n_distractors"] == 38
    assert results["skipped"] == {"products": {"empty": 1}, "distractors": {"empty": 1, "not an image": 1}}
    with pytest.raises(ValueError, match="gallery_sizes has 39, but only 38 distractors"):
        evaluate_bootstrap(encoder, test_set, BootstrapSettings([5, 39], folds=2), 8)


def test_refuses_before_any_work(make_test_set, make_model):
    test_set, model = ProductTestSet(make_test_set()), make_model(categories=["Bags", "Feet"])
    encoder = Encoder(model, "category")
    encoder.embed = None  # nothing may be embedded
    with pytest.raises(ValueError, match="gallery_sizes has 41, 50, but only 40 distractors are available"):
        evaluate_bootstrap(encoder, test_set, BootstrapSettings([4, 41, 50]))
    with pytest.raises(ValueError, match="row 2: category 'Neck' is not one of the model's: Bags, Feet"):
        evaluate_bootstrap(encoder, test_set, BootstrapSettings([4]))


def test_unconditioned_model_needs_no_known_category(make_test_set, make_model):
    encoder = Encoder(make_model(condition="none", categories=["Other"]), "none")
    test_set = ProductTestSet(make_test_set())
    results = evaluate_bootstrap(encoder, test_set, BootstrapSettings([4], folds=2))
    assert results["conditioning"] == "none" and results["n_products"] == test_set.n_products


def test_no_readable_product(make_test_set, tiny_model):
    root = make_test_set(products=2, bad={"SIMPLE_IMG": {0: b"", 1: b""}})
    with pytest.raises(ValueError, match=r"None of the 2 products .*'empty': 2"):
        evaluate_bootstrap(Encoder(tiny_model, "category"), ProductTestSet(root), BootstrapSettings([4]))


@pytest.mark.parametrize(
    "wrong, says",
    [({"folds": 1}, "folds=1"), ({"gallery_sizes": [0]}, "gallery_sizes=.0."), ({"products_per_fold": 0}, "=0")],
)
def test_settings_are_checked(wrong, says):
    with pytest.raises(ValueError, match=says):
        BootstrapSettings(**wrong)
