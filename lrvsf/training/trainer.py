"""CondViTTrainer: transformers' Trainer, taught pairs, two phases and recall.

It overrides hooks only; Trainer's loop is Trainer's. Checkpoints and what follows them are `ResumableTrainer`'s.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lrvsf.data.images import BadImageCounter
from lrvsf.data.pairs import count_images
from lrvsf.data.products import ProductShards
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import follow_umask
from lrvsf.embedding.captions import CaptionStore
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.embedding.parts import check_conditions
from lrvsf.paths import public_name
from lrvsf.processes import every
from lrvsf.training import schedule
from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.checkpoints import run_identity
from lrvsf.training.fast_tower import compile_layers
from lrvsf.training.guards import StopOnSignalOrNaN
from lrvsf.training.objective.frozen_gallery import FrozenGallery
from lrvsf.training.objective.grad_cache import cached_step
from lrvsf.training.objective.loss import checked_dims, nested_info_nce, rows_that_share
from lrvsf.training.resuming import ResumableTrainer, total_steps, wins_tie
from lrvsf.training.source import pair_loader
from lrvsf.training.validation import validate
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD

logger = logging.getLogger(__name__)

FEW_STEPS = 50  # not tuned; at the published rate 50 steps move a weight by 0.0005 at most


class CondViTTrainer(ResumableTrainer):
    """Trains a CondViTModel on a stream of pairs.

    Args:
        model: its configuration says whether queries are conditioned, and by which categories.
        args: the flags.
        shards: the training products.
        validation: a test set; its recall is what `metric_for_best_model` names. None to do without.
        texts: a text model's sentence embeddings, of all texts that ask in training and validation.
        kwargs: Trainer's own, such as `processing_class` and `callbacks`.
    """

    def __init__(
        self,
        model: CondViTModel,
        args: CondViTTrainingArguments,
        shards: ProductShards,
        validation: ProductTestSet | None = None,
        texts: CaptionStore | None = None,
        **kwargs: Any,
    ):
        if validation is not None:
            check_conditions(validation, model.config.condition, model.config)
        self.texts = texts
        self.validation, self.dims = validation, checked_dims(args.matryoshka_dims, model.config.projection_dim)
        frozen = model.config.gallery is not None
        if frozen and args.shard_weights:
            raise ValueError("shard_weights=True with a frozen gallery was never tried; leave one of them out")
        self.gallery = FrozenGallery.embedded(model, args, shards, self.dims) if frozen else None
        loader = pair_loader(args, shards, model.config, texts, self.gallery and self.gallery.places)
        self.skipped = BadImageCounter("images of training products", args.tolerance)
        if args.torch_compile:
            compile_layers(model)
        total = total_steps(args, len(loader))
        # Beside a frozen gallery nothing has to train alone first, but for new categories, of which a user knows.
        asked = 0 if frozen and args.phase1_steps is None else args.phase1_steps
        self.phase1_steps = schedule.phase1_length(asked, len(loader), total)
        run = run_identity(args, loader.batch_sampler, self.phase1_steps, model.config)
        run |= {"gallery": weights_digest(model.gallery)} if frozen else {}
        super().__init__(model, args, loader, run, eval_dataset=validation, **kwargs)
        self.model_accepts_loss_kwargs = False  # InfoNCE is a mean over the batch: Trainer must not rescale it
        self.guard = StopOnSignalOrNaN(self.signals, scaled=self.accelerator.scaler is not None)
        self.add_callback(schedule.FreshOptimizer(self.phase1_steps))
        self.add_callback(schedule.ClampTemperature())
        self.add_callback(self.guard)
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        self._mean, self._std = mean.to(args.device), std.to(args.device)
        if self.is_world_process_zero():
            self._say_what_begins()

    def _say_what_begins(self) -> None:
        """The run's length and, as the machine may have chosen it, its precision; and what is odd about a short one."""
        epoch, pairs = len(self.loader), self.loader.batch_sampler.global_size
        precision = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
        print(f"{self.total_steps:,} steps of {pairs:,} pairs, in {precision} on {self.args.device.type}")
        if self.gallery is not None:
            print(self.gallery.told())
        elif self.args.phase1_steps is None and self.phase1_steps < epoch:
            print(
                f"the run's {self.total_steps} steps are less than an epoch's {epoch}: phase 1 has {self.phase1_steps} "
                "of them"
            )
        if self.total_steps < FEW_STEPS:
            logger.warning(
                "This run has %d steps, of %d pairs each: a model hardly moves in fewer than %d. Take a smaller "
                "--per_device_train_batch_size, more --num_train_epochs, or --max_steps.",
                *(self.total_steps, pairs, FEW_STEPS),
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One batch of `PairMaker`: its gradients are in the parameters afterwards. Returns the loss."""
        self.guard.products = inputs.pop("product_ids")
        count_images(inputs, self.skipped)
        # Trainer would wait for each copy from pinned memory.
        inputs = {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}
        pictures, places = inputs.pop("pictures"), inputs.pop("target_places", None)
        # Beside a frozen gallery no process needs another's rows: a query's negatives are all there.
        together = rows_that_share(pictures) if places is None else None  # (B, world x B) or None
        if self.args.grad_cache_chunk is None:
            inputs |= {"together": together, "target_places": places}
            loss = super().training_step(model, inputs, *args, **kwargs)
        else:
            loss = self._chunked_step(model, inputs, together, places)
        self.weights.average_scale_gradient()
        if self.state.global_step < self.phase1_steps:
            schedule.drop_phase2_gradients(self.model)  # here, as the clipping that follows counts what is there
        self.guard.loss = loss.detach()
        return loss

    def _chunked_step(
        self, model: nn.Module, inputs: dict[str, Tensor], together: Tensor | None, places: Tensor | None
    ) -> Tensor:
        """Trainer's step, in the memory of `grad_cache_chunk` pairs."""
        model.train()

        def embed(model: nn.Module, part: dict[str, Tensor]) -> tuple[Tensor, ...]:
            with self.compute_loss_context_manager():
                return self._embed(model, part)

        loss, scale = partial(self._loss, together=together, places=places), self.weights.logit_scale()
        return cached_step(model, inputs, self.args.grad_cache_chunk, embed, loss, scale, self.accelerator.backward)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor | None], *args: Any, **kwargs: Any) -> Tensor:
        embeds, scale = self._embed(model, inputs), self.weights.logit_scale()
        return self._loss(*embeds, scale, together=inputs["together"], places=inputs["target_places"])

    def _loss(self, *embeds_and_scale: Tensor, together: Tensor | None, places: Tensor | None) -> Tensor:
        *embeds, logit_scale = embeds_and_scale
        if places is not None:
            return self.gallery.loss(*embeds, places, logit_scale)
        return nested_info_nce(*embeds, logit_scale, self.dims, together)

    def _embed(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Queries and, unless their gallery is frozen, targets, (B, D) each, in one call: DistributedDataParallel
        allows one forward a step."""
        targets = inputs.get("target_pixel_values")
        output = model(
            pixel_values=self._normalised(inputs["pixel_values"]),
            category_indices=inputs.get("category_indices"),
            text_embeds=inputs.get("text_embeds"),
            target_pixel_values=None if targets is None else self._normalised(targets),
        )
        return (output.image_embeds,) if targets is None else (output.image_embeds, output.target_embeds)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> float32, on the device: a quarter of the bytes travel."""
        return (pixels - self._mean) / self._std

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return schedule.decayed_names(model, self.args.decay_matrices_only)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.layer_decay != 1:
            schedule.split_by_layer(optimizer, self.model, self.args.layer_decay)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = schedule.two_phase_scheduler(optimizer, self.phase1_steps, num_training_steps)
        return self.lr_scheduler

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """R@1, R@5 and R@10 of the validation products among each other and all distractors, on all processes; loss."""
        model = self.weights.gathered(everywhere=True)
        sentences = None if self.texts is None else self.texts.of_texts
        encoder = Encoder(model, model.config.condition, self.args.bf16, self.args.device, sentences=sentences)
        batch_size = self.args.per_device_eval_batch_size
        # Layers that were compiled for training would be compiled anew.
        with torch.compiler.set_stance("force_eager"), self.signals.patience():
            found = validate(encoder, self.validation, batch_size, self.args.tolerance)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: None) -> bool:
        """Trainer's; and of equal scores the one of lower loss is the better (published: the later one)."""
        if super()._determine_best_metric(metrics, trial):
            return True
        if tie_won := wins_tie(self.state, metrics, self.args.metric_for_best_model):
            self.state.best_global_step = self.state.global_step
        return tie_won

    def finish(self, dtype: torch.dtype = torch.float32) -> Path:
        """Saves a Hub repository: weights in `dtype`, code, processor. Adds up all processes' bad images."""
        folder, model = Path(self.args.output_dir), self.weights.gathered(everywhere=False)
        if self.is_world_process_zero():  # not by Trainer, which adds a pickle that nobody should have to trust
            if model.config.text_encoder_in_checkpoint:
                about = model.config.text_encoder
                model.config.text_encoder = about | {"name": public_name(about["name"])}
            model.to(dtype).save_pretrained(folder)
            self.processing_class.save_pretrained(folder)
            follow_umask(folder)
        counted = every((self.skipped.good, self.skipped.reasons))
        self.skipped.good = sum(good for good, _ in counted)
        self.skipped.reasons = sum((reasons for _, reasons in counted), Counter())
        return folder
