"""Rank counting against the published code's numbers, a naive ranker, and matrices solved by hand."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lrvsf.evaluation import recall
from lrvsf.evaluation.recall import RankCounter, bootstrap_recall, fold_recall, mean_and_std


def naive_recall(queries, targets, distractors, k):
    """Recall at K from the definition: the share of queries whose target is among the K best of a sorted gallery."""
    gallery = np.concatenate([targets, distractors])  # query i's target is item i
    found = 0
    for i, query in enumerate(queries):
        gaps = (gallery - targets[i]) @ query  # exactly 0 for an equal item, as a difference of two scores need not be
        order = np.argsort(-gaps, kind="stable")
        first = int(np.argmax(gaps[order] == 0))  # how many are better
        ties = int((gaps == 0).sum()) - 1  # besides the target itself; half of them count as better
        found += first + ties / 2 + 1 <= k
    return found / len(queries)


@pytest.mark.parametrize("products, distractors, dim", [(1, 1, 2), (7, 0, 3), (23, 41, 3), (64, 129, 4)])
def test_counted_ranks_give_the_recall_of_sorted_galleries(products, distractors, dim):
    """Coordinates of -1, 0 and 1, so that many items tie; at most four, so that no sum is rounded; uneven blocks."""
    draw = np.random.default_rng(products)
    rows = draw.integers(-1, 2, (2 * products + distractors, dim))
    rows[~rows.any(1), 0] = 1
    queries, targets, others = unit(rows).split([products, products, distractors])
    counter = RankCounter(queries, targets, torch.arange(products)[None], [torch.arange(distractors)[None]])
    for start in range(0, distractors, 17):
        counter.add(others[start : start + 17], first_row=start)
    (ranks,) = counter.ranks()
    recall_at = fold_recall(ranks.expected, ranks.weights, 50)[0].tolist()
    exact = [embeds.double().numpy() for embeds in (queries, targets, others)]
    assert recall_at == pytest.approx([naive_recall(*exact, k) for k in range(1, 51)])


@pytest.fixture(scope="module")
def published(golden):
    return load_file(golden / "bootstrap.safetensors")


def unit(rows: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(rows, dtype=torch.float32), dim=1)


def naive_ranks(queries, targets, distractors, product_fold, distractor_fold):
    """The twin: one fold's gallery is built and every query's scores are sorted. Expected rank of each drawn query,
    best and worst."""
    queries, targets, distractors = (x.double().numpy() for x in (queries, targets, distractors))
    expected, best, worst = [], [], []
    for i in product_fold.tolist():
        others = [j for j in sorted(set(product_fold.tolist())) if j != i]
        gallery = np.concatenate([targets[others], distractors[distractor_fold.numpy()]])
        gaps = np.sort((gallery - targets[i]) @ queries[i])[::-1]
        first, last = 1 + np.searchsorted(-gaps, 0, "left"), 1 + np.searchsorted(-gaps, 0, "right")
        best.append(first), worst.append(last), expected.append((first + last) / 2)
    return np.array(expected), np.array(best), np.array(worst)


@pytest.mark.parametrize("size", [300, 1500, 4000])
def test_equals_the_published_code(published, size):
    mean, std = bootstrap_recall(
        published["query_embeds"],
        published["target_embeds"],
        published["distractor_embeds"],
        published["product_folds"],
        published[f"distractor_folds.{size}"],
    )
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, published[f"recall_mean.{size}"], rtol=0, atol=1e-6)
    torch.testing.assert_close(std, published[f"recall_std.{size}"], rtol=0, atol=1e-6)


def test_all_galleries_in_one_streamed_pass(published):
    """Blocks of uneven sizes, in any order, give each gallery the numbers that it has alone."""
    sizes = [300, 1500, 4000]
    counter = RankCounter(
        published["query_embeds"],
        published["target_embeds"],
        published["product_folds"],
        [published[f"distractor_folds.{size}"] for size in sizes],
    )
    bounds = [0, 1, 8, 1009, 1010, 3333, 4000]
    for start, stop in reversed(list(itertools.pairwise(bounds))):
        counter.add(published["distractor_embeds"][start:stop], first_row=start)
    for size, ranks in zip(sizes, counter.ranks(), strict=True):
        mean, _ = mean_and_std(fold_recall(ranks.expected, ranks.weights, 100))
        torch.testing.assert_close(mean.float(), published[f"recall_mean.{size}"], rtol=0, atol=1e-6)
        assert ranks.tied_queries == 0 and ranks.queries == 20 * 160


@pytest.mark.parametrize("seed", range(5))
def test_equals_naive_twin_with_ties_and_duplicates(monkeypatch, seed):
    """Coordinates of -1, 0, 1 give many exact ties; rows are repeated; every inner block is cut unevenly."""
    monkeypatch.setattr(recall, "BLOCK", 8)
    for name, size in (("ROWS", 7), ("COLUMNS", 3), ("PAIRS", 5)):
        monkeypatch.setattr(f"lrvsf.evaluation.ranks.{name}", size)
    draw = np.random.default_rng(seed)
    vocabulary = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]])
    queries, targets, distractors = (unit(vocabulary[draw.integers(0, len(vocabulary), n)]) for n in (13, 13, 31))
    product_folds = torch.as_tensor(draw.integers(0, 13, (4, 11)))
    sizes = [torch.as_tensor(draw.integers(0, 31, (4, n))) for n in (1, 20, 50)]
    counter = RankCounter(queries, targets, product_folds, sizes)
    for start in range(0, 31, 9):
        counter.add(distractors[start : start + 9], first_row=start)
    for folds, ranks in zip(sizes, counter.ranks(), strict=True):
        for f in range(4):
            expected, best, worst = naive_ranks(queries, targets, distractors, product_folds[f], folds[f])
            assert ranks.expected[product_folds[f], f].tolist() == expected.tolist()
            assert ranks.optimistic[product_folds[f], f].tolist() == best.tolist()
            assert ranks.pessimistic[product_folds[f], f].tolist() == worst.tolist()
            for k in (1, 3, 60):
                recall_k = fold_recall(ranks.expected, ranks.weights, k)[f, -1]
                assert recall_k.item() == pytest.approx((expected <= k).mean())


def test_equals_naive_twin_without_ties():
    draw = np.random.default_rng(0)
    queries, targets, distractors = (unit(draw.normal(size=(n, 16))) for n in (20, 20, 90))
    product_folds = torch.as_tensor(draw.integers(0, 20, (3, 20)))
    folds = torch.as_tensor(draw.integers(0, 90, (3, 70)))
    mean, std = bootstrap_recall(queries, targets, distractors, product_folds, folds, max_k=95)
    naive = [naive_ranks(queries, targets, distractors, product_folds[f], folds[f])[0] for f in range(3)]
    table = np.array([[(ranks <= k).mean() for k in range(1, 96)] for ranks in naive])
    np.testing.assert_allclose(mean, table.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, table.std(0, ddof=1), atol=1e-6)
    assert mean[-1] == 1 and std[-1] == 0  # at K beyond the gallery everything is found


def with_scores(scores) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries e_i and unit items whose dot products are scores[query][item], with a last coordinate that makes up the
    length."""
    items = torch.tensor(scores).T
    items = torch.cat([items, (1 - items.square().sum(1, keepdim=True)).sqrt()], dim=1)
    return torch.eye(len(scores), items.shape[1]), items


