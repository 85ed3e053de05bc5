"""Image encoders of other families as unconditioned baselines: SigLIP, DINOv2, DINOv3. (CLIP becomes a CondViT.)

Each sees the same padded square as CondViT, in the size and with the normalisation that it was made for, and gives what
its family uses for retrieval: SigLIP its pooling head's output, DINO the class token after the last norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    ImageProcessingMixin,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)

from modeling_condvit import CondViTOutput

HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# model_type -> the class that reads the checkpoint; mean and standard deviation where the checkpoint names none.
FAMILIES: dict[str, tuple[type[PreTrainedModel], tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "siglip": (SiglipVisionModel, HALF),  # and SigLIP 2 of fixed resolution
    "siglip_vision_model": (SiglipVisionModel, HALF),
    "dinov2": (Dinov2Model, IMAGENET),
    "dinov2_with_registers": (Dinov2WithRegistersModel, IMAGENET),
    "dinov3_vit": (DINOv3ViTModel, IMAGENET),
}


@dataclass
class BaselineConfig:
    """What an Encoder asks of a model's configuration."""

    image_size: int
    projection_dim: int
    condition: str = "none"


class Baseline(nn.Module):
    """One of `FAMILIES` behind CondViT's interface.

    Args:
        tower: the vision model; its `pooler_output` is the embedding.
        mean, std: of each colour, between 0 and 1.
        image_size: of the square that it is given, in pixels.
    """

    def __init__(self, tower: PreTrainedModel, mean: list[float], std: list[float], image_size: int) -> None:
        super().__init__()
        self.tower, self.mean, self.std = tower, mean, std
        self.config = BaselineConfig(image_size, tower.config.hidden_size)
        self.name_or_path = tower.name_or_path

    def forward(self, pixel_values: Tensor, category_indices: None = None) -> CondViTOutput:
        """(B, 3, S, S) -> unit rows (B, hidden_size), float32."""
        # DINO: the class token after the last norm. SigLIP: what its attention head pools.
        pooled = self.tower(pixel_values=pixel_values).pooler_output
        return CondViTOutput(F.normalize(pooled.float(), dim=-1))

    def describe(self) -> dict[str, object]:
        """The tower's configuration, but for who wrote it."""
        unsaid = ("transformers_version", "_name_or_path", "architectures", "dtype")
        config = self.tower.config.to_dict()
        return {f"model.{name}": value for name, value in config.items() if name not in unsaid}


def load_baseline(path: str) -> Baseline:
    """A checkpoint of one of `FAMILIES`, from a folder or the Hub.

    Raises ValueError: of another family, not whole, without a pooled embedding, or made for images that are no squares.
    """
    config, _ = PretrainedConfig.get_config_dict(path)
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(["condvit", "clip", "clip_vision_model", *FAMILIES])
        raise ValueError(f"{path} is a checkpoint of type {family!r}, which cannot be evaluated. Known are {known}.")
    model_class, (mean, std) = FAMILIES[family]
    # config.json may name an attention kernel, which would be fetched and run
    loading = {"dtype": torch.float32, "attn_implementation": "sdpa", "output_loading_info": True}
    tower, loaded = model_class.from_pretrained(path, **loading)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{path} lacks {', '.join(missing[:5])}. Give a checkpoint with its whole vision tower.")
    if not getattr(tower.config, "vision_use_head", True):
        raise ValueError(f"{path} has vision_use_head=False, so it pools no embedding. Give one with its head.")
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:  # the checkpoint has none
        found = {}
    # Where the processor cuts out the middle, that is what the tower sees; "size" is then only the step before.
    size = found.get("crop_size") if found.get("do_center_crop") else found.get("size")
    sides = {size} if isinstance(size, int) else set(size.values()) if size else {tower.config.image_size}
    if len(sides) > 1 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"{path} is made for images of {size or sides}; only squares can be evaluated.")
    if isinstance(tower, SiglipVisionModel) and sides != {tower.config.image_size}:
        raise ValueError(f"{path} is for {tower.config.image_size} pixels, its preprocessor_config.json gives {sides}.")
    return Baseline(tower, found.get("image_mean") or mean, found.get("image_std") or std, sides.pop())
