"""What bench_train.py compares and how it counts: our step, work in a step, the machine's rate, a clock, batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from published_model import PublishedCondViT, PublishedStep
from torch import Tensor

from configuration_condvit import MAX_LOGIT_SCALE
from lrvsf.hub.published import from_published
from lrvsf.processes import has_fast_bf16
from lrvsf.training.fast_tower import compile_layers, use_patch_product
from lrvsf.training.objective.loss import info_nce
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD


@dataclass(frozen=True)
class Shape:
    """A CLIP vision tower at 224 pixels."""

    patch: int
    width: int
    layers: int
    heads: int
    projection: int
    size: int = 224
    categories: int = 10


SHAPES = {
    "B/32": Shape(32, 768, 12, 12, 512),
    "B/16": Shape(16, 768, 12, 12, 512),
    "L/14": Shape(14, 1024, 24, 16, 768),
    "H/14": Shape(14, 1280, 32, 16, 1024),
    "tiny": Shape(8, 64, 2, 2, 16, size=32),  # to rehearse with
}


def forward_flops(shape: Shape, tokens: int) -> int:
    """Matrix products of one image's forward pass, a multiplication and an addition counted as two."""
    patches, width = (shape.size // shape.patch) ** 2, shape.width
    embedding = 2 * patches * 3 * shape.patch**2 * width
    layer = tokens * 24 * width**2 + 4 * tokens**2 * width  # projections and MLP; scores and weighted values
    return embedding + shape.layers * layer + 2 * width * shape.projection


def pair_flops(shape: Shape, batch: int) -> int:
    """A training step's matrix products for one pair: forward, and twice that backward.

    Recomputed, cast and padded work is not counted, so more of it lowers the share of the machine's rate.
    """
    tokens = 1 + (shape.size // shape.patch) ** 2
    towers = forward_flops(shape, tokens + 1) + forward_flops(shape, tokens)
    return 3 * (towers + 2 * 2 * batch * shape.projection)


class Clock:
    """Seconds since it was made or read. On a GPU of the wall; on a CPU of processor time, all threads added.

    Processor time does not count waiting for other programs' turns, so that rates hold on a busy machine.
    """

    def __init__(self, device: torch.device):
        self.gpu = device.type == "cuda"
        self.start = self._now()

    def _now(self) -> float:
        if self.gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def lap(self) -> float:
        before, self.start = self.start, self._now()
        return self.start - before


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of square matrix products that are large enough to reach the machine's rate, unless `side` says less."""
    usual, times = (8192, 20) if device.type == "cuda" else (2048, 8 if dtype == torch.bfloat16 else 2)
    side = side or usual
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b
    clock = Clock(device)
    for _ in range(times):
        a @ b
    return times * 2 * side**3 / clock.lap()


class OurStep:
    """What CondViTTrainer does in a step: uint8 images, one call, bf16 autocast, float32 loss, fused AdamW.

    Args:
        model: on its device, in training mode.
        compiled: all of it by torch.compile; `--torch_compile True` compiles the layers only.
    """

    def __init__(self, model: CondViTModel, compiled: bool = False):
        self.model = model
        self.call = torch.compile(model) if compiled else model
        self.device = model.logit_scale.device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
        self.bf16 = has_fast_bf16(self.device)
        mean_std = [255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD)]
        self.mean, self.std = (values.to(self.device) for values in mean_std)

    def __call__(self, queries: Tensor, categories: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        queries, categories, targets = (x.to(self.device, non_blocking=True) for x in (queries, categories, targets))
        queries, targets = ((images - self.mean) / self.std for images in (queries, targets))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.call(queries, categories, targets)
        loss = info_nce(output.image_embeds, output.target_embeds, self.model.logit_scale)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return loss.detach()


def random_batch(shape: Shape, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 queries, categories and targets, pinned where there is a GPU, as our loader gives them."""
    generator = torch.Generator().manual_seed(0)
    size = (batch, 3, shape.size, shape.size)
    queries, targets = (torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(2))
    parts = queries, torch.randint(0, shape.categories, (batch,), generator=generator), targets
    return tuple(part.pin_memory() for part in parts) if device.type == "cuda" else parts


def on_device(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(part.to(device) for part in batch)


def as_floats(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The same batch as the published loader gives it: normalised float32."""
    queries, categories, targets = batch
    mean, std = (255 * torch.tensor(v, device=queries.device).view(3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    return (queries - mean) / std, categories, (targets - mean) / std


def both_models(shape: Shape, attention: str, device: torch.device) -> tuple[PublishedCondViT, CondViTModel]:
    """The published network with random weights, and ours with the same; refused if their embeddings differ."""
    torch.manual_seed(0)
    published = PublishedCondViT(
        shape.patch, shape.width, shape.layers, shape.heads, shape.projection, shape.size, shape.categories
    )
    ours = from_published(published.state_dict(), shape.heads)
    ours.set_attn_implementation(attention)
    queries, categories, targets = as_floats(random_batch(shape, 2, torch.device("cpu")))
    with torch.no_grad():
        output = use_patch_product(ours)(queries, categories, targets)
        theirs = (published(queries, categories), published(targets))
    for mine, other in zip((output.image_embeds, output.target_embeds), theirs, strict=True):
        if (off := (mine - torch.nn.functional.normalize(other, dim=-1)).abs().max().item()) > 1e-5:
            raise SystemExit(f"the two models' embeddings differ by {off:.1e}: they do not compute the same thing")
    return published.to(device).train(), ours.to(device).train()


def make_steps(shape: Shape, attention: str, device: torch.device, variants: list[str]) -> dict[str, Callable]:
    """Steps by name, each over weights of its own: "published", "ours", "ours, compiled", "ours, layers compiled" (one
    layer is compiled and serves for all), "ours, checkpointed"."""
    steps: dict[str, Callable] = {}
    for name in variants:
        published, ours = both_models(shape, attention, device)
        if name == "published":
            steps[name] = PublishedStep(published)
            continue
        if name == "ours, checkpointed":
            ours.gradient_checkpointing_enable()
        if name == "ours, layers compiled":
            compile_layers(ours)
        steps[name] = OurStep(ours, name == "ours, compiled")
    return steps
