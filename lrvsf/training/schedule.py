"""The published two-phase schedule (arXiv 2306.02928 and its code).

Phase 1, one epoch: only the projection and the condition parameters train, while the learning rate climbs linearly.
Phase 2: everything trains with a fresh AdamW, on a cosine down to a thousandth. The temperature is clamped throughout.
"""

from __future__ import annotations

import math
import re

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from configuration_condvit import MAX_LOGIT_SCALE
from modeling_condvit import CondViTModel

START = 0.02  # of the peak, at step 0
FLOOR = 0.001  # of the peak, one step after the last


def phase1_length(asked: int | None, epoch: int, total: int) -> int:
    """Steps of phase 1: those asked for, else one epoch, or half of a run that is shorter than an epoch."""
    if asked is not None:
        return asked
    return epoch if epoch <= total else total // 2


def learning_rate_factor(step: int, phase1_steps: int, total_steps: int) -> float:
    """The share of the peak learning rate that is used at a step, counted from 0."""
    if step < phase1_steps:
        return START + (1 - START) * step / phase1_steps
    # The cosine would reach the floor one step after the last: a run never trains at it.
    progress = (step - phase1_steps) / max(1, total_steps - phase1_steps)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def two_phase_scheduler(optimizer: torch.optim.Optimizer, phase1_steps: int, total_steps: int) -> LambdaLR:
    """`learning_rate_factor` for the optimizer. Raises ValueError: phase 1 is longer than the run."""
    if phase1_steps > total_steps:
        raise ValueError(
            f"phase 1 has {phase1_steps} steps (one epoch unless phase1_steps says otherwise), the whole run "
            f"{total_steps}; train longer or set a smaller phase1_steps"
        )
    # A lambda, not a partial: LambdaLR would write a partial's attributes into every checkpoint.
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, phase1_steps, total_steps))


def trains_in_phase1(parameter_name: str) -> bool:
    """Whether a parameter of CondViTModel trains from the first step: the projection and the condition tokens."""
    return parameter_name.startswith(("visual_projection.", "condition_"))


def drop_phase2_gradients(model: CondViTModel) -> None:
    """Removes gradients of all that does not train in phase 1.

    They are removed, not zeroed: AdamW decays a weight whose gradient is zero, and passes over one that has none.
    """
    for name, parameter in model.named_parameters():
        if not trains_in_phase1(name):
            parameter.grad = None


def decayed_names(model: CondViTModel, matrices_only: bool) -> list[str]:
    """Parameters with weight decay: all of them, as published, or the matrices, which alone are weights to shrink."""
    parameters = [(name, parameter.ndim) for name, parameter in model.named_parameters()]
    return [name for name, ndim in parameters if not matrices_only or (ndim > 1 and not _is_table(name))]


def _is_table(parameter_name: str) -> bool:
    """Whether a parameter holds tokens or positions: rows of a table, which no product shrinks, whatever its shape."""
    tables = (".embeddings.class_", ".embeddings.position_")
    tokens = ("condition_embedding", "condition_position_embedding")  # a text model's projection is a matrix
    return parameter_name in tokens or any(table in parameter_name for table in tables)


def learning_rate_share(parameter_name: str, layers: int, decay: float) -> float:
    """The share of the learning rate under layer-wise decay (arXiv 2106.08254): a layer's is `decay` times the next
    one's, the last one's is 1; what stands before the first layer comes once more below it."""
    if found := re.search(r"\.layers\.(\d+)\.", parameter_name):
        return decay ** (layers - 1 - int(found[1]))
    below = ".embeddings." in parameter_name or ".pre_layrnorm." in parameter_name
    return decay**layers if below else 1.0


def split_by_layer(optimizer: torch.optim.Optimizer, model: CondViTModel, decay: float) -> None:
    """Splits a new optimizer's groups by `learning_rate_share`, whole rates first: logs tell the first group's."""
    layers, groups = model.config.num_hidden_layers, []
    trained = ((name, one) for name, one in model.named_parameters() if one.requires_grad)
    shares = {id(one): learning_rate_share(name, layers, decay) for name, one in trained}
    for group in optimizer.param_groups:
        for share in sorted({shares[id(one)] for one in group["params"]}, reverse=True):
            own = [one for one in group["params"] if shares[id(one)] == share]
            groups.append({**group, "params": own, "lr": share * group["lr"]})
    optimizer.param_groups[:] = sorted(groups, key=lambda group: -group["lr"])


class FreshOptimizer(TrainerCallback):
    """Begins phase 2 with an AdamW that has no memory of phase 1."""

    def __init__(self, phase1_steps: int):
        self.phase1_steps = phase1_steps

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == self.phase1_steps > 0:
            # The published code makes a second optimizer. Clearing this one's state is the same, and keeps its place in
            # Trainer and in the scheduler.
            optimizer.state.clear()


class ClampTemperature(TrainerCallback):
    """Keeps exp(logit_scale) from 1 to 100 after each step, as CLIP and the published code do."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
