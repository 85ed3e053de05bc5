"""A model on a device that turns bytes into pixels and pixels into unit rows: CondViT, CLIP or another baseline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig

from lrvsf.data.images import decode_image
from lrvsf.embedding.baselines import Baseline, load_baseline
from lrvsf.paths import check_model
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD, pad_and_resize

# A config.json may name an attention kernel of a stranger, which transformers would fetch and run.
_LOADING = {"dtype": torch.float32, "attn_implementation": "sdpa"}


def load_model(path: str) -> CondViTModel | Baseline:
    """Loads CondViT, CLIP, which becomes an unconditioned CondViT, or another baseline, from a folder or the Hub."""
    check_model(path)
    model_type = PretrainedConfig.get_config_dict(path)[0].get("model_type")
    if model_type == "condvit":
        return load_condvit(path, **_LOADING)
    if model_type in ("clip", "clip_vision_model"):
        return CondViTModel.from_clip(path, attn_implementation="sdpa", condition="none")
    return load_baseline(path)


def load_condvit(path: str, **loading: Any) -> CondViTModel:
    """`CondViTModel.from_pretrained`; a weight that is missing would be a random one. Raises ValueError: there is."""
    model, loaded = CondViTModel.from_pretrained(path, output_loading_info=True, **loading)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{path} lacks the weights {', '.join(missing[:5])}; restore its model.safetensors")
    return model


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are much faster than float32 here: on GPUs that have them, and on CPUs with AMX.

    (AVX-512's bf16 instructions alone gain little at a small model's width, so they are left to who asks for them.)
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def runs_in_bf16(asked: bool | None, protocol: str, device: torch.device) -> bool:
    """Whether a protocol runs the model in bfloat16, unless asked: the published scores are of float32."""
    return has_fast_bf16(device) and protocol == "bootstrap" if asked is None else asked


class Encoder:
    """A model on a device that turns uint8 pixels into embeddings.

    Args:
        model: put into evaluation mode and on `device`.
        conditioning: "category" or "none"; it decides for queries only, targets and distractors never have a condition.
        bf16: run the tower under bfloat16 autocast. Embeddings are normalised and returned in float32 all the same.
        dims: how many first dimensions to keep, renormalised, for a model trained with `matryoshka_dims`; None: all.

    Raises:
        ValueError: conditioning by category asked of a model that has none, more dimensions than it has.
    """

    def __init__(
        self,
        model: CondViTModel | Baseline,
        conditioning: str,
        bf16: bool = False,
        device: torch.device | None = None,
        dims: int | None = None,
    ) -> None:
        if conditioning not in ("category", "none"):
            raise ValueError(f'conditioning={conditioning!r} is unknown. Use "category" or "none".')
        if conditioning == "category" and model.config.condition != "category":
            raise ValueError(
                f'conditioning="category" was asked of a model with condition={model.config.condition!r}. '
                'Use conditioning="none", or a model that was trained with categories.'
            )
        self.device = device or torch.device("cpu")
        self.model = model.eval().to(self.device)
        self.conditioning, self.bf16 = conditioning, bf16
        self.image_size: int = model.config.image_size
        self.dim: int = model.config.projection_dim if dims is None else dims
        if not 0 < self.dim <= model.config.projection_dim:
            raise ValueError(f"dims={dims} must be above 0 and at most the model's {model.config.projection_dim}.")
        self.mean, self.std = (model.mean, model.std) if isinstance(model, Baseline) else (IMAGE_MEAN, IMAGE_STD)
        self._mean = 255 * torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        self._std = 255 * torch.tensor(self.std, device=self.device).view(3, 1, 1)

    def pixels(self, data: bytes | None) -> np.ndarray:
        """Encoded bytes -> (3, S, S) uint8, S = the model's image size. Raises BadImage."""
        return self.pixels_of(decode_image(data))

    def pixels_of(self, image: Image.Image) -> np.ndarray:
        """A decoded RGB image -> (3, S, S) uint8, for whoever needs the image for something else too."""
        return np.asarray(pad_and_resize(image, self.image_size)).transpose(2, 0, 1)

    @torch.inference_mode()
    def embed(self, pixels: list[np.ndarray], categories: list[str] | None = None) -> Tensor:
        """B arrays (3, S, S) -> (B, dim) float32 unit rows on the CPU.

        `categories` are the queries' (B names); left out for targets and distractors, and unused without conditioning.
        """
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
        indices = None
        if categories is not None and self.conditioning == "category":
            known = self.model.config.categories
            indices = torch.tensor([known.index(name) for name in categories], device=self.device)  # (B,)
        # Normalised on the device: bytes travel there, a quarter of what float32 takes.
        with _exact_convolution(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeds = self.model(pixel_values=(batch - self._mean) / self._std, category_indices=indices).image_embeds
        # A Matryoshka model is trained on its first dimensions as embeddings of their own, so of length 1 again.
        if self.dim < embeds.shape[1]:
            embeds = torch.nn.functional.normalize(embeds[:, : self.dim], dim=1)
        return embeds.float().cpu()


@contextmanager
def _exact_convolution() -> Iterator[None]:
    """GPUs round a float32 convolution's inputs to TF32 unless told not to: the patch embedding would lose 13 bits."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
