"""What a training run is told: CondViT's own fields, and Trainer's with defaults that suit a stream of pairs."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from lrvsf.bounds import check_numbers
from lrvsf.data.images import Tolerance
from lrvsf.evaluation.results import FIRST_KS
from lrvsf.flags import flag
from lrvsf.training.fast_tower import can_compile


@dataclass
class ModelArguments:
    """Where the model starts and where the data is."""

    model: str = flag("openai/clip-vit-base-patch32", "CLIP or CondViT to start from: a folder, or a name on the Hub")
    data: str = flag("data/lrvsf", "folder with train/*.parquet and, to pick the best model, validation/")
    condition: str | None = flag(
        None,
        "category, the default from CLIP; text: captions and categories' names; or none: the unconditioned baseline by "
        "the same recipe; a CondViT keeps its own condition",
        ["category", "text", "none"],
    )
    text_encoder: str | None = flag(
        None,
        "what turns texts into embeddings, with --condition text, and is not trained: clip, the default, is the text "
        "tower of the CLIP that the run starts from; else a sentence-transformers model or CLIP, a folder, NAME or "
        "NAME@REVISION",
    )
    text_encoder_in_checkpoint: bool | None = flag(
        None,
        "whether the text encoder's weights travel with the model, or are fetched at its first text; by default those "
        "of a folder and of the CLIP's own tower travel, and those of a NAME are fetched",
    )
    categories: list[str] | None = flag(
        None,
        "the conditions' names in index order; by default those of DATA/catalog.json, else LRVS-F's ten; a CondViT "
        "keeps its categories unless this names others, and then keeps what it knows of those that stay",
    )
    new_category_like: str | None = flag(
        None,
        "a category of the CondViT that the run starts from, whose tokens the new --categories begin with; by default"
        " the mean of all",
    )
    freeze_gallery: bool = flag(
        False,
        "train the queries' side of a CondViT against its gallery as it is, whose index stays valid; all training "
        "targets are embedded once and are each query's negatives",
    )
    num_condition_tokens: int | None = flag(None, "learned tokens per condition; from CLIP 1, as published")
    condition_init: str = flag(
        "published",
        "how condition tokens start, from CLIP: published (N(0, 1), positions N(0, 1 / width)), or clip, as small as "
        "CLIP's own tokens are",
        ["published", "clip"],
    )
    logit_scale_init_value: float | None = flag(
        None, "log of the inverse temperature at the start, from CLIP; by default ln 100, as published"
    )
    attn_implementation: str = flag("sdpa", "sdpa, eager (fastest for tiny models on CPU) or flash_attention_2")
    save_dtype: str = flag(
        "float32", "type of the final weights; float16 halves the file", ["float32", "float16", "bfloat16"]
    )
    license: str | None = flag(
        None,
        "for the model card; by default cc-by-nc-4.0 for LRVS-F, which binds what is trained on it, a binding licence"
        " of the model that the run starts from, and none otherwise: your own catalog is yours",
    )
    dataset_name: str | None = flag(
        None, "for the model card: the data's OWNER/NAME on the Hub; an hf:// address in data says it"
    )


METRICS = (*(f"R@{k}" for k in FIRST_KS), "loss")  # of the validation set


@dataclass
class CondViTTrainingArguments(TrainingArguments):
    """Trainer's arguments, refused early where a contrastive run would be wrong."""

    output_dir: str = flag("runs/condvit", "checkpoints, logs and the final model")
    text_from: list[str] | None = flag(
        None,
        "what asks, with --condition text: captions, the default, categories (their names), or both in shares, such as "
        "captions:0.7 categories:0.3; a product that lacks the one is asked for by the other",
    )
    caption_store: str | None = flag(
        None,
        "folder of the texts' embeddings, which are computed once and kept for later runs; by default captions in "
        "DATA, or in OUTPUT_DIR where DATA is a URL",
    )
    phase1_steps: int | None = flag(
        None, "steps that train projection and condition only; by default one epoch, or none against a frozen gallery"
    )
    categories_per_batch: int | None = flag(
        None, "draw each global batch from this many categories: harder negatives; by default from all"
    )
    matryoshka_dims: list[int] | None = flag(
        None, "also train the first dimensions, such as 64 128 256, as embeddings that may be cut there"
    )
    grad_cache_chunk: int | None = flag(
        None,
        "embed this many pairs at a time: a batch of any size fits, with the same gradients, for the price of a "
        "second forward pass",
    )
    shard_weights: bool = flag(
        False,
        "split weights, gradients and optimizer state over the processes (FSDP): for towers that one GPU cannot train",
    )
    bf16: bool = flag(
        False,
        "train under bfloat16 autocast; by default, unless --fp16, where such products are fast: on a GPU that has "
        "them, and on a CPU with AMX or AVX-512 for bfloat16",
    )
    torch_compile: bool | None = flag(
        None,
        "compile the transformer's layers, which takes seconds; by default on a GPU with Triton and a C compiler, "
        "unless weights are split",
    )
    early_stopping_patience: int | None = flag(None, "end the run after this many evaluations without a better metric")
    max_bad_fraction: float = flag(
        0.01, "end the run when a larger share of products or images is bad, judged from 100 bad ones on"
    )
    max_bad_in_a_row: int = flag(100, "end the run when this many images in a row are bad, on any process")
    # The published peak and decay; no clipping unless asked for.
    learning_rate: float = flag(1e-5, "peak learning rate, reached where phase 2 begins")
    layer_decay: float = flag(
        1.0,
        "learning rate of each of the tower's layers as a share of the next one's, so that the first ones move least; "
        "the last one's, the projection's and the condition's is the whole; 1: all alike, as published",
    )
    weight_decay: float = flag(0.01, "weight decay of all parameters, as published")
    decay_matrices_only: bool = flag(
        False, "let biases, norms, tokens, positions and the temperature have no weight decay"
    )
    max_grad_norm: float = flag(0.0, "clip gradients at this norm; 0: never")
    # What a stream of pairs needs.
    remove_unused_columns: bool = flag(False, "must be off: batches are not dataset columns")
    ddp_find_unused_parameters: bool = flag(
        False, "must be off: it fails on a conditioned and an unconditioned tower in one step"
    )
    dataloader_num_workers: int = flag(2, "processes that decode images, for each training process")
    # With --save_strategy best the run leaves the best model by validation, else the last one.
    load_best_model_at_end: bool | None = flag(
        None, "leave the best model by validation, not the last; by default with --save_strategy best"
    )
    save_total_limit: int = flag(2, "checkpoints that are kept, the best among them")
    metric_for_best_model: str = flag("R@1", "R@1, R@5, R@10 or loss on the validation set")
    greater_is_better: bool | None = flag(None, "whether a larger metric is better; by default for all but the loss")
    hub_strategy: str = flag("end", "must be end: what is pushed is the finished model")
    logging_nan_inf_filter: bool = flag(False, "must be off: it hides losses that are not numbers, which end the run")
    report_to: str = flag("tensorboard", "tensorboard, wandb, trackio, none, ...")

    def __post_init__(self):
        if (metric := self.metric_for_best_model) not in METRICS:
            raise ValueError(f"metric_for_best_model={metric!r} is not measured; choose one of {', '.join(METRICS)}")
        if self.greater_is_better is None:
            self.greater_is_better = metric != "loss"
        for name, (wanted, why) in UNUSED.items():
            if (value := getattr(self, name, wanted[0])) not in wanted:  # some versions of Trainer lack some
                raise ValueError(f"{name}={value!r}: {why}. Leave it out")
        if self.load_best_model_at_end is None:  # what is kept as the best is what one expects to find
            self.load_best_model_at_end = self.save_strategy == "best"
        check_numbers(self)
        compiled = can_compile() and not self.shard_weights if self.torch_compile is None else self.torch_compile
        self.torch_compile = False  # Trainer would compile the whole tower, and let products round to TF32
        if self.fp16 and not self.bf16 and (self.use_cpu or not torch.cuda.is_available()):
            raise ValueError("fp16=True: a CPU does not train in float16. Leave it out, or take --bf16 True")
        super().__post_init__()
        self.torch_compile = compiled
        if self.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs and would split its batch over them, with another loss; start "
                f"`accelerate launch --multi_gpu --num_processes {self.n_gpu} train_hf.py ...`, or show it one GPU by "
                "CUDA_VISIBLE_DEVICES=0"
            )
        self._check_batches()
        self._check_launcher()
        self._check_sharding()
        self._check_evaluation()
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy={self.hub_strategy.value!r} would push pickles and unfinished models; leave it at end"
            )
        if isinstance(self.resume_from_checkpoint, str) and self.resume_from_checkpoint.lower() in ("true", "auto"):
            asked = self.resume_from_checkpoint.lower()
            self.resume_from_checkpoint = asked == "true" or "auto"  # the newest checkpoint, or it if there is one

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(self.max_bad_fraction, self.max_bad_in_a_row)

    def _check_batches(self) -> None:
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size}: a pair needs another one to differ "
                "from; take 2 or more, and as many as fit"
            )
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} would compare pairs within each "
                "part only, which is another objective; raise per_device_train_batch_size instead and, where it does "
                "not fit, add --grad_cache_chunk"
            )

    def _check_launcher(self) -> None:
        """What `accelerate launch`, or its saved configuration, asks for besides the flags."""
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if asked != "no" and not (self.bf16 or self.fp16):
            raise ValueError(
                f"accelerate was told mixed_precision={asked}, but the evaluation goes by the flags, which say neither "
                "bf16 nor fp16; launch with --mixed_precision no, and add --bf16 True or --fp16 True if that is meant"
            )
        for plugin in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true":
                raise ValueError(
                    f"accelerate was told to use {plugin}, which is not supported; launch with --multi_gpu, and add "
                    "--shard_weights True for a tower that one GPU cannot train"
                )

    def _check_sharding(self) -> None:
        if not self.shard_weights:
            return
        if self.world_size == 1:
            raise ValueError("shard_weights=True on one process: there is nobody to share with; launch several")
        for name in ("torch_compile", "fp16"):
            if getattr(self, name):
                raise ValueError(f"shard_weights=True with {name}=True was never tried; leave one of them out")
        if self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(
                f"shard_weights=True with optim={self.optim.value} was never tried; take adamw_torch_fused"
            )

    def _check_evaluation(self) -> None:
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1 or not self.load_best_model_at_end:
                raise ValueError(
                    f"early_stopping_patience={self.early_stopping_patience} must be 1 or more, and needs "
                    "--load_best_model_at_end True with an eval_strategy"
                )
            self.restore_callback_states_from_checkpoint = True  # a resumed run remembers how long it has waited
        if self.eval_strategy == "no":
            best = self.save_strategy == "best"  # which also sets load_best_model_at_end
            asked = {"eval_on_start=True": self.eval_on_start, "save_strategy=best": best}
            for flag, given in {**asked, "load_best_model_at_end=True": self.load_best_model_at_end}.items():
                if given:
                    raise ValueError(f"{flag} without an eval_strategy: add --eval_strategy steps or epoch")


