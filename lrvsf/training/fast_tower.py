"""A tower that trains faster and is saved as it was: names, shapes and meaning of the weights stay CLIP's."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from modeling_condvit import CondViTModel


class PatchLinear(nn.Conv2d):
    """CLIP's patch embedding, a convolution whose stride is its kernel's size, as one matrix product.

    Images' sides must be multiples of a patch. PyTorch's convolution takes 14 times as long for both passes on a CPU
    (B/32, bfloat16): a sixth of a whole step. The Hub model keeps it, because with it the tower equals CLIP's bit for
    bit; the product adds the same numbers in another order.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D, H / p, W / p), as the convolution."""
        height, width = self.kernel_size
        patches = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, 3, rows, p, columns, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, 3 * p * p)
        return F.linear(patches, self.weight.flatten(1)).permute(0, 3, 1, 2)


def use_patch_product(model: CondViTModel) -> CondViTModel:
    """Gives the model a `PatchLinear` over its own weight, but not its gallery; the same model, for chaining."""
    embeddings = model.vision_model.embeddings
    conv = embeddings.patch_embedding
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
    embeddings.patch_embedding = PatchLinear(*shape, bias=False, device="meta")
    embeddings.patch_embedding.weight = conv.weight
    return model


def can_compile() -> bool:
    """Whether this machine has what pays: a GPU, Triton to write its kernels and a C compiler to start them."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None and bool(compiler)


def compile_layers(model: CondViTModel, backend: str | Callable = "inductor") -> CondViTModel:
    """Compiles each layer in place, when it is first called; the same model, for chaining.

    That fuses casts, norms and activations between the matrix products, half of a GPU's step.
    """
    for layer in model.vision_model.encoder.layers:
        # All layers have one shape, so the first one's code serves for all, in seconds. The whole tower at once is no
        # faster and takes minutes.
        layer.compile(backend=backend)
    return model
