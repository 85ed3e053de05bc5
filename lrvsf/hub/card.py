"""The model card of a trained CondViT: what it is, how to use it, how it was trained."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainerState

from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments
from modeling_condvit import CondViTModel

CARD = """---
{metadata}
---
# {name}

{what}

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

path = "{name}"  # a folder or a Hub repository
model = AutoModel.from_pretrained(path, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)

scene, product = Image.open("scene.jpg"), Image.open("product.jpg")
with torch.inference_mode():
    query = model(**processor(scene{condition}, return_tensors="pt")).image_embeds
    target = model(**processor(product, return_tensors="pt")).image_embeds
print(query @ target.T)  # cosine: embeddings are unit rows
```

Products are indexed once and without a condition.

## Training

| | |
| --- | --- |
| started from | `{start}` |
| data | `{data}` |
| steps | {steps} of {batch} pairs |
| peak learning rate | {learning_rate} |
| seed | {seed} |
{validation}
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

CONDITIONED = (
    "A referred visual search model: a scene and a category give one embedding of the thing meant, which finds the "
    "product in a catalog.\n\nCategories, in index order: {categories}."
)
UNCONDITIONED = "A visual search model: the unconditioned baseline of CondViT. It embeds an image as a whole."


def write_training_card(
    folder: Path, args: ModelArguments, training: CondViTTrainingArguments, state: TrainerState, model: CondViTModel
) -> None:
    """Writes README.md into a model folder."""
    conditioned, categories = model.config.condition == "category", model.config.categories
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=args.license,
        base_model=None if Path(args.model).exists() else args.model,  # a folder is no Hub name
        tags=["visual-search", "lrvsf-benchmark", "fashion", "custom_code", "arxiv:2306.02928"],
    )
    best = (
        ""
        if state.best_metric is None
        else f"| validation {training.metric_for_best_model} | {state.best_metric:.3f} |\n"
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=training.hub_model_id or folder.name,
        what=CONDITIONED.format(categories=", ".join(categories)) if conditioned else UNCONDITIONED,
        condition=f', categories="{categories[0]}"' if conditioned else "",
        start=args.model,
        data=args.data,
        steps=state.global_step,
        batch=training.per_device_train_batch_size * training.world_size,
        learning_rate=training.learning_rate,
        seed=training.seed,
        validation=best,
    )
    ModelCard(card).save(folder / "README.md")