# Trainer's flags that would be ignored in silence, or do harm: the values that are taken, and why no others.
UNUSED = {
    "fsdp": ((None, "", [], False), "take --shard_weights True, whose checkpoints are like any other run's"),
    "deepspeed": ((None,), "it is not supported; --shard_weights True splits weights and optimizer"),
    "auto_find_batch_size": ((False,), "the global batch is part of the loss and must not change by itself"),
    "label_smoothing_factor": ((0,), "the contrastive loss has none"),
    "warmup_steps": ((0, None), "the published schedule climbs over phase 1; set phase1_steps"),
    "lr_scheduler_type": (("linear",), "the published schedule is the only one; phase1_steps shapes it"),
    "lr_scheduler_kwargs": ((None, {}), "the published schedule takes none; phase1_steps shapes it"),
    "train_sampling_strategy": (("random",), "the order of products is drawn by seed"),
    "prediction_loss_only": ((False,), "an evaluation always measures recall and loss"),
    "torch_compile_backend": ((None,), "layers are compiled by inductor; --torch_compile True or False is the choice"),
    "torch_compile_mode": ((None,), "layers are compiled as they are by default; --torch_compile is the choice"),
    "save_only_model": ((False,), "such a checkpoint cannot be resumed from"),
    "save_on_each_node": ((False,), "nodes share one output_dir"),
    "data_seed": ((None,), "the order of products is drawn by seed"),
    "dataloader_drop_last": ((False,), "the last, partial global batch is always dropped"),
    "remove_unused_columns": ((False,), "batches are not dataset columns"),
    "ddp_find_unused_parameters": ((False, None), "it fails on a conditioned and an unconditioned tower in one step"),
    "logging_nan_inf_filter": ((False,), "it hides losses that are not numbers, which end the run"),
}
