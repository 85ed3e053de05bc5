"""CondViT's configuration: what decides the shape and the meaning of the weights, and nothing else.

It is CLIP's vision configuration (width, depth, patches, projection) plus the conditions that the model understands.
Training and evaluation settings have no place here, because a checkpoint outlives them.
"""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig

# LRVS-F's categories (arXiv 2306.02928). Their order is part of the weights: it numbers the condition table's rows.
CATEGORIES = ("Bags", "Feet", "Hands", "Head", "Lower Body", "Neck", "Outwear", "Upper Body", "Waist", "Whole Body")
MAX_LOGIT_SCALE = 4.6052  # where the published training starts and clamps: ln 100, rounded as in its code
WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")  # a file's place


@strict
class CondViTConfig(CLIPVisionConfig):
    """A `CLIPVisionConfig` with conditions; every field of CLIP's keeps its name and default.

    Args:
        categories: the conditions' names, in the order of the rows of the condition table.
        condition: "category" reads one of `categories` beside the image; "text" the embedding of a sentence, of which
            a category's name is one; "none" is CLIP, without condition tokens.
        num_condition_tokens: tokens per condition; the published model has one.
        text_dim: width of the sentence embeddings that a text model reads.
        text_encoder: how a text becomes one, as `describe_text_encoder` tells; None for embeddings that are given.
        text_encoder_in_checkpoint: whether its weights travel with the model; otherwise they are fetched by its name.
        text_template: the text of a category, "{}" for its name.
        gallery: the configuration of a second, older model inside, which embeds whatever has no condition, so that what
            it has embedded stays valid; None where this model does.
        logit_scale_init_value: log of the inverse temperature at the start; the published training starts at ln(100).
    """

    model_type = "condvit"

    categories: list[str] = field(default_factory=lambda: list(CATEGORIES))
    condition: str = "category"
    num_condition_tokens: int = 1
    text_dim: int = 768
    text_encoder: dict | None = None
    text_encoder_in_checkpoint: bool = False
    text_template: str = "{}"
    gallery: dict | None = None
    logit_scale_init_value: float = MAX_LOGIT_SCALE

    # The class that `pipeline(TASK, trust_remote_code=True)` makes. A new dict at each call: transformers changes it.
    custom_pipelines = property(
        lambda _: {"image-feature-extraction": {"impl": "processing_condvit.CondViTPipeline", "pt": ["AutoModel"]}}
    )

    def validate_architecture(self) -> None:  # `@strict` calls every `validate_*` of a new configuration
        super().validate_architecture()
        image, patch = self.image_size, self.patch_size
        if not isinstance(image, int) or not isinstance(patch, int) or patch < 1 or image < patch or image % patch:
            needed = "Both are square: give one integer each, the first a multiple of the second."
            raise ValueError(f"image_size={image} is not a multiple of patch_size={patch}. {needed}")

    def validate_condition(self) -> None:
        if self.condition not in ("category", "text", "none"):
            raise ValueError(f"condition={self.condition!r} is not supported. Use category, text or none.")
        limits = {"num_condition_tokens": 1000, "num_hidden_layers": 1000, "text_dim": 100_000}
        for name, most in limits.items():  # a config.json can say 10**6
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} is not from 1 to {most}. Correct config.json.")
        if "{}" not in (text := self.text_template) or set("{}") & set(text.replace("{}", "")):
            raise ValueError(f"text_template={text!r} has no {{}}, where a category's name goes, or other braces.")
        if not (names := self.categories) or len(names) > 10_000 or not all(name.strip() for name in names):
            raise ValueError(f"categories={names[:9]} is empty, above 10,000 or holds a blank. Give names, none blank.")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"categories holds {repeated} more than once. Give each category a name of its own.")

    def validate_gallery(self) -> None:
        if self.gallery is None:
            return
        inner = CondViTConfig(**{**self.gallery, "gallery": None})
        if self.gallery.get("gallery") is not None or inner.projection_dim != self.projection_dim:
            raise ValueError("gallery is no single model of the same projection_dim. Correct config.json.")
        if inner.image_size != self.image_size:
            raise ValueError(f"gallery sees {inner.image_size} pixels, queries {self.image_size}. Give both the same.")


CondViTConfig.register_for_auto_class()
