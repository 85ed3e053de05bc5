"""Does torchao's int8 pay on a CPU? Images a second of CondViT's tower as it is and quantised, and what that costs.

    python benchmarks/bench_torchao.py [--models assets/mini-condvit B/32] [--batches 1 32] [--seconds 2] [--markdown]

"int8 weights" are stored in int8 and multiplied in float32; "int8 dynamic" has activations in int8, too, with a scale
for each token as it comes; "bfloat16" is what embedding does where the hardware has it. A shape's weights are random.
Rates are per second of processor time, all threads added. The cosine is of each image's embedding with float32's, the
lowest of the batch; images are random numbers. Needs torchao (`pip install torchao`), of which nothing else here knows.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_train import table
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from train_parts import SHAPES

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel

WAYS = {"int8 weights": Int8WeightOnlyConfig, "int8 dynamic": Int8DynamicActivationInt8WeightConfig}
HEADER = ["model", "batch", "way", "images/s", "x float32", "lowest cosine"]


def load(name: str) -> CondViTModel:
    """A folder's model, or a random one of a shape's name."""
    if name not in SHAPES:
        return CondViTModel.from_pretrained(name, dtype=torch.float32).eval()
    shape = SHAPES[name]
    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    sizes |= {"intermediate_size": 4 * shape.width, "patch_size": shape.patch, "image_size": shape.size}
    torch.manual_seed(0)
    return CondViTModel(CondViTConfig(**sizes, projection_dim=shape.projection)).eval()


def rate(call: Callable[[], object], images: int, seconds: float) -> float:
    """Images per second of processor time; the first call, which may prepare something, is not counted."""
    call()
    count, start, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        call()
        count += images
    return count / (time.process_time() - start)


def as_asked(model: CondViTModel, way: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as a function of pixels (B, 3, S, S), quantised or run as the way says."""
    if WAYS.get(way):
        model = copy.deepcopy(model)
        quantize_(model.vision_model.encoder, WAYS[way]())

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
            return model(pixels).image_embeds

    return embed


def measure(name: str, batches: list[int], seconds: float) -> Iterator[list[object]]:
    """The rows of one model."""
    model = load(name)
    ways = {way: as_asked(model, way) for way in ("float32", "bfloat16", *WAYS)}
    side = model.config.image_size
    for batch in batches:
        pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        plain = ways["float32"](pixels)
        speeds = {way: rate(partial(embed, pixels), batch, seconds) for way, embed in ways.items()}
        for way, speed in speeds.items():
            cosine = (ways[way](pixels) * plain).sum(1).min().item()
            yield [name, batch, way, f"{speed:.1f}", f"{speed / speeds['float32']:.2f}", f"{cosine:.5f}"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["assets/mini-condvit", "B/32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(arguments)
    rows = [row for name in args.models for row in measure(name, args.batches, args.seconds)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table(HEADER, rows, args.markdown))


if __name__ == "__main__":
    main()