def test_by_hand_three_targets():
    #          target 0, 1, 2: query 0 finds its own first; query 1's is second; query 2's is last
    queries, targets = with_scores([[0.75, 0.25, 0.50], [0.50, 0.25, 0.125], [0.25, 0.50, 0.125]])
    away = torch.tensor([[0.0, 0, 0, 1]])  # scores 0 with every query, but is never drawn
    once = torch.tensor([[0, 1, 2]])
    mean, std = bootstrap_recall(queries, targets, away, once, torch.zeros(1, 0, dtype=torch.long), max_k=3)
    assert mean.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert std.tolist() == [0, 0, 0]


def test_by_hand_distractor_multiplicity_and_fold_membership():
    queries, targets = with_scores([[0.75, 0.25, 0.50], [0.50, 0.25, 0.125], [0.25, 0.50, 0.125]])
    near = with_scores([[0.5], [0.5], [0.5]])[1]  # above targets 1 and 2, below target 0
    counter = RankCounter(queries, targets, torch.tensor([[0, 1, 1], [2, 2, 2]]), [torch.tensor([[0, 0], [0, 0]])])
    counter.add(near, first_row=0)
    (ranks,) = counter.ranks()
    assert ranks.weights.tolist() == [[1, 0], [2, 0], [0, 3]]
    assert ranks.optimistic[[0, 1], 0].tolist() == [1, 4]  # query 1: target 0 and the distractor twice
    assert ranks.optimistic[2, 1] == 3  # alone in its fold, however often drawn; the distractor twice
    assert fold_recall(ranks.expected, ranks.weights, 4)[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_collapsed_model_scores_nothing():
    same = unit(np.ones((4, 8)))
    folds = torch.arange(4)[None]
    counter = RankCounter(same, same, folds, [torch.arange(4)[None]])
    counter.add(same, first_row=0)
    (ranks,) = counter.ranks()
    assert ranks.tied.tolist() == [[7]] * 4 and ranks.tied_queries == 4
    assert fold_recall(ranks.expected, ranks.weights, 10)[0].tolist() == [0] * 4 + [1] * 6  # expected rank 4.5 of 8
    assert fold_recall(ranks.optimistic, ranks.weights, 1).item() == 1
    assert fold_recall(ranks.pessimistic, ranks.weights, 7)[0, -1].item() == 0


def test_a_copy_of_the_target_ties_whatever_the_rounding():
    draw = np.random.default_rng(1)
    queries, targets = unit(draw.normal(size=(50, 512))), unit(draw.normal(size=(50, 512)))
    counter = RankCounter(queries, targets, torch.arange(50)[None], [torch.arange(50)[None]])
    for row in range(50):  # one by one, so that the product takes another path than the one that scored the target
        counter.add(targets[row : row + 1], first_row=row)
    (ranks,) = counter.ranks()
    # Its own copy ties, and another target that beats it does so twice, once as a product and once as a distractor.
    assert (ranks.tied == 1).all() and (ranks.above % 2 == 0).all()


def test_perfect_and_hopeless_models():
    eye = torch.eye(6)
    all_of_them = torch.arange(3)[None]
    mean, _ = bootstrap_recall(eye[:3], eye[:3], eye[3:], all_of_them, all_of_them, max_k=2)
    assert mean.tolist() == [1, 1]
    mean, _ = bootstrap_recall(eye[:3], -eye[:3], eye[3:], all_of_them, all_of_them, max_k=6)
    assert mean.tolist() == [0, 0, 0, 0, 0, 1]


class TestRefuses:
    """Each with a message that names the row or both values."""

    eye = torch.eye(4)
    folds = torch.tensor([[0, 1]])

    def call(self, **changed):
        arguments = {
            "query_embeds": self.eye[:2],
            "target_embeds": self.eye[:2],
            "distractor_embeds": self.eye[2:],
            "product_folds": self.folds,
            "distractor_folds": self.folds,
        }
        return bootstrap_recall(**{**arguments, **changed}, max_k=1)

    @pytest.mark.parametrize("name", ["query_embeds", "target_embeds", "distractor_embeds"])
    @pytest.mark.parametrize("value, says", [(float("nan"), "not finite"), (float("inf"), "not finite"), (0.5, "norm")])
    def test_bad_rows(self, name, value, says):
        rows = self.eye[:2].clone()
        rows[1] = torch.tensor([value, 0, 0, 0])
        with pytest.raises(ValueError, match=f"{name}: row 1 .*{says}"):
            self.call(**{name: rows})

    def test_row_number_of_a_later_block(self):
        counter = RankCounter(self.eye[:2], self.eye[:2], self.folds, [self.folds])
        with pytest.raises(ValueError, match="row 1002 has norm 0.0000"):
            counter.add(torch.stack([self.eye[2], self.eye[3], torch.zeros(4)]), first_row=1000)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"\(2, 4\) and target_embeds \(3, 4\)"):
            self.call(target_embeds=self.eye[:3])
        with pytest.raises(ValueError, match="3 dimensions but queries 4"):
            self.call(distractor_embeds=torch.eye(3))
        with pytest.raises(ValueError, match="1 folds but distractor_folds.0. has 2"):
            self.call(distractor_folds=self.folds.repeat(2, 1))
        with pytest.raises(ValueError, match="one row per image"):
            self.call(query_embeds=self.eye[0])
        with pytest.raises(ValueError, match="per fold"):
            self.call(product_folds=torch.tensor([0, 1]))

    def test_row_numbers_out_of_range(self):
        with pytest.raises(IndexError, match="row 2, but there are 2 products"):
            self.call(product_folds=torch.tensor([[0, 2]]))
        with pytest.raises(IndexError, match="row 2, but there are 2 distractors"):
            self.call(distractor_folds=torch.tensor([[0, 2]]))
        with pytest.raises(IndexError, match="row -1"):
            self.call(distractor_folds=torch.tensor([[0, -1]]))
