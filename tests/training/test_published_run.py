"""A whole run beside a plain-PyTorch twin of the published loop: the same losses, and the weights move alike.

The twin shares no code with the trainer but the batches. It has the published architecture in plain PyTorch, an AdamW
over the projection and the condition for the first epoch, a fresh one over everything for the others, PyTorch's own
schedulers, and decay of every parameter.
"""

import numpy as np
import pytest
import torch
from made import encode, product, write_products
from PIL import Image
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from benchmarks.published_model import PublishedCondViT
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards
from lrvsf.data.stream import ProductBatches
from lrvsf.hub.published import from_published
from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.trainer import CondViTTrainer
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD

EPOCHS, BATCH, PEAK = 6, 8, 1e-4
PRODUCTS = 5 * BATCH  # 30 steps
CATEGORIES = ["Bags", "Feet", "Neck"]
SHAPE = {"patch": 8, "width": 64, "layers": 2, "heads": 1, "projection": 16, "size": 32, "categories": len(CATEGORIES)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Products of coarse noise, one SIMPLE image and one scene each."""
    folder, rng = tmp_path_factory.mktemp("products"), np.random.default_rng(0)

    def coarse():
        return encode(Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 32)))

    rows = [product(f"p{i}", coarse(), coarse(), CATEGORIES[i % 3]) for i in range(PRODUCTS)]
    write_products(folder / "0.parquet", rows)
    return ProductShards.scan(str(folder), CATEGORIES)


def published_start() -> PublishedCondViT:
    torch.manual_seed(0)
    twin = PublishedCondViT(**SHAPE)
    for parameter in twin.parameters():
        if parameter.ndim == 1:  # no bias that is 0, no scale that is 1: each must find its place
            parameter.data += 0.02 * torch.randn_like(parameter)
    return twin


def train_twin(twin: PublishedCondViT, batches: list[dict]) -> list[float]:
    """The published loop: two optimizers, two schedulers, a clamp after each step."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    steps, losses = len(batches) // EPOCHS, []
    for step, batch in enumerate(batches):
        if step == 0:
            optimizer = torch.optim.AdamW([twin.proj, twin.c_embedding.weight, twin.c_pos_embedding], lr=PEAK)
            scheduler = LinearLR(optimizer, start_factor=0.02, total_iters=steps)
        elif step == steps:
            optimizer = torch.optim.AdamW(twin.parameters(), lr=PEAK)
            scheduler = CosineAnnealingLR(optimizer, T_max=(EPOCHS - 1) * steps, eta_min=PEAK / 1000)
        queries, targets = ((batch[name] / 255 - mean) / std for name in ("pixel_values", "target_pixel_values"))
        rows, columns = F.normalize(twin(queries, batch["category_indices"])), F.normalize(twin(targets))
        logits, own = twin.logit_scale.exp() * rows @ columns.T, torch.arange(len(rows))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            twin.logit_scale.clamp_(0, 4.6052)
        losses.append(loss.item())
    return losses


def test_thirty_steps_are_the_published_ones(shards, tmp_path):
    twin = published_start()
    model, start = (from_published(twin.state_dict(), SHAPE["heads"], CATEGORIES) for _ in range(2))
    maker = PairMaker(SHAPE["size"], CATEGORIES, seed=0)
    sampler, batches = ProductBatches(shards, BATCH, seed=0), []
    for sampler.epoch in range(EPOCHS):
        batches += [maker.batch(*item) for item in sampler]
    expected = train_twin(twin, batches)

    args = CondViTTrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=PEAK,
        seed=0, use_cpu=True, bf16=False, save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=1,
        dataloader_num_workers=0,
    )  # fmt: skip
    trainer = CondViTTrainer(model, args, shards)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert len(losses) == len(expected) == 30
    assert max(abs(ours - theirs) for ours, theirs in zip(losses, expected, strict=True)) <= 1e-5
    end = from_published(twin.state_dict(), SHAPE["heads"], CATEGORIES)
    moved, apart = difference(end, start).norm(), difference(model, end).abs().sort().values
    assert apart[: -len(apart) // 10_000].norm() <= 1e-4 * moved and apart[-1] <= 30 * PEAK
    assert model.logit_scale.item() == end.logit_scale.item() != start.logit_scale.item()


def difference(one: CondViTModel, other: CondViTModel) -> torch.Tensor:
    """All weights in one vector, but for the keys' biases, which attention does not see: softmax takes no notice of
    what it adds to all scores of a query, so their gradient is rounding, which Adam divides by its own size.

    For the same reason a coordinate whose gradient happens to be nothing but rounding may go another way for a step:
    one in 10,000 may.
    """
    weights = other.state_dict()
    return torch.cat([(w - weights[n]).flatten() for n, w in one.state_dict().items() if not n.endswith("k_proj.bias")])
