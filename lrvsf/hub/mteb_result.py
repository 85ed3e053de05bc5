"""results.json of the paper's protocol -> the result of mteb's task in contrib/mteb, in the form of mteb's own files.

That protocol's largest gallery is the task's: all targets and all distractors, each once, in one fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrvsf.durable import write_whole

TASK = "LRVSFashionIT2IRetrieval"
MAIN_SCORE = "recall_at_1"
DIGITS = 5  # to which mteb rounds a recall


def mteb_result(results: Mapping[str, Any]) -> dict[str, Any] | None:
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
    if (result := mteb_result(results)) is None:
        return None
    write_whole(folder / f"{TASK}.json", (json.dumps(result, indent=2) + "\n").encode())
    return folder / f"{TASK}.json"
