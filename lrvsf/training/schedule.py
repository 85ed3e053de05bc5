"""The published two-phase schedule (arXiv 2306.02928 and its code).

Phase 1, one epoch: only the projection and the condition parameters train, while the learning rate climbs linearly.
Phase 2: everything trains with a fresh AdamW, on a cosine down to a thousandth.
"""

from __future__ import annotations

import math

START = 0.02  # of the peak, at step 0
FLOOR = 0.001  # of the peak, one step after the last


def learning_rate_factor(step: int, phase1_steps: int, total_steps: int) -> float:
    """The share of the peak learning rate that is used at a step, counted from 0."""
    if step < phase1_steps:
        return START + (1 - START) * step / phase1_steps
    progress = (step - phase1_steps) / max(1, total_steps - phase1_steps)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def is_token_or_position(parameter_name: str) -> bool:
    """Whether a parameter of CondViTModel is a table of tokens or of positions, whatever its shape."""
    return (
        parameter_name.startswith("condition_")
        or ".embeddings.class_" in parameter_name
        or (".embeddings.position_" in parameter_name)
    )


def trains_in_phase1(parameter_name: str) -> bool:
    """Whether a parameter of CondViTModel trains from the first step: the projection and the condition tokens."""
    return parameter_name.startswith(("visual_projection.", "condition_"))
