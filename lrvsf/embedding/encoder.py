"""A model on a device that turns bytes into pixels and pixels into unit rows: CondViT, CLIP or another baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig

from lrvsf.data.images import decode_image
from lrvsf.data.names import quoted
from lrvsf.embedding.baselines import Baseline, load_baseline
from lrvsf.paths import check_model
from lrvsf.processes import has_fast_bf16
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD, pad_and_resize

# A config.json may name an attention kernel of a stranger, which transformers would fetch and run.
_LOADING = {"dtype": torch.float32, "attn_implementation": "sdpa"}
# What a model can be asked by, whose configuration has this `condition`: a text model knows the names of categories.
ASKED_BY = {"category": ("category", "none"), "text": ("text", "category", "none"), "none": ("none",)}


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
    """`CondViTModel.from_pretrained`; a weight that is missing would be a random one.

    Raises ValueError: there is one, or one that does not fit the configuration; the file is damaged.
    """
    asked = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # transformers' own refusal names no weight
    try:
        model, loaded = CondViTModel.from_pretrained(path, **asked, **loading)
    except SafetensorError as error:
        raise ValueError(f"{path}: its weights cannot be read ({error}). Restore model.safetensors") from error
    if wrong := sorted(loaded["mismatched_keys"]):
        name, stored, expected = wrong[0]
        shapes = f"{tuple(stored)}, and config.json says {tuple(expected)}"
        raise ValueError(f"{path} has {name} of {shapes}. Restore the config.json and weights of one model")
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{path} lacks the weights {', '.join(missing[:5])}; restore its model.safetensors")
    return model


def runs_in_bf16(asked: bool | None, protocol: str, device: torch.device) -> bool:
    """Whether a protocol runs the model in bfloat16, unless asked: the published scores are of float32."""
    return has_fast_bf16(device) and protocol == "bootstrap" if asked is None else asked


class Encoder:
    """A model on a device that turns uint8 pixels into embeddings.

    Args:
        model: put into evaluation mode and on `device`.
        conditioning: what queries are asked by: "category", a name; "text", any words; or "none". Targets and
            distractors never have a condition.
        bf16: run the tower under bfloat16 autocast. Embeddings are normalised and returned in float32 all the same.
        dims: how many first dimensions to keep, renormalised, for a model trained with `matryoshka_dims`; None: all.
        sentences: n texts -> their sentence embeddings (n, E); by default the model's text encoder computes them.

    Raises:
        ValueError: a conditioning that the model does not know, more dimensions than it has.
    """

    def __init__(
        self,
        model: CondViTModel | Baseline,
        conditioning: str,
        bf16: bool = False,
        device: torch.device | None = None,
        dims: int | None = None,
        sentences: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        _check_conditioning(conditioning, model)
        self.device = device or torch.device("cpu")
        self.model = model.eval().to(self.device)
        self.conditioning, self.bf16 = conditioning, bf16
        self.sentences = sentences or self._embed_sentences
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

    def asked_by(self, conditioning: str) -> Encoder:
        """The same model on the same device, whose queries are asked by something else. Raises ValueError."""
        _check_conditioning(conditioning, self.model)
        other = copy.copy(self)
        other.conditioning = conditioning
        return other

    @property
    def gallery(self) -> Encoder:
        """What embeds whatever has no condition: this one, or the model inside that its gallery is frozen by."""
        inner = None if getattr(self.model.config, "gallery", None) is None else self.model.gallery
        if inner is None:
            return self
        other = copy.copy(self)
        other.model = inner
        return other

    def condition(self, asked: list[str] | None) -> dict[str, Tensor]:
        """The model's inputs for what B queries are asked by, names or texts; none at all for no condition."""
        if asked is None or self.conditioning == "none":
            return {}
        if self.conditioning == "text":
            return {"text_embeds": self.sentences(asked).to(self.device)}  # (B, E)
        known = self.model.config.categories
        if alike := sorted(set(asked) & self._alike):
            raise ValueError(
                f"The model's text encoder gives one embedding to {', '.join(map(quoted, alike))} and others, so that "
                "the name does not say which is meant. Ask by text, or train with names in words that it knows."
            )
        return {"category_indices": torch.tensor([known.index(name) for name in asked], device=self.device)}  # (B,)

    @cached_property
    def _alike(self) -> set[str]:
        """Names that a text model cannot tell apart."""
        return set(self.model.categories_alike()) if self.model.config.condition == "text" else set()

    @cached_property
    def _tokenizer(self) -> Any:
        return self.model.sentence_tokenizer()

    def _embed_sentences(self, texts: list[str]) -> Tensor:
        different = {text: number for number, text in enumerate(dict.fromkeys(texts))}  # a batch may ask for one thing
        rows = self.model.sentence_encoder().embed(list(different), self._tokenizer)
        return rows[[different[text] for text in texts]]

    @torch.inference_mode()
    def embed(self, pixels: list[np.ndarray], asked: list[str] | None = None) -> Tensor:
        """B arrays (3, S, S) -> (B, dim) float32 unit rows on the CPU.

        `asked` is what the queries are asked by (B names or texts); left out for targets and distractors, and unused
        without conditioning.
        """
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
        condition = self.condition(asked)  # before autocast: what a text means has float32's precision
        # Normalised on the device: bytes travel there, a quarter of what float32 takes.
        with _exact_convolution(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeds = self.model(pixel_values=(batch - self._mean) / self._std, **condition).image_embeds
        # A Matryoshka model is trained on its first dimensions as embeddings of their own, so of length 1 again.
        if self.dim < embeds.shape[1]:
            embeds = torch.nn.functional.normalize(embeds[:, : self.dim], dim=1)
        return embeds.float().cpu()


def _check_conditioning(conditioning: str, model: CondViTModel | Baseline) -> None:
    if conditioning not in ASKED_BY["text"]:
        raise ValueError(f"conditioning={conditioning!r} is unknown. Use {', '.join(ASKED_BY['text'])}.")
    if conditioning not in (known := ASKED_BY[model.config.condition]):
        raise ValueError(
            f'conditioning="{conditioning}" was asked of a model with condition={model.config.condition!r}. '
            f"Use {' or '.join(known)}, or a model that was trained with it."
        )


@contextmanager
def _exact_convolution() -> Iterator[None]:
    """GPUs round a float32 convolution's inputs to TF32 unless told not to: the patch embedding would lose 13 bits."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
