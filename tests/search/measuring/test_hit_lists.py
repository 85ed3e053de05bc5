"""What lists of hits are worth: each count equals its naive twin, with ties, at uneven lengths."""

import math

import numpy as np
import pytest

from lrvsf.search.measuring.hit_lists import (
    Found,
    depth_for_ties,
    expected_rank,
    index_recall,
    no_close_match,
    target_recall,
)


def hit_list(scores, count=None):
    """The best hits of products "0", "1", ... with these scores; ties by number, as the search breaks them."""
    order = sorted(range(len(scores)), key=lambda product: (-scores[product], product))
    return [Found(str(product), scores[product]) for product in order[:count]]


def test_a_rank_counts_half_of_the_ties():
    hits = hit_list([0.9, 0.5, 0.5, 0.5, 0.1])
    assert [expected_rank(hits, str(product)) for product in range(5)] == [1, 3, 3, 3, 5]
    assert expected_rank(hits, "5") == math.inf and expected_rank([], "0") == math.inf
    same = hit_list([0.5] * 9)
    assert target_recall([same], ["0"], 1) == 0, "a model that maps everything to one point finds nothing"


@pytest.mark.parametrize("seed", range(20))
def test_recall_of_short_lists_is_that_of_whole_ones(seed):
    """Naively: R@K from the scores of all products, in lists cut where ties may straddle the end."""
    rng = np.random.default_rng(seed)
    few_values, products, k = int(rng.integers(2, 30)), int(rng.integers(1, 40)), int(rng.integers(1, 12))
    scores = (rng.integers(0, few_values, (50, products)) / few_values).tolist()
    targets = rng.integers(0, products, 50).tolist()
    ranks = [
        1 + sum(s > own[t] for s in own) + (sum(s == own[t] for s in own) - 1) / 2
        for own, t in zip(scores, targets, strict=True)
    ]
    lists = [hit_list(own, depth_for_ties(k)) for own in scores]
    expected = np.mean([rank <= k for rank in ranks])
    assert target_recall(lists, list(map(str, targets)), k) == pytest.approx(expected)


def test_a_query_without_a_target_does_not_count():
    lists = [hit_list([0.9, 0.1]), hit_list([0.1, 0.9]), hit_list([0.9, 0.1])]
    assert target_recall(lists, ["0", "0", None], 1) == 0.5
    assert target_recall(lists, [None] * 3, 1) is None


@pytest.mark.parametrize("seed", range(5))
def test_recall_of_an_index_is_the_overlap_of_its_hits_with_the_exact_ones(seed):
    rng = np.random.default_rng(seed)
    exact = [hit_list(rng.random(30).tolist()) for _ in range(20)]
    lists = [[hit for hit in best if rng.random() < 0.7][:9] for best in exact]
    for k in (1, 4, 9):
        shares = [len(set(hits[:k]) & set(best[:k])) / k for hits, best in zip(lists, exact, strict=True)]
        assert index_recall(lists, exact, k) == pytest.approx(np.mean(shares))


def test_of_products_that_tie_an_index_may_find_either():
    exact = [hit_list([0.9, 0.5, 0.5, 0.1])]
    assert index_recall([[exact[0][0], exact[0][2]]], exact, 2) == 1
    assert index_recall([[exact[0][0], exact[0][3]]], exact, 2) == 0.5


def test_recall_of_an_index_is_of_what_there_is_to_find():
    exact = [hit_list([0.9, 0.5]), []]
    assert index_recall([[exact[0][0]], []], exact, 10) == 0.5
    assert index_recall([[]], [[]], 10) is None


def test_the_verdict_is_asked_with_the_target_and_without():
    def hits(*close):
        return [Found(str(product), 1 - product / 10, told) for product, told in enumerate(close)]

    lists = [hits(True, False), hits(True, True), hits(False, False), hits(True, True), [], hits(None, None)]
    targets = ["0", "0", "1", None, "0", "0"]
    # With its target the third; without it the first, too. The others have no target, find nothing, or are not told.
    expected = {"queries": 3, "said_with_target": 1, "said_without_target": 2, "precision": 2 / 3, "recall": 2 / 3}
    assert no_close_match(lists, targets) == expected
    assert no_close_match(lists[1:2], targets[1:2]) == {
        **{"queries": 1, "said_with_target": 0, "said_without_target": 0, "precision": None, "recall": 0}
    }
    assert no_close_match(lists[-1:], targets[-1:]) is None
