"""What a step against a frozen gallery costs: the loss over all training targets, beside the tower.

    python benchmarks/bench_frozen_gallery.py [--shape B/16] [--batch 16] [--targets 65536 272451] [--rounds 3]

Forward and backward of a batch of scenes, random weights and pixels, and of the loss that compares them with so many
unit rows; each is timed apart, by turns, and so is the usual step of scene and product with the batch's own loss. Tower
and loss both grow with the batch, so their ratio hardly depends on it. On a CPU it is processor time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_parts import SHAPES, Clock, both_models, random_batch

from lrvsf.processes import has_fast_bf16
from lrvsf.training.objective.frozen_gallery import FrozenGallery
from lrvsf.training.objective.loss import info_nce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="B/16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--targets", type=int, nargs="+", default=[65536, 272451])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[args.shape]
    _, model = both_models(shape, "sdpa", device)
    scenes, categories, products = (part.to(device) for part in random_batch(shape, args.batch, device))
    scenes, products = scenes / 127.5 - 1, products / 127.5 - 1
    half = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))
    generator = torch.Generator(device).manual_seed(0)
    galleries = {}
    for count in args.targets:
        rows = torch.randn(count, shape.projection, device=device, generator=generator)
        galleries[count] = FrozenGallery(torch.nn.functional.normalize(rows, dim=1), np.arange(count), [])
    places = torch.arange(args.batch, device=device)

    def usual() -> None:
        with half:
            output = model(scenes, categories, products)
        info_nce(output.image_embeds, output.target_embeds, model.logit_scale).backward()

    def tower() -> None:
        with half:
            output = model(scenes, categories)
        output.image_embeds.float().sum().backward()

    def loss(gallery: FrozenGallery) -> None:
        queries = gallery.targets[: args.batch].clone().requires_grad_()
        gallery.loss(queries, places, model.logit_scale).backward()

    timed = {"usual step": usual, "tower, scenes alone": tower}
    timed |= {f"loss over {count:,} targets": lambda gallery=g: loss(gallery) for count, g in galleries.items()}
    seconds = dict.fromkeys(timed, 0.0)
    for turn in range(args.rounds + 1):  # the first warms up
        for name, work in timed.items():
            model.zero_grad(set_to_none=True)
            clock = Clock(device)
            work()
            seconds[name] += clock.lap() if turn else 0.0
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{args.shape}, {args.batch} pairs, {machine}: time, of that of the usual step")
    for name, total in seconds.items():
        print(f"{name:<32}{total / seconds['usual step']:>8.3f}")


if __name__ == "__main__":
    main()
