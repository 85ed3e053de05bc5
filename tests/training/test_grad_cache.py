"""GradCache against the plain step, its naive twin: the same loss and gradients, in float64 to the last bits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrvsf.training.objective.grad_cache import cached_step
from lrvsf.training.objective.loss import info_nce


def embed(model, part):
    return tuple(F.normalize(model(part[name]), dim=-1) for name in ("queries", "targets"))


def encoder(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 5)).double()


def pairs(rows=11):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(rows, 6, generator=generator, dtype=torch.float64) for name in ("queries", "targets")}


def gradients(model, scale):
    return [*(parameter.grad for parameter in model.parameters()), scale.grad]


@pytest.mark.parametrize("chunk", [1, 4, 11, 20])  # of 11 rows: the last chunk of 4 is uneven
def test_the_plain_step_in_chunks(chunk):
    expected_model, model = encoder(), encoder()
    expected_scale, scale = (torch.tensor(2.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = info_nce(*embed(expected_model, pairs()), expected_scale)
    expected.backward()
    loss = cached_step(model, pairs(), chunk, embed, info_nce, scale, torch.Tensor.backward)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for got, wanted in zip(gradients(model, scale), gradients(expected_model, expected_scale), strict=True):
        assert (got - wanted).norm() <= 1e-12 * wanted.norm()


def test_random_numbers_are_replayed():
    """With dropout the twin embeds chunk after chunk too, but keeps all graphs."""
    expected_model, model = encoder(dropout=0.5), encoder(dropout=0.5)
    expected_scale, scale = (torch.tensor(2.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.manual_seed(7)
    parts = zip(*(column.split(4) for column in pairs().values()), strict=True)
    columns = zip(*(embed(expected_model, dict(zip(pairs(), part, strict=True))) for part in parts), strict=True)
    expected = info_nce(*map(torch.cat, columns), expected_scale)
    expected.backward()
    after = torch.get_rng_state()
    torch.manual_seed(7)
    loss = cached_step(model, pairs(), 4, embed, info_nce, scale, torch.Tensor.backward)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), after), "the next step draws what it would have drawn"
    for got, wanted in zip(gradients(model, scale), gradients(expected_model, expected_scale), strict=True):
        assert (got - wanted).norm() <= 1e-12 * wanted.norm()
