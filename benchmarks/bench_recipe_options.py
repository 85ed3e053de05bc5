"""What each option of the recipe brings on Mini LRVS-F, at equal image passes, over several paired seeds.

    python prepare_lrvsf.py mini data/mini
    python benchmarks/bench_recipe_options.py [--steps 600] [--seeds 3] [--jobs 2] [--data data/mini]
        [--out runs/options] [--only NAME ...] [--against published]

Every row is recipes/mini.yaml with one rate for all layers, as published, cut to --steps, with one change. As many
images pass the tower: a pair of the stage with a frozen gallery is one picture, and its targets, which are embedded
once, forward only, count in full. Runs of one seed see products in one order, unless their batches differ. Each is
tested on the test set: 2,000 queries among all targets and 2,000 distractors; a copy of the target under another id
that comes first is an error. The difference to the first row, --against, is paired, product by product, and averaged
over seeds; its interval is a bootstrap over products, and the differences of each seed follow. What a run gave is kept
in --out by its recipe and its drawing, so that a benchmark that was stopped goes on. "Moved" is how far the tower's
weights went, of their norm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.evaluation.paired import bootstrap_interval
from lrvsf.evaluation.recall import ranks_among_all
from lrvsf.processes import has_fast_bf16

ROOT = Path(__file__).parent.parent
BASE = "published"
PUBLISHED = {"learning_rate": 1e-3, "layer_decay": 1.0}  # one rate for all layers: the best of those alike
OPTIONS: dict[str, dict] = {
    BASE: {},
    "condition starts as CLIP's tokens": {"condition_init": "clip"},
    "a tenth of the rate": {"learning_rate": 0.1},
    "0.3 of the rate": {"learning_rate": 0.3},
    "twice the rate": {"learning_rate": 2},
    "layer decay 0.75, twice the rate": {"layer_decay": 0.75, "learning_rate": 2},
    "frozen gallery for the last 40 %": {"freeze_gallery": 0.6},  # share of the image passes that the first stage has
    "both": {"layer_decay": 0.75, "learning_rate": 2, "freeze_gallery": 0.6},
    "four condition tokens": {"num_condition_tokens": 4},
    "first 32 and 64 dimensions, too": {"matryoshka_dims": [32, 64]},
    "two categories a batch": {"categories_per_batch": 2},
}
DISTRACTORS = 2000
PHASE1 = 30  # the published run has 30 epochs, of which the first is phase 1
SECOND_RATE = 0.5  # of the second stage, as a share of the first's; not tuned
STARTS = ("condition", "condition_init", "logit_scale_init_value", "num_condition_tokens")  # a CondViT keeps its own


def recipe_of(change: dict, seed: int, steps: int, args: argparse.Namespace, output: Path) -> dict:
    recipe = yaml.safe_load((ROOT / "recipes/mini.yaml").read_text()) | PUBLISHED
    recipe["phase1_steps"] = max(2, round(steps / PHASE1))
    for name, value in change.items():
        recipe[name] = value * recipe[name] if name == "learning_rate" else value
    fixed = {"data": args.data, "max_steps": steps, "seed": seed, "output_dir": str(output), "disable_tqdm": True}
    fixed |= {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    recipe.pop("save_dtype")
    return recipe | fixed


def measure(name: str, change: dict, seed: int, args: argparse.Namespace) -> dict:
    """What the run gave, from --out where it is there."""
    folder = folder_of(name, change, seed, args)
    kept = folder / "measured.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        recipe, share = first_stage(change, seed, args, folder / "model"), change.get("freeze_gallery")
        start = recipe["model"]
        train(recipe, folder, name)
        if share is not None:
            more = {"max_steps": second_steps(share, args), "phase1_steps": 0, "freeze_gallery": True}
            second = recipe | more | {"model": str(folder / "model"), "output_dir": str(folder / "second")}
            second["learning_rate"] = recipe["learning_rate"] * SECOND_RATE
            train({name: second[name] for name in second if name not in STARTS}, folder, name)
            recipe = second
        measured = test(Path(recipe["output_dir"]), start, args.data)
        kept.write_text(json.dumps(measured))
    measured = json.loads(kept.read_text())
    print(f"{name}, seed {seed}: {shown(measured)}", file=sys.stderr, flush=True)
    return measured


def first_stage(change: dict, seed: int, args: argparse.Namespace, output: Path) -> dict:
    """The recipe of a run, or of the stage before its gallery is frozen."""
    change = dict(change)
    return recipe_of(change, seed, round(change.pop("freeze_gallery", 1) * args.steps), args, output)


def folder_of(name: str, change: dict, seed: int, args: argparse.Namespace) -> Path:
    """Where a run is kept: by what it is called, and by all that makes it, so that no other one is taken for it."""
    recipe = first_stage(change, seed, args, Path())
    paths = {"data": Path(args.data, "mini.json").read_text(), "output_dir": None}  # the drawing, wherever it lies
    made = json.dumps([recipe | paths, change, args.steps, SECOND_RATE], sort_keys=True)
    called = name.replace(" ", "-").replace(",", "").replace("%", "")
    return Path(args.out, f"{called}-{args.steps}-{seed}-{hashlib.sha256(made.encode()).hexdigest()[:8]}")


def second_steps(share: float, args: argparse.Namespace) -> int:
    """Steps of a second stage, which has the passes that the first one leaves. Raises ValueError: it leaves none."""
    # A pair of the second stage is one picture, not two; and all targets pass the tower once.
    products = json.loads(Path(args.data, "mini.json").read_text())["products"]
    batch = yaml.safe_load((ROOT / "recipes/mini.yaml").read_text())["per_device_train_batch_size"]
    left = 2 * (args.steps - round(share * args.steps)) * batch - products
    if left < batch:
        raise ValueError(
            f"--steps {args.steps}: the {products:,} targets of {args.data} leave no pass for a second stage; take "
            "more steps, or fewer products"
        )
    return left // batch


def train(recipe: dict, folder: Path, name: str) -> None:
    path = folder / f"{Path(recipe['output_dir']).name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(ROOT / "train_hf.py"), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")


def test(folder: Path, start: str, data: str) -> dict:
    """Which queries find their target first, and in the first ten; and how far the tower went from the start's."""
    test_set, model = ProductTestSet(Path(data, "test")), load_model(str(folder))
    encoder = Encoder(model, model.config.condition, has_fast_bf16(torch.device("cpu")))
    products, distractors = (embed_share(encoder, part(test_set), 256).embeds for part in (Products, Distractors))
    queries, targets, others = products["query"].float(), products["target"].float(), distractors["distractor"].float()
    others = others[:DISTRACTORS]
    ranks = ranks_among_all(queries, targets, [(others, 0)], len(others)).expected.flatten()
    plain = Encoder(model, "none", encoder.bf16)
    whole = embed_share(plain, Products(test_set), 256).embeds["query"].float()
    unasked = ranks_among_all(whole, targets, [(others, 0)], len(others)).expected.flatten()
    kinds = np.array(test_set.categories())
    right = (kinds[(queries @ targets.T).argmax(1).numpy()] == kinds).mean()
    return {
        "hits": (ranks <= 1).int().tolist(),
        "R@10": 100 * (ranks <= 10).float().mean().item(),
        "category": 100 * float(right),
        "unconditioned": 100 * (unasked <= 1).float().mean().item(),
        "moved": moved(model, start),
    }


