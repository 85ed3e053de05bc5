"""The best items against a full sort in whole numbers of any length: the same wherever and however they are counted."""

import numpy as np
import pytest
import torch

from lrvsf.embedding import top
from lrvsf.embedding.top import TopItems, TopLists, on_grid
from lrvsf.evaluation.precision import TopShares


def naive_top(queries, embeds, items, count):
    """The twin: the full matrix, in Python's whole numbers, and Python's sort by score, then by number."""
    queries, embeds = ([[round(x * 2**26) for x in row] for row in rows.tolist()] for rows in (queries, embeds))
    scores = [[sum(a * b for a, b in zip(query, row, strict=True)) for row in embeds] for query in queries]
    return [[item for _, item in sorted(zip((-s for s in row), items, strict=True))][:count] for row in scores]


def unit(draw, rows, dim):
    """Unit rows, half of them a float32's last bit from another, so that rounded products could not tell them apart."""
    embeds = torch.nn.functional.normalize(torch.from_numpy(draw.normal(size=(rows, dim))).float(), dim=1)
    near = embeds[: rows // 2].clone()
    near[:, 0] = near[:, 0].nextafter(torch.tensor(2.0))
    return torch.cat([embeds[: rows - rows // 2], near])


@pytest.mark.parametrize("seed", range(4))
def test_best_items_equal_a_full_sort_with_ties(monkeypatch, seed):
    """Coordinates of -1, 0, 1 give many equal scores; blocks are uneven, in any order, and cut again inside."""
    monkeypatch.setattr(top, "BLOCK", 4)
    draw = np.random.default_rng(seed)
    queries, embeds = (torch.tensor(draw.integers(-1, 2, (n, 3)), dtype=torch.float32) for n in (5, 31))
    items = torch.tensor(draw.permutation(1000)[:31])
    best = TopItems(queries, 7)
    blocks = torch.tensor(draw.permutation(31)).split([1, 9, 0, 3, 18])
    for block in blocks:
        best.add(embeds[block], items[block])
    assert best.items.tolist() == naive_top(queries, embeds, items.tolist(), 7)
    assert torch.equal(best.scores, (queries @ embeds.T).double().sort(descending=True).values[:, :7])

    parts = [TopItems(queries, 7) for _ in range(2)]  # as on two processes, of which one has fewer items than 7
    for part, half in zip(parts, (slice(0, 5), slice(5, 31)), strict=True):
        part.add(embeds[half], items[half])
    assert parts[0].items.shape == (5, 5)
    parts[0].keep(parts[1].scores, parts[1].items)
    assert torch.equal(parts[0].items, best.items)


@pytest.mark.parametrize("seed", range(3))
def test_near_ties_are_decided_alike_whatever_the_blocks(monkeypatch, seed):
    draw = np.random.default_rng(seed)
    embeds = unit(draw, 90, 65)
    embeds = torch.cat([embeds, embeds[::3]])  # and equal rows
    queries, items = embeds[:7], torch.tensor(draw.permutation(120))
    for block in (1, 13, 4096):
        monkeypatch.setattr(top, "BLOCK", block)
        best = TopItems(queries, 33)
        for part in torch.tensor(draw.permutation(120)).split(50):
            best.add(embeds[part], items[part])
        assert best.items.tolist() == naive_top(queries, embeds, items.tolist(), 33)


def test_products_are_exact():
    """Against whole numbers, at the coordinates where a sum is largest: equal ones of one sign, and one of all."""
    rows = torch.cat([torch.full((1, 1024), 1 / 32), torch.eye(1024)[:1], unit(np.random.default_rng(0), 6, 1024)])
    grid = on_grid(rows)
    whole = [[round(x * 2**26) for x in row] for row in rows.tolist()]
    for a, query in enumerate(whole):
        for b, row in enumerate(whole):
            exact = sum(x * y for x, y in zip(query, row, strict=True))
            assert (grid[a] @ grid[b]).item() * 2**52 == exact and abs(exact) < 2**53


def test_ties_at_the_end_of_a_list_go_to_the_smaller_number():
    lists = TopLists(2, 2)
    lists.keep(torch.tensor([[1.0, 1, 1, 1], [0, 1, 2, 3]]).double(), torch.tensor([[9, 3, 7, 5]] * 2))
    assert lists.items.tolist() == [[3, 5], [5, 7]]
    lists.keep(torch.tensor([[1.0, 0.5], [2, 9]]).double(), torch.tensor([[4, 1], [6, 1]]))
    assert lists.items.tolist() == [[3, 4], [1, 5]]


def test_shares_of_a_whole_gallery_are_those_of_its_lists(monkeypatch):
    """Both users of the lists, in other blocks, agree on which items are the first k: ties and near ties included."""
    draw = np.random.default_rng(5)
    embeds = unit(draw, 80, 33).repeat(2, 1)  # every row twice
    queries, targets, distractors = embeds[:10], embeds[10:20], embeds[20:]
    kinds, others = torch.from_numpy(draw.integers(0, 3, 10)), torch.from_numpy(draw.integers(0, 3, 140))
    best = TopItems(queries, 25)
    best.add(torch.cat([targets, distractors]), torch.arange(150))
    right = torch.cat([kinds, others])[best.items] == kinds[:, None]
    shares = (right.double().cumsum(1) / torch.arange(1, 26)).mean(0)
    monkeypatch.setattr(top, "BLOCK", 11)
    tops = TopShares(queries, targets, kinds, torch.arange(10)[None], [torch.arange(140)[None]], 25)
    for start in (70, 0):
        tops.add(distractors[start : start + 70], start, others[start : start + 70])
    assert torch.allclose(tops.shares()[0][0], shares, rtol=0, atol=1e-12)
