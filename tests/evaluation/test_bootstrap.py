"""The bootstrap protocol: draws, refusals, and a whole evaluation against a naive one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation import bootstrap
from lrvsf.evaluation.bootstrap import BootstrapSettings, chosen_settings, draw_folds, evaluate_bootstrap
from lrvsf.evaluation.columns import copies_in, join_categories
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.recall import bootstrap_recall
from lrvsf.evaluation.results import results_table


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


def everything(store):
    """Queries, targets and distractors as the store gives them."""
    return store.whole("query"), store.whole("target"), torch.cat([embeds for embeds, _ in store.blocks("distractor")])


def test_whole_evaluation_equals_a_naive_one(make_test_set, tiny_model, make_store):
    test_set = ProductTestSet(make_test_set(products=12, distractors=40))
    encoder = Encoder(tiny_model, "category")
    settings = BootstrapSettings(gallery_sizes=[3, 40], folds=4, seed=7)
    store = make_store(encoder, test_set, 5)
    results = evaluate_bootstrap(EmbeddedTestSet(store), settings)
    queries, targets, distractors = (embeds.numpy() for embeds in everything(store))
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


def test_same_image_as_query_and_target_is_found(make_test_set, make_model, make_store):
    test_set = ProductTestSet(make_test_set(same=True))
    store = make_store(Encoder(make_model(), "none"), test_set)
    results = evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([40], folds=2))
    assert results["galleries"]["40"]["recall"]["1"] == {"mean": 1.0, "std": 0.0}
    assert results["conditioning"] == "none" and results["embedding_dim"] == 16
    assert results["n_products"] == results["products_per_fold"] == 12 and results["n_distractors"] == 40


def test_collapsed_model_is_called_out(make_test_set, make_model, make_store, caplog):
    model = make_model()
    with torch.no_grad():  # every image becomes the same point
        model.vision_model.post_layernorm.weight.zero_()
        model.vision_model.post_layernorm.bias.fill_(1)
    store = make_store(Encoder(model, "category"), ProductTestSet(make_test_set()))
    gallery = evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([40], folds=2))["galleries"]["40"]
    assert gallery["recall"]["10"]["mean"] == 0
    assert gallery["recall_optimistic"]["1"]["mean"] == 1 and gallery["recall_pessimistic"]["20"]["mean"] == 0
    assert gallery["ties"]["tied_queries"] == gallery["ties"]["queries"] == 24
    assert "24 of 24 queries tie" in caplog.text


def test_skipped_images_are_counted_and_sizes_checked_again(make_test_set, tiny_model, make_store):
    root = make_test_set(bad={"COMPLEX_IMG": {0: b""}, "jpg": {3: b"", 30: b"no"}})
    store = make_store(Encoder(tiny_model, "category"), ProductTestSet(root), 8)
    results = evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([38], folds=2))
    assert results["n_products"] == 11 and results["n_distractors"] == 38
    assert results["skipped"] == {"products": {"empty": 1}, "distractors": {"empty": 1, "not an image": 1}}
    with pytest.raises(ValueError, match="gallery_sizes has 39, but only 38 distractors"):
        evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([5, 39], folds=2))


def test_refuses_before_any_work(make_test_set, make_model, make_store):
    test_set, model = ProductTestSet(make_test_set()), make_model(categories=["Bags", "Feet"])
    store = make_store(Encoder(model, "category"), test_set)
    store.fill = None  # nothing may be embedded
    with pytest.raises(ValueError, match="gallery_sizes has 41, 50, but only 40 distractors are available"):
        evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([4, 41, 50]))
    with pytest.raises(ValueError, match="row 2: category 'Neck' is not one of the model's: Bags, Feet"):
        evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([4]))


def test_unconditioned_model_needs_no_known_category(make_test_set, make_model, make_store):
    encoder = Encoder(make_model(condition="none", categories=["Other"]), "none")
    test_set = ProductTestSet(make_test_set())
    results = evaluate_bootstrap(EmbeddedTestSet(make_store(encoder, test_set)), BootstrapSettings([4], folds=2))
    assert results["conditioning"] == "none" and results["n_products"] == test_set.n_products


def test_no_readable_product(make_test_set, tiny_model, make_store):
    root = make_test_set(products=2, bad={"SIMPLE_IMG": {0: b"", 1: b""}})
    store = make_store(Encoder(tiny_model, "category"), ProductTestSet(root))
    with pytest.raises(ValueError, match=r"None of the 2 products .*'empty': 2"):
        evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([4]))


@pytest.mark.parametrize(
    "wrong, says",
    [({"folds": 1}, "folds=1"), ({"gallery_sizes": [0]}, "gallery_sizes=.0."), ({"products_per_fold": 0}, "=0")],
)
def test_settings_are_checked(wrong, says):
    with pytest.raises(ValueError, match=says):
        BootstrapSettings(**wrong)


def leaderboard(monkeypatch, sizes, **choices):
    monkeypatch.setattr(bootstrap, "LEADERBOARD_SIZES", sizes)
    return BootstrapSettings.leaderboard(**choices)


def test_leaderboard_is_the_published_one():
    settings = BootstrapSettings.leaderboard(seed=3)
    assert settings.gallery_sizes == [10_000, 100_000, 500_000, 1_000_000]
    assert (settings.folds, settings.products_per_fold, settings.seed) == (20, 1000, 3)


def test_leaderboard_draws_products_from_the_seed_and_marks_what_is_short(
    make_test_set, tiny_model, make_store, monkeypatch
):
    store = make_store(Encoder(tiny_model, "category"), ProductTestSet(make_test_set()), 8)
    results = evaluate_bootstrap(EmbeddedTestSet(store), leaderboard(monkeypatch, (10, 60), seed=4))
    assert results["protocol"] == "leaderboard" and results["folds"] == 20 and results["products_per_fold"] == 1000
    assert results["galleries"]["60"]["marked"] == "drawn with repeats from only 40 distractors"
    assert "marked" not in results["galleries"]["10"]
    same = BootstrapSettings([10], folds=20, seed=4, products_per_fold=1000)
    assert evaluate_bootstrap(EmbeddedTestSet(store), same)["galleries"]["10"] == results["galleries"]["10"]
    table = results_table({"model": "a model", **results})
    assert "60*" in table and "* 60: drawn with repeats from only 40 distractors" in table


def test_leaderboard_with_the_published_draws_of_products(make_test_set, tiny_model, make_store, monkeypatch, tmp_path):
    """Rows of the file, of which 4 cannot be read; the rest against bootstrap_recall."""
    test_set = ProductTestSet(make_test_set(bad={"SIMPLE_IMG": {4: b""}}))
    store = make_store(Encoder(tiny_model, "category"), test_set, 8, 0.5)
    path = str(tmp_path / "bootstrapped_indices.pt")
    torch.save(torch.tensor([[0, 11, 11, 4], [5, 6, 3, 6]]), path)
    results = evaluate_bootstrap(EmbeddedTestSet(store), leaderboard(monkeypatch, (20,), product_folds=path))
    assert results["folds"] == 2 and results["products_per_fold"] == 4 and results["missing_draws"] == {"products": 1}
    mean, std = bootstrap_recall(
        *everything(store), [torch.tensor([0, 10, 10]), torch.tensor([4, 5, 3, 5])],
        draw_folds(40, 20, 2, 0, stream=20), 10,
    )  # fmt: skip
    for k in (1, 5, 10):
        measured = results["galleries"]["20"]["recall"][str(k)]
        assert measured == {"mean": pytest.approx(mean[k - 1].item()), "std": pytest.approx(std[k - 1].item())}
    assert "products drawn by" in results_table({"model": "a model", **results})
    torch.save(torch.tensor([[4, 4], [5, 6]]), path)
    with pytest.raises(ValueError, match="only products that cannot be read: {'empty': 1}"):
        evaluate_bootstrap(EmbeddedTestSet(store), leaderboard(monkeypatch, (20,), product_folds=path))
    torch.save(torch.tensor([[12, 4], [5, 6]]), path)
    store.fill = None  # nothing may be embedded
    with pytest.raises(IndexError, match="rows 4 to 12, but the test set has 12 products"):
        evaluate_bootstrap(EmbeddedTestSet(store), leaderboard(monkeypatch, (20,), product_folds=path))


def test_restriction_to_the_category(make_test_set, make_model, make_store):
    """The filter baseline: an unconditioned model whose galleries hold only items of the target's category."""
    test_set, encoder = ProductTestSet(make_test_set()), Encoder(make_model(condition="none"), "none")
    settings = BootstrapSettings([40], folds=3, restrict_to_category=True)
    store = make_store(encoder, test_set, 8)
    results = evaluate_bootstrap(EmbeddedTestSet(store), settings)
    queries, targets, distractors = everything(store)
    joined = join_categories(test_set)
    kinds, others = joined.products, joined.distractors
    hits = []
    for fold, drawn in zip(draw_folds(12, 12, 3, 0, 0), draw_folds(40, 40, 3, 0, 40), strict=True):
        for i in fold.tolist():
            items = [targets[j] for j in fold.unique().tolist() if j != i and kinds[j] == kinds[i]]
            items += [distractors[j] for j in drawn.tolist() if others[j] == kinds[i]]
            above = sum(float(queries[i] @ (item - targets[i])) > 0 for item in items)
            hits.append(above < 5)
    assert results["galleries"]["40"]["recall"]["5"]["mean"] == pytest.approx(np.mean(hits))
    names, counts = ["Bags", "Feet", "Neck"], []
    for fold, drawn in zip(draw_folds(12, 12, 3, 0, 0), draw_folds(40, 40, 3, 0, 40), strict=True):
        counts.append([sum(int((of == n).sum()) for of in (kinds[fold.unique()], others[drawn])) for n in range(3)])
    items = results["galleries"]["40"]["items_by_category"]
    assert items == {name: pytest.approx(mean) for name, mean in zip(names, np.mean(counts, 0), strict=True)}
    assert results["galleries"]["40"]["items"] == 40 + min(len(f.unique()) for f in draw_folds(12, 12, 3, 0, 0))
    table = results_table({"model": "a model", **results})
    assert "only items of the target's category" in table and f"Bags {items['Bags']:.1f}".removesuffix(".0") in table
    assert "10 distractors are of categories that no product has: Hats 10." in table
    unrestricted = evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([40], folds=3))
    assert unrestricted["galleries"]["40"]["recall"]["5"]["mean"] < np.mean(hits)


