import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

from bench_gathered_gradient import gradient, loss_of

from lrvsf.training.objective.loss import symmetric_cross_entropy


def test_the_exact_gradient_is_that_of_the_whole_batch_and_the_published_one_is_not(tiny_model):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)  # noqa: E731
    batch = {"pixel_values": draw(), "target_pixel_values": draw(), "category_indices": torch.arange(6)}
    whole, split, published = (gradient(tiny_model, batch, *how) for how in ((1, True), (3, True), (3, False)))
    for same in (split, gradient(tiny_model, batch, 1, exact=False)):
        # Rows of a tiny random tower are nearly equal: float32 loses digits, and which ones depends on the machine.
        assert (same - whole).norm() < 0.01 * whole.norm()
    assert (published - whole).norm() > 0.2 * whole.norm()
    assert 0 < F.cosine_similarity(published, whole, dim=0) < 0.99


def test_the_losses_are_the_same(make_model):
    queries, targets = F.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    scale = torch.tensor(2.0)
    expected = symmetric_cross_entropy((queries, targets), (queries, targets), scale)
    for exact in (True, False):
        parts = [loss_of(rank, 3, queries, targets, scale, exact) for rank in range(3)]
        torch.testing.assert_close(sum(parts) / 3, expected)
