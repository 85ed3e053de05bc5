from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput
    from torch.utils.data import DataLoader

CONDVIT_CITATION = r"""
@article{lepage2023lrvsf,
  author = {Lepage, Simon and Mary, J{\'e}r{\'e}mie and Picard, David},
  journal = {arXiv preprint arXiv:2306.02928},
  title = {LRVS-Fashion: Extending Visual Search with Referring Instructions},
  year = {2023},
}
"""


class CondViTWrapper(AbsEncoder):
    """A photo and a condition, or a picture of a product alone, as one embedding of unit length."""

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ):
        import torch
        from transformers import AutoModel, AutoProcessor

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        source = {"revision": revision, "trust_remote_code": True}
        self.model_name = model_name
        self.device = device
        # Published scores are of float32; a file of float16 would be computed in float16.
        model = AutoModel.from_pretrained(model_name, dtype=torch.float32, **source)
        self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(model_name, **source)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> Array:
        import torch
        from tqdm.auto import tqdm

        rows = []
        for batch in tqdm(inputs, disable=not show_progress_bar, desc="Image Encoding"):
            if "image" not in batch:
                raise ValueError(
                    f"{self.model_name} embeds images, with a text as their condition; {task_metadata.name} has "
                    f"inputs of {', '.join(batch)} only."
                )
            # A picture that is searched among is embedded without a condition, whatever is written beside it.
            asked = {} if prompt_type == PromptType.document else self._condition(batch.get("text"))
            features = self.processor(batch["image"], **asked, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                rows.append(self.model(**features).image_embeds.cpu())
        return torch.cat(rows)

    def _condition(self, texts: list[str] | None) -> dict[str, list[str]]:
        """What the processor is asked by: categories where all are known, else texts, which a text model reads."""
        config = self.model.config
        if texts is None or config.condition == "none":
            return {}
        known = set(config.categories)
        if config.condition == "category" or known.issuperset(texts):
            return {"categories": texts}
        return {"texts": [config.text_template.format(text) if text in known else text for text in texts]}


# To be filled in for each model that is submitted: its repository, revision and date on the Hub. Sizes are B/16's.
condvit_b16_category = ModelMeta(
    loader=CondViTWrapper,
    name="OWNER/CondViT-B16-cat",
    model_type=["dense"],
    languages=["eng-Latn"],
    revision="main",
    release_date=None,
    modalities=["image", "text"],
    n_parameters=86_201_089,
    n_embedding_parameters=None,
    memory_usage_mb=329,
    max_tokens=None,
    embed_dim=512,
    license="cc-by-nc-4.0",
    open_weights=True,
    public_training_code=None,
    public_training_data="https://huggingface.co/datasets/Slep/LAION-RVS-Fashion",
    framework=["PyTorch", "Transformers", "safetensors"],
    reference="https://arxiv.org/abs/2306.02928",
    similarity_fn_name=ScoringFunction.COSINE,
    use_instructions=False,
    training_datasets={"LRVSFashionIT2IRetrieval"},
    adapted_from="openai/clip-vit-base-patch16",
    citation=CONDVIT_CITATION,
)
