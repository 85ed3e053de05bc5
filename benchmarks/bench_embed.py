"""Images per second that an encoder embeds: at rest, and from JPEGs of 256 x 341 pixels that threads decode beside it.

    python benchmarks/bench_embed.py [--models B/32 B/16] [--batches 1 32] [--seconds 2] [--compile] [--onnx]
        [--markdown]

Weights are random. "At rest" is `Encoder.embed` of uint8 pixels in memory, copies to and from the device included;
"from JPEGs" is `embed_ranges`, the way of the evaluation. On a CPU rates are per second of processor time, all threads
added, so that they are of one core; on a GPU they are of the wall. The last column compares with one thread that does
nothing but decode, pad and resize. `--onnx` needs requirements-onnx.txt, and a CPU: ONNX Runtime has no GPU in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_stream import photos
from bench_train import table
from train_parts import SHAPES, Clock, both_models

from lrvsf.data.images import BadImageCounter, decode_image
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Distractors, Item
from lrvsf.embedding.pipeline import embed_ranges
from modeling_condvit import CondViTModel
from processing_condvit import pad_and_resize

HEADER = ["model", "batch", "way", "at rest, images/s", "from JPEGs", "x one decoding thread"]


class Photos(Distractors):
    """JPEGs in memory as rows to embed, in the form of a test set's distractors."""

    what = "photos"

    def __init__(self, encoded: list[bytes], total: int):
        self.encoded, self.total = encoded, total

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for row in range(start, stop):
            yield row, (self.encoded[row % len(self.encoded)],)


def rate(call: Callable[[], int], seconds: float, device: torch.device) -> float:
    """What `call` returns, added up, a second; it is called once before, and until the time is over."""
    call()
    clock, count, took = Clock(device), 0, 0.0
    while took < seconds:
        count += call()
        took += clock.lap()
    return count / took


def rates(encoder: Encoder, batch: int, encoded: list[bytes], seconds: float) -> tuple[float, float]:
    """(at rest, from JPEGs) of one way, images a second."""
    pixels = [encoder.pixels(encoded[row % len(encoded)]) for row in range(batch)]
    at_rest = rate(lambda: len(encoder.embed(pixels)), seconds, encoder.device)
    # A GPU needs many batches until it and the threads are in step; processor time has nothing to wait for.
    part = Photos(encoded, max(64, (16 if encoder.device.type == "cuda" else 2) * batch))

    def from_jpegs() -> int:
        counter = BadImageCounter(part.what)
        return sum(len(found.rows) for found in embed_ranges(encoder, part, [(0, part.total)], batch, counter))

    return at_rest, rate(from_jpegs, seconds, encoder.device)


def decode_rate(encoded: list[bytes], size: int, seconds: float, device: torch.device) -> float:
    """Images a second that one thread decodes, pads and resizes as the evaluation does."""

    def decode() -> int:
        for data in encoded:
            pad_and_resize(decode_image(data), size)
        return len(encoded)

    return rate(decode, seconds, device)


def ways_of(model: CondViTModel, device: torch.device, compiled: bool, graphs: Path | None) -> dict[str, Encoder]:
    """Encoders by name; those of ONNX Runtime where there is an empty folder for their graphs."""
    ways = {"float32": Encoder(model, "none", False, device), "bfloat16": Encoder(model, "none", True, device)}
    if compiled:
        ways["bfloat16, compiled"] = Encoder(model, "none", True, device)
        ways["bfloat16, compiled"].model = torch.compile(model)
    if graphs is not None:
        from graph_encoder import GraphEncoder

        from lrvsf.hub.graphs.onnx_folder import drawn_pictures, write_checked

        write_checked(model, graphs, "random weights", drawn_pictures(model.config.image_size))
        ways |= {f"ONNX {kind}": GraphEncoder(model, "none", graphs, kind == "int8") for kind in ("float32", "int8")}
    return ways


def main(arguments: list[str] | None = None) -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["B/32", "B/16"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 512] if gpu else [1, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--compile", action="store_true", help="a further row: torch.compile, bfloat16")
    parser.add_argument("--onnx", action="store_true", help="further rows: ONNX Runtime")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if gpu else "cpu")
    encoded = photos(np.random.default_rng(0))
    rows = []
    for name in args.models:
        model = both_models(SHAPES[name], "sdpa", device)[1].eval()
        alone = decode_rate(encoded, SHAPES[name].size, args.seconds, device)
        with tempfile.TemporaryDirectory() as folder:
            ways = ways_of(model, device, args.compile, Path(folder) if args.onnx else None)
            for batch in args.batches:
                for way, encoder in ways.items():
                    at_rest, fed = rates(encoder, batch, encoded, args.seconds)
                    rows.append([name, batch, way, f"{at_rest:.3g}", f"{fed:.3g}", f"{fed / alone:.2f}"])
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name() if gpu else 'a CPU, one core of it'}\n")
    print(table(HEADER, rows, args.markdown), flush=True)


if __name__ == "__main__":
    main()
