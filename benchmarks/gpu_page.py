"""Writes the page that benchmarks/on_gpu.sh is for: a section for each question, each survives another's failure.

Sections run in the order given here, until the minutes are over; what was left out and what failed stand in the page,
and a failure ends the script with exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import bench_embed
import bench_ranks
import bench_train
import gpu_checks
from bench_train import table

GOALS = """Goals: ours at least 1.3 times published at the same batch; B/16 at 45 % of the machine's bfloat16 products
or more; from JPEGs, B/32 at least 1.5 times published, B/16 at 85 % of its rate on data at rest or more."""


class Page:
    """What the sections say, kept on the disk after each one."""

    def __init__(self, path: Path):
        self.path, self.text, self.failed = path, "", False

    def add(self, text: str) -> None:
        self.text += text.rstrip() + "\n\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text)
        print(text, flush=True)


class Run:
    """One run of the script: where its data lies, and whether it is a rehearsal."""

    def __init__(self, work: Path, tiny: bool):
        self.work, self.tiny = work, tiny
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.workers = 1 if tiny else max(1, (os.cpu_count() or 1) - 1)
        self.drawing: subprocess.Popen | None = None

    def draw(self, name: str, *size: str) -> subprocess.Popen:
        """Begins to draw a Mini LRVS-F beside what else is done."""
        command = [sys.executable, "prepare_lrvsf.py", "mini", str(self.work / name), *size]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def drawn(self, drawing: subprocess.Popen) -> None:
        _, errors = drawing.communicate()
        if drawing.returncode:
            raise RuntimeError(f"drawing Mini LRVS-F failed: {errors[-500:]}")


def said(main: Callable[[list[str]], None], *flags: str) -> str:
    """A command's name and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(list(flags))
    name = Path(sys.modules[main.__module__].__file__).name
    shown = [flag for flag in flags if flag != "--markdown"]
    return f"`python benchmarks/{name} {shlex.join(shown)}`\n\n{out.getvalue()}"


def checks(run: Run, page: Page) -> None:
    run.drawn(run.draw("small", *(["--products", "64"] if run.tiny else ["--products", "2000"]), *SMALL))
    for heading, header, rows in gpu_checks.tables(run.work / "small", run.work, run.device, run.tiny):
        page.add(f"**{heading}**\n\n{table(header, rows, markdown=True)}")
        if any(str(row[-1]).startswith("NO") for row in rows):
            page.failed = True


def step(run: Run, page: Page) -> None:
    flags = ["--sections", "step", "--markdown", "--turns", "2" if run.tiny else "3"]
    if run.tiny:
        plan = [("tiny", ["published", "ours"])]
        flags += ["--batch", "4", "--attn", "sdpa", "--matrix_side", "64"]
    else:
        layers = [
            "published",
            "ours",
            "ours, layers compiled",
        ]  # the whole tower takes several times as long to compile
        plan = [("B/32", list(bench_train.WAYS)), ("B/16", layers), ("L/14", layers)]
        flags += ["--steps", "8", "--attn", "sdpa"]
    for name, ways in plan:
        page.add(said(bench_train.main, "--models", name, "--ways", *ways, *flags))
        release()


def ranks(run: Run, page: Page) -> None:
    small = ["--products", "30", "--distractors", "400", "--dim", "32"] if run.tiny else []
    page.add(said(bench_ranks.main, *small, "--markdown"))


def embed(run: Run, page: Page) -> None:
    small = ["--models", "tiny", "--batches", "2", "--seconds", "0.01"] if run.tiny else []
    page.add(said(bench_embed.main, *small, "--markdown"))


def stream(run: Run, page: Page) -> None:
    flags = ["--sections", "stream", "--markdown", "--attn", "sdpa", "--workers", str(run.workers)]
    models = ["tiny"] if run.tiny else ["B/32", "B/16"]
    ways = ["published", "ours", *([] if run.tiny else ["ours, layers compiled"])]
    flags += ["--batch", "4"] if run.tiny else []
    page.add(said(bench_train.main, "--models", *models, "--ways", *ways, *flags))


def batch(run: Run, page: Page) -> None:
    if run.device.type != "cuda":
        page.add("Only a GPU has a largest batch.")
        return
    models = ["B/32", "B/16", "L/14"]
    page.add(said(bench_train.main, "--models", *models, "--sections", "batch", "--attn", "sdpa", "--markdown"))


def profile(run: Run, page: Page) -> None:
    flags = ["--batch", "4"] if run.tiny else []
    model = "tiny" if run.tiny else "B/16"
    flags += ["--sections", "profile", "--attn", "sdpa", "--markdown"]
    page.add(said(bench_train.main, "--models", model, *flags))


