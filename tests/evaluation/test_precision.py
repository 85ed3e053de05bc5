"""The share of the top k in the target's category: against the published code's curves, and against sorted lists."""

import numpy as np
import pytest
import torch
from paper_curves import paper_curves
from safetensors.torch import load_file

from lrvsf.embedding import top
from lrvsf.evaluation.precision import TopShares


@pytest.fixture(scope="module")
def published(golden):
    return load_file(golden / "paper_metrics.safetensors")


def inputs(published):
    names = ("query_embeds", "target_embeds", "distractor_embeds", "target_category", "distractor_category")
    return {name: published[name] for name in names}


@pytest.mark.parametrize("which", ["full", "weighted"])
def test_equals_the_published_code(published, which):
    curves = paper_curves(**inputs(published), weights=published["weights"] if which == "weighted" else None)
    assert sorted(curves) == ["filt_r@k", "unfilt_acc@k", "unfilt_r@k"]
    for name, curve in curves.items():
        torch.testing.assert_close(curve, published[f"{which}.{name}"], rtol=0, atol=1e-6)


def test_equals_sorted_lists_in_every_gallery(monkeypatch):
    """Folds of several lengths, repeats, an empty gallery, uneven blocks in any order, k beyond the gallery."""
    monkeypatch.setattr(top, "BLOCK", 7)
    draw = np.random.default_rng(3)
    queries, targets, distractors = (
        torch.nn.functional.normalize(torch.from_numpy(draw.normal(size=(n, 8))).float(), dim=1) for n in (9, 9, 40)
    )
    kinds, others = torch.from_numpy(draw.integers(0, 3, 9)), torch.from_numpy(draw.integers(-1, 3, 40))
    product_folds = [torch.from_numpy(draw.integers(0, 9, n)) for n in (9, 4)]
    sizes = [[torch.from_numpy(draw.integers(0, 40, n)) for n in pair] for pair in ((0, 0), (5, 3), (60, 33))]
    tops = TopShares(queries, targets, kinds, product_folds, sizes, max_k=20)
    for start, stop in ((17, 40), (0, 3), (3, 17)):
        tops.add(distractors[start:stop], start, others[start:stop])
    for size, shares in zip(sizes, tops.shares(), strict=True):
        for fold, drawn, share in zip(product_folds, size, shares, strict=True):
            unique = fold.unique()
            gallery = torch.cat([targets[unique], distractors[drawn]])
            categories = torch.cat([kinds[unique], others[drawn]])
            order = (queries[fold] @ gallery.T).argsort(dim=1, descending=True)
            right = (categories[order] == kinds[fold][:, None]).double()
            plain = [right[:, :k].mean(1).mean().item() for k in range(1, 21)]  # a slice ends where the gallery does
            assert share.tolist() == pytest.approx(plain)


def test_by_hand():
    """One query; its target is second, between a distractor of its category, drawn twice, and one of another."""
    angles = torch.tensor([0.0, 0.5, 0.25, 0.75])
    query, target, near, far = torch.stack([angles.cos(), angles.sin()], dim=1)[:, None]
    tops = TopShares(query, target, torch.tensor([1]), torch.tensor([[0]]), [torch.tensor([[0, 0, 1]])], max_k=5)
    tops.add(torch.cat([near, far]), 0, torch.tensor([1, 2]))
    assert tops.shares()[0][0].tolist() == [1, 1, 1, 0.75, 0.75]
