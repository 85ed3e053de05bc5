"""Checkpoints of the published CondViT (arXiv 2306.02928), and of OpenAI's CLIP, become `CondViTModel`s.

The published network is OpenAI's original CLIP tower with a condition, so its tensors are named and laid out as
OpenAI's: query, key and value in one matrix, a projection that multiplies from the right. No number changes on the way.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from configuration_condvit import CATEGORIES, CondViTConfig
from lrvsf.hub.misfits import Misfits
from modeling_condvit import CondViTModel

Tensors = Mapping[str, torch.Tensor]

# Training checkpoints have no prefix; the categorical model is under "model.", the textual one under "condvit.", the
# visual half of OpenAI's CLIP under "visual.".
PREFIXES = ("", "model.", "condvit.", "visual.")
TEXT_ENCODER = "lm."  # the textual model's, beside its network
# The other half of OpenAI's CLIP; the three numbers are those that its TorchScript files have besides.
CLIPS_TEXTS = re.compile(
    r"(token_embedding|ln_final|transformer\.resblocks\.\d+)\..+|positional_embedding|text_projection|logit_scale"
    "|input_resolution|context_length|vocab_size"
)

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
# The published configuration's fields -> ours, which the tensors show as well; heads they do not show.
FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "input_resolution": "image_size",
    "patch_size": "patch_size",
    "output_dim": "projection_dim",
}


def from_published(
    state_dict: Tensors,
    num_attention_heads: int | None = None,
    categories: list[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    misfits: Misfits | None = None,
    **fields: Any,
) -> CondViTModel:
    """Converts a state dict in the published key names; the model's shape is read off the tensors.

    Args:
        state_dict: without prefix, or with the network's keys under one of PREFIXES.
        num_attention_heads: the one number that the tensors do not show; by default that of `settings`, or else width
            // 64, as in every CLIP.
        categories: the names of the condition table's rows, or those whose names a textual model reads; LRVS-F's by
            default.
        settings: the published configuration, which must agree with the tensors.
        misfits: what of the rest of the checkpoint does not fit, to be told with what of the network does not.
        fields: further ones of CondViTConfig.

    Returns:
        A float32 model in evaluation mode, with `condition="none"` if the network knows no condition. A textual one
        reads `text_embeds`; `TEXT_ENCODER`'s tensors, and the texts of its categories, are left to the caller.

    Raises:
        ValueError: any key is unknown or missing, any tensor has another shape than the others ask for or a number that
            is not finite. All of it is named: nothing is dropped in silence.
    """
    misfits, settings = Misfits() if misfits is None else misfits, settings or {}
    network = _strip_prefix(state_dict, misfits)
    shape = _shape(network, _heads(num_attention_heads, settings), misfits)
    config = CondViTConfig(**shape, **_condition(network, categories), **fields)
    _compare(settings, config, misfits)
    wanted = _wanted(config, network)
    misfits.add("Unknown to the network", sorted(network.keys() - wanted.keys()))
    # A temperature serves training only, so a checkpoint made for inference may lack it: then ours keeps its start.
    misfits.add("Missing", sorted(wanted.keys() - network.keys() - {"logit_scale"}))
    for name, tensor in network.items():
        check_tensor(name, tensor, wanted.get(name), misfits)
    misfits.check()
    model = CondViTModel(config)
    model.load_state_dict(_converted(network), strict=False)  # all that may be missing here is the temperature
    return model.eval()


def prefix_of(state_dict: Mapping[str, object]) -> str | None:
    """What stands before every name of a published network's state dict; None if this is no such state dict."""
    return next((prefix for prefix in PREFIXES if f"{prefix}conv1.weight" in state_dict), None)


def is_textual(state_dict: Mapping[str, object]) -> bool:
    """Whether the network reads texts: a condition's position, and no table of categories."""
    prefix = prefix_of(state_dict) or ""
    return f"{prefix}c_pos_embedding" in state_dict and f"{prefix}c_embedding.weight" not in state_dict


def clips_texts(state_dict: Mapping[str, object]) -> list[str]:
    """The keys of the other half, if the network is the visual half of OpenAI's CLIP."""
    return sorted(filter(CLIPS_TEXTS.fullmatch, state_dict)) if prefix_of(state_dict) == "visual." else []


def check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...] | None, misfits: Misfits) -> None:
    """Looks for what a tensor's name does not tell; `shape` is None for any."""
    if shape is not None and tuple(tensor.shape) != shape:
        told = f"{name} {tuple(tensor.shape)} instead of {shape}"
        misfits.add("Of another shape than the rest asks for", [told])
    # A tensor may claim more numbers than its file has, by repeating them: to look at them all would take memory.
    plain = tensor.layout == torch.strided and tensor.is_floating_point()
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes() or not tensor.isfinite().all():
        misfits.add("Not finite, or no floating-point numbers", [name])


def _strip_prefix(state_dict: Tensors, misfits: Misfits) -> dict[str, torch.Tensor]:
    """The network's tensors by their names without prefix. What is neither the network's nor known is a misfit."""
    prefix = prefix_of(state_dict)
    if prefix is None:
        keys = sorted(map(str, state_dict))
        if theirs := [key for key in keys if "vision_model." in key]:
            raise ValueError(
                f"Its keys, such as {theirs[0]}, are those of a CLIP or CondViT of transformers, which train_hf.py and "
                "evaluate_lrvsf.py read as it is. Give them its folder."
            )
        raise ValueError(
            f"No conv1.weight, nor one under {', '.join(PREFIXES[1:])} among its {len(keys)} keys {keys[:5]}. Give the "
            "state dict of a published CondViT itself, not a dictionary that holds it."
        )
    if f"{prefix}layer1.0.conv1.weight" in state_dict:
        raise ValueError("This is a CLIP with a ResNet. CondViT is a vision transformer: give a ViT's checkpoint.")
    other = {key for key in state_dict if not key.startswith(prefix)} - set(clips_texts(state_dict))
    unknown = sorted(key for key in other if not (is_textual(state_dict) and key.startswith(TEXT_ENCODER)))
    misfits.add(f"Neither the network's, under {prefix!r}, nor a text encoder's", unknown)
    return {key.removeprefix(prefix): state_dict[key] for key in state_dict if key.startswith(prefix)}