def mini(run: Run, page: Page) -> None:
    """The whole of recipes/mini.yaml on its 64,000 products, and the shipped model by the same evaluation."""
    import evaluate_lrvsf
    import train_hf

    data = run.work / "mini"
    run.drawn(run.drawing or run.draw("mini", *LARGE[run.tiny]))
    shown = ["--attn_implementation", "sdpa", "--dataloader_num_workers", str(run.workers)]
    own = ["--data", str(data), *shown]
    own += ["--output_dir", str(run.work / "condvit"), "--report_to", "none"]
    if run.tiny:
        own += ["--max_steps", "4", "--phase1_steps", "1", "--eval_steps", "2", "--per_device_train_batch_size", "8"]
    start = time.perf_counter()
    train_hf.main(["recipes/mini.yaml", *own])
    minutes = (time.perf_counter() - start) / 60
    sizes = ["5", "10"] if run.tiny else ["500", "2000", "5000"]
    rows = []
    for name, model in (("trained here", str(run.work / "condvit")), ("assets/mini-condvit", "assets/mini-condvit")):
        for bf16 in ("False", "True") if name == "assets/mini-condvit" else ("False",):
            out = run.work / f"results-{name.split('/')[-1]}-{bf16}".replace(" ", "-")
            flags = ["--data_root", str(data / "test"), "--output_dir", str(out), "--gallery_sizes", *sizes]
            evaluate_lrvsf.main(["--model", model, "--bf16", bf16, *flags])
            galleries = json.loads((out / "results.json").read_text())["galleries"]
            recall = " / ".join(f"{100 * galleries[size]['recall']['1']['mean']:.1f}" for size in sizes)
            rows.append([name, "bfloat16" if bf16 == "True" else "float32", recall])
    page.add(
        f"`accelerate launch train_hf.py recipes/mini.yaml {shlex.join(shown)}`: {minutes:.1f} minutes, validation "
        f"included; evaluated among {', '.join(sizes)} distractors, 20 folds, seed 0.\n\n"
        + table(["model", "embedded in", "R@1, %"], rows, markdown=True)
    )


SMALL = ("--test_products", "16", "--distractors", "40")
LARGE = {False: ("--products", "64000"), True: ("--products", "64", *SMALL)}
SECTIONS = {
    "checks": (checks, "Does it compute the same?"),
    "step": (step, "A training step, batches on the device"),
    "ranks": (ranks, "Ranks of the leaderboard's galleries"),
    "embed": (embed, "Embedding"),
    "stream": (stream, "Training from 256-pixel JPEGs on disk"),
    "batch": (batch, "The largest batch"),
    "profile": (profile, "Where our step's time goes"),
    "mini": (mini, "Mini CondViT's whole recipe"),
}


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.compiler.reset()


def machine() -> str:
    """The card and what runs on it, in one line."""
    name = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a rehearsal, whose figures mean nothing"
    )
    versions = {
        module: __import__(module).__version__ for module in ("torch", "transformers", "accelerate", "datasets")
    }
    listed = ", ".join(f"{module} {version}" for module, version in versions.items())
    return f"{name}; {os.cpu_count()} CPU cores; Python {platform.python_version()}, {listed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins after them")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--tiny", action="store_true", help="rehearse: every section in seconds")
    args = parser.parse_args()
    if not (torch.cuda.is_available() or args.tiny):
        parser.error("there is no GPU here; --tiny rehearses on a CPU")
    if args.tiny:
        torch.set_num_threads(1)
    start, page = time.perf_counter(), Page(args.out)
    page.add(
        f"# Figures of one GPU\n\n`bash benchmarks/on_gpu.sh {shlex.join(sys.argv[1:])}`\n\n{machine()}\n\n{GOALS}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(Path(temporary), args.tiny)
        if "mini" in args.sections:
            run.drawing = run.draw("mini", *LARGE[args.tiny])
        for name in args.sections:
            section, heading = SECTIONS[name]
            begun = time.perf_counter()
            page.add(f"## {heading}")
            if begun - start > 60 * args.minutes:
                page.add(f"Left out: {args.minutes:g} minutes were over.")
                continue
            try:
                section(run, page)
            except (Exception, SystemExit):
                page.failed = True
                page.add(f"This failed:\n\n```\n{traceback.format_exc()[-3000:]}\n```")
            release()
            print(f"({name}: {time.perf_counter() - begun:.0f} s)", flush=True)
        if run.drawing:
            run.drawing.kill()
    sys.exit(1 if page.failed else 0)


if __name__ == "__main__":
    main()
