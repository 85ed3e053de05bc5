"""Flags that would train something else are refused before anything is loaded."""

import pytest

from lrvsf.training.arguments import CondViTTrainingArguments


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"per_device_train_batch_size": 1}, "take 2 or more"),
        ({"gradient_accumulation_steps": 2}, "another objective"),
        ({"phase1_steps": -1}, "must be 0 or more"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "'checkpoint' would push pickles"),
        ({"metric_for_best_model": "R@20"}, "'R@20' is not measured; choose one of R@1"),
        ({"grad_cache_chunk": 0}, "must be 1 or more"),
        ({"early_stopping_patience": 2}, "needs --load_best_model_at_end"),
        ({"save_strategy": "best"}, "save_strategy=best without an eval_strategy"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "=True without an eval_strategy"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 10},
            "save_steps=10 and eval_steps=5: the best model may be one that is not saved",
        ),
        ({"fsdp": "full_shard"}, "fsdp='full_shard': take --shard_weights True"),
        ({"shard_weights": True}, "on one process: there is nobody to share with"),
        ({"auto_find_batch_size": True}, "must not change by itself"),
        ({"label_smoothing_factor": 0.1}, "the contrastive loss has none"),
        ({"warmup_steps": 10}, "set phase1_steps"),
        ({"lr_scheduler_type": "cosine"}, "phase1_steps shapes it"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "the published schedule takes none"),
        ({"train_sampling_strategy": "sequential"}, "drawn by seed"),
        ({"data_seed": 5}, "drawn by seed"),
        ({"save_only_model": True}, "cannot be resumed from"),
        ({"save_on_each_node": True}, "share one output_dir"),
        ({"remove_unused_columns": True}, "not dataset columns"),
        ({"ddp_find_unused_parameters": True}, "in one step"),
        ({"logging_nan_inf_filter": True}, "hides losses"),
    ],
)
def test_arguments_that_would_train_something_else_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


def test_sharding_by_accelerate_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "True")  # as `accelerate launch --use_fsdp` does
    with pytest.raises(ValueError, match="told to use FSDP, .* add --shard_weights True"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def test_a_precision_that_only_accelerate_knows_of_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # as a saved configuration does
    with pytest.raises(ValueError, match="told mixed_precision=fp16, .* launch with --mixed_precision no"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("other", [{"torch_compile": True}, {"optim": "adamw_torch_8bit"}])
def test_what_split_weights_were_never_tried_with_is_refused(tmp_path, monkeypatch, other):
    monkeypatch.setattr(CondViTTrainingArguments, "world_size", 2)
    ((name, value),) = other.items()
    with pytest.raises(ValueError, match=f"shard_weights=True with {name}={value} was never tried"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, shard_weights=True, **other)


def test_one_process_does_not_split_its_batch_over_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(CondViTTrainingArguments, "n_gpu", 4)
    with pytest.raises(ValueError, match="one process sees 4 GPUs .* --num_processes 4"):
        CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