def _shape(network: Tensors, num_attention_heads: int | None, misfits: Misfits) -> dict[str, int]:
    """The fields of CLIPVisionConfig that the tensors' shapes decide."""
    projection = "proj.weight" if "proj.weight" in network else "proj"
    dimensions = {"conv1.weight": 4, "positional_embedding": 2, projection: 2}
    dimensions["transformer.resblocks.0.mlp.c_fc.weight"] = 2
    for name, count in dimensions.items():  # without these no shape is known to compare the others with
        if name not in network:
            misfits.add("Missing", [name])
        elif network[name].ndim != count:
            shapes = f"{name} {tuple(network[name].shape)} instead of one of {count} dimensions"
            misfits.add("Of another shape", [shapes])
    if any(name not in network or network[name].ndim != count for name, count in dimensions.items()):
        for name, tensor in network.items():
            check_tensor(name, tensor, None, misfits)
        misfits.check()
    width, channels, patch_size, _ = network["conv1.weight"].shape
    if num_attention_heads is None and width % 64:
        raise ValueError(f"The width {width} is not a multiple of 64, so give num_attention_heads.")
    heads = num_attention_heads or width // 64
    if heads < 1 or width % heads:
        raise ValueError(f"The width {width} cannot be parted into num_attention_heads={heads}. Give a divisor.")
    grid = round((len(network["positional_embedding"]) - 1) ** 0.5)  # patches on one side; one position is [CLS]'s
    # By their numbers, not by how many there are: a hole among them is then a missing key, and refused.
    layers = {int(number) for number in re.findall(r"^transformer\.resblocks\.(\d+)\.", "\n".join(network), re.M)}
    # The activation and the LayerNorms' epsilon are CLIPVisionConfig's defaults, which are OpenAI's.
    return {
        "hidden_size": width,
        "intermediate_size": len(network["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": heads,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "projection_dim": network[projection].shape[0 if projection == "proj.weight" else 1],
    }


def _heads(asked: int | None, settings: Mapping[str, Any]) -> int | None:
    said = settings.get("heads")
    if said is not None and (type(said) is not int or asked not in (None, said)):
        raise ValueError(f"heads={said!r} in config.json, num_attention_heads={asked}. Correct the one that is wrong.")
    return asked or said


def _condition(network: Tensors, categories: list[str] | None) -> dict[str, Any]:
    """The fields of CondViTConfig that say what the network is conditioned by."""
    names, table = list(categories or CATEGORIES), network.get("c_embedding.weight")
    if table is None:
        if "c_pos_embedding" not in network:
            return {"condition": "none"}
        # Without a table, a sentence embedding is the token itself.
        return {"condition": "text", "categories": names, "text_dim": network["conv1.weight"].shape[0]}
    rows = len(table) if table.ndim else 0
    if len(names) != rows:
        raise ValueError(f"The checkpoint knows {rows} categories, but {len(names)} are named. Give categories=[...].")
    return {"condition": "category", "categories": names}


def _compare(settings: Mapping[str, Any], config: CondViTConfig, misfits: Misfits) -> None:
    """What the published configuration says of the tensors, and is not so."""
    shown = {name: getattr(config, field) for name, field in FIELDS.items()}
    if config.condition != "text":
        shown["n_categories"] = len(config.categories) if config.condition == "category" else 0
    told = [
        f"{name}={settings[name]!r} instead of {value}"
        for name, value in shown.items()
        if settings.get(name) not in (None, value)
    ]
    misfits.add("Said otherwise by config.json", told)


def _wanted(config: CondViTConfig, network: Tensors) -> dict[str, tuple[int, ...]]:
    """Every published name that such a network has, with its tensor's shape."""
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in CondViTModel(config).state_dict().items()}
    wanted = {theirs: ours[name] for theirs, name in NAMES.items() if name in ours}
    if "proj.weight" not in network:
        wanted["proj"] = wanted.pop("proj.weight")[::-1]
    if config.condition == "category":
        wanted["c_embedding.weight"] = (len(config.categories), config.hidden_size)
    for number in range(config.num_hidden_layers):
        theirs, layer = f"transformer.resblocks.{number}", f"vision_model.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            first, *rest = ours[f"{layer}.self_attn.q_proj.{kind}"]
            wanted[f"{theirs}.attn.in_proj_{kind}"] = (3 * first, *rest)
            for part, name in LAYER_NAMES.items():
                wanted[f"{theirs}.{part}.{kind}"] = ours[f"{layer}.{name}.{kind}"]
    return wanted


def _converted(network: Tensors) -> dict[str, torch.Tensor]:
    """The tensors under our names."""
    converted = {}
    for name, tensor in network.items():
        if name in NAMES:
            converted[NAMES[name]] = tensor
        elif name == "proj":
            converted["visual_projection.weight"] = tensor.T  # x @ proj; a Linear keeps the transpose
        elif name == "c_embedding.weight":
            converted["condition_embedding"] = tensor[:, None]  # (categories, 1 token, width)
        else:
            number, part, kind = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name).groups()
            layer = f"vision_model.encoder.layers.{number}"
            if part == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):  # (3 D, D) -> three (D, D)
                    converted[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
            else:
                converted[f"{layer}.{LAYER_NAMES[part]}.{kind}"] = tensor
    return converted
