"""Texts as conditions: a frozen text encoder turns a sentence into one embedding, which becomes the condition's token.

What it consists of stands in the configuration's `text_encoder`, so that CLIP's text tower and every
sentence-transformers model of the usual modules (Transformer, Pooling, Dense, Normalize) are one class here:

    tokens (B, L) -> a model of transformers -> pooled (B, H) -> dense layers -> normalised or not: (B, text_dim)

It is never trained. Its weights are part of the checkpoint, or are fetched by name and revision at the first text.
"""

import json
import warnings
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModelWithProjection
from transformers.utils import cached_file

ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "eos"}
BATCH = 64  # texts that are embedded at once (not tuned)


class CondViTTextEncoder(nn.Module):
    """A frozen sentence encoder: `encoder(input_ids, attention_mask)` gives (B, text_dim) float32.

    Args:
        about: `config` (a configuration of transformers, as a dictionary), `pooling` (mean, cls, eos: the last token's,
            of CLIP its projected one), `dense` (`in_features`, `out_features`, `bias`, `activation` of each layer) and
            `normalize`.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.pooling, self.normalize = about["pooling"], about["normalize"]
        # Without a stranger's attention kernel, which transformers would fetch and run.
        config = AutoConfig.for_model(**{k: v for k, v in about["config"].items() if "attn_implementation" not in k})
        self.backbone = _class_for(config)._from_config(config)
        tied = self.backbone.all_tied_weights_keys.items()  # a T5's table of tokens: two names, of which one is saved
        self.all_tied_weights_keys = {f"backbone.{name}": f"backbone.{twin}" for name, twin in tied}
        layers = [nn.Linear(one["in_features"], one["out_features"], one["bias"]) for one in about["dense"]]
        self.dense = nn.ModuleList(layers)
        self.activations = [ACTIVATIONS[one["activation"]]() for one in about["dense"]]
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "CondViTTextEncoder":
        """Stays in evaluation mode: what a text means does not change while images are learned."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, L), as the encoder's own tokenizer makes them, to embeddings (B, text_dim)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        known = self.backbone.config.vocab_size
        if input_ids.device.type == "cpu" and input_ids.numel() and int(input_ids.max()) >= known:
            told = f"input_ids holds {int(input_ids.max())}, but the encoder has {known} tokens"
            raise ValueError(f"{told}: the tokenizer is another model's.")
        device = next(self.parameters()).device  # only now, as a GPU would not say what is wrong
        input_ids, mask = input_ids.to(device), mask.to(device)
        seen = self.backbone(input_ids=input_ids, attention_mask=mask)
        if self.pooling == "eos" and hasattr(seen, "text_embeds"):
            pooled = seen.text_embeds.float()  # CLIP's, projected
        else:
            pooled = self._pooled(seen.last_hidden_state.float(), mask)
        for layer, activation in zip(self.dense, self.activations, strict=True):
            pooled = activation(layer(pooled.to(layer.weight.dtype))).float()
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L, H) and (B, L) to (B, H)."""
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        places = mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)
        place = mask.long().argmax(1) if self.pooling == "cls" else places.argmax(1)  # the first or last real token
        return hidden[torch.arange(len(hidden), device=hidden.device), place]

    def embed(self, texts: list[str], tokenizer: Any) -> torch.Tensor:
        """Texts to embeddings (N, text_dim) float32, on the encoder's device. Too long ones are cut, and warned of."""
        rows, most = [], tokenizer.model_max_length
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
            if any(encoding.overflowing for encoding in batch.encodings or []):
                warnings.warn(f"A text is longer than {most} tokens; its end is cut.", stacklevel=2)
            rows.append(self(batch["input_ids"], batch["attention_mask"]))
        return torch.cat(rows)

    @classmethod
    def from_pretrained(cls, name: str, about: dict[str, Any] | None = None, **where: Any) -> "CondViTTextEncoder":
        """The encoder of a CLIP, of a sentence-transformers model, or of what `describe_text_encoder` told.

        Args:
            name: a folder or a Hub repository; `where` are `from_pretrained`'s `revision`, `cache_dir`, `token`, ...
            about: what to make of it; by default what the folder says.
        """
        about = about or describe_text_encoder(name, **where)
        with torch.device("meta"):  # the shell only: each part below comes with its weights
            encoder = cls(about)
        kind, config = type(encoder.backbone), encoder.backbone.config
        loading = {"config": config, "subfolder": about.get("subfolder", ""), "dtype": torch.float32, **where}
        loaded, info = kind.from_pretrained(name, output_loading_info=True, **loading)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{name} lacks the text encoder's weights {missing[:5]}. Give its complete checkpoint.")
        encoder.backbone = loaded
        for layer, one in zip(encoder.dense, about["dense"], strict=True):
            layer.load_state_dict(_dense_weights(name, one["path"], where), assign=True)
        encoder.requires_grad_(False)
        encoder.train()
        return encoder


