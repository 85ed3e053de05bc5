"""Seconds for the ranks of the leaderboard's galleries, all folds and sizes in one pass, on this machine's device.

    python benchmarks/bench_ranks.py [--products 2000] [--distractors 2000000] [--dim 512] [--markdown]

Products and distractors are random unit rows; the cosines of queries with their targets are spread from 0.1 to 0.7.
Distractors are made block by block on the device, as if read from a store; making them is not counted. Beside it
stands the bare product of all queries with all distractors in the same blocks. bench_recall.py compares with the
published way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_train import table

from lrvsf.evaluation.bootstrap import draw_folds
from lrvsf.evaluation.recall import RankCounter, fold_recall

BLOCK = 16384
SIZES = (10_000, 100_000, 500_000, 1_000_000)
HEADER = ["way", "seconds", "times the bare product", "peak GB", "R@1 of each size, %"]


def blocks(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first row, unit rows), the same in every pass."""
    random = torch.Generator(device).manual_seed(2)
    for start in range(0, args.distractors, BLOCK):
        rows = torch.randn(min(BLOCK, args.distractors - start), args.dim, generator=random, device=device)
        yield start, normalize(rows, dim=1)


def products(args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Queries and targets (P, dim)."""
    random = torch.Generator().manual_seed(1)
    targets, noise = (normalize(torch.randn(args.products, args.dim, generator=random), dim=1) for _ in range(2))
    noise = normalize(noise - (noise * targets).sum(1, keepdim=True) * targets, dim=1)
    cosine = torch.linspace(0.1, 0.7, args.products)[:, None]
    return (cosine * targets + (1 - cosine.square()).sqrt() * noise).to(device), targets.to(device)


class Stopwatch:
    """Seconds of the wall while it runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._wait()
        self.start = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self.start

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def count(args: argparse.Namespace, device: torch.device, bf16: bool) -> tuple[float, list[Tensor]]:
    """(seconds, recall at 1..100 of each size (folds, 100)); drawing the folds is not counted, sorting them is."""
    queries, targets = products(args, device)
    folds = draw_folds(args.products, min(1000, args.products), 20, 0, stream=0)
    sizes = [size for size in SIZES if size <= args.distractors] or [args.distractors]
    drawn = [draw_folds(args.distractors, size, 20, 0, stream=size) for size in sizes]
    watch = Stopwatch()
    with watch:
        counter = RankCounter(queries, targets, folds, drawn, bf16=bf16)
    for start, rows in blocks(args, device):
        with watch:
            counter.add(rows, start)
    with watch:
        curves = [fold_recall(ranks.expected, ranks.weights, 100) for ranks in counter.ranks()]
    return watch.seconds, curves


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"products": 2000, "distractors": 2_000_000, "dim": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    args = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    queries, bare = products(args, device)[0], Stopwatch()
    for _, part in blocks(args, device):
        with bare:
            queries @ part.T
    rows, found = [], []
    for way, bf16 in (("float32", False), ("bfloat16 first", True)):
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, curves = count(args, device, bf16)
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if gpu else "-"
        recall = " / ".join(f"{100 * curve[:, 0].mean():.2f}" for curve in curves)
        rows.append([way, f"{seconds:.2f}", f"{seconds / bare.seconds:.2f}", peak, recall])
        found.append(curves)
    rows.append(["bare product, float32", f"{bare.seconds:.2f}", "1.00", "-", "-"])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), "the two ways differ"
    print(f"{args.products:,} x {args.distractors:,} x {args.dim}, 20 folds of each size\n")
    print(table(HEADER, rows, args.markdown), flush=True)


if __name__ == "__main__":
    main()
