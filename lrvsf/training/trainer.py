"""CondViTTrainer: transformers' Trainer, taught pairs, two phases, a clamped temperature and recall.

It overrides hooks only; Trainer's loop is Trainer's.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from lrvsf.data.images import BadImageCounter, Tolerance
from lrvsf.data.pairs import PairMaker, count_images
from lrvsf.data.products import ProductShards
from lrvsf.data.stream import PairLoader, ProductBatches, explained_stall
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import follow_umask
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import describe_model
from lrvsf.processes import every, on_main_process
from lrvsf.signals import Watch
from lrvsf.training import checkpoints, resuming, sharding
from lrvsf.training.compiling import compile_layers
from lrvsf.training.grad_cache import cached_step
from lrvsf.training.guards import Guard
from lrvsf.training.loss import nested_info_nce, rows_that_share
from lrvsf.training.resuming import Resuming
from lrvsf.training.schedule import is_token_or_position, learning_rate_factor, trains_in_phase1
from lrvsf.training.validation import validate
from processing_condvit import IMAGE_MEAN, IMAGE_STD

logger = logging.getLogger(__name__)

FEW_STEPS = 50  # not tuned; at the published rate 50 steps move a weight by 0.0005 at most
MAX_LOGIT_SCALE = 4.6052  # ln 100, where the published model clamps it


class TemperatureAndPhases(TrainerCallback):
    """Clamps `logit_scale` after each step and gives phase 2 a fresh optimizer."""

    def __init__(self, trainer: CondViTTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == self.trainer.phase1_steps > 0:
            optimizer.state.clear()

    def on_optimizer_step(self, args, state, control, **kwargs):
        with torch.no_grad():
            self.trainer.unwrapped.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


class CondViTTrainer(Trainer):
    """Trains a CondViTModel on a stream of pairs.

    Args:
        model: a CondViTModel; its configuration says whether queries are conditioned, and by which categories.
        args: CondViTTrainingArguments.
        shards: the training products.
        validation: a test set; its recall is what `metric_for_best_model` names. None to do without.
        kwargs: Trainer's own, such as `processing_class` and `callbacks`.
    """

    def __init__(self, model, args, shards: ProductShards, validation: ProductTestSet | None = None, **kwargs):
        self.shards, self.validation = shards, validation
        categories = model.config.categories if model.config.condition == "category" else None
        if validation is not None and categories is not None:
            validation.check_categories(categories)
        maker = PairMaker(model.config.image_size, categories, args.seed)
        state = PartialState()
        tolerance = Tolerance(args.max_bad_fraction, args.max_bad_in_a_row)
        batches = ProductBatches(
            shards,
            args.per_device_train_batch_size,
            args.seed,
            state.process_index,
            state.num_processes,
            args.categories_per_batch,
            tolerance=tolerance,
        )
        self.loader = PairLoader(
            batches,
            maker,
            args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
        )
        dims = args.matryoshka_dims or []
        if len(set(dims)) < len(dims):
            raise ValueError(f"matryoshka_dims={dims} names a dimension twice; give each once")
        if wrong := [d for d in dims if not 0 < d < model.config.projection_dim]:
            raise ValueError(
                f"matryoshka_dims={wrong} must be above 0 and below the embedding's {model.config.projection_dim}"
            )
        self.skipped = BadImageCounter("images of training products", tolerance)
        if args.torch_compile:
            compile_layers(model)
        super().__init__(model, args, train_dataset=self.loader.dataset, eval_dataset=validation, **kwargs)
        self.model_accepts_loss_kwargs = False  # InfoNCE is a mean over the batch: Trainer must not rescale it
        self.phase1_steps = self._phase1_steps()
        self.unwrapped = model
        if args.shard_weights:
            sharding.shard(model, self.accelerator)
        self.add_callback(TemperatureAndPhases(self))
        self.add_callback(Guard(self))
        self.add_callback(Resuming(self))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self._save_under, self.resumed_from = args.output_dir, None
        self.signals = Watch("the run ends after this step, with a checkpoint; a second one ends it at once.")
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        self._mean, self._std = mean.to(args.device), std.to(args.device)

    def _phase1_steps(self) -> int:
        """Those asked for; else an epoch, or half of a run that is shorter than one, such as a trial of two steps."""
        asked, epoch = self.args.phase1_steps, len(self.loader)
        total = resuming.total_steps(self.args, epoch)
        if asked is not None or epoch <= total:
            return epoch if asked is None else asked
        if self.is_world_process_zero():
            print(f"the run's {total} steps are less than an epoch's {epoch}: phase 1 has {total // 2} of them")
        return total // 2

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Trainer's, from a checkpoint that is whole and of this run: True for the newest, "auto" for it or none."""
        steps = resuming.total_steps(self.args, len(self.loader))
        if steps < FEW_STEPS and self.is_world_process_zero():
            logger.warning(
                "This run has %d steps, of %d pairs each: a model hardly moves in fewer than %d. Take a smaller "
                "--per_device_train_batch_size, more --num_train_epochs, or --max_steps.",
                *(steps, self.loader.batch_sampler.global_size, FEW_STEPS),
            )
        folder = on_main_process(lambda: self._begin(resume_from_checkpoint))
        self.resumed_from = folder
        if folder is not None:
            state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
            if self.is_world_process_zero():
                total = resuming.total_steps(self.args, len(self.loader))
                print(f"going on from {folder}, step {state.global_step} of {total}")
            if resuming.is_over(state, self.args, len(self.loader)):
                return self._take(folder, state)
        with self.signals, explained_stall():
            return super().train(None if folder is None else str(folder), **kwargs)

    def _take(self, folder: Path, state: TrainerState) -> TrainOutput:
        """What a run that had ended, at this checkpoint, came to: Trainer would take one step more."""
        self.state = state
        self._load_from_checkpoint(str(folder), self.unwrapped)
        self.catch_up()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        return TrainOutput(state.global_step, float("nan"), {})

    def catch_up(self) -> None:
        """Finds the best checkpoint again, and makes up for the evaluation that the checkpoint's step is owed."""
        args, state, own = self.args, self.state, self.resumed_from
        if args.load_best_model_at_end:
            state.best_model_checkpoint = resuming.best_checkpoint(state, [Path(args.output_dir), own.parent])
        if resuming.evaluation_is_due(state, args, len(self.loader)) and self._determine_best_metric(
            self.evaluate(), trial=None
        ):
            state.best_model_checkpoint = str(own)

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """Trainer's; and of equal scores the one of lower loss is the better (published: the later one)."""
        if super()._determine_best_metric(metrics, trial):
            return True
        state = self.state
        best = resuming.evaluation_of(state, state.best_global_step)
        tied = metrics[f"eval_{self.args.metric_for_best_model}"] == state.best_metric
        if not (tied and best and metrics["eval_loss"] < best["eval_loss"]):
            return False
        state.best_global_step = state.global_step
        return True

    def _begin(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to resume from; removes what an interrupted save left."""
        output = Path(self.args.output_dir)
        shutil.rmtree(output / checkpoints.STAGING, ignore_errors=True)
        if asked:
            return checkpoints.find(output, asked, self.identity())
        if found := checkpoints.checkpoints_in(output):
            raise ValueError(
                f"{output} holds {found[0].name} of an earlier run; add --resume_from_checkpoint True to go on with "
                "it, take another --output_dir, or remove it"
            )
        return None

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that it resumes; kept in every checkpoint."""
        batches = self.loader.batch_sampler
        order = {"seed": self.args.seed, "global_batch": batches.global_size, "categories_per_batch": batches.parts}
        order |= {"phase1_steps": self.phase1_steps, "matryoshka_dims": self.args.matryoshka_dims}
        order["decay_matrices_only"] = self.args.decay_matrices_only  # which also groups the optimizer's state
        return {**order, "data": self.shards.fingerprint, **describe_model(self.unwrapped.config)}

    def _get_output_dir(self, trial) -> str:
        """Trainer writes and sorts checkpoints here."""
        return self._save_under

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Trainer's files, written aside, and published by the main process when every process has written its own."""
        output, name = Path(self.args.output_dir), checkpoints.name_of(self.state.global_step)
        try:
            with self.signals.patience():
                self._save_aside(output / checkpoints.STAGING, name, model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
            kept = ", ".join(path.name for path in checkpoints.checkpoints_in(output)) or "none before it"
            raise RuntimeError(
                f"{output / name} could not be written ({error}); kept: {kept}. If the disk is full, free some space."
            ) from error
        self.accelerator.wait_for_everyone()

    def _save_aside(self, staging: Path, name: str, model: nn.Module, trial) -> None:
        output = staging.parent
        try:
            self._save_under = str(staging)
            super()._save_checkpoint(model, trial)
        finally:
            self._save_under = self.args.output_dir
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(output / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
            checkpoints.seal(staging / name, self.identity())
            checkpoints.publish(staging / name, output / name)
            staging.rmdir()
            best, step = self.state.best_model_checkpoint, self.state.global_step
            checkpoints.rotate(output, self.args.save_total_limit, step, best)

    def get_train_dataloader(self) -> PairLoader:
        """As it is: it is split over processes already, and a second split would lose rows."""
        return self.loader

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All of them, as published; by `decay_matrices_only` the matrices, which alone are weights to shrink."""
        decayed = [(name, weight.ndim) for name, weight in model.named_parameters()]
        if self.args.decay_matrices_only:  # tokens and positions are rows of tables, and stay as long as they are
            decayed = [(name, ndim) for name, ndim in decayed if ndim > 1 and not is_token_or_position(name)]
        return [name for name, _ in decayed]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.phase1_steps > num_training_steps:
            raise ValueError(
                f"phase 1 has {self.phase1_steps} steps (one epoch unless phase1_steps says otherwise), the whole run "
                f"{num_training_steps}; train longer or set a smaller phase1_steps"
            )
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(
                optimizer, lambda step: learning_rate_factor(step, self.phase1_steps, num_training_steps)
            )
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> Tensor:
        """In phase 1 the tower's gradients are dropped, so that the optimizer passes it over, clipping included."""
        self.last_products = inputs.pop("product_ids")
        count_images(inputs, self.skipped)
        # Trainer would wait for each copy from pinned memory.
        inputs = {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}
        together = rows_that_share(inputs.pop("pictures"))
        if self.args.grad_cache_chunk is None:
            loss = super().training_step(model, {**inputs, "together": together}, *args, **kwargs)
        else:
            loss = self._chunked_step(model, inputs, together)
        sharding.average_gradient(self.unwrapped.logit_scale)
        if self.state.global_step < self.phase1_steps:
            for name, parameter in self.unwrapped.named_parameters():
                if not trains_in_phase1(name):
                    parameter.grad = None
        self.last_loss = loss.detach()
        return loss

    def _chunked_step(self, model: nn.Module, inputs: dict[str, Tensor], together: Tensor | None) -> Tensor:
        """Trainer's step, in the memory of `grad_cache_chunk` pairs."""
        model.train()

        def embed(model: nn.Module, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            with self.compute_loss_context_manager():
                return self._embed(model, part)

        chunk, scale = self.args.grad_cache_chunk, sharding.whole_parameter(self.unwrapped.logit_scale)
        loss = partial(self._loss, together=together)
        return cached_step(model, inputs, chunk, embed, loss, scale, self.accelerator.backward)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor | None], *args, **kwargs) -> Tensor:
        scale = sharding.whole_parameter(self.unwrapped.logit_scale)
        return self._loss(*self._embed(model, inputs), scale, inputs["together"])

    def _loss(self, queries: Tensor, targets: Tensor, logit_scale: Tensor, together: Tensor | None) -> Tensor:
        return nested_info_nce(queries, targets, logit_scale, self.args.matryoshka_dims or [], together)

    def _embed(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries and targets, in one call, so that distributed training sees one forward per step."""
        output = model(
            pixel_values=self._normalised(inputs["pixel_values"]),
            category_indices=inputs.get("category_indices"),
            target_pixel_values=self._normalised(inputs["target_pixel_values"]),
        )
        return output.image_embeds, output.target_embeds

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, S, S) -> float32, on the device: a quarter of the bytes travel."""
        return (pixels - self._mean) / self._std

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """R@1, R@5 and R@10 of the validation products among each other and all distractors, on all processes; loss."""
        model = sharding.whole_model(self.unwrapped, everywhere=True) if self.args.shard_weights else self.unwrapped
        encoder = Encoder(model, model.config.condition, self.args.bf16, self.args.device)
        # Layers that were compiled for training would be compiled anew.
        with torch.compiler.set_stance("force_eager"), self.signals.patience():
            found = validate(encoder, self.validation, self.args.per_device_eval_batch_size, self.skipped.tolerance)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.shard_weights and new:
            sharding.shard_state(optimizer)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.shard_weights and not self.args.should_save:
            self.optimizer.state_dict()  # its share of what the main process saves
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer would load all of the optimizer's state onto every device before it is split."""
        if not self.args.shard_weights or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", mmap=True, weights_only=True)
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # the others were only let in
            follow_umask(Path(output_dir or self.args.output_dir))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self._plain_model():
            super().save_model(output_dir, _internal_call)

    @contextmanager
    def _plain_model(self) -> Iterator[None]:
        """`model` as it is saved: not split over the processes."""
        model = self.model
        if self.args.shard_weights:
            self.model = sharding.whole_model(self.unwrapped, everywhere=False)
        try:
            yield
        finally:
            self.model = model

    def finish(self, dtype: torch.dtype = torch.float32) -> Path:
        """Saves a Hub repository: weights in `dtype`, code, processor. Adds up all ranks' bad images."""
        folder = Path(self.args.output_dir)
        with self._plain_model():
            if self.args.should_save:
                self.model.to(dtype)
            super().save_model(str(folder), _internal_call=True)  # which does not push: the card is still to come
        if self.is_world_process_zero():
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust
        counted = every((self.skipped.good, self.skipped.reasons))
        self.skipped.good = sum(good for good, _ in counted)
        self.skipped.reasons = sum((reasons for _, reasons in counted), Counter())
        return folder