def describe_text_encoder(name: str, **where: Any) -> dict[str, Any]:
    """What `CondViTTextEncoder` takes, from the files of a CLIP or a sentence-transformers model.

    Raises ValueError: it is made of parts that are not known here.
    """
    modules = _read(name, "modules.json", where)
    if modules is None:
        kind = _read(name, "config.json", where, needed=True).get("model_type")
        if kind not in ("clip", "clip_text_model"):
            raise ValueError(f"{name} is a {kind!r} model. Give a CLIP, or sentence-transformers' with modules.json.")
        config = AutoConfig.from_pretrained(name, **where)
        text = getattr(config, "text_config", config)
        text.projection_dim = config.projection_dim  # a whole CLIP goes by its own
        return _about(name, where, text, pooling="eos", normalize=False)
    pooling, dense, normalize, subfolder = "mean", [], False, ""
    for module in modules:
        kind, path = module["type"].rpartition(".")[2], module["path"]
        settings = _read(name, f"{path}/config.json", where) if kind in ("Pooling", "Dense") else None
        if kind == "Transformer":
            subfolder = path
        elif kind == "Pooling":
            pooling = _pooling_of(name, settings)
        elif kind == "Dense":
            activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
            if activation not in ACTIVATIONS:
                raise ValueError(f"{name} has a dense layer with {activation}. Known are {', '.join(ACTIVATIONS)}.")
            sizes = {key: settings[key] for key in ("in_features", "out_features")}
            dense.append({**sizes, "bias": settings.get("bias", True), "activation": activation, "path": path})
        elif kind == "Normalize":
            normalize = True
        else:
            raise ValueError(f"{name} has a {kind}, which is none of Transformer, Pooling, Dense and Normalize.")
    config = AutoConfig.from_pretrained(name, **where, **({"subfolder": subfolder} if subfolder else {}))
    if config.model_type == "clip":
        raise ValueError(f"{name} is a CLIP of sentence-transformers. Give the CLIP itself.")
    length = (_read(name, f"{subfolder}/sentence_bert_config.json".lstrip("/"), where) or {}).get("max_seq_length")
    about = _about(name, where, config, pooling, normalize, dense, length)
    return about | ({"subfolder": subfolder} if subfolder else {})


def text_dim_of(about: dict[str, Any]) -> int:
    """The width of what such an encoder gives."""
    if about["dense"]:
        return about["dense"][-1]["out_features"]
    config = AutoConfig.for_model(**about["config"])
    return config.projection_dim if config.model_type == "clip_text_model" else config.hidden_size


def load_tokenizer(name: str, about: dict[str, Any], **where: Any) -> Any:
    """The encoder's own tokenizer, which cuts texts where the encoder ends."""
    tokenizer = AutoTokenizer.from_pretrained(name, subfolder=about.get("subfolder", ""), **where)
    tokenizer.model_max_length = min(tokenizer.model_max_length, about["max_length"])
    return tokenizer


def _class_for(config: Any) -> Any:
    """The class that reads texts: of a CLIP with its projection, of T5 and its kind without the decoder."""
    if config.model_type == "clip_text_model":
        return CLIPTextModelWithProjection
    known = AutoModelForTextEncoding if type(config) in AutoModelForTextEncoding._model_mapping else AutoModel
    return known._model_mapping[type(config)]


def _about(name: str, where: dict, config: Any, pooling: str, normalize: bool, dense=(), length=None) -> dict:
    """The dictionary, in JSON's types. A revision is kept, so that the same weights are fetched later."""
    told = json.loads(json.dumps(config.to_diff_dict())) | {"model_type": config.model_type}
    length = length or getattr(config, "max_position_embeddings", None) or 512  # T5 has no limit of its own
    about = {"config": told, "pooling": pooling, "dense": list(dense), "normalize": normalize, "max_length": length}
    return {"name": name, "revision": where.get("revision"), **about}


def _pooling_of(name: str, settings: dict[str, Any]) -> str:
    """mean, cls or eos, from a Pooling module's settings, older or newer."""
    chosen = [
        POOLINGS.get(key, key) for key, value in settings.items() if key.startswith("pooling_mode_") and value is True
    ]
    newer = settings.get("pooling_mode") or []
    chosen += [{"lasttoken": "eos"}.get(mode, mode) for mode in ([newer] if isinstance(newer, str) else newer)]
    if len(chosen) != 1 or chosen[0] not in POOLINGS.values():
        raise ValueError(
            f"{name} pools by {', '.join(chosen) or 'nothing'}. Known are mean, cls and lasttoken, one of them."
        )
    return chosen[0]


def _read(name: str, file: str, where: dict[str, Any], needed: bool = False) -> Any:
    """A JSON file of a folder or a Hub repository; None where it has none, or an OSError."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=needed, **where)
    if path is None:
        return None
    with open(path, encoding="utf-8") as opened:
        return json.load(opened)


def _dense_weights(name: str, folder: str, where: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A dense layer's tensors, without the prefix that sentence-transformers gives them."""
    path = cached_file(name, f"{folder}/model.safetensors", _raise_exceptions_for_missing_entries=False, **where)
    if path is not None:
        tensors = load_file(path)
    else:
        path = cached_file(name, f"{folder}/pytorch_model.bin", **where)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {key.removeprefix("linear."): tensor.float() for key, tensor in tensors.items()}
