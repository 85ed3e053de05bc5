"""results.json of the paper's protocol -> the result of mteb's task in contrib/mteb, in the form of mteb's own files.

That protocol's largest gallery is the task's: all targets and all distractors, each once, in one fold.

    RESULTS/LRVSFashionIT2IRetrieval.json  mteb's result file, which evaluate_lrvsf.py writes
    MODEL/.eval_results/mteb.yaml          its main score for the Hub, which the step mteb_result writes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from typer import Argument

from lrvsf.durable import write_whole
from lrvsf.evaluation.results import load_results
from lrvsf.hub.leaderboard import check_dataset, check_weights

EVAL_RESULTS = Path(".eval_results", "mteb.yaml")
TASK = "LRVSFashionIT2IRetrieval"
MAIN_SCORE = "recall_at_1"
DIGITS = 5  # to which mteb rounds a recall


def mteb_result(
    model: Annotated[Path, Argument(help="model folder that train_hf.py, or the step convert, left")],
    results: Annotated[Path, Argument(help="folder that evaluate_lrvsf.py --protocol paper wrote")],
    dataset: Annotated[
        str, Argument(help="the name on the Hub of what mteb_dataset wrote of this test set, OWNER/NAME")
    ],
) -> str:
    """Put the recall at 1 of mteb's task into a model's .eval_results; `push` takes it along."""
    check_dataset(dataset)
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} has no config.json: give a model folder.")
    if not (results / "results.json").is_file():
        raise FileNotFoundError(f"{results} has no results.json: give the folder that evaluate_lrvsf.py wrote.")
    measured = load_results(results / "results.json")
    if (told := as_mteb(measured)) is None:
        raise ValueError(f"These are results of the protocol {measured['protocol']!r}. Evaluate with --protocol paper.")
    check_weights(model, measured)
    # As mteb's own entries: in percent, of the split and of the whole task.
    value, notes = 100 * told["scores"]["test"][0]["main_score"], f"conditioning {measured['conditioning']}"
    notes += f", R@1 in %, {measured['n_products']} queries, {measured['n_distractors']} distractors, not run by mteb"
    tasks = f"{TASK}_default_test", TASK
    entries = [EvalResultEntry(dataset, task, round(value, DIGITS), notes=notes) for task in tasks]
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), allow_unicode=True, sort_keys=False)
    write_whole(model / EVAL_RESULTS, text.encode())
    return f"Wrote {model / EVAL_RESULTS}."


def as_mteb(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `mteb.TaskResult` reads; None for another protocol's results, whose galleries the task has not.

    mteb did not measure these: its version is left out, and the data have no revision. Ties count half here, where mteb
    breaks them: its recall lies between `recall_pessimistic` and `recall_optimistic`.
    """
    if results["protocol"] != "paper":
        return None
    recall = results["galleries"][str(results["n_distractors"])]["recall"]
    found = {int(k): round(value["mean"], DIGITS) for k, value in recall.items()}
    # Each query has one right answer, so that to find it and to find all are the same.
    scores = {f"{name}_at_{k}": value for name in ("recall", "hit_rate") for k, value in found.items()}
    scores |= {"main_score": scores[MAIN_SCORE], "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "dataset_revision": "local",
        "task_name": TASK,
        "mteb_version": None,
        "scores": {"test": [scores]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }


def save_mteb_result(results: Mapping[str, Any], folder: Path) -> Path | None:
    """Writes TASK.json beside results.json, as mteb names it; gives its path, or None where there is none to write."""
    if (result := as_mteb(results)) is None:
        return None
    write_whole(folder / f"{TASK}.json", (json.dumps(result, indent=2) + "\n").encode())
    return folder / f"{TASK}.json"
