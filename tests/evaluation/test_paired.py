"""The difference of two evaluations: the bootstrap against a loop, numbers by hand, and what is refused."""

import json

import numpy as np
import pytest
import torch
from made import measured_products

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation import paired
from lrvsf.evaluation.bootstrap import BootstrapSettings, evaluate_bootstrap
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.pages import compare
from lrvsf.evaluation.paired import bootstrap_interval, compare_pair, differences_table
from lrvsf.evaluation.queries import QueryTable
from lrvsf.evaluation.recall import GalleryRanks
from lrvsf.evaluation.results import load_results, save_results


def naive_interval(differences, draws, seed, resamples, at_a_time):
    """The twin: products drawn one after the other, each with all its draws, and plain sums."""
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, at_a_time):
        for drawn in generator.integers(0, len(draws), (min(at_a_time, resamples - start), len(draws))):
            total = sum(draws[product] for product in drawn)
            means.append([sum(draws[p] * differences[p][m] for p in drawn) / total for m in range(len(differences[0]))])
    return np.percentile(means, 2.5, axis=0), np.percentile(means, 97.5, axis=0)


@pytest.mark.parametrize("products, resamples", [(2, 60), (17, 203)])
def test_interval_equals_a_loop(monkeypatch, products, resamples):
    monkeypatch.setattr(paired, "AT_A_TIME", 50)
    draw = np.random.default_rng(products)
    differences, draws = draw.uniform(-1, 1, (products, 3)), draw.integers(1, 9, products)
    expected = naive_interval(differences, draws, 4, resamples, 50)
    np.testing.assert_allclose(bootstrap_interval(differences, draws, 4, resamples), expected, rtol=0, atol=1e-12)


def test_interval_of_a_known_spread():
    """Half of 400 products gain 1: the mean's deviation is 0.5 / 20, and the interval about 1.96 of it to each side."""
    low, high = bootstrap_interval(np.repeat([[1.0], [0.0]], 200, axis=0), np.ones(400, dtype=int))
    assert low[0] == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004)
    assert high[0] == pytest.approx(0.5 + 1.96 * 0.025, abs=0.004)
    often = bootstrap_interval(np.repeat([[1.0], [0.0]], 200, axis=0), np.full(400, 20))
    assert np.allclose(often, (low, high)), "drawing the same products twenty times tells nothing new"


def test_one_product_has_no_interval():
    with pytest.raises(ValueError, match="1 product"):
        bootstrap_interval(np.ones((1, 3)), np.ones(1))


RESULTS = {
    "protocol": "bootstrap", "seed": 0, "folds": 2, "products_per_fold": 3, "gallery_sizes": [500],
    "test_set": {"products": "1 file", "distractors": "4 files"}, "skipped": {"products": {}, "distractors": {}},
    "conditioning": "category", "galleries": {"500": {"recall": {k: {"mean": 0.5} for k in ("1", "5", "10")}}},
}  # fmt: skip


def write(folder, above, weights=((1, 1), (2, 0), (0, 1)), **changes):
    """A results folder of three products and two folds."""
    save_results({**RESULTS, **changes}, folder / "results.json")
    above = torch.tensor(above)
    table = QueryTable()
    ranks = GalleryRanks(above, 0 * above, torch.tensor(weights))
    table.add(500, ranks, measured_products([0, 1, 2], ["Bags", "Feet", "Neck"]), "galleries")
    table.save(folder / "queries.parquet")
    return folder


@pytest.fixture
def pair(tmp_path):
    first = write(tmp_path / "a", [[0, 9], [7, 0], [0, 12]])
    return first, write(tmp_path / "b", [[0, 0], [0, 0], [0, 3]], conditioning="none", restrict_to_category=True)


def test_by_hand(pair):
    at_1, at_5, at_10 = compare_pair(*([folder] for folder in pair))
    assert (at_1.size, at_1.k, at_1.first, at_1.second) == (500, 1, 1 / 5, 4 / 5)
    assert (at_1.for_first, at_1.for_second) == (0, 2) and (at_10.for_first, at_10.for_second) == (0, 1)
    assert (at_5.first, at_5.second, at_10.first) == (1 / 5, 1.0, 4 / 5)
    assert 0 <= at_1.low < 3 / 5 < at_1.high <= 1
    back = compare_pair(*([folder] for folder in reversed(pair)))[0]
    assert (back.low, back.high) == pytest.approx((-at_1.high, -at_1.low), abs=1e-12)
    assert compare_pair(*([folder] for folder in pair)) == [at_1, at_5, at_10]  # the bootstrap is seeded


def test_a_k_that_reaches_the_gallery_is_no_difference(tmp_path):
    few = {"500": RESULTS["galleries"]["500"] | {"items": 10}}
    pair = [write(tmp_path / name, [[0, 9], [7, 0], [0, 12]], galleries=few) for name in "ab"]
    assert [one.k for one in compare_pair(*([folder] for folder in pair))] == [1, 5]


