"""What each option of the recipe brings on Mini LRVS-F: validation recall and loss over several seeds.

    python benchmarks/bench_recipe_options.py [--steps 240] [--seeds 3] [--jobs 2] [--data data/mini]

Every row is recipes/mini-demo.yaml with one change and as many steps as asked, the schedule fitted to them. Runs with
one seed see the same products in the same order, so that differences from the recipe as it stands are paired; +- is the
standard deviation over seeds. Jobs run side by side, one thread each.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
OPTIONS: dict[str, dict] = {
    "as it stands": {},
    "batches from all categories": {"categories_per_batch": None},
    "batches of one category": {"categories_per_batch": 1},
    "layer decay 0.8": {"layer_decay": 0.8},
    "moving average 0.98": {"ema_decay": 0.98},
    "half of the patches dropped": {"patch_dropout": 0.5},
    "a fifth of the patches dropped": {"patch_dropout": 0.2},
    "a tenth unconditioned": {"unconditioned_fraction": 0.1},
    "label smoothing 0.1": {"label_smoothing_factor": 0.1},
    "four condition tokens": {"num_condition_tokens": 4},
    "nested dimensions 32, 64": {"matryoshka_dims": [32, 64]},
}
METRIC = re.compile(r"'eval_(R@1|R@10|loss)': '?([0-9.e-]+)")


def measure(change: dict, seed: int, steps: int, data: str) -> dict[str, float]:
    """R@1 and R@10 in percent, and loss, on the validation set after the last step."""
    recipe = yaml.safe_load((ROOT / "recipes/mini-demo.yaml").read_text())
    recipe |= {"data": data, "max_steps": steps, "seed": seed, "eval_strategy": "steps", "eval_steps": steps}
    recipe |= {"disable_tqdm": True, "report_to": "none", **change}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(yaml.safe_dump({**recipe, "output_dir": f"{folder}/model"}))
        command = [sys.executable, str(ROOT / "train_hf.py"), str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{change} with seed {seed} failed:\n{done.stderr[-2000:]}")
    found = {name: float(value) for name, value in METRIC.findall(done.stdout)}
    measured = {"R@1": 100 * found["R@1"], "R@10": 100 * found["R@10"], "loss": found["loss"]}
    print(f"seed {seed} {change}: {measured}", file=sys.stderr, flush=True)
    return measured


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):6.2f} +- {statistics.stdev(values):4.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", default="data/mini")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs: dict[str, list] = {name: [] for name in OPTIONS}
        for seed in range(args.seeds):
            for name, change in OPTIONS.items():
                runs[name].append(pool.submit(measure, change, seed, args.steps, args.data))
        print(f"{args.steps} steps, {args.seeds} seeds\n{'':<32}{'R@1':>14}{'R@10':>15}{'loss':>15}{'R@10 gained':>15}")
        for name, futures in runs.items():
            results = [future.result() for future in futures]
            plain = [future.result() for future in runs["as it stands"]]
            columns = [spread([result[metric] for result in results]) for metric in ("R@1", "R@10", "loss")]
            gained = [result["R@10"] - other["R@10"] for result, other in zip(results, plain, strict=True)]
            print(f"{name:<32}" + "".join(f"{column:>15}" for column in [*columns, spread(gained)]), flush=True)


if __name__ == "__main__":
    main()
