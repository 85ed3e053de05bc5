"""What each option of the recipe brings on Mini LRVS-F: validation recall and loss over several seeds.

    python benchmarks/bench_recipe_options.py [--steps 240] [--seeds 3] [--jobs 2] [--data data/mini]

Every row is recipes/mini-demo.yaml, but with batches from all categories, with one change and as many steps as asked,
the schedule fitted to them. Runs with one seed see the same products in the same order, unless batches differ; +- is
the standard deviation over seeds. Jobs run side by side, one thread each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.evaluation.recall import fold_recall, ranks_among_all
from lrvsf.training.objective.loss import symmetric_cross_entropy

ROOT = Path(__file__).parent.parent
OPTIONS: dict[str, dict] = {
    "batches from all categories": {},
    "batches of two categories": {"categories_per_batch": 2},
    "four condition tokens": {"num_condition_tokens": 4},
    "nested dimensions 32, 64": {"matryoshka_dims": [32, 64]},
}
CUT = 32  # dimensions, of 128
COLUMNS = ("R@1", "R@10", "loss", f"R@10, {CUT} dims")


def measure(change: dict, seed: int, steps: int, data: str) -> dict[str, float]:
    """Recalls in percent, and the loss, on the validation set after the last step."""
    recipe = yaml.safe_load((ROOT / "recipes/mini-demo.yaml").read_text())
    recipe |= {"data": data, "max_steps": steps, "seed": seed, "categories_per_batch": None}
    recipe |= {"disable_tqdm": True, "report_to": "none", **change}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(yaml.safe_dump({**recipe, "output_dir": f"{folder}/model"}))
        command = [sys.executable, str(ROOT / "train_hf.py"), str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{change} with seed {seed} failed:\n{done.stderr[-2000:]}")
        model = load_model(f"{folder}/model")
    test_set = ProductTestSet(Path(data, "validation"))
    encoder = Encoder(model, model.config.condition)
    products, distractors = (embed_share(encoder, part(test_set), 256).embeds for part in (Products, Distractors))
    whole, cut = (recalls(products, distractors, dims) for dims in (encoder.dim, CUT))
    pairs = products["query"], products["target"]
    loss = symmetric_cross_entropy(pairs, pairs, model.logit_scale.detach()).item()
    measured = dict(zip(COLUMNS, (*whole, loss, cut[1]), strict=True))
    print(f"seed {seed} {change}: {measured}", file=sys.stderr, flush=True)
    return measured


def recalls(products: dict, distractors: dict, dims: int) -> tuple[float, float]:
    """R@1 and R@10 in percent of the first dimensions, normalised again."""
    short = lambda rows: torch.nn.functional.normalize(rows[:, :dims], dim=1)  # noqa: E731
    blocks = [(short(distractors["distractor"]), 0)]
    ranks = ranks_among_all(short(products["query"]), short(products["target"]), blocks, len(blocks[0][0]))
    recall = 100 * fold_recall(ranks.expected, ranks.weights, 10).flatten()
    return recall[0].item(), recall[9].item()


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"steps": 240, "seeds": 3, "jobs": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--data", default="data/mini")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs: dict[str, list] = {name: [] for name in OPTIONS}
        for seed in range(args.seeds):
            for name, change in OPTIONS.items():
                runs[name].append(pool.submit(measure, change, seed, args.steps, args.data))
        print(f"{args.steps} steps, {args.seeds} seeds\n{'':<29}" + "".join(f"{name:>17}" for name in COLUMNS))
        for name, futures in runs.items():
            results = [future.result() for future in futures]
            cells = [spread([result[column] for result in results]) for column in COLUMNS]
            print(f"{name:<29}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