def test_a_model_does_not_differ_from_itself(pair):
    assert all((one.low, one.high, one.for_first) == (0, 0, 0) for one in compare_pair([pair[0]], [pair[0]]))


def test_runs_of_two_recipes(tmp_path, capsys):
    """By hand: runs are paired in their order, and the mean's products are what is drawn."""
    firsts = [
        write(tmp_path / f"a{seed}", above) for seed, above in enumerate(([[0, 9], [7, 0], [0, 12]], [[9] * 2] * 3))
    ]
    seconds = [write(tmp_path / f"b{seed}", above) for seed, above in enumerate(([[0] * 2] * 3, [[0] * 2] * 3))]
    at_1 = compare_pair(firsts, seconds)[0]
    assert (at_1.first, at_1.second) == pytest.approx((1 / 10, 1.0)) and at_1.by_run == pytest.approx((4 / 5, 1.0))
    assert (at_1.for_first, at_1.for_second) == (0, 3) and at_1.low > 0
    named = [f"{name}={folder}" for name, folders in (("a", firsts), ("b", seconds)) for folder in folders]
    compare.main(["--paired", *named])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any(line.split()[:3] == ["a,", "run", "2"] for line in lines)
    assert lines[-1].split() == ["run", "by", "run", "+20.00", "+0.00"]


def test_table(pair):
    results = [load_results(folder / "results.json") for folder in pair]
    table = differences_table(
        dict(zip(["Mini CLIP", "Mini CondViT"], results, strict=True)), compare_pair(*([folder] for folder in pair))
    )
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("second: Mini CondViT (conditioning none, only items of the target's")
    assert lines[-3].split()[:5] == ["500", "1", "20.00", "80.00", "+60.00"] and lines[-3].split()[-2:] == ["0", "2"]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"seed": 3}, "seed is 0 in .*a but 3 in .*b"),
        ({"protocol": "leaderboard"}, "protocol is bootstrap in"),
        ({"gallery_sizes": [500, 900]}, r"gallery_sizes is \[500\] in .* but \[500, 900\] in"),
        ({"skipped": {"products": {"empty": 1}}}, "skipped is .* but {'products': {'empty': 1}} in"),
        ({"test_set": {"products": "2 files"}}, "test_set is .* but {'products': '2 files'} in .*not the same queries"),
        ({"weights": ((1, 1), (1, 1), (0, 1))}, None),
        ({"weights": ((1, 1), (1, 0), (1, 1))}, r"draws begins with \[2, 2, 1\] in .* but with \[2, 1, 2\] in"),
    ],
)
def test_other_ground_is_refused(tmp_path, changes, says):
    first = write(tmp_path / "a", [[0, 9], [7, 0], [0, 12]])
    second = write(tmp_path / "b", [[0, 0], [0, 0], [0, 3]], **changes)
    if says is None:  # as often in all: what became of a query is known per product, not per fold
        compare_pair([first], [second])
        return
    with pytest.raises(ValueError, match=says):
        compare_pair([first], [second])


def test_whole_evaluations(make_test_set, make_store, tiny_model, tmp_path, capsys):
    """With and without the condition: the difference is that of the two recalls of results.json."""
    test_set, means = ProductTestSet(make_test_set()), {}
    for conditioning in ("category", "none"):
        queries, settings = QueryTable(), BootstrapSettings([10, 40], folds=3)
        results = evaluate_bootstrap(
            EmbeddedTestSet(make_store(Encoder(tiny_model, conditioning), test_set, 8)), settings, queries
        )
        folder = tmp_path / conditioning
        save_results({"model": "m", "data_root": str(test_set.root), **results}, folder / "results.json")
        queries.save(folder / "queries.parquet")
        means[conditioning] = results["galleries"]["40"]["recall"]["10"]["mean"]
    compare.main(["--paired", f"with={tmp_path / 'category'}", f"without={tmp_path / 'none'}"])
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:2] == ["40", "10"] and float(last[2]) == pytest.approx(100 * means["category"], abs=0.005)
    assert float(last[4]) == pytest.approx(100 * (means["none"] - means["category"]), abs=0.005)


def test_the_command_says_why_not(pair, tmp_path):
    first = f"a={pair[0]}"
    with pytest.raises(ValueError, match="two models; 1 are given"):
        compare.main(["--paired", first])
    with pytest.raises(ValueError, match="names two models"):
        compare.main([first, first])
    with pytest.raises(ValueError, match="2 runs of the first and 1 of the second"):
        compare.main(["--paired", first, first, f"b={pair[1]}"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(RESULTS))
    with pytest.raises(FileNotFoundError, match="queries.parquet does not exist. Evaluate the model again"):
        compare.main(["--paired", first, f"b={tmp_path / 'old'}"])