def test_flags_of_another_protocol_are_refused():
    none = {name: None for names in bootstrap.FLAGS.values() for name in names} | {"seed": 0, "bf16_ranks": False}
    none["allow_unmatched_categories"] = False
    assert chosen_settings("bootstrap", none | {"folds": 3}) == BootstrapSettings(folds=3)
    assert chosen_settings("leaderboard", none | {"seed": 2}) == BootstrapSettings.leaderboard(seed=2)
    assert chosen_settings("paper", none | {"stored_folds": "a"}) is None
    for protocol, name in [("bootstrap", "product_folds"), ("leaderboard", "gallery_sizes"), ("paper", "folds")]:
        with pytest.raises(ValueError, match=f"--{name} has no meaning in the {protocol} protocol"):
            chosen_settings(protocol, none | {name: 1})


@pytest.mark.parametrize(
    "wrong, says",
    [({"gallery_sizes": [5, 9, 5]}, r"\[5, 9, 5\] names a size twice"), ({"seed": -1}, "seed=-1 must")],
)
def test_settings_that_would_mislead_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        BootstrapSettings(**{"gallery_sizes": [5], **wrong})


def test_a_known_copy_takes_no_place(make_test_set, make_model, make_store):
    """Against a naive count. Every product has two copies among the distractors, nearer to its query than itself."""
    copies = {f"d{row}": f"p{row % 12}" for row in range(24)}
    root = make_test_set(products=12, distractors=40)
    (root / "manifest.json").write_text(json.dumps({"note": {"copies": copies}}))
    data = EmbeddedTestSet(make_store(Encoder(make_model(), "category"), ProductTestSet(root)))
    data.fill()
    draw = torch.Generator().manual_seed(0)
    queries, targets, others = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=draw), dim=1) for n in (12, 12, 16)
    )
    distractors = torch.cat([queries, queries, others])
    data.queries, data.targets, data.blocks = queries, targets, lambda: [(distractors, 0)]
    results = evaluate_bootstrap(data, BootstrapSettings([30], folds=3))
    expected = {k: [] for k in (1, 5, 10)}
    for drawn, rows in zip(draw_folds(12, 12, 3, 0, 0), draw_folds(40, 30, 3, 0, 30), strict=True):
        ranks = []
        for product in drawn.tolist():
            rivals = [targets[row] for row in set(drawn.tolist()) - {product}]
            rivals += [distractors[row] for row in rows.tolist() if row not in (product, product + 12)]
            ranks.append(1 + sum(float(queries[product] @ (rival - targets[product])) > 0 for rival in rivals))
        for k, found in expected.items():
            found.append(np.mean(np.array(ranks) <= k))
    gallery = results["galleries"]["30"]
    aside = gallery["recall_copies_aside"]
    assert {k: aside[str(k)]["mean"] for k in expected} == pytest.approx({k: np.mean(v) for k, v in expected.items()})
    assert aside["10"]["mean"] > gallery["recall"]["10"]["mean"]
    assert "no place taken by a known copy of the target" in results_table({"model": "m", **results})


