"""The model card of a CondViT: what it is, how to use it, and how it was trained or where it was converted from."""

from __future__ import annotations

import html
import json
import logging
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState

from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import whole_file
from lrvsf.evaluation.results import FIRST_KS
from lrvsf.hub.leaderboard import DATASET as LRVSF
from lrvsf.hub.leaderboard import EVAL_RESULTS
from lrvsf.paths import public_name
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments
from lrvsf.training.resuming import final_evaluation
from modeling_condvit import CondViTModel

logger = logging.getLogger(__name__)

LRVSF_LICENSE = "cc-by-nc-4.0"  # of the data set and of the published weights, and so of what is trained from them

# For str.format: braces that the card shows are doubled.
CARD = """---
{metadata}
---
# {name}

{what}

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

path = {path}  # a folder or a Hub repository
model = AutoModel.from_pretrained(path, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

scene, product = Image.open("scene.jpg"), Image.open("product.jpg")
with torch.inference_mode():
    query = model(**processor(scene{condition}, return_tensors="pt")).image_embeds
    target = model(**processor(product, return_tensors="pt")).image_embeds
print(query @ target.T)  # cosine: embeddings are unit rows
```

Products are indexed once and without a condition. `SentenceTransformer(path, trust_remote_code=True).encode(...)` and
`pipeline("image-feature-extraction", path, trust_remote_code=True)` give the same rows. An image is read as it is
stored: turn a photo with an EXIF orientation upright before, by `PIL.ImageOps.exif_transpose`.
{further}
## {heading}

| | |
| --- | --- |
{facts}

## Source

The method is CondViT: [LRVS-Fashion: Extending Visual Search with Referring Instructions](https://arxiv.org/abs/2306.02928).

```bibtex
@article{{lepage2023lrvsf,
  title={{LRVS-Fashion: Extending Visual Search with Referring Instructions}},
  author={{Lepage, Simon and Mary, J{{\\'e}}r{{\\'e}}mie and Picard, David}},
  journal={{arXiv:2306.02928}},
  year={{2023}}
}}
```
"""

ABOUT = {"library_name": "transformers", "pipeline_tag": "image-feature-extraction"}
TAGS = ("sentence-transformers", "custom_code", "arxiv:2306.02928")
CONDITIONED = (
    "A referred visual search model: a scene and a category give one embedding of the thing meant, which finds the "
    "product in a catalog.\n\nCategories, in index order: {categories}."
)
BY_TEXT = (
    "A referred visual search model: a scene and a text give one embedding of the thing meant, which finds the product "
    "in a catalog.\n\nA category is the text of its name. Those with a number, in index order: {categories}."
)
SAMPLE = "the red handbag"
FROZEN = "as the model embedded it that the training of queries started from: its indexes stay valid"
UNCONDITIONED = "A visual search model: the unconditioned baseline of CondViT. It embeds an image as a whole."
# The published snippet, for str.format. There the model returns a tensor, which the snippet then normalises.
SNIPPET = """
The published model's own snippet runs with one change: the embeddings are `.image_embeds`, which are unit rows already.

```python
inputs = processor(images=[scene]{condition})
embeds = model(**inputs).image_embeds
```
"""


def write_training_card(
    folder: Path,
    args: ModelArguments,
    training: CondViTTrainingArguments,
    state: TrainerState,
    model: CondViTModel,
    validation: ProductTestSet | None = None,
) -> None:
    """Writes README.md into a model folder, with the evaluation of these weights on `validation` if there was one.

    The leaderboard's results that an earlier model of the folder had are removed.
    """
    if (folder / EVAL_RESULTS).is_file():  # they would be published as the new weights' scores
        (folder / EVAL_RESULTS).unlink()
        logger.warning(
            "%s held results of the model that was there before; `publish_lrvsf.py leaderboard` writes this one's.",
            folder / EVAL_RESULTS,
        )
    name = training.hub_model_id or folder.resolve().name
    dataset = args.dataset_name or hub_dataset(args.data)
    license, license_row = license_of(args, dataset)
    entry = None if validation is None else final_evaluation(state, training)
    metadata = ModelCardData(
        **ABOUT,
        license=license,
        base_model=None if Path(args.model).exists() else args.model,  # a folder is no Hub name
        datasets=None if dataset is None else [dataset],
        tags=[
            *(["visual-search", "lrvsf-benchmark", "fashion"] if is_lrvsf(args.data, dataset) else ["visual-search"]),
            *TAGS,
        ],
        model_name=None if entry is None else name.split("/")[-1],
        # The Hub takes results with a model's name only.
        eval_results=None if entry is None else eval_results(entry, validation, dataset),
    )
    facts = {
        "started from": plain(public_name(args.model)),
        **({"gallery": FROZEN} if model.config.gallery is not None else {}),
        **encoder_row(model),
        "data": plain(public_name(args.data)),
        "steps": f"{state.global_step} of {training.per_device_train_batch_size * training.world_size} pairs",
        "peak learning rate": training.learning_rate,
        **({} if training.layer_decay == 1 else {"of each layer, as a share of the next one's": training.layer_decay}),
        "seed": training.seed,
        **license_row,
        **({} if entry is None else {"validation": validation_row(entry, validation)}),
    }
    _write_card(folder, metadata, name, model, "Training", facts)


def write_converted_card(
    folder: Path, name: str, source: str, model: CondViTModel, license: str, revision: str | None = None
) -> None:
    """Writes README.md into the folder of the model `name`, which was converted from the checkpoint `source`."""
    metadata = ModelCardData(**ABOUT, license=license, tags=["visual-search", *TAGS])
    facts = {"converted from": plain(source)}
    facts |= {} if revision is None else {"revision": plain(revision)}
    facts["licence"] = plain(license)
    _write_card(folder, metadata, name, model, "Origin", facts | encoder_row(model), SNIPPET)


