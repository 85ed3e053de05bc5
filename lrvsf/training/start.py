"""The model that a run starts from."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from lrvsf.training.arguments import ModelArguments
from lrvsf.training.patches import use_patch_product
from modeling_condvit import CondViTModel


def start_model(args: ModelArguments) -> CondViTModel:
    """CondViT from a CLIP checkpoint, or further training of a CondViT one; float32 weights."""
    config, _ = PretrainedConfig.get_config_dict(args.model)
    if not config:
        raise ValueError(f"{args.model} has no config.json; give a folder or Hub name of a CLIP or CondViT checkpoint")
    options = {"dtype": torch.float32, "attn_implementation": args.attn_implementation}
    if config.get("model_type") != "condvit":
        options["logit_scale_init_value"] = args.logit_scale_init_value
        if args.condition == "none" and args.num_condition_tokens is not None:
            raise ValueError(f"num_condition_tokens={args.num_condition_tokens} with condition='none': leave one out")
        options["num_condition_tokens"] = 1 if args.num_condition_tokens is None else args.num_condition_tokens
        condition = args.condition or "category"
        clip = CondViTModel.from_clip(args.model, categories=args.categories, condition=condition, **options)
        return use_patch_product(clip)
    model, loaded = CondViTModel.from_pretrained(args.model, output_loading_info=True, **options)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{args.model} lacks the weights {', '.join(missing[:5])}; restore its model.safetensors")
    for name in ("condition", "categories", "num_condition_tokens"):
        asked, trained = getattr(args, name), getattr(model.config, name)
        if asked is not None and asked != trained:
            raise ValueError(
                f"{args.model} was trained with {name}={trained!r}, the run asks for {asked!r}; leave it out or start "
                "from CLIP"
            )
    return use_patch_product(model)
