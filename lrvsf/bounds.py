"""The numbers that a training run is told: one out of its range is refused before torch is imported."""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

BELOW_1 = math.nextafter(1, 0)
ABOVE_0 = math.ulp(0)
LARGEST = math.nextafter(math.inf, 0)  # no flag may be infinite, nor not a number
BOUNDS: dict[str, tuple[float, float]] = {
    "learning_rate": (0, LARGEST),
    "layer_decay": (ABOVE_0, 1),
    "weight_decay": (0, LARGEST),
    "adam_beta1": (0, BELOW_1),
    "adam_beta2": (0, BELOW_1),  # at 1 the bias correction would divide by zero
    "adam_epsilon": (0, LARGEST),
    "max_grad_norm": (0, LARGEST),
    "logit_scale_init_value": (-LARGEST, LARGEST),
    "num_train_epochs": (ABOVE_0, LARGEST),
    "phase1_steps": (0, LARGEST),
    "grad_cache_chunk": (1, LARGEST),
    "per_device_eval_batch_size": (1, LARGEST),
    "dataloader_num_workers": (0, LARGEST),
    "seed": (0, 2**32 - 1),  # numpy's
    "save_total_limit": (1, LARGEST),
    "max_bad_fraction": (0, 1),
    "max_bad_in_a_row": (1, LARGEST),
}


def check_numbers(asked: Namespace | Any) -> None:
    """Refuses numbers that mean nothing, alone or together.

    Args:
        asked: the training's flags, as parsed or as a dataclass; what it lacks, or has as None, is not looked at.

    Raises ValueError: with the flag's name, its value, and what is taken.
    """
    for name, (low, high) in BOUNDS.items():
        value = getattr(asked, name, None)
        if value is not None and not low <= value <= high:  # not a number is in no range
            raise ValueError(f"{name}={value} must be {_range(low, high)}")
    if asked.max_steps == 0 or asked.max_steps < -1:  # -1 is how Trainer says that there is none
        raise ValueError(f"max_steps={asked.max_steps} must be 1 or more; leave it out to train num_train_epochs")
    if asked.phase1_steps is not None and 0 < asked.max_steps < asked.phase1_steps:
        raise ValueError(
            f"phase1_steps={asked.phase1_steps} are more than max_steps={asked.max_steps}, the whole run; train "
            "longer or set a smaller phase1_steps"
        )
    # The best model is found at evaluations and kept at saves: they must come together.
    by_steps = asked.eval_strategy == asked.save_strategy == "steps"
    evaluated = asked.eval_steps or asked.logging_steps  # as Trainer does
    if asked.load_best_model_at_end and by_steps and asked.save_steps != evaluated:
        raise ValueError(
            f"load_best_model_at_end=True with save_steps={asked.save_steps:g} and eval_steps={evaluated:g}: the "
            "best model may be one that is not saved; set both to the same, or take --save_strategy best"
        )


def _range(low: float, high: float) -> str:
    """A range in words: "0 or more", "in 0..1", "a finite number"."""
    if low == -LARGEST:
        return "a finite number"
    lower = "above 0" if low == ABOVE_0 else f"{low} or more"
    if high == LARGEST:
        return lower
    if high == BELOW_1:
        return f"{lower} and below 1"
    return f"{lower} and at most {high}" if low == ABOVE_0 else f"in {low}..{high}"
