"""What a conditioned query looks at: heat maps by attention rollout (Abnar and Zuidema, arXiv 2005.00928).

A layer's heads are averaged, and half of the identity stands for the residual connection that carries a token past its
attention; the product of all layers then says how much of each input token has flowed into each output token. Two of
its rows are of interest: that of [CLS], which becomes the embedding, and that of the condition token. [CLS] looks at
much of a scene under any condition, so another map shows what this condition adds to the average over several: all
categories that the model knows, or the texts that were given.

It is a reading aid, not a proof: rollout knows nothing of values, of MLPs, or of heads that disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from lrvsf.embedding.encoder import Encoder
from modeling_condvit import CondViTModel
from processing_condvit import pad_and_resize, to_pixel_values

COLOURS = colormaps["YlOrRd"]  # lightness alone tells large from small


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Each layer's attention (B, heads, T, T), first layer first -> (B, T, T) whose rows sum to 1.

    Entry (i, j) is the share of output token i that came from input token j. Raises ValueError without a layer.
    """
    if not attentions:
        raise ValueError("There is no layer's attention. Run the model with eager attention and output_attentions.")
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    flow = identity.expand(len(attentions[0]), -1, -1)  # nothing has flowed before the first layer
    for layer in attentions:
        flow = (layer.float().mean(1) + identity) / 2 @ flow  # (B, T, T), rows sum to 1; later layers from the left
    return flow


def patch_maps(rollout: Tensor, side: int) -> Tensor:
    """Rollout (B, T, T) with T = 1 + side² + condition tokens -> (B, 3, side, side): the maps of
    [CLS], of what it looks at more than on average over the conditions, and of the condition token.

    The batch is one image under different conditions. Condition tokens are averaged. What is below the average is 0.
    """
    patches = 1 + side**2
    if rollout.shape[-1] <= patches:
        raise ValueError(f"{rollout.shape[-1]} tokens hold no condition besides [CLS] and {side}² patches.")
    cls, condition = rollout[:, 0, 1:patches], rollout[:, patches:, 1:patches].mean(1)  # (B, side²)
    return torch.stack([cls, (cls - cls.mean(0)).clamp_min(0), condition], dim=1).unflatten(2, (side, side))


@contextmanager
def eager_attention(model: CondViTModel) -> Iterator[None]:
    """The one implementation that hands out its weights; the others never hold them as a whole."""
    # A gallery by itself: some versions of transformers pass over a part that is of the model's own class.
    parts = [model, *([model.gallery] if hasattr(model, "gallery") else [])]
    before = [part.config._attn_implementation for part in parts]
    for part in parts:
        part.set_attn_implementation("eager")
    try:
        yield
    finally:
        for part, implementation in zip(parts, before, strict=True):
            part.set_attn_implementation(implementation)


@torch.inference_mode()
def attention_maps(encoder: Encoder, scene: Image.Image, asked: Sequence[str]) -> Tensor:
    """An RGB image -> (N, 3, side, side) on the CPU: `patch_maps` under each of N conditions, names or texts."""
    model, size = encoder.model, encoder.image_size
    pixels = torch.from_numpy(to_pixel_values(pad_and_resize(scene, size))).to(encoder.device)
    condition = encoder.condition(list(asked))
    with eager_attention(model):
        batch = pixels.expand(len(asked), -1, -1, -1)  # (N, 3, S, S), one image in memory
        attentions = model(batch, **condition, output_attentions=True).attentions
    return patch_maps(attention_rollout(attentions), size // model.config.patch_size).cpu()


def draw_heat(image: Image.Image, heat: Tensor) -> Image.Image:
    """A map (side, side) over a square image: pale and grey at its smallest value, red at its largest."""
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-12)  # a flat map stays pale
    smooth = Image.fromarray(heat.numpy().astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    hot = np.asarray(smooth).clip(0, 1)  # (S, S); bicubic overshoots
    pale = 0.4 + 0.6 * np.asarray(image.convert("L"))[..., None] / 255
    share = 0.8 * hot[..., None] ** 0.8  # what is warm hides as little of the garment as possible
    mixed = (1 - share) * pale + share * COLOURS(0.25 + 0.75 * hot)[..., :3]
    return Image.fromarray((255 * mixed).astype(np.uint8))
