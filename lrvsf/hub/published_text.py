"""The text encoder of the published textual CondViT: a SentenceTransformer under "lm.", beside the network.

Its folder has weights only. Tokenizer and text configuration come from the encoder's own repository, which its
config.json names, or from a folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrvsf.hub.misfits import Misfits
from lrvsf.hub.published import TEXT_ENCODER, Tensors, check_tensor
from lrvsf.paths import public_name
from modeling_condvit import CondViTModel
from text_condvit import CondViTTextEncoder, describe_text_encoder, load_tokenizer

# A module's number in the SentenceTransformer, then older or newer sentence-transformers' name of its transformer.
BACKBONE = re.compile(re.escape(TEXT_ENCODER) + r"\d+\.(?:auto_model|model)\.(.+)")
DENSE = re.compile(re.escape(TEXT_ENCODER) + r"(\d+)\.linear\.(weight|bias)")
# Of an older transformers: the numbers 0, 1, 2, ..., which newer ones do not save.
COUNTED = "embeddings.position_ids"


class TextSource:
    """Where tokenizer and text configuration come from, and what they say.

    Args:
        settings: the published configuration.
        folder: of the text encoder; by default what `settings` names is looked for on the Hub.

    Attributes:
        about: for `CondViTTextEncoder`; its name and revision are those of `settings` where it has them.
        tokenizer: the encoder's own.

    Raises:
        ValueError: neither is known, or the Hub's cannot be read.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None = None) -> None:
        name, revision = settings.get("lm_backbone"), settings.get("lm_revision")
        if not isinstance(name, str | None) or not isinstance(revision, str | None):
            raise ValueError(f"config.json has lm_backbone={name!r:.99} and lm_revision={revision!r:.99}. Give names.")
        if name and "/" not in name:
            name = f"sentence-transformers/{name}"  # as that library completes a name
        if folder is None and not name:
            raise ValueError(
                "Its conditions are texts, but a published folder has neither tokenizer nor text configuration, and "
                "no config.json here names its lm_backbone. Give the text encoder's folder by --text_encoder."
            )
        self._name = name if folder is None else str(folder)
        self._where = {"revision": revision} if folder is None and revision else {}
        try:
            about = describe_text_encoder(self._name, **self._where)
            self.tokenizer = load_tokenizer(self._name, about, **self._where)
        except OSError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                "Its conditions are texts, and a published folder has neither tokenizer nor text configuration. They "
                f"were looked for in {self._name}, revision {revision}: {reason:.300}. Give the text encoder's folder "
                "by --text_encoder."
            ) from error
        # What is on the Hub is found there from any machine, a folder only here.
        self.about = about | {"name": name or str(folder), "revision": revision if name else None}

    def encoder(self, tensors: Tensors, misfits: Misfits) -> CondViTTextEncoder | None:
        """The encoder of the checkpoint's own weights, or the repository's if it has none.

        None if they do not fit, which `misfits` then tells.
        """
        own = [name for name in tensors if name.startswith(TEXT_ENCODER)]
        if not own:
            return CondViTTextEncoder.from_pretrained(self._name, self.about, **self._where)
        with torch.device("meta"):  # the shell only, as each tensor is there already
            shell = CondViTTextEncoder(self.about)
        names = _our_names(own)
        before = len(misfits)
        _check(tensors, names, shell, misfits)
        return None if len(misfits) > before else _filled(shell, tensors, names)

    def tell(self, model: CondViTModel, encoder: CondViTTextEncoder, inside: bool) -> None:
        """Gives a model its categories' embeddings, and the encoder itself if it is to travel with the model."""
        texts = [model.config.text_template.format(name) for name in model.config.categories]
        embeds = encoder.embed(texts, self.tokenizer)
        if embeds.shape[1] != model.config.text_dim:
            raise ValueError(
                f"The text encoder {self._name} gives embeddings of {embeds.shape[1]} numbers, the network reads "
                f"{model.config.text_dim}. Name the encoder that it was trained with."
            )
        model.category_text_embeds = embeds
        if inside:
            model.text_encoder = encoder
            model.config.text_encoder_in_checkpoint = True
            model.config.text_encoder = self.about | {"name": public_name(self.about["name"])}


def weights_of(tensors: Tensors) -> tuple[int, int]:
    """How many tensors of a text encoder the checkpoint has, and their bytes."""
    sizes = [tensors[name].nbytes for name in tensors if name.startswith(TEXT_ENCODER)]
    return len(sizes), sum(sizes)


def _our_names(own: list[str]) -> dict[str, str | None]:
    """The checkpoint's name -> `CondViTTextEncoder`'s; None for what it has no place for."""
    layers = sorted({int(match[1]) for name in own if (match := DENSE.fullmatch(name))})
    names: dict[str, str | None] = {}
    for name in own:
        if match := BACKBONE.fullmatch(name):
            names[name] = f"backbone.{match[1]}"
        elif match := DENSE.fullmatch(name):
            names[name] = f"dense.{layers.index(int(match[1]))}.{match[2]}"
        else:
            names[name] = None
    return {name: ours for name, ours in names.items() if ours is None or not ours.endswith(COUNTED)}


def _check(tensors: Tensors, names: dict[str, str | None], shell: CondViTTextEncoder, misfits: Misfits) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items()}
    found = set(names.values()) - {None}
    # A T5's token table has two names and one of them is saved.
    twins = {ours: other for pair in shell.all_tied_weights_keys.items() for ours, other in (pair, pair[::-1])}
    unknown = sorted(name for name, ours in names.items() if ours not in wanted)
    misfits.add("Unknown to the text encoder", unknown)
    missing = sorted(name for name in wanted if name not in found and twins.get(name) not in found)
    misfits.add(f"Missing under {TEXT_ENCODER!r}, by the text encoder's own names", missing)
    for name, ours in names.items():
        check_tensor(name, tensors[name], wanted.get(ours), misfits)


def _filled(shell: CondViTTextEncoder, tensors: Tensors, names: dict[str, str | None]) -> CondViTTextEncoder:
    """The shell with these tensors, which are not copied."""
    ours = {name: tensors[theirs] for theirs, name in names.items()}
    backbone = {n.removeprefix("backbone."): tensor for n, tensor in ours.items() if n.startswith("backbone.")}
    loading = {"config": shell.backbone.config, "state_dict": backbone, "dtype": torch.float32}
    shell.backbone = type(shell.backbone).from_pretrained(None, **loading)  # knows what is tied, and what is counted
    for number, layer in enumerate(shell.dense):
        start = f"dense.{number}."
        weights = {n.removeprefix(start): t.float() for n, t in ours.items() if n.startswith(start)}
        layer.load_state_dict(weights, assign=True)
    shell.requires_grad_(False)
    shell.train()
    return shell
