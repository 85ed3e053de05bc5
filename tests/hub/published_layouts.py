"""Checkpoints in the published layouts, small and random, and the published forward in plain PyTorch."""

import json

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch.nn import functional as F

HEADS, PLAIN_HEADS = 4, 2  # of the golden networks, the categorical and the unconditioned
SETTINGS = {"width": 48, "layers": 3, "heads": HEADS, "input_resolution": 32, "patch_size": 8, "output_dim": 24}
SHARD = 20_000  # bytes: some ten files


def published_embeddings(network, pixel_values, tokens=None, heads=HEADS):
    """The published forward, (B, 3, H, W) and the conditions' tokens (B, D) to raw embeddings (B, P)."""
    x = F.conv2d(pixel_values, network["conv1.weight"], stride=network["conv1.weight"].shape[-1])
    x = x.flatten(2).mT  # (B, patches, D)
    x = torch.cat([network["class_embedding"].expand(len(x), 1, -1), x], 1) + network["positional_embedding"]
    if tokens is not None:
        x = torch.cat([x, (tokens + network["c_pos_embedding"])[:, None]], 1)
    x = norm(x, network, "ln_pre")
    for number in range(sum(name.endswith("ln_1.bias") for name in network)):
        layer = f"transformer.resblocks.{number}"
        x = x + attention(norm(x, network, f"{layer}.ln_1"), network, f"{layer}.attn", heads)
        hidden = linear(norm(x, network, f"{layer}.ln_2"), network, f"{layer}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), network, f"{layer}.mlp.c_proj")  # QuickGELU
    pooled = norm(x[:, 0], network, "ln_post")
    return pooled @ (network["proj"] if "proj" in network else network["proj.weight"].T)


def attention(x, network, name, heads):
    batch, length, width = x.shape
    parts = F.linear(x, network[f"{name}.in_proj_weight"], network[f"{name}.in_proj_bias"]).chunk(3, -1)
    q, k, v = (part.view(batch, length, heads, -1).transpose(1, 2) for part in parts)
    weights = (q @ k.mT / (width // heads) ** 0.5).softmax(-1)
    return linear((weights @ v).transpose(1, 2).reshape(x.shape), network, f"{name}.out_proj")


def norm(x, network, name):
    return F.layer_norm(x, x.shape[-1:], network[f"{name}.weight"], network[f"{name}.bias"])


def linear(x, network, name):
    return F.linear(x, network[f"{name}.weight"], network[f"{name}.bias"])


def network_of(golden, name="category"):
    """The state dict of a small network, as the published code saved it."""
    tensors = load_file(golden / f"model_{name}.safetensors")
    return {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}


def textual_network(golden):
    """The same without categories, and with the projection of the textual model."""
    network = network_of(golden)
    del network["c_embedding.weight"]
    network["proj.weight"] = network.pop("proj").T.contiguous()
    return network


def encoder_tensors(sentences, spelled="auto_model"):
    """A SentenceTransformer's tensors, as older or newer versions name them within the published model."""
    return {
        f"lm.{name.replace('0.model.', f'0.{spelled}.')}": tensor for name, tensor in sentences.state_dict().items()
    }


def write_published(folder, tensors, sharded=True, **settings):
    """Writes a published Hub folder; gives its path."""
    folder.mkdir()
    save_torch_state_dict(dict(tensors), folder, max_shard_size=SHARD if sharded else "1GB")
    about = {"model_type": "condvit", "architectures": ["CondViT"], "device": "cpu", **SETTINGS, **settings}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def write_cached(home, name, files, revision):
    """Puts a folder into a cache of the Hub, as what was downloaded of a repository."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "snapshots").mkdir(parents=True)
    files.rename(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
