"""Layer-wise learning-rate decay: the deeper a layer lies, the slower it trains (arXiv 1801.06146)."""

from __future__ import annotations

import re

import torch

LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
INPUT = ("vision_model.embeddings.", "vision_model.pre_layrnorm.")


def depth_of(name: str, layers: int) -> int:
    """How far below the projection a parameter lies: 0 for projection and condition, `layers` + 1 for the patches."""
    if found := LAYER.search(name):
        return layers - int(found[1])
    return layers + 1 if any(part in name for part in INPUT) else 0


def decay_learning_rates(optimizer: torch.optim.Optimizer, named_parameters, layers: int, decay: float) -> None:
    """Splits an unused optimizer's groups by depth d, the top first; their rates become decay**d of the group's."""
    depths = {parameter: depth_of(name, layers) for name, parameter in named_parameters}
    groups = []
    for depth in sorted(set(depths.values())):
        for group in optimizer.param_groups:
            if own := [parameter for parameter in group["params"] if depths[parameter] == depth]:
                groups.append({**group, "params": own, "lr": group["lr"] * decay**depth})
    optimizer.param_groups = groups
