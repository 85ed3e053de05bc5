"""The leaderboard's results of a model -> its model card, in the form that the leaderboard reads.

Two things change in the model folder, and `publish_lrvsf.py push` pushes both:

README.md                 the `model-index` gets the results as the leaderboard's own code writes them: types such as
                          recall_at_1|10000, values such as "93.44 ± 0.83", n_dists, embedding_dim, conditioning, and
                          the tag lrvsf-benchmark on LRVS-F. Other entries, such as the validation's, and the text stay.
.eval_results/lrvsf.yaml  the same recalls as numbers, in the Hub's newer form.

It is a step of its own, not a flag of the evaluation: an evaluation does not change what it measures, and a score is
published after somebody has looked at it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from typer import Argument, Option

from lrvsf.durable import whole_file, write_whole
from lrvsf.evaluation.results import load_results, percent

DATASET = "Slep/LAION-RVS-Fashion"
EVAL_RESULTS = Path(".eval_results", "lrvsf.yaml")
DATASET_NAME = "LAION - Referred Visual Search - Fashion"
SOURCE = {"source_name": "LRVSF Leaderboard", "source_url": "https://huggingface.co/spaces/Slep/LRVSF-Leaderboard"}
TAG = "lrvsf-benchmark"  # the leaderboard lists the models that have it
TASK = "Retrieval"
PUBLISHED_FOLDS = 20, 1000  # of products, and how many in each


def leaderboard(
    model: Annotated[Path, Argument(help="model folder that train_hf.py, or the step convert, left")],
    results: Annotated[Path, Argument(help="folder that evaluate_lrvsf.py --protocol leaderboard wrote")],
    dataset: Annotated[str, Option(help="the test set's name on the Hub, OWNER/NAME")] = DATASET,
) -> str:
    """Put an evaluation's results into the model's card, as the leaderboard reads them."""
    left_out = add_results(model, load_results(results / "results.json"), dataset)
    lines = [f"Wrote {model / 'README.md'} and {model / EVAL_RESULTS}."]
    lines += [f"Left out: {int(size):,} distractors, which this test set cannot fill." for size in left_out]
    return "\n".join(lines)


def add_results(folder: Path, results: Mapping[str, Any], dataset: str = DATASET) -> list[str]:
    """Writes results into a model folder's README.md and `.eval_results`, in place of earlier ones on the same dataset.

    Args:
        folder: what train_hf.py leaves.
        results: what results.json holds.
        dataset: the test set's name on the Hub.

    Returns:
        The gallery sizes that were left out, because the test set could not fill them.

    Raises:
        ValueError: another protocol's or other weights' results, or, for the published dataset, with other draws; no
            gallery that is as large as it says; a dataset that is not OWNER/NAME.
        FileNotFoundError: no README.md.
    """
    folder = Path(folder)
    readme = folder / "README.md"
    if not readme.is_file():
        raise FileNotFoundError(f"{readme} does not exist. Give the model folder that train_hf.py left, card included.")
    _check(folder, results, dataset)
    # A gallery that was filled with repeats is easier than its size says.
    galleries = {size: gallery for size, gallery in results["galleries"].items() if "marked" not in gallery}
    if not galleries:
        why = ", ".join(f"{size}: {gallery['marked']}" for size, gallery in results["galleries"].items())
        raise ValueError(f"No gallery is as large as it says ({why}). Evaluate with more distractors.")
    check_dataset(dataset)
    card = ModelCard.load(readme)
    replaced = (TASK, dataset, "test")  # results of the validation, and on other test sets, stay
    there = card.data.eval_results or []
    own = [one for one in there if (one.task_type, one.dataset_type, one.dataset_split) != replaced]
    card.data.eval_results = own + model_index(results, galleries, dataset)
    card.data.model_name = card.data.model_name or folder.resolve().name
    if dataset == DATASET and TAG not in (card.data.tags or []):
        card.data.tags = [*(card.data.tags or []), TAG]
    entries = eval_result_entries_to_yaml(eval_entries(results, galleries, dataset))
    write_whole(folder / EVAL_RESULTS, yaml.safe_dump(entries, allow_unicode=True, sort_keys=False).encode())
    with whole_file(readme) as part:
        card.save(part)
    return [size for size in results["galleries"] if size not in galleries]


def model_index(results: Mapping[str, Any], galleries: Mapping[str, Any], dataset: str) -> list[EvalResult]:
    """The entries that the leaderboard reads: each recall, then what it shows of the model."""
    metrics = [
        # The value is text, "93.44 ± 0.83": what the leaderboard shows. Numbers are in `.eval_results`.
        (f"recall_at_{k}|{size}", f"R@{k} +{short(int(size))} Dist.", percent(recall))
        for size, gallery in galleries.items()
        for k, recall in gallery["recall"].items()
    ]
    metrics += [
        ("n_dists", "Available Dists.", results["n_distractors"]),
        ("embedding_dim", "Embedding Dimension", results["embedding_dim"]),
        ("conditioning", "Conditioning", results["conditioning"]),
    ]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset,
            dataset_name=DATASET_NAME if dataset == DATASET else dataset,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=value,
            **SOURCE,
        )
        for kind, name, value in metrics
    ]


def eval_entries(results: Mapping[str, Any], galleries: Mapping[str, Any], dataset: str) -> list[EvalResultEntry]:
    """The recalls in % as numbers, under the model-index's types; what else there is to say is in the notes."""
    return [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"recall_at_{k}|{size}",
            value=round(100 * recall["mean"], 2),
            notes=(
                f"conditioning {results['conditioning']}, ± {100 * recall['std']:.2f} over {results['folds']} folds, "
                f"seed {results['seed']}, {results['n_distractors']} distractors available, "
                f"products {'as published' if results.get('product_folds') else 'drawn from the seed'}, "
                f"{_missing(results)}"
                f"computed in {results['compute_dtype']}"
            ),
        )
        for size, gallery in galleries.items()
        for k, recall in gallery["recall"].items()
    ]


