"""Pairs per second of a training step, ours and the published way, and what share of the machine it uses.

    python benchmarks/bench_train.py [--models B/32 B/16] [--batch N] [--steps N] [--torch_compile True] [--markdown]

A step is both towers, symmetric InfoNCE, backward, AdamW, at 224 pixels with random weights.
- published: plain PyTorch, two calls, float32 on a CPU, float16 with a gradient scaler on a GPU (published_model.py);
- ours: CondViTModel, one call, bfloat16 where the machine has it, fused AdamW, uint8 images normalised on the device.
Before anything is timed the two must give the same embeddings from the same weights.

On a CPU rates are per second of processor time, so they hold on a busy machine, and one thread is used, so they are of
one core; --attn auto takes what is fastest here. On a GPU rates are of the wall, batches lie on the device, and two
sections follow: the largest batch that fits, and training from JPEGs on disk with each side's own loader.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_parts import (
    SHAPES,
    Clock,
    OurStep,
    Shape,
    as_floats,
    both_models,
    make_steps,
    matrix_rate,
    on_device,
    pair_flops,
    random_batch,
)
from train_stream import TIMED, WARM, fed_rate, our_batches, published_batches, write_data

CPU_BATCH = {"B/32": 16, "B/16": 8}
GPU_BATCH = {"B/32": 512, "B/16": 256, "L/14": 64, "H/14": 32}
STREAM_BATCH = 256
SECTIONS = ("step", "profile", "batch", "stream")
WAYS = ("published", "ours", "ours, compiled", "ours, layers compiled")


def fastest_attention(shape: Shape, batch: int, device: torch.device) -> str:
    """sdpa or eager, whichever takes less time for a step of a quarter of the layers."""
    part = Shape(**{**vars(shape), "layers": max(1, shape.layers // 4)})
    data, seconds = random_batch(shape, batch, device), {}
    for name in ("sdpa", "eager"):
        step = OurStep(both_models(part, name, device)[1])
        step(*data)
        clock = Clock(device)
        seconds[name] = min((step(*data), clock.lap())[1] for _ in range(3))
    return min(seconds, key=seconds.get)


def step_section(name: str, args: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Rows of the table: interleaved turns, medians; the machine's rate is measured in every turn too."""
    shape, batch = SHAPES[name], args.batch_of(name)
    attention = args.attn_of(name)
    steps = make_steps(shape, attention, device, args.variants)
    data = random_batch(shape, batch, device)
    fed = {way: on_device(as_floats(data) if way == "published" else data, device) for way in steps}
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    rates: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    started, memory = {}, {}
    for way, step in steps.items():
        clock = Clock(device)
        step(*fed[way])  # compiles, allocates, makes the optimizer's state
        started[way] = clock.lap()
        memory[way] = peak_memory(step, fed[way], device)
    for _ in range(args.turns):
        for way, step in steps.items():
            clock = Clock(device)
            for _ in range(args.steps):
                step(*fed[way])
            seconds[way].append(clock.lap() / args.steps)
        for dtype, found in rates.items():
            found.append(matrix_rate(device, dtype, args.matrix_side))
    rate = {dtype: statistics.median(found) for dtype, found in rates.items()}
    rows = []
    for way, found in seconds.items():
        took = statistics.median(found)
        times = statistics.median(p / o for p, o in zip(seconds["published"], found, strict=True))
        flops = pair_flops(shape, batch) * batch / took
        shares = [f"{100 * flops / rate[dtype]:.0f} %" for dtype in (torch.bfloat16, torch.float32)]
        kind = "sdpa" if way == "published" else attention  # what MultiheadAttention takes without need_weights
        row = [name, batch, way, kind, f"{batch / took:.3g}", f"{times:.2f}", f"{flops / 1e12:.3g}", *shares]
        rows.append([*row, memory[way], f"{started[way]:.1f}"])
    print(
        f"{name}: {pair_flops(shape, batch) / 1e9:.1f} GFLOP a pair; matrix products "
        + ", ".join(f"{str(dtype).removeprefix('torch.')} {value / 1e12:.3g} TFLOP/s" for dtype, value in rate.items()),
        flush=True,
    )
    return rows


def peak_memory(step: Callable, data: tuple, device: torch.device) -> str:
    """GB that a step needs beyond other steps' weights and optimizers; "-" on a CPU."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(*data)
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.1f}"


def profile_section(name: str, args: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Where our step's time goes: shares of the operations' own time in one step."""
    step = make_steps(SHAPES[name], args.attn_of(name), device, ["ours"])["ours"]
    data = random_batch(SHAPES[name], args.batch_of(name), device)
    step(*data)
    with torch.profiler.profile() as profiler:
        step(*data)
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events)
    return [[name, event.key, f"{100 * getattr(event, own) / total:.1f} %", event.count] for event in events[:12]]


def largest(memory: Callable[[int], float], room: float, small: int = 16) -> int:
    """The batch that fills the room, if memory grows with the batch as a straight line: from two small batches."""
    low, high = memory(small), memory(2 * small)
    each = (high - low) / small
    return max(0, int((room - (low - small * each)) / each))