def test_a_copy_that_ties_or_belongs_to_what_cannot_be_read_counts_for_nothing(make_test_set, make_model, make_store):
    """An identical picture is the obvious copy. Rows that are skipped shift all others, and the copies with them."""
    root = make_test_set(products=12, distractors=40, bad={"SIMPLE_IMG": {2: b"cut"}, "jpg": {1: b"cut"}})
    copies = {"d0": "p0", "d1": "p3", "d5": "p2", "d7": "p11"}  # d1 and p2 cannot be read
    (root / "manifest.json").write_text(json.dumps({"note": {"copies": copies}}))
    data = EmbeddedTestSet(make_store(Encoder(make_model(), "category"), ProductTestSet(root), max_bad=0.1))
    data.fill()
    places = {int(row): place for place, row in enumerate(data.rows)}
    expected = torch.full((39,), -1)
    expected[0], expected[6] = places[0], places[11]
    assert data.copies.tolist() == expected.tolist()
    assert places[11] == 10 and 2 not in places
    draw = torch.Generator().manual_seed(0)
    queries, targets, others = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=draw), dim=1) for n in (11, 11, 39)
    )
    queries = targets.clone()  # nothing is nearer than the target
    others[0], others[6] = targets[0], targets[10]
    data.queries, data.targets, data.blocks = queries, targets, lambda: [(others, 0)]
    gallery = evaluate_bootstrap(data, BootstrapSettings([39], folds=4))["galleries"]["39"]
    assert gallery["ties"]["queries"] > 0 and gallery["recall_copies_aside"]["1"] == {"mean": 1.0, "std": 0.0}


