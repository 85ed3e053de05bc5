"""What a resumed run must catch up on, so that it is the run that nothing interrupted.

Trainer restores weights, optimizer, random numbers and its state. It leaves: batches that need not be read, the place
of the best checkpoint (kept as a path, of a folder that may have moved), an evaluation that a save came before.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lrvsf.training import checkpoints

EARLY_STOPPING = "EarlyStoppingCallback"


def total_steps(args: TrainingArguments, steps_per_epoch: int) -> int:
    """How many steps a whole run has."""
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)


def is_over(state: TrainerState, args: TrainingArguments, steps_per_epoch: int) -> bool:
    """Whether the run of a checkpoint has nothing left to train: every step is taken, or it was stopped early."""
    waited = state.stateful_callbacks.get(EARLY_STOPPING, {}).get("attributes", {})
    patience = args.early_stopping_patience
    stopped_early = patience is not None and waited.get("early_stopping_patience_counter", 0) >= patience
    return stopped_early or state.global_step >= total_steps(args, steps_per_epoch)


def evaluation_of(state: TrainerState, step: int | None) -> dict[str, Any] | None:
    """The log's entry on the evaluation of a step's weights, or None."""
    entries = (entry for entry in reversed(state.log_history) if "eval_R@1" in entry and entry["step"] == step)
    return next(entries, None)


def final_evaluation(state: TrainerState, args: TrainingArguments) -> dict[str, Any] | None:
    """The log's entry on the weights that a finished run leaves; None where these were not evaluated."""
    best = args.load_best_model_at_end and state.best_model_checkpoint is not None  # else nothing was loaded
    return evaluation_of(state, state.best_global_step if best else state.global_step)


def evaluation_is_due(state: TrainerState, args: TrainingArguments, steps_per_epoch: int) -> bool:
    """Whether the step of a checkpoint should have been evaluated, and was not when it was saved."""
    step, last = state.global_step, state.global_step >= total_steps(args, steps_per_epoch)
    if evaluation_of(state, step):
        return False
    if args.eval_strategy == "steps":
        return step >= args.eval_delay and (last or step % state.eval_steps == 0)
    return args.eval_strategy == "epoch" and state.epoch >= args.eval_delay and (last or step % steps_per_epoch == 0)


def best_checkpoint(state: TrainerState, folders: list[Path]) -> str | None:
    """Where the best checkpoint lies: in the first of these that has it.

    Raises:
        FileNotFoundError: none has it. The last model would be published under the best one's score.
    """
    if state.best_global_step is None:
        return None
    name = checkpoints.name_of(state.best_global_step)
    for folder in folders:
        if (folder / name).is_dir():
            return str(folder / name)
    raise FileNotFoundError(
        f"{name}, the best checkpoint so far ({state.best_metric:.4f}), is not in {' or '.join(map(str, folders))}; "
        "put it back, begin anew in another output_dir, or add --load_best_model_at_end False"
    )


class Resuming(TrainerCallback):
    """Catches up when training begins, and sets each epoch's order."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.ignore_data_skip:  # Trainer drops these batches: they need not be read
            self.trainer.loader.batch_sampler.unread = state.global_step % len(self.trainer.loader)
        for callback in self.trainer.callback_handler.callbacks:
            name = type(callback).__name__
            if name == EARLY_STOPPING:  # restored with what the flag said then
                callback.early_stopping_patience = args.early_stopping_patience
            if isinstance(callback, ExportableState):  # one that is new in this run: Trainer expects its entry
                state.stateful_callbacks.setdefault(name, callback.state())
        if self.trainer.resumed_from is not None:
            self.trainer.catch_up()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A loader that skips batches passes the epoch on in some versions of Trainer only.
        self.trainer.loader.set_epoch(state.global_step // len(self.trainer.loader))