def batch_section(name: str, args: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """The largest batch of each way, run; compiled steps are left out, as each batch would compile anew."""
    ways, found, used = ("published", "ours", "ours, checkpointed"), {}, {}
    for way in ways:
        step = make_steps(SHAPES[name], args.attn_of(name), device, [way])[way]

        def memory(batch: int, step: Callable = step, floats: bool = way == "published") -> float:
            data = on_device(random_batch(SHAPES[name], min(batch, 64), torch.device("cpu")), device)
            data = tuple(part.repeat(-(-batch // len(part)), *[1] * (part.ndim - 1))[:batch] for part in data)
            data = as_floats(data) if floats else data
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):  # the second has the optimizer's state beside it
                step(*data).item()
            step.optimizer.zero_grad(set_to_none=True)
            return torch.cuda.max_memory_reserved()

        room = 0.95 * torch.cuda.get_device_properties(device).total_memory
        batch = largest(memory, room, 64)
        while batch:  # what is predicted is run, and made smaller until it fits
            try:
                used[way] = memory(batch) / 2**30
                break
            except torch.OutOfMemoryError:
                batch = batch * 15 // 16
        found[way] = batch
        del step, memory
        gc.collect()
        torch.cuda.empty_cache()
    return [
        [name, way, batch, f"{batch / max(1, found['published']):.2f}", f"{used.get(way, 0):.0f}"]
        for way, batch in found.items()
    ]


def stream_section(name: str, args: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Pairs a second of the wall, fed from disk and from data on the device."""
    shape, batch = SHAPES[name], args.batch or (STREAM_BATCH if device.type == "cuda" else args.batch_of(name))
    rates: dict[str, tuple[float, float]] = {}
    warm = WARM + 2 * args.workers  # DataLoader keeps two batches a worker ready
    with tempfile.TemporaryDirectory() as temporary:
        shards, tars = write_data(Path(temporary), (warm + TIMED) * batch + 2 * 500)
        for way in args.variants:
            step = make_steps(shape, args.attn_of(name), device, [way])[way]
            data = random_batch(shape, batch, device)
            if way == "published":
                data, fed = as_floats(data), published_batches(tars, shape.size, batch, args.workers)
            else:
                fed = our_batches(shards, shape.size, batch, args.workers, device.type == "cuda")
            data = on_device(data, device)
            at_rest = fed_rate(step, itertools.repeat(data), WARM)
            rates[way] = fed_rate(step, fed, warm), at_rest
    return [
        [name, batch, way, f"{fed:.3g}", f"{fed / rates['published'][0]:.2f}", f"{100 * fed / at_rest:.0f} %"]
        for way, (fed, at_rest) in rates.items()
    ]


HEADERS = {
    "step": [
        "model",
        "batch",
        "way",
        "attention",
        "pairs/s",
        "x publ.",
        "TFLOP/s",
        "of bf16",
        "of fp32",
        "GB",
        "start",
    ],
    "profile": ["model", "operation", "of our step", "calls"],
    "batch": ["model", "way", "largest batch", "x publ.", "GB"],
    "stream": ["model", "batch", "way", "pairs/s", "x publ.", "of data at rest"],
}


def table(header: list[str], rows: list[list[object]], markdown: bool = False) -> str:
    """Columns in step, for a terminal or for a page."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, torch.device]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--models", nargs="+", default=["B/32", "B/16"], choices=SHAPES)
    parser.add_argument("--batch", type=int, help=f"pairs a step; by default {GPU_BATCH if gpu else CPU_BATCH}")
    parser.add_argument("--steps", type=int, default=20 if gpu else 1, help="steps a turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of all ways, one after the other")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; waiting for each other counts as time")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="that decode, in stream")
    parser.add_argument("--attn", default="auto", choices=["auto", "sdpa", "eager"])
    parser.add_argument(
        "--torch_compile", type=lambda text: text == "True", default=gpu, help="a third row: our step compiled"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="by default published, ours and, if asked, compiled")
    parser.add_argument("--matrix_side", type=int, help="of the square products that say what the machine can do")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    sections = SECTIONS if gpu else ("step", "profile")
    parser.add_argument("--sections", nargs="+", default=sections, choices=SECTIONS)
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        torch.set_num_threads(args.threads)
        if "batch" in args.sections:
            parser.error("the largest batch that fits is looked for on a GPU only: a CPU would swap")
    args.batch_of = lambda name: args.batch or (GPU_BATCH if gpu else CPU_BATCH).get(name, 4)
    args.variants = args.ways or ["published", "ours", *(["ours, compiled"] if args.torch_compile else [])]
    chosen = {"auto": {}, "sdpa": dict.fromkeys(SHAPES, "sdpa"), "eager": dict.fromkeys(SHAPES, "eager")}[args.attn]

    def attention_of(name: str) -> str:
        if name not in chosen:
            chosen[name] = fastest_attention(SHAPES[name], min(args.batch_of(name), 64), device)
        return chosen[name]

    args.attn_of = attention_of
    return args, device


def main(arguments: list[str] | None = None) -> None:
    args, device = parse(arguments)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} CPU thread(s)"
    print(f"torch {torch.__version__} on {machine}; both models give the same embeddings, or it stops")
    sections = {"step": step_section, "profile": profile_section, "batch": batch_section, "stream": stream_section}
    for section in args.sections:
        rows = [row for name in args.models for row in sections[section](name, args, device)]
        print(f"\n{table(HEADERS[section], rows, args.markdown)}\n", flush=True)


if __name__ == "__main__":
    main()