def short(number: int) -> str:
    """10000 -> 10K, 1000000 -> 1M; other numbers as they are."""
    for unit, letter in ((1_000_000, "M"), (1000, "K")):
        if number and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def _check(folder: Path, results: Mapping[str, Any], dataset: str) -> None:
    if results["protocol"] != "leaderboard":
        raise ValueError(
            f"These are results of the protocol {results['protocol']!r}, which the leaderboard does not read. Evaluate "
            "with --protocol leaderboard."
        )
    if results["restrict_to_category"]:
        raise ValueError(
            "restrict_to_category=True: these galleries hold only items of the target's category, not what the "
            "leaderboard compares. Evaluate without --restrict_to_category."
        )
    if results.get("query_views"):
        raise ValueError(
            f"query_views={results['query_views']}: each query was the mean of several views, as no published protocol "
            "asks. Evaluate without --query_views."
        )
    drawn = results["folds"], results["products_per_fold"]
    if dataset == DATASET and not (results.get("product_folds") and drawn == PUBLISHED_FOLDS):
        raise ValueError(
            f"The products of these {drawn[0]} folds of {drawn[1]} were not drawn as "
            f"published (product_folds={results.get('product_folds')!r}; published are {PUBLISHED_FOLDS[0]} folds of "
            f"{PUBLISHED_FOLDS[1]}): the scores are not comparable with others on {DATASET}. Evaluate with "
            "--product_folds bootstrapped_indices.pt, the published file; or, for your own test set, give --dataset "
            "OWNER/NAME."
        )
    check_weights(folder, results)


def check_dataset(name: str) -> None:
    """Refuses what is no dataset's name on the Hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is no dataset's name on the Hub. Give OWNER/NAME.")


def check_weights(folder: Path, results: Mapping[str, Any]) -> None:
    """Refuses results of other weights than the folder's. It takes torch and the weights, so ask it last."""
    if "model_weights" not in results:
        raise ValueError(
            "These results do not say of which weights they are: an older version made them. Evaluate again."
        )
    from lrvsf.embedding.encoder import load_model
    from lrvsf.embedding.fingerprint import weights_digest

    if results["model_weights"] != weights_digest(load_model(str(folder))):
        raise ValueError(
            f"These are results of {results['model']}, whose weights are not {folder}'s. Evaluate {folder}."
        )


def _missing(results: Mapping[str, Any]) -> str:
    """Draws of products that could not be read, of which the published scores have none."""
    count = results.get("missing_draws", {}).get("products", 0)
    return f"{count} of their draws missing, " if count else ""
