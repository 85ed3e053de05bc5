"""What comes after `prepare_lrvsf.py catalog`: a recipe for a catalog of this size, two commands, and what to know."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lrvsf.command import Command
from lrvsf.data.names import plurals, quoted
from lrvsf.durable import write_whole
from lrvsf.prepare.catalog.splits import SETS, TEST, TRAIN, VALIDATION

RECIPE = "train.yaml"
MODEL = "openai/clip-vit-base-patch32"
LEARNING_RATE = "1.0e-5"  # published for that model
EPOCHS = 30  # as published
BATCH_SIZE = 256
LEAST_STEPS = 300  # not tuned; fewer than some hundred steps of the published learning rate move little
VALIDATIONS = 10
FEW_QUERIES = 200
MANY = 20  # products that show one picture; more are most likely of a picture that says "no picture"


def next_steps(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Writes OUT/train.yaml where there is none, and gives the parts of the report that say how to go on."""
    recipe, path = recipe_of(out, report), out / RECIPE
    notes = notes_on(report)
    # A recipe that is there may have been edited; it is compared, never replaced.
    if not path.exists():
        write_whole(path, recipe.encode())
    elif path.read_bytes() != recipe.encode():
        notes.append(f"{path} is kept as you have it; remove it, and run this again, for a new one")
    commands = {"to train": Command(["accelerate", "launch", "train_hf.py", path])}
    if TEST in report and (size := report[TEST]["distractors"]):
        run = run_folder(out)
        flags = ["--model", run, "--data_root", str(out / TEST), "--output_dir", run, "--gallery_sizes", str(size)]
        commands["to evaluate"] = Command(["accelerate", "launch", "evaluate_lrvsf.py", *flags])
    return {**({"note": "; ".join(notes)} if notes else {}), **commands}


def run_folder(out: Path) -> str:
    """Where the recipe trains: a folder under runs/ of the catalog's name."""
    return f"runs/{out.resolve().name}"


def batch_and_steps(products: int) -> tuple[int, int]:
    """Pairs in a batch, at most a quarter of the products, so that an epoch has four steps; and steps of the run."""
    # Two pairs at least, for with one there is no negative.
    batch = max(2, min(BATCH_SIZE, products // 4))
    return batch, max(LEAST_STEPS, EPOCHS * (products // batch))


def recipe_of(out: Path, report: dict[str, Any]) -> str:
    """The text of train.yaml."""
    products = report[TRAIN]["products"]
    batch, steps = batch_and_steps(products)
    queries = report.get(VALIDATION, {}).get("queries", 0) if report.get(VALIDATION, {}).get("distractors") else 0
    # A JSON string is a YAML string too, in which "No" and "010" are no more than they say.
    names = "\n".join(f"  - {json.dumps(name, ensure_ascii=False)}" for name in report["categories"])
    # In few steps, small tokens were better than the published ones, of N(0, 1), on Mini LRVS-F.
    conditioned = ["condition: category", "condition_init: clip", "categories:", names]
    lines = [
        f"# For {products:,} products: accelerate launch train_hf.py {out / RECIPE} [--flag value ...]",
        "# Batch and steps go by the number of products; learning rate and temperature are published, for this model.",
        "# docs/data.md says what to expect. This file is yours: it is not written again while it is here.",
        f"model: {MODEL}",
        f"data: {json.dumps(str(out), ensure_ascii=False)}",
        f"output_dir: {json.dumps(run_folder(out), ensure_ascii=False)}",
        "# license: apache-2.0  # yours to choose: a line of the model card, which goes without",
        *(conditioned if names else ["condition: none  # there is no category"]),
        f"per_device_train_batch_size: {batch}  # of all GPUs together: divide it by their number",
        f"max_steps: {steps}  # {steps * batch / products:.0f} epochs",
        f"phase1_steps: {steps // VALIDATIONS}  # projection and condition alone, while the learning rate climbs",
        f"learning_rate: {LEARNING_RATE}",
        "seed: 0",
        f"logging_steps: {max(1, steps // 100)}",
    ]
    if queries:
        few = f"; of {queries} queries, partly by luck" if queries < FEW_QUERIES else ""
        lines += [
            "eval_strategy: steps",
            f"eval_steps: {steps // VALIDATIONS}",
            "eval_on_start: true  # what to compare with: the model before the first step",
            "save_strategy: steps",
            f"save_steps: {steps // VALIDATIONS}",
            f"load_best_model_at_end: true  # the best by R@1{few}",
        ]
    else:
        lines += ['eval_strategy: "no"  # there is no validation set', "save_strategy: steps"]
        lines += [f"save_steps: {steps // VALIDATIONS}"]
    return "\n".join(lines) + "\n"


def notes_on(report: dict[str, Any]) -> list[str]:
    """What a catalog's owner should know before going on."""
    notes: list[str] = []
    if not report["categories"]:
        notes.append(
            "there is no category, so only training without a condition is possible; texts are kept, and condition "
            "nothing yet"
        )
    if pairs := [f"{quoted(one)} next to {quoted(many)}" for one, many in plurals(report["categories"])]:
        notes.append(
            f"{', '.join(pairs)}: two categories, as far as a model knows; if they are one, write it in one way"
        )
    for name in (TRAIN, *SETS):
        without = [category for category, counts in report["categories"].items() if not counts[name]]
        if without and name in report:
            notes.append(f"{name} has none of {', '.join(without)}")
    for name in SETS:
        if name not in report and report["settings"][name]:
            notes.append(f"no product fell into {name}; list more products, or take a larger share")
        elif name in report and not report[name]["distractors"]:
            notes.append(f"{name} has no distractors, so evaluate_lrvsf.py cannot use it; list products without scene")
    if TEST in report and (queries := report[TEST]["queries"]) < FEW_QUERIES:
        notes.append(few_queries(queries, report["products"]["complete"], report["settings"][TEST]))
    # Colours of a shirt share a photo by the handful; dozens share only a placeholder.
    shared = report.get("products that share a picture", {})
    if shared.get("in the largest group", 0) > MANY:
        notes.append(
            f"{shared['in the largest group']} products hang together by pictures that they share; if one of these is "
            "a placeholder, leave its rows out"
        )
    return notes


def few_queries(queries: int, products: int, share: float) -> str:
    """How far apart two models must be on so few queries, and what to do about it.

    The scores are taken for independent and near 50 %, where they vary most: 1.96 standard deviations of a difference.
    """
    # Var(a - b) = 2 p (1 - p) / n with p = 1/2. Paired models differ less, so this errs on the safe side.
    points = 100 * 1.96 * math.sqrt(2 * 0.25 / queries)
    # Not more than 0.3: what is tested on is not trained on.
    wanted = min(0.3, math.ceil(100 * FEW_QUERIES / products) / 100)
    larger = f"take --test {wanted:g} and another OUT, or " if wanted > share else ""
    return (
        f"test has {queries} queries, so a difference of less than {points:.0f} points of R@1 means nothing; "
        f"{larger}list more products"
    )
