"""A run that is interrupted and resumed is the run that nothing interrupted.

Trainer restores weights, optimizer, random numbers and its state. It does not handle five things: checkpoints that were
cut short, weights that are split, batches that need not be read again, a best checkpoint whose folder has moved, and an
evaluation that was due right after the save.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from lrvsf.data.stream import PairLoader, explained_stall
from lrvsf.processes import on_main_process
from lrvsf.signals import Watch
from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.checkpoints import Checkpoints, name_of
from lrvsf.training.sharding import SplitWeights, WholeWeights
from modeling_condvit import CondViTModel


def total_steps(args: TrainingArguments, steps_per_epoch: int) -> int:
    """How many steps a whole run has."""
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)


def is_over(state: TrainerState, args: TrainingArguments, steps_per_epoch: int) -> bool:
    """Whether the run of a checkpoint has nothing left to train: every step is taken, or it was stopped early."""
    waited = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {}).get("attributes", {})
    patience = args.early_stopping_patience
    stopped_early = patience is not None and waited.get("early_stopping_patience_counter", 0) >= patience
    return stopped_early or state.global_step >= total_steps(args, steps_per_epoch)


def evaluation_of(state: TrainerState, step: int | None) -> dict[str, Any] | None:
    """The log's entry on the evaluation of a step's weights, or None."""
    entries = (entry for entry in reversed(state.log_history) if "eval_R@1" in entry and entry["step"] == step)
    return next(entries, None)


def wins_tie(state: TrainerState, metrics: dict[str, float], metric: str) -> bool:
    """Whether an evaluation has the best score so far once more, with a lower loss."""
    best = evaluation_of(state, state.best_global_step)
    tied = metrics[f"eval_{metric}"] == state.best_metric
    return tied and best is not None and metrics["eval_loss"] < best["eval_loss"]


def final_evaluation(state: TrainerState, args: TrainingArguments) -> dict[str, Any] | None:
    """The log's entry on the weights that a finished run leaves; None where these were not evaluated."""
    best = args.load_best_model_at_end and state.best_model_checkpoint is not None  # else nothing was loaded
    return evaluation_of(state, state.best_global_step if best else state.global_step)


def of_step(state: TrainerState, args: TrainingArguments) -> str:
    """Which step's weights are left, which need not be the last one's, with their score and that of the start."""
    entry, start = final_evaluation(state, args), evaluation_of(state, 0)
    if entry is None:
        return ""
    metric = args.metric_for_best_model
    before = "" if start is None else f" ({_shown(start, metric)} before the first step)"
    return f" of step {entry['step']}, validation {metric} {_shown(entry, metric)}{before},"


def _shown(entry: dict[str, Any], metric: str) -> str:
    value = entry[f"eval_{metric}"]
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.1f} %"


def evaluation_is_due(state: TrainerState, args: TrainingArguments, steps_per_epoch: int) -> bool:
    """Whether the step of a checkpoint should have been evaluated, and was not when it was saved."""
    step, last = state.global_step, state.global_step >= total_steps(args, steps_per_epoch)
    if evaluation_of(state, step):
        return False
    if args.eval_strategy == "steps":
        return step >= args.eval_delay and (last or step % state.eval_steps == 0)
    return args.eval_strategy == "epoch" and state.epoch >= args.eval_delay and (last or step % steps_per_epoch == 0)


def best_checkpoint(state: TrainerState, folders: list[Path]) -> str | None:
    """Where the best checkpoint lies: in the first folder that has it.

    Raises FileNotFoundError: none has it. The last model would be published under the best one's score.
    """
    if state.best_global_step is None:
        return None
    name = name_of(state.best_global_step)
    for folder in folders:
        if (folder / name).is_dir():
            return str(folder / name)
    raise FileNotFoundError(
        f"{name}, the best checkpoint so far ({state.best_metric:.4f}), is not in {' or '.join(map(str, folders))}; "
        "put it back, begin anew in another output_dir, or add --load_best_model_at_end False"
    )