def encoder_row(model: CondViTModel) -> dict[str, str]:
    """A text model's encoder as a row of the card's table; no row for another model."""
    about = model.config.text_encoder
    if model.config.condition != "text" or about is None:
        return {}
    place = "in this folder" if model.config.text_encoder_in_checkpoint else "fetched at the first text"
    at = f", revision {about['revision']}" if about["revision"] else ""
    return {"text encoder": f"{plain(public_name(about['name']) + at)}, {place}"}


def _write_card(
    folder: Path,
    metadata: ModelCardData,
    name: str,
    model: CondViTModel,
    heading: str,
    facts: dict[str, Any],
    further: str = "",
) -> None:
    condition, categories = model.config.condition, model.config.categories
    what = {"category": CONDITIONED, "text": BY_TEXT, "none": UNCONDITIONED}[condition]
    samples = {"category": ("categories", categories[0]), "text": ("texts", SAMPLE)}
    word, value = samples.get(condition, ("", ""))
    sample = python_string(value)
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=plain(name),
        path=python_string(name),
        what=what.format(categories=", ".join(map(plain, categories))),
        condition=f", {word}={sample}" if word else "",
        further=further.format(condition=f", {word}=[{sample}]" if word else ""),
        heading=heading,
        facts="\n".join(f"| {fact} | {value} |" for fact, value in facts.items()),
    )
    with whole_file(folder / "README.md") as part:
        ModelCard(card).save(part)


def plain(text: str) -> str:
    """Any text as one line of Markdown that shows it: no markup, no HTML, no end of a table's cell."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    # HTML first, without quotes: the # of &#x27; would be escaped again.
    return re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", html.escape(line, quote=False))


def python_string(text: str) -> str:
    """A literal for the code sample. JSON's are Python's too, and none holds a line break or ends early."""
    return json.dumps(text, ensure_ascii=not text.isprintable()).replace("<", "\\u003c")


def is_lrvsf(data: str, dataset: str | None) -> bool:
    """Whether a run's data is LRVS-Fashion: by its name on the Hub or, of a folder without one, by the folder's."""
    return dataset.lower() == LRVSF.lower() if dataset else Path(data).name.lower().startswith("lrvsf")


def license_of(args: ModelArguments, dataset: str | None) -> tuple[str | None, dict[str, str]]:
    """The card's licence, and its row in the table: the owner's word, or else what data or start bind the model to."""
    # The data's licence before the start's: both may bind, and LRVS-F's is the one that is known for certain.
    lrvsf, start = is_lrvsf(args.data, dataset), start_license(args.model)
    bound, source = (LRVSF_LICENSE, "LRVS-Fashion") if lrvsf else (start, public_name(args.model))
    if args.license is None and bound is not None:
        return bound, {"licence": f"{plain(bound)}, because {plain(source)} has it"}
    if bound is not None and not binds(args.license):
        logger.warning(
            "The card says license=%s, but %s is under %s, which holds for what is made from it.",
            *(args.license, source, bound),
        )
    return args.license, {}


def binds(license: str) -> bool:
    """Whether a licence also holds for what is made from the thing: non-commercial, share-alike, no derivatives."""
    return re.search(r"-(nc|sa|nd)\b", license.lower()) is not None  # in the Hub's names: cc-by-nc-4.0


def start_license(model: str) -> str | None:
    """The binding licence that the card of the model that a run starts from states, None if it has no such."""
    if model.lower().startswith("slep/condvit"):
        return LRVSF_LICENSE
    for folder in (Path(model), Path(model).resolve().parent):  # a checkpoint lies in its run's folder
        if (folder / "README.md").is_file() and (folder / "config.json").is_file():
            license = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.license
            return license if isinstance(license, str) and binds(license) else None
    return None


def hub_dataset(data: str) -> str | None:
    """OWNER/NAME of data at hf://datasets/OWNER/NAME[@REVISION][/FOLDER]; a folder has no name on the Hub."""
    match = re.match(r"hf://datasets/([^/@]+/[^/@]+)", data)
    return match and match[1]


def eval_results(entry: dict[str, Any], validation: ProductTestSet, dataset: str | None) -> list[EvalResult]:
    """R@1, R@5 and R@10 in %, for the card's model-index, which wants a data set's name: own data have none.

    The leaderboard reads types of the form recall_at_1|10000 on the split "test", which these are not.
    """
    return [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Retrieval",
            dataset_type=dataset or "custom",
            dataset_name=f"{dataset}, validation" if dataset else "validation set of the training data",
            dataset_split="validation",
            dataset_args={"products": validation.n_products, "distractors": validation.n_distractors},
            metric_type=f"recall_at_{k}",
            metric_name=f"R@{k} (%)",
            metric_value=round(100 * entry[f"eval_R@{k}"], 2),
            metric_args={"step": entry["step"]},
        )
        for k in telling(validation)
    ]


def telling(validation: ProductTestSet) -> list[int]:
    """The K of R@K that the validation's gallery does not reach: from there on every model has 100 %."""
    return [k for k in FIRST_KS if k < validation.n_products + validation.n_distractors]


def validation_row(entry: dict[str, Any], validation: ProductTestSet) -> str:
    """The evaluation as a row of the card's table."""
    recall = ", ".join(f"R@{k} {100 * entry[f'eval_R@{k}']:.1f} %" for k in telling(validation))
    gallery = f"{validation.n_products:,} products, {validation.n_distractors:,} distractors"
    return f"{recall} ({gallery}, step {entry['step']})"
