"""From which width on bfloat16 pays on a CPU: the time in float32 over that in bfloat16, of one tower at many widths.

    OMP_NUM_THREADS=1 python benchmarks/bench_widths.py [--widths 64 128 192 256 384 512 768] [--layers 4] [--turns 9]
        [--markdown]

Towers have random weights, 37 tokens of 96 pixels and heads of 64. Both ways take turns; a cell is the median over
turns, in processor time. Above 1, bfloat16 is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_train import table

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel

BATCHES = (1, 8, 32)  # of pictures that are embedded; a training step has the last


def tower(width: int, layers: int) -> CondViTModel:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(1, width // 64)}
    config = CondViTConfig(**sizes, num_hidden_layers=layers, image_size=96, patch_size=16, projection_dim=128)
    return CondViTModel(config)


def gain(call: Callable[[], None], turns: int) -> float:
    """How many times as long a call takes in float32 as in bfloat16."""
    ratios = []
    for turn in range(turns + 1):
        took = {}
        for bf16 in (False, True):
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                call()
            took[bf16] = time.process_time() - start
        ratios += [took[False] / took[True]] if turn else []  # the first turn warms up
    return statistics.median(ratios)


def gains(model: CondViTModel, turns: int) -> list[float]:
    """Of embedding each of BATCHES, and of a training step of the last."""

    def embed(count: int) -> None:
        with torch.inference_mode():
            for _ in range(max(1, 8 // count)):  # short calls are timed in numbers
                model(pixel_values=pixels[:count], category_indices=asked[:count])

    def step() -> None:
        model(pixel_values=pixels, category_indices=asked).image_embeds.float().sum().backward()

    pixels, asked = torch.randn(BATCHES[-1], 3, 96, 96), torch.zeros(BATCHES[-1], dtype=torch.long)
    return [gain(lambda count=count: embed(count), turns) for count in BATCHES] + [gain(step, turns)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 192, 256, 384, 512, 768])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--markdown", action="store_true", help="print a table for a page")
    args = parser.parse_args(arguments)
    header = ["width", *(f"{count} at a time" for count in BATCHES), f"a step of {BATCHES[-1]}"]
    cells = {width: gains(tower(width, args.layers), args.turns) for width in args.widths}
    rows = [[str(width), *(f"{each:.2f}" for each in found)] for width, found in cells.items()]
    print(table(header, rows, args.markdown))


if __name__ == "__main__":
    main()
