import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lrvsf.training.objective.loss import info_nce, nested_info_nce, rows_that_share


def test_golden_loss_and_gradients(golden):
    numbers = load_file(golden / "contrastive_loss.safetensors")
    queries, targets = numbers["complex"].requires_grad_(), numbers["simple"].requires_grad_()
    scale = numbers["logit_scale"].requires_grad_()
    loss = info_nce(F.normalize(queries, dim=-1), F.normalize(targets, dim=-1), scale)
    loss.backward()
    for ours, theirs in (
        (loss, numbers["loss"]),
        (queries.grad, numbers["grad.complex"]),
        (targets.grad, numbers["grad.simple"]),
        (scale.grad, numbers["grad.logit_scale"]),
    ):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-9)


def test_closed_forms():
    same = F.normalize(torch.ones(5, 3), dim=-1)
    assert info_nce(same, same, torch.tensor(4.6)).item() == pytest.approx(math.log(5), abs=1e-5)
    rows = torch.eye(4)
    expected = -math.log(math.e / (math.e + 3))  # own logit 1, the three others 0
    assert info_nce(rows, rows, torch.tensor(0.0)).item() == pytest.approx(expected, abs=1e-6)
    assert info_nce(rows, rows.roll(1, 0), torch.tensor(0.0)).item() == pytest.approx(expected + 1, abs=1e-6)


def test_nested_dimensions_are_embeddings_of_their_own():
    generator = torch.Generator().manual_seed(0)
    queries, targets = (F.normalize(torch.randn(6, 8, generator=generator), dim=-1) for _ in range(2))
    scale = torch.tensor(3.0)
    whole = info_nce(queries, targets, scale)
    assert nested_info_nce(queries, targets, scale, []) == whole
    short = info_nce(*(rows[:, :3] / rows[:, :3].norm(dim=1, keepdim=True) for rows in (queries, targets)), scale)
    assert nested_info_nce(queries, targets, scale, [3]).item() == pytest.approx(((whole + short) / 2).item())


def test_half_precision_is_raised_and_autocast_is_left():
    generator = torch.Generator().manual_seed(0)
    queries, targets = (F.normalize(torch.randn(32, 16, generator=generator), dim=-1) for _ in range(2))
    scale = torch.tensor(4.6)
    exact = info_nce(queries, targets, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(queries, targets, scale), exact)
    assert info_nce(queries.bfloat16(), targets.bfloat16(), scale).dtype == torch.float32


def test_unpaired_rows_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and targets \(2, 4\)"):
        info_nce(torch.eye(4)[:3], torch.eye(4)[:2], torch.tensor(0.0))


PICTURES = torch.tensor([[5, 8, 0], [9, 0, 0], [7, 8, 0], [6, 4, 3], [9, 2, 1], [4, 0, 0], [11, 12, 13]])
SHARED = {(0, 2), (1, 4), (3, 5)}  # by 8, 9 and 4; the padding is no picture


def test_rows_that_share_a_picture_by_hand():
    together = rows_that_share(PICTURES)
    assert {tuple(sorted(pair)) for pair in together.nonzero().tolist()} == SHARED
    assert torch.equal(together, together.T)
    assert rows_that_share(torch.tensor([[1, 2], [3, 0], [4, 0]])) is None


def test_products_of_one_picture_are_no_negatives():
    """The naive twin: each row's softmax over the rows that it does not share a picture with; forward and gradient."""
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(7, 4, generator=generator).double(), dim=-1).requires_grad_() for _ in range(2)]
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    expected = 0
    for asked, answers in (rows, rows[::-1]):
        for i in range(7):
            others = [j for j in range(7) if j == i or tuple(sorted((i, j))) not in SHARED]
            logits = torch.stack([scale.exp() * asked[i] @ answers[j] for j in others])
            expected = expected - torch.log_softmax(logits, 0)[others.index(i)] / 14
    loss = info_nce(*rows, scale, rows_that_share(PICTURES))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(value, [*rows, scale]) for value in (loss, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    nested = nested_info_nce(*rows, scale, [2], rows_that_share(PICTURES))
    short = info_nce(*(F.normalize(part[:, :2], dim=-1) for part in rows), scale, rows_that_share(PICTURES))
    torch.testing.assert_close(nested, (loss + short) / 2)


def test_a_batch_of_one_picture_teaches_nothing():
    rows = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert info_nce(rows, rows.roll(1, 0), torch.tensor(3.0), rows_that_share(torch.full((3, 1), 8))).item() == 0