def moved(model, start: str) -> float:
    """How far the tower's weights went, of their norm."""
    from modeling_condvit import CondViTModel

    first = dict(CondViTModel.from_clip(start).named_parameters())
    pairs = [(p.float(), first[n].float()) for n, p in model.named_parameters() if n.startswith("vision_model.encoder")]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5


def shown(one: dict) -> str:
    rest = ", ".join(f"{name} {value:.2f}" for name, value in one.items() if name != "hits")
    return f"R@1 {100 * np.mean(one['hits']):.1f}, {rest}"


def table(runs: dict[str, list[dict]]) -> str:
    """One line a row: means over seeds, and the paired difference to the first row, of the means and of each seed."""
    against = next(iter(runs))
    head = f"{'':<36}{'R@1':>7}{'R@10':>7}{'cat@1':>7}{'plain':>7}{'moved':>7}   difference of R@1, 95 %, each seed"
    lines, first = [head], np.array([one["hits"] for one in runs[against]])  # (seeds, P)
    for name, ones in runs.items():
        hits = np.array([one["hits"] for one in ones])
        means = [np.mean([one[key] for one in ones]) for key in ("R@10", "category", "unconditioned")]
        cells = "".join(f"{value:>7.1f}" for value in (100 * hits.mean(), *means))
        line = f"{name:<36}{cells}{np.mean([one['moved'] for one in ones]):>7.2f}"
        if name != against:
            difference = 100 * (hits - first)
            each = difference.mean(0)[:, None]
            low, high = bootstrap_interval(each, np.ones(len(each)))
            seeds = ", ".join(f"{one:+.1f}" for one in difference.mean(1))
            line += f"   {each.mean():+.1f} [{low[0]:+.1f}, {high[0]:+.1f}]  {seeds}"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"steps": 600, "seeds": 3, "jobs": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--data", default="data/mini")
    parser.add_argument("--out", default="runs/options")
    parser.add_argument("--only", nargs="+", default=list(OPTIONS), choices=list(OPTIONS), metavar="NAME")
    parser.add_argument("--against", default=BASE, choices=list(OPTIONS), metavar="NAME")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = [args.against, *(name for name in OPTIONS if name in args.only and name != args.against)]
    try:  # before anything is trained
        for name in names:
            folder_of(name, OPTIONS[name], 0, args)
            if "freeze_gallery" in OPTIONS[name]:
                second_steps(OPTIONS[name]["freeze_gallery"], args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with ThreadPoolExecutor(args.jobs) as pool:
        # A seed at a time: what stops early still has pairs.
        waiting = [(n, pool.submit(measure, n, OPTIONS[n], seed, args)) for seed in range(args.seeds) for n in names]
        runs: dict[str, list[dict]] = {name: [] for name in names}
        for name, future in waiting:
            runs[name].append(future.result())
    print(f"{args.steps} steps, {args.seeds} seeds\n{table(runs)}")


if __name__ == "__main__":
    main()
