"""Rank counting against a ranker in plain Python, on what Hypothesis thinks of.

Ties, copies, neighbours one unit in the last place away, repeats, empty galleries, categories, blocks cut anywhere, and
every way of counting.
"""

import math
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lrvsf.evaluation import recall
from lrvsf.evaluation.ranks import count_above
from lrvsf.evaluation.recall import RankCounter, fold_recall

repeatable = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=(Phase.generate, Phase.shrink)
)


def plain_ranks(queries, targets, distractors, product_fold, distractor_fold, categories=None):
    """[(above, tied)] of each drawn product. `categories` are the products' and the distractors', or None."""
    found = []
    for i in product_fold:
        gallery = [("product", j) for j in set(product_fold) if j != i] + [("distractor", j) for j in distractor_fold]
        above = tied = 0
        for kind, j in gallery:
            if categories and (categories[0] if kind == "product" else categories[1])[j] != categories[0][i]:
                continue
            item = (targets if kind == "product" else distractors)[j]
            terms = [q * x for q, x in zip(queries[i], item, strict=True)]
            gap = math.fsum(terms + [-q * x for q, x in zip(queries[i], targets[i], strict=True)])
            above, tied = above + (gap > 0), tied + (gap == 0)
        found.append((above, tied))
    return found


@st.composite
def unit_vectors(draw, rows: int, dim: int):
    """Directions on a small grid, so that many coincide, some of them moved by one unit in the last place.

    Nothing is moved away from 0, which would be by 1e-45: ranks are decided in float64, which adds up all the others'
    products without rounding, as the ranker in Python does.
    """
    grid = draw(st.lists(st.lists(st.integers(-2, 2), min_size=dim, max_size=dim), min_size=rows, max_size=rows))
    vectors = torch.tensor(grid, dtype=torch.float32)
    vectors[vectors.abs().sum(1) == 0, 0] = 1
    vectors = torch.nn.functional.normalize(vectors, dim=1).numpy()
    for row in draw(st.sets(st.integers(0, rows - 1))):
        if vectors[row, 0]:
            vectors[row, 0] = np.nextafter(vectors[row, 0], np.float32(2))
    return torch.from_numpy(vectors)


@st.composite
def benchmarks(draw):
    """Embeddings, folds of any lengths, and categories or none."""
    products, distractors, dim, folds = (draw(st.integers(1, n)) for n in (7, 12, 4, 3))
    rows = lambda limit, least: st.lists(st.integers(0, limit - 1), min_size=least, max_size=15)  # noqa: E731
    product_folds = [draw(rows(products, 1)) for _ in range(folds)]
    sizes = [[draw(rows(distractors, 0)) for _ in range(folds)] for _ in range(draw(st.integers(1, 3)))]
    kinds = lambda n, low: draw(st.lists(st.integers(low, 2), min_size=n, max_size=n))  # noqa: E731
    categories = (kinds(products, 0), kinds(distractors, -1)) if draw(st.booleans()) else None
    embeds = [draw(unit_vectors(n, dim)) for n in (products, products, distractors)]
    return embeds, product_folds, sizes, categories


# SPARSE and MANY_NEAR: 0 for never, a million for always a matrix product, or float32 after bfloat16
ways = st.fixed_dictionaries(
    {
        "ROWS": st.integers(1, 9),
        "COLUMNS": st.integers(1, 9),
        "PAIRS": st.integers(1, 9),
        "SPARSE": st.sampled_from([0, 4, 10**6]),
        "MANY_NEAR": st.sampled_from([0, 4, 10**6]),
    }
)


@repeatable
@given(benchmarks(), ways, st.integers(1, 9), st.lists(st.integers(0, 12)), st.booleans())
def test_equals_plain_python(benchmark, way, block, cuts, bf16):
    (queries, targets, distractors), product_folds, sizes, categories = benchmark
    of_products, of_distractors = map(torch.tensor, categories) if categories else (None, None)
    with mock.patch.multiple("lrvsf.evaluation.ranks", **way), mock.patch.object(recall, "BLOCK", block):
        counter = RankCounter(
            queries, targets, list(map(torch.tensor, product_folds)), [list(map(row_numbers, s)) for s in sizes],
            of_products, bf16,
        )  # fmt: skip
        bounds = sorted({0, len(distractors), *(cut for cut in cuts if cut < len(distractors))})
        for start, stop in reversed(list(pairwise(bounds))):
            part = None if categories is None else of_distractors[start:stop]
            counter.add(distractors[start:stop], start, part)
        found = counter.ranks()
    for size, ranks in zip(sizes, found, strict=True):
        for f, (products, drawn) in enumerate(zip(product_folds, size, strict=True)):
            plain = plain_ranks(queries.tolist(), targets.tolist(), distractors.tolist(), products, drawn, categories)
            assert list(zip(ranks.above[products, f].tolist(), ranks.tied[products, f].tolist(), strict=True)) == plain
            expected = [1 + above + tied / 2 for above, tied in plain]
            measured = fold_recall(ranks.expected, ranks.weights, 40)[f].tolist()  # beyond every gallery
            assert measured == pytest.approx([np.mean([rank <= k for rank in expected]) for k in range(1, 41)])
            assert measured[-1] == 1


def row_numbers(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


@repeatable
@given(st.lists(st.floats(1, 9), min_size=4, max_size=4), st.lists(st.floats(0, 5), min_size=4, max_size=4))
def test_recall_weighs_the_queries(ranks, weights):
    weights[0] += 1  # not all of them 0
    measured = fold_recall(torch.tensor(ranks)[:, None], torch.tensor(weights)[:, None], 9)[0].tolist()
    ranks, weights = torch.tensor(ranks).tolist(), torch.tensor(weights).tolist()  # as float32 has them
    plain = [sum(w for r, w in zip(ranks, weights, strict=True) if r <= k) / sum(weights) for k in range(1, 10)]
    assert measured == pytest.approx(plain)


@repeatable
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 100, 512]), st.floats(0, 8), ways)
def test_bfloat16_gives_the_counts_of_float32(seed, dim, crowding, way):
    """Also where all vectors crowd together and half of the pairs are too near for bfloat16."""
    draw = np.random.default_rng(seed)
    rows = torch.from_numpy(draw.normal(size=(60, dim)) + crowding * draw.normal(size=dim)).float()
    rows = torch.nn.functional.normalize(rows, dim=1)
    held = torch.from_numpy(draw.integers(0, 3, (40, 5))).float()
    way |= {"ROWS": 16, "COLUMNS": 13}
    with mock.patch.multiple("lrvsf.evaluation.ranks", **way):
        exact = (rows[:10].double() @ (rows[20:, None].double() - rows[10:20].double()).transpose(1, 2)).diagonal(
            dim1=1, dim2=2
        )  # (items, queries)
        for bf16 in (False, True):
            above, tied = count_above(rows[:10], rows[10:20], rows[20:], held, bf16=bf16)
            assert torch.equal(above, ((exact > 0).double().T @ held.double()).long()) and not tied.any()
