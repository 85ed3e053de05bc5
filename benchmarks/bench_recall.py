"""Bootstrapped recall by counting ranks in one pass, against building and sorting each gallery. Equal results, ratios.

    python benchmarks/bench_recall.py [--distractors 100000] [--sizes 1000 10000 50000 100000] [--folds 20]
        [--published_folds 1] [--dim 512] [--products 2000] [--per_fold 1000] [--signal 0.1 0.7]

The published way gathers a fold's gallery, multiplies its queries with all of it and takes the top 100, for each fold
of each size. Of its folds a part is timed and scaled to all (--published_folds); their recalls must equal ours.
Products and distractors are random unit rows; the cosines of queries with their targets are spread over --signal. Also
timed is the bare float32 product of all queries with all distractors. All times are the process's own, of all its
threads, so that what else runs on the machine does not count.

The peak of memory is that of a process of its own, which makes the distractors block by block and counts them
(--memory, in units of the distractors above, so that 1 and 10 show whether it grows).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.evaluation.bootstrap import draw_folds
from lrvsf.evaluation.recall import RankCounter, fold_recall

BLOCK = 20_000


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def products(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Queries and targets (P, dim)."""
    random = torch.Generator().manual_seed(1)
    targets = unit(torch.randn(args.products, args.dim, generator=random))
    noise = torch.randn(args.products, args.dim, generator=random)
    noise = unit(noise - (noise * targets).sum(1, keepdim=True) * targets)
    cosine = torch.linspace(*args.signal, args.products)[:, None]
    return unit(cosine * targets + (1 - cosine.square()).sqrt() * noise), targets


def blocks(args: argparse.Namespace) -> Iterator[tuple[int, Tensor]]:
    """(first row, unit rows) of the distractors, made as they are asked for."""
    for start in range(0, args.distractors, BLOCK):
        random = torch.Generator().manual_seed(start + 2)
        yield start, unit(torch.randn(min(BLOCK, args.distractors - start), args.dim, generator=random))


def draws(args: argparse.Namespace) -> tuple[Tensor, list[Tensor]]:
    distractors = [draw_folds(args.distractors, size, args.folds, 0, stream=size) for size in args.sizes]
    return draw_folds(args.products, args.per_fold, args.folds, 0, stream=0), distractors


def counted(args: argparse.Namespace, parts: Any, bf16: bool) -> Tensor:
    """Recall at 1..100 in every gallery, (sizes, folds, 100), in one pass."""
    counter = RankCounter(*products(args), *draws(args), bf16=bf16)
    for start, part in parts:
        counter.add(part, start)
    return torch.stack([fold_recall(ranks.expected, ranks.weights, 100) for ranks in counter.ranks()])


def multiplied(queries: Tensor, parts: Any) -> None:
    """Nothing but the product of all queries with all distractors."""
    for _, part in parts:
        queries @ part.T


def published(queries: Tensor, targets: Tensor, distractors: Tensor, fold: Tensor, drawn: Tensor) -> Tensor:
    """Recall at 1..100 in one gallery, by building it, multiplying all of it and sorting out the top 100."""
    rows, times = fold.unique(return_counts=True)
    gallery = torch.cat([targets[rows], distractors[drawn]])
    top = (queries[rows] @ gallery.T).topk(100, dim=1).indices
    found = (top == torch.arange(len(rows))[:, None]).cumsum(1).double()  # (p, 100)
    return (found * times[:, None]).sum(0) / times.sum()


def timed(function: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """(seconds, what the function returned)."""
    start = time.process_time()
    result = function(*given)
    return time.process_time() - start, result


def peak_of_this() -> float:
    """Megabytes at most so far. (On Linux only; what getrusage says includes the process that started this one.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak(args: argparse.Namespace, times: int) -> float:
    """Megabytes beyond its imports of a process that counts `times` as many distractors, in galleries as large."""
    own = ["--distractors", str(times * args.distractors), "--sizes", *map(str, args.sizes), "--folds", str(args.folds)]
    done = subprocess.run([sys.executable, __file__, *own, "--only_count"], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"distractors": 100_000, "folds": 20, "published_folds": 1, "dim": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--products", type=int, default=2000)
    parser.add_argument("--per_fold", type=int, default=1000)
    parser.add_argument("--signal", type=float, nargs=2, default=[0.1, 0.7])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000, 100_000])
    parser.add_argument("--memory", type=int, nargs="*", default=[1, 10], help="none to leave it out")
    parser.add_argument("--only_count", action="store_true", help=argparse.SUPPRESS)  # what a process of peak is asked
    args = parser.parse_args()
    if args.only_count:
        before = peak_of_this()
        counted(args, blocks(args), bf16=False)
        print(peak_of_this() - before)
        return
    distractors = torch.empty(args.distractors, args.dim)
    for start, part in blocks(args):
        distractors[start : start + BLOCK] = part
    parts = [(start, distractors[start : start + BLOCK]) for start in range(0, args.distractors, BLOCK)]
    (queries, targets), (product_folds, drawn) = products(args), draws(args)
    bare, _ = timed(multiplied, queries, parts)
    results = {way: timed(counted, args, parts, way == "one pass, bfloat16 first") for way in
               ("one pass, float32", "one pass, bfloat16 first")}  # fmt: skip
    slow = 0.0
    for size, folds in enumerate(drawn):
        for f in range(args.published_folds):
            seconds, recall = timed(published, queries, targets, distractors, product_folds[f], folds[f])
            slow += seconds * args.folds / args.published_folds
            for way, (_, ours) in results.items():
                assert torch.allclose(ours[size, f], recall, rtol=0, atol=1e-12), f"{way}: fold {f} of size {size}"
    assert torch.equal(*(recall for _, recall in results.values()))
    print(f"{args.folds} folds at {args.sizes} of {args.distractors} x {args.dim}, {torch.get_num_threads()} threads")
    print(f"R@1 {[round(100 * r, 2) for r in ours[:, :, 0].mean(1).tolist()]} %, equal\n")
    print(f"{'':26}{'seconds':>9}{'times as fast':>15}{'/ bare product':>16}")
    rows = {"published, scaled": slow, **{way: seconds for way, (seconds, _) in results.items()}, "bare product": bare}
    for name, seconds in rows.items():
        print(f"{name:26}{seconds:>9.2f}{slow / seconds:>15.1f}{seconds / bare:>16.2f}")
    for times in args.memory:
        print(
            f"peak of memory beyond imports at {times * args.distractors:>10,} distractors: {peak(args, times):.0f} MB"
        )


if __name__ == "__main__":
    main()
