"""How far the published gradient on several GPUs is from the gradient of the loss that it is meant for.

    python benchmarks/bench_gathered_gradient.py [--pairs 60] [--steps 30] [--rate 1e-3]

The published code gathers all GPUs' embeddings, and in the backward pass keeps of each GPU's loss only what it says of
this GPU's own rows. What one GPU's loss says of another's rows is lost. Here one process plays all GPUs: it computes
each one's loss with the others' rows detached, and the mean of the gradients, as distributed training does. Mini CLIP's
tower, drawn pairs, float32; the steps between the two measurements follow the exact gradient, by AdamW.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.pairs import PairMaker
from lrvsf.mini.build import MiniSize, draw_looks, draw_product
from modeling_condvit import CondViTModel

ROOT = Path(__file__).parent.parent
WORLDS = (2, 4)


def loss_of(rank: int, world: int, queries: Tensor, targets: Tensor, scale: Tensor, exact: bool) -> Tensor:
    """One GPU's loss: its rows of (B, P) queries and targets against everybody's."""
    own = torch.arange(len(queries)).chunk(world)[rank]
    if not exact:
        here = torch.zeros(len(queries), 1).index_fill(0, own, 1)
        queries, targets = (here * rows + (1 - here) * rows.detach() for rows in (queries, targets))
    logits = scale.exp() * queries[own] @ targets.T, scale.exp() * targets[own] @ queries.T
    return sum(F.cross_entropy(each, own) for each in logits) / 2


def gradient(model: CondViTModel, batch: dict, world: int, exact: bool) -> Tensor:
    """The gradient of all parameters in one vector; it stays in the parameters, too."""
    pixels, targets = (batch[name] / 127.5 - 1 for name in ("pixel_values", "target_pixel_values"))
    output = model(pixels, batch["category_indices"], targets)
    rows = output.image_embeds, output.target_embeds
    model.zero_grad()
    losses = [loss_of(rank, world, *rows, model.logit_scale, exact) for rank in range(world)]
    (sum(losses) / world).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def cosines(model: CondViTModel, batch: dict) -> str:
    exact = gradient(model, batch, 1, exact=True)
    found = [F.cosine_similarity(exact, gradient(model, batch, world, exact=False), dim=0) for world in WORLDS]
    return ", ".join(f"{world} GPUs {cosine:.3f}" for world, cosine in zip(WORLDS, found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="of all GPUs together")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of these steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = CondViTModel.from_clip(str(ROOT / "assets/mini-clip"), attn_implementation="eager").train()
    size = MiniSize(products=args.pairs, test_products=1, distractors=1, image_size=96)
    rows = [draw_product(size, job) for job in enumerate(draw_looks(size)["train"].looks)]
    maker, optimizer = PairMaker(96, model.config.categories, seed=0), torch.optim.AdamW(model.parameters(), args.rate)
    for step in range(args.steps + 1):
        batch = maker.batch(step, rows, [])
        if step in (0, args.steps):
            print(f"after {step} steps, cosine to the exact gradient: {cosines(model, batch)}", flush=True)
        gradient(model, batch, 1, exact=True)
        optimizer.step()


if __name__ == "__main__":
    main()