class CatchUp(TrainerCallback):
    """Catches up when training begins, and sets each epoch's order.

    Args:
        loader, callbacks: all of the run's.
        evaluate: evaluates the weights and says whether they are the best so far.
    """

    def __init__(self, loader: PairLoader, callbacks: list[TrainerCallback], evaluate: Callable[[], bool]):
        self.loader, self.callbacks, self.evaluate = loader, callbacks, evaluate
        self.checkpoint: Path | None = None  # what the run resumes

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.ignore_data_skip:  # Trainer drops these batches: they need not be read
            self.loader.batch_sampler.unread = state.global_step % len(self.loader)
        for callback in self.callbacks:
            if isinstance(callback, EarlyStoppingCallback):  # restored with what the flag said then
                callback.early_stopping_patience = args.early_stopping_patience
            if isinstance(callback, ExportableState):  # one that is new in this run: Trainer expects its entry
                state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        if self.checkpoint is not None:
            self.restore_best_and_evaluate(args, state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A loader that skips batches passes the epoch on in some versions of Trainer only.
        self.loader.set_epoch(state.global_step // len(self.loader))

    def restore_best_and_evaluate(self, args: TrainingArguments, state: TrainerState) -> None:
        """Finds the best checkpoint again, and makes up for the evaluation that was due when this one was saved."""
        if args.load_best_model_at_end:
            state.best_model_checkpoint = best_checkpoint(state, [Path(args.output_dir), self.checkpoint.parent])
        if evaluation_is_due(state, args, len(self.loader)) and self.evaluate():
            state.best_model_checkpoint = str(self.checkpoint)


class ResumableTrainer(Trainer):
    """Trainer with checkpoints that are whole or absent, from which any run of the same identity `run` goes on."""

    def __init__(self, model: CondViTModel, args: CondViTTrainingArguments, loader: PairLoader, run: dict, **kwargs):
        super().__init__(model, args, train_dataset=loader.dataset, **kwargs)
        self.loader, self.total_steps = loader, total_steps(args, len(loader))
        self.weights = SplitWeights(model, self.accelerator) if args.shard_weights else WholeWeights(model)
        self.checkpoints = Checkpoints(Path(args.output_dir), args.save_total_limit, run)
        self.signals = Watch("the run ends after this step, with a checkpoint; a second one ends it at once.")
        self.catch_up = CatchUp(loader, self.callback_handler.callbacks, self._is_best_now)
        self.add_callback(self.catch_up)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Trainer's, from a checkpoint that is whole and of this run: True for the newest, "auto" for it or none."""
        folder = self.catch_up.checkpoint = on_main_process(lambda: self.checkpoints.find(resume_from_checkpoint))
        if folder is not None:
            state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))  # Trainer will load it once more
            if self.is_world_process_zero():
                print(f"going on from {folder}, step {state.global_step} of {self.total_steps}")
            if is_over(state, self.args, len(self.loader)):
                return self._adopt_finished_run(folder, state)
        with self.signals, explained_stall():
            return super().train(None if folder is None else str(folder), **kwargs)

    def _adopt_finished_run(self, folder: Path, state: TrainerState) -> TrainOutput:
        """The result of a run that this checkpoint had already finished; Trainer would train one more step."""
        self.state = state
        self._load_from_checkpoint(str(folder), self.model)
        self.catch_up.restore_best_and_evaluate(self.args, state)
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        return TrainOutput(state.global_step, float("nan"), {})

    def _is_best_now(self) -> bool:
        return self._determine_best_metric(self.evaluate(), trial=None)

    def get_train_dataloader(self) -> PairLoader:
        """As it is: it is split over processes already, and a second split would lose rows."""
        return self.loader

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        return self.weights.adopt(super().create_optimizer(*args, **kwargs))

    def _get_output_dir(self, trial: None) -> str:
        """Trainer writes checkpoints here."""
        return str(self.checkpoints.place)

    def _save_checkpoint(self, model: nn.Module, trial: None) -> None:
        with self.signals.patience(), self.checkpoints.saving(self.state):
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Trainer saves what stands in `self.model`: for this moment the whole weights, which may be another model.
        trained, self.model = self.model, self.weights.gathered(everywhere=False)
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.model = trained

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.weights.join_save(self.optimizer)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.weights.load_optimizer(self.optimizer, Path(checkpoint, OPTIMIZER_NAME)):
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
