"""Peak memory and time of a training step by batch size, plain and in chunks of 64 (--grad_cache_chunk 64).

    python benchmarks/bench_grad_cache.py [--batches 64 256 1024 4096] [--model assets/mini-clip]

Each row is one process: forward, loss, backward on random pixels, without an optimizer. Memory is what the step adds to
the process: on a GPU what torch allocates, on a CPU the peak of resident memory. A plain step that would not fit into
half of the machine's memory is not tried.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.training.objective.grad_cache import cached_step
from lrvsf.training.objective.loss import info_nce
from modeling_condvit import CondViTModel

CHUNK = 64


def embed(model: CondViTModel, part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(part["pixels"].device.type, torch.bfloat16):
        output = model((part["pixels"] / 127.5) - 1, part["indices"], (part["targets"] / 127.5) - 1)
    return output.image_embeds, output.target_embeds


def peak(device: str) -> float:
    """Megabytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_step(name: str, batch: int, chunked: bool) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = CondViTModel.from_clip(name, attn_implementation="sdpa" if device == "cuda" else "eager").to(device).train()
    size = model.config.image_size
    pixels = [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device) for _ in range(2)]
    inputs = {"pixels": pixels[0], "targets": pixels[1], "indices": torch.arange(batch, device=device) % 10}
    info_nce(*embed(model, {name: value[:8] for name, value in inputs.items()}), model.logit_scale).backward()  # warm
    before, start = peak(device), time.perf_counter()
    if chunked:
        loss = cached_step(model, inputs, CHUNK, embed, info_nce, model.logit_scale, torch.Tensor.backward)
    else:
        loss = info_nce(*embed(model, inputs), model.logit_scale)
        loss.backward()
    return {"loss": loss.item(), "seconds": time.perf_counter() - start, "memory": peak(device) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--model", default="assets/mini-clip")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what the processes below are asked
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_step(args.model, int(args.one[0]), args.one[1] == "chunks")))
        return
    limit = 0.5 * (torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else
                    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 1e6  # fmt: skip
    print(f"{args.model}, chunks of {CHUNK}\n{'pairs':>7}{'':>9}{'memory, MB':>12}{'time / plain':>14}{'loss':>9}")
    per_pair = 0.0
    for batch in args.batches:
        plain = None
        for way in ("plain", "chunks"):
            if way == "plain" and batch * per_pair > limit:
                print(f"{batch:>7}{way:>9}{'not tried: about':>18}{batch * per_pair:>8.0f} MB")
                continue
            command = [sys.executable, __file__, "--model", args.model, "--one", str(batch), way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if way == "plain":
                plain, per_pair = found["seconds"], found["memory"] / batch
            beside = f"{found['seconds'] / plain:.2f}" if plain else "-"
            print(f"{batch:>7}{way:>9}{found['memory']:>12.0f}{beside:>14}{found['loss']:>9.4f}", flush=True)


if __name__ == "__main__":
    main()