def test_a_copy_of_another_category_is_in_no_gallery_of_one_category(make_test_set, make_model, make_store):
    root = make_test_set(products=12, distractors=40)
    (root / "manifest.json").write_text(
        json.dumps({"note": {"copies": {f"d{row}": f"p{row % 12}" for row in range(24)}}})
    )
    data = EmbeddedTestSet(make_store(Encoder(make_model(), "category"), ProductTestSet(root)))
    data.fill()
    queries = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    data.queries, data.targets, data.blocks = queries, -queries, lambda: [(queries.repeat(4, 1)[:40], 0)]
    settings = BootstrapSettings([40], folds=3, restrict_to_category=True, allow_unmatched_categories=True)
    same = data.product_categories[data.copies] == data.distractor_categories
    assert 0 < same[:24].sum() < 24
    results = evaluate_bootstrap(data, settings)["galleries"]["40"]
    assert results["recall_copies_aside"]["10"]["mean"] >= results["recall"]["10"]["mean"]


@pytest.mark.parametrize(
    ("copies", "says"),
    [
        ({"d3": "p77"}, "'p77' is not the PRODUCT_ID of exactly one of the products"),
        ({"d3": 77}, "'77' is not the PRODUCT_ID of exactly one of the products"),
        ({"d3": None}, "'' is not the PRODUCT_ID of exactly one of the products"),
        ({"d3": ["p1"]}, "'' is not the PRODUCT_ID of exactly one of the products"),
        ({"d99": "p1"}, "'d99' is not the PRODUCT_ID of exactly one of the distractors"),
        (["d3"], 'manifest.json: "copies" under "note" must be a mapping'),
    ],
)
def test_copies_that_do_not_join_are_refused_before_anything_is_embedded(
    make_test_set, make_model, make_store, copies, says
):
    root = make_test_set()
    (root / "manifest.json").write_text(json.dumps({"note": {"copies": copies}}))
    data = EmbeddedTestSet(make_store(Encoder(make_model(), "category"), ProductTestSet(root)))
    data.fill = lambda: pytest.fail("it embeds")
    with pytest.raises(ValueError, match=says):
        evaluate_bootstrap(data, BootstrapSettings([5], folds=2))


def test_an_id_of_two_rows_is_no_copy(make_test_set):
    root = make_test_set()
    table = pq.read_table(root / "products.parquet")
    ids = ["p1" if name == "p0" else name for name in table["PRODUCT_ID"].to_pylist()]
    place = table.column_names.index("PRODUCT_ID")
    pq.write_table(table.set_column(place, "PRODUCT_ID", pa.array(ids)), root / "products.parquet")
    (root / "manifest.json").write_text(json.dumps({"note": {"copies": {"d3": "p1"}}}))
    with pytest.raises(ValueError, match="'p1' is not the PRODUCT_ID of exactly one of the products"):
        copies_in(ProductTestSet(root))


@pytest.mark.parametrize("text", [b"", b'{"note": {"cop', b"\xe9"])
def test_a_damaged_manifest_is_refused_by_name(make_test_set, text):
    root = make_test_set()
    (root / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        copies_in(ProductTestSet(root))


@pytest.mark.parametrize("foreign", [[1], None, {"note": "text"}, {"note": None}, {"files": []}])
def test_somebody_else_s_manifest_tells_of_no_copies(make_test_set, foreign):
    root = make_test_set()
    (root / "manifest.json").write_text(json.dumps(foreign))
    assert copies_in(ProductTestSet(root)) is None
