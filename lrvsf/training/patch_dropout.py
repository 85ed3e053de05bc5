"""Patch dropout: while it trains, the tower sees a random part of each image's patches (FLIP, arXiv 2212.00794)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def drop_patches(tower: nn.Module, share: float) -> None:
    """Lets a CondViT tower, while it trains, keep `1 - share` of each image's patches; [CLS] and conditions stay."""
    patches = tower.embeddings.num_patches
    kept = max(1, round((1 - share) * patches))

    def before_first_layer(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not tower.training:
            return None
        (hidden,) = inputs  # (B, 1 + patches + conditions, D)
        chosen = torch.rand(len(hidden), patches, device=hidden.device).topk(kept, dim=1).indices + 1
        index = chosen.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return (torch.cat([hidden[:, :1], hidden.gather(1, index), hidden[:, 1 + patches :]], dim=1),)

    tower.pre_layrnorm.register_forward_pre_hook(before_first_layer)
