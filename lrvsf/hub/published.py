"""Checkpoints of the published CondViT training code (arXiv 2306.02928) become `CondViTModel`s.

The published network is OpenAI's original CLIP tower with a condition, so its tensors are named and laid out as
OpenAI's: query, key and value in one matrix, a projection that multiplies from the right. No number changes on the way.
"""

import re
from collections.abc import Mapping

import torch

from configuration_condvit import CATEGORIES, CondViTConfig
from modeling_condvit import CondViTModel

# Training checkpoints have no prefix; the categorical model is under "model.", the textual one under "condvit.".
PREFIXES = ("", "model.", "condvit.")

# Published name -> ours, where the tensor is the same.
NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj.weight": "visual_projection.weight",
    "logit_scale": "logit_scale",
    "c_pos_embedding": "condition_position_embedding",
}
LAYER_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_published(
    state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None = None, categories: list[str] | None = None
) -> CondViTModel:
    """Converts a state dict in the published key names; the model's shape is read off the tensors.

    Args:
        state_dict: without prefix, or with every key under `model.` or `condvit.`.
        num_attention_heads: the one number that the tensors do not show; width // 64 by default, as in every CLIP.
        categories: the names of the condition table's rows; LRVS-F's by default, if there are ten rows.

    Returns:
        A float32 model in evaluation mode, with `condition="none"` if the network knows no categories.

    Raises:
        ValueError: if the network reads text, or if any key is unknown or missing. Nothing is dropped in silence.
    """
    network = _strip_prefix(state_dict)
    if "c_pos_embedding" in network and "c_embedding.weight" not in network:
        raise ValueError(
            "This checkpoint has a condition position but no category table (c_embedding.weight): its conditions are "
            "texts, which are not supported yet. Give a checkpoint of the categorical or the plain model."
        )
    config = CondViTConfig(**_shape(network, num_attention_heads), **_condition(network, categories))
    converted: dict[str, torch.Tensor] = {}
    unknown = [name for name, tensor in network.items() if not _convert(name, tensor, converted)]
    if unknown:
        raise ValueError(f"Unknown keys, which no part of CondViT reads: {unknown}. Remove them if you are sure.")

    model = CondViTModel(config)
    # A temperature serves training only, so a checkpoint made for inference may lack it: then ours keeps its start.
    missing = set(model.state_dict()) - set(converted) - {"logit_scale"}
    if missing:
        raise ValueError(f"The checkpoint is incomplete: it brings nothing for {sorted(missing)}.")
    for name, tensor in model.state_dict().items():
        if name in converted and converted[name].shape != tensor.shape:  # torch's own error fills a screen
            shapes = f"{tuple(converted[name].shape)}, but the other tensors ask for {tuple(tensor.shape)}"
            raise ValueError(f"The checkpoint does not fit together: {name} has the shape {shapes}.")
    model.load_state_dict(converted, strict=False)  # all that may be missing here is the temperature
    return model.eval()


def prefix_of(state_dict: Mapping[str, object]) -> str | None:
    """What stands before every name of a published network's state dict; None if this is no such state dict."""
    return next((prefix for prefix in PREFIXES if f"{prefix}conv1.weight" in state_dict), None)


def _strip_prefix(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's tensors by their names without prefix. Keys that are not the network's are an error."""
    prefix = prefix_of(state_dict)
    if prefix is None:
        keys = sorted(map(str, state_dict))
        if theirs := [key for key in keys if "vision_model." in key]:
            raise ValueError(
                f"Its keys, such as {theirs[0]}, are those of a CLIP or CondViT of transformers, which train_hf.py and "
                "evaluate_lrvsf.py read as it is. Give them its folder."
            )
        raise ValueError(
            f"No conv1.weight, model.conv1.weight or condvit.conv1.weight among its {len(keys)} keys {keys[:5]}. Give "
            "the state dict of a published CondViT itself, not a dictionary that holds it."
        )
    outside = sorted(key for key in state_dict if not key.startswith(prefix))
    if outside:
        raise ValueError(
            f"The network's keys begin with {prefix!r}, but these do not: {outside[:5]}. If they are a text encoder's, "
            "the checkpoint is the textual model's, which is not supported yet."
        )
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}


def _shape(network: Mapping[str, torch.Tensor], num_attention_heads: int | None) -> dict[str, int]:
    """The fields of CLIPVisionConfig that the tensors' shapes decide."""
    needed = ("positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    absent = [name for name in needed if name not in network]
    if "proj" not in network and "proj.weight" not in network:
        absent.append("proj")
    if absent:
        raise ValueError(f"The checkpoint is incomplete: it lacks {absent}.")
    width, channels, patch_size, _ = network["conv1.weight"].shape
    if num_attention_heads is None and width % 64:
        raise ValueError(f"The width {width} is not a multiple of 64, so give num_attention_heads.")
    grid = round((len(network["positional_embedding"]) - 1) ** 0.5)  # patches on one side; one position is [CLS]'s
    # By their numbers, not by how many there are: a hole among them is then a missing key, and refused.
    layers = {int(number) for number in re.findall(r"^transformer\.resblocks\.(\d+)\.", "\n".join(network), re.M)}
    # The activation and the LayerNorms' epsilon are CLIPVisionConfig's defaults, which are OpenAI's.
    return {
        "hidden_size": width,
        "intermediate_size": len(network["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": num_attention_heads or width // 64,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "projection_dim": len(network["proj.weight"]) if "proj.weight" in network else network["proj"].shape[1],
    }


def _condition(network: Mapping[str, torch.Tensor], categories: list[str] | None) -> dict[str, object]:
    """The fields of CondViTConfig that say what the network is conditioned by."""
    if "c_embedding.weight" not in network:
        return {"condition": "none"}
    names, rows = list(categories or CATEGORIES), len(network["c_embedding.weight"])
    if len(names) != rows:
        raise ValueError(f"The checkpoint knows {rows} categories, but {len(names)} are named. Give categories=[...].")
    return {"condition": "category", "categories": names}


def _convert(name: str, tensor: torch.Tensor, converted: dict[str, torch.Tensor]) -> bool:
    """Puts one published tensor into `converted` under our name. False if the name means nothing to us."""
    if name in NAMES:
        converted[NAMES[name]] = tensor
    elif name == "proj":
        converted["visual_projection.weight"] = tensor.T  # x @ proj; a Linear keeps the transpose
    elif name == "c_embedding.weight":
        converted["condition_embedding"] = tensor[:, None]  # (categories, 1 token, width)
    elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name):
        number, part, kind = match.groups()
        layer = f"vision_model.encoder.layers.{number}"
        if part == "attn.in_proj":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):  # (3 D, D) -> three (D, D)
                converted[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
        elif part in LAYER_NAMES:
            converted[f"{layer}.{LAYER_NAMES[part]}.{kind}"] = tensor
        else:
            return False
    else:
        return False
    return True
