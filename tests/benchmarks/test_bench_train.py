"""What bench_train.py compares with is the published network, and what it counts is what a step computes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made import plain
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from bench_stream import write_tar
from published_model import PublishedCondViT, PublishedStep
from train_parts import OurStep, Shape, as_floats, both_models, forward_flops, pair_flops, random_batch
from train_stream import PublishedPairs, published_batches

TINY = Shape(patch=8, width=64, layers=2, heads=2, projection=16, size=32)
CPU = torch.device("cpu")


def test_the_plain_model_is_the_published_network(golden):
    with safe_open(golden / "model_category.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        heads = json.loads(file.metadata()["config"])["heads"]
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    width, projection = state["proj"].shape
    patch, size = state["conv1.weight"].shape[-1], tensors["pixel_values"].shape[-1]
    layers = sum(key.endswith("ln_1.weight") for key in state)
    model = PublishedCondViT(patch, width, layers, heads, projection, size, len(state["c_embedding.weight"]))
    model.load_state_dict(state)
    with torch.no_grad():
        conditional = model(tensors["pixel_values"], tensors["category_indices"])
        unconditional = model(tensors["pixel_values"])
    torch.testing.assert_close(conditional, tensors["embeddings.conditional"], rtol=0, atol=1e-5)
    torch.testing.assert_close(unconditional, tensors["embeddings.unconditional"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_steps_change_the_weights_alike(attention):
    """One float32 step from the same weights on the same images: the same loss, and again after it."""
    published, ours = both_models(TINY, attention, CPU)
    batch = random_batch(TINY, 6, CPU)
    theirs, mine = PublishedStep(published), OurStep(ours)
    theirs.optimizer.param_groups[0]["lr"] = mine.optimizer.param_groups[0]["lr"] = 1e-3
    mine.bf16 = False
    losses = [(theirs(*as_floats(batch)).item(), mine(*batch).item()) for _ in range(3)]
    assert losses[0][0] != pytest.approx(losses[2][0], rel=1e-2)
    for other, own in losses:
        assert own == pytest.approx(other, rel=1e-3)


def test_models_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr("train_parts.use_patch_product", lambda model: model.to(torch.bfloat16).float())
    with pytest.raises(SystemExit, match="do not compute the same thing"):
        both_models(TINY, "sdpa", CPU)


def test_flops_are_those_that_torch_counts():
    _, ours = both_models(TINY, "eager", CPU)
    queries, categories, targets = as_floats(random_batch(TINY, 4, CPU))
    with FlopCounterMode(display=False) as counter:
        ours(queries, categories, targets)
    assert counter.get_total_flops() == 4 * (forward_flops(TINY, 18) + forward_flops(TINY, 17))
    assert pair_flops(TINY, 4) == 3 * (forward_flops(TINY, 18) + forward_flops(TINY, 17) + 2 * 2 * 4 * 16)


def test_the_published_loader_pairs_scene_and_product(tmp_path):
    # product n is number n's gray, its scene the next one's: three levels lighter
    grays = [plain((3 * level,) * 3, (40, 40), "JPEG") for level in range(64)]
    tars = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for path in tars:
        write_tar(path, 260, grays)
    pairs = list(PublishedPairs(tars, 32))
    assert len(pairs) == 520
    lighter = np.mean([query[0].mean() > target[0].mean() for query, _, target in pairs])
    assert lighter == pytest.approx(63 / 64, abs=0.01), "all but number 63's, whose scene is black"
    query, category, target = next(published_batches(tars, 32, 4, 0))
    assert query.shape == target.shape == (4, 3, 32, 32) and query.dtype == torch.float32 and category.shape == (4,)
