"""What embeddings were made with and of, as facts that can be compared: a gallery of another model is no gallery."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from lrvsf.embedding.baselines import Baseline
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Part

ASKED = {"category": "data.categories", "text": "data.texts"}  # a conditioning -> the fact on what queries are asked by


def fingerprint(encoder: Encoder, parts: Sequence[Part]) -> dict[str, Any]:
    """Name -> value, of JSON's types; equal for equal embeddings, but for their last bits.

    Not seen: what moves last bits only, as the batch size, the device, its number of threads and the versions of torch
    and Pillow; and images that were exchanged without changing the size or the statistics of a column of their file.

    Raises OSError: a file of the data cannot be read.
    """
    model = encoder.model
    if isinstance(model, Baseline):
        described = {**model.describe(), "model.input_size": model.config.image_size}
    else:
        described = {**describe_model(model.config), "model.layer_norm_eps": model.config.layer_norm_eps}
    facts = {
        "model.weights": weights_digest(model),
        **described,
        "conditioning": encoder.conditioning,
        "compute_dtype": "bfloat16" if encoder.bf16 else "float32",
        "preprocessing": "centred on a white square, resized bilinearly",  # as `pad_and_resize` does
        "preprocessing.mean": list(encoder.mean),
        "preprocessing.std": list(encoder.std),
        "embedding_dim": encoder.dim,
    }
    facts |= {f"data.{part.what}": part.describe() for part in parts}
    if (name := ASKED.get(encoder.conditioning)) is not None:  # exactly: swapped ones may leave a file's size as it was
        facts[name] = _digest(repr([asked for part in parts for asked in part.conditions(encoder)]).encode())
    return facts


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all weights as they are in memory, whatever file they came from."""
    digest = hashlib.sha256()
    # By name, whatever order modules come in; with shapes, as values alone do not say where rows end.
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # numpy has no bfloat16
    return digest.hexdigest()[:16]


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each fact that differs, with both values."""
    # What one side lacks is a difference too: an older store says less, and nobody knows what it would have said.
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [f"  {name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in names]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def describe_model(config: PretrainedConfig) -> dict[str, Any]:
    """What of a configuration makes another model of it, by name."""
    # Named one by one: to_dict() also has versions and defaults that change with transformers, not with the model.
    fields = config.to_dict()
    own = {"model_type", "categories", "condition", "num_condition_tokens", "projection_dim", "hidden_size"}
    own |= {"intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act"}
    if config.condition == "text":
        own |= {"text_dim", "text_template", "text_encoder"}
        fields["text_encoder"] = _about_encoder(config)
    return {f"model.{name}": fields[name] for name in sorted(own)}


def _about_encoder(config: PretrainedConfig) -> dict[str, Any]:
    """What makes another text encoder of it, but for the weights: those in the checkpoint are digested with it, and
    those that are fetched go by name and revision."""
    unsaid = ("name", "revision") if config.text_encoder_in_checkpoint else ()
    about = {name: value for name, value in (config.text_encoder or {}).items() if name not in unsaid}
    tower = {name: value for name, value in about.get("config", {}).items() if name != "transformers_version"}
    return {**about, "config": tower}
