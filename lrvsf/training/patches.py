"""The patch embedding as a matrix product, for training.

Patches do not overlap, so CLIP's convolution is one matrix product. PyTorch's convolution takes 14 times as long for
both passes on a CPU (B/32, bfloat16): a sixth of a whole step. The weight keeps its name, shape and meaning: what is
saved is CLIP's. The Hub model keeps the convolution, because with it the tower equals CLIP's bit for bit; the product
adds the same numbers in another order.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from modeling_condvit import CondViTModel


class PatchProduct(nn.Conv2d):
    """A convolution whose stride is its kernel's size, on images whose sides are multiples of it."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D, H / p, W / p), as the convolution."""
        height, width = self.kernel_size
        patches = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, 3, rows, p, columns, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, 3 * p * p)
        return F.linear(patches, self.weight.flatten(1)).permute(0, 3, 1, 2)


def use_patch_product(model: CondViTModel) -> CondViTModel:
    """Gives the model a `PatchProduct` over its own weight; the same model, for chaining."""
    embeddings = model.vision_model.embeddings
    conv = embeddings.patch_embedding
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
    embeddings.patch_embedding = PatchProduct(*shape, bias=False, device="meta")
    embeddings.patch_embedding.weight = conv.weight
    return model
