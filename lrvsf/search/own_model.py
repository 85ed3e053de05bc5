"""The model of a catalog: loaded, and refused where it is another one than that by which the catalog was made."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState

from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.processes import has_fast_bf16
from lrvsf.search.generations import Generation
from lrvsf.search.segments import digest_of, model_facts, query_facts


def load_encoder(
    model: str, dims: int | None, device: str | None, conditioned: bool = False, bf16: bool | None = None
) -> Encoder:
    """A model that embeds items, or queries under its conditions.

    Args:
        bf16: None: as it is fast on the device, for GPUs; on CPUs not, as one may index and another answer.

    Raises ValueError: it has fewer dimensions; there is no such device.
    """
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device={device} is not here; take cpu{' or cuda' * torch.cuda.is_available()}")
    gpu = torch.cuda.is_available() and device != "cpu"
    PartialState(cpu=not gpu)  # what embeds asks it for its share: all, as this is one process
    place = torch.device("cuda" if gpu else "cpu")
    loaded = load_model(model)
    # A text model is asked by the names of its categories, too; texts come on top, see `Catalog.search`.
    condition = "category" if conditioned and loaded.config.condition != "none" else "none"
    fast = gpu and has_fast_bf16(place) if bf16 is None else bf16
    return Encoder(loaded, condition, bf16=fast, device=place, dims=dims)


def load_own_encoder(
    generation: Generation, model: str | None, device: str | None, conditioned: bool = False, bf16: bool | None = None
) -> Encoder:
    """The model by which a generation was made.

    Args:
        model: where it is now; None: where it was.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is another one, whose scores would mean nothing; with both names, digests and what differs.
    """
    made = generation.manifest["model"]["name"]
    if model is None and Path(made).is_absolute() and not Path(made).is_dir():
        raise FileNotFoundError(f"{made}, the model of {generation.name}, is gone; name its folder now with --model")
    encoder = load_encoder(model or made, generation.manifest["dims"], device, conditioned, bf16)
    _refuse_other_model(generation, encoder)
    return encoder


def query_digest(generation: Generation, encoder: Encoder) -> str:
    """The digest of what asks, by which a calibration is known: the generation's own, unless the gallery is frozen."""
    return generation.manifest["model"]["digest"] if encoder.gallery is encoder else digest_of(query_facts(encoder))


def load_reader(encoder: Encoder) -> Encoder:
    """The same model, asked in words; its text encoder is loaded now, or fetched.

    Raises OSError: that is not where the model's configuration says.
    """
    reader, about = encoder.asked_by("text"), encoder.model.config.text_encoder
    try:
        reader.sentences(["a"])
    except (OSError, ValueError) as error:
        raise OSError(
            f"{encoder.model.name_or_path} reads texts by {about['name']}, which cannot be loaded ({error}); put it "
            "there again, or let this machine reach the Hub once"
        ) from error
    return reader


def _refuse_other_model(generation: Generation, encoder: Encoder) -> None:
    facts, made = model_facts(encoder), generation.manifest["model"]
    if (digest := digest_of(facts)) == made["digest"]:
        return
    differ = sorted(name for name in {**facts, **made["facts"]} if facts.get(name) != made["facts"].get(name))
    raise ValueError(
        f"{generation.name} was made by {made['name']} (digest {made['digest']}), and {encoder.model.name_or_path} "
        f"(digest {digest}) is another model; it differs in {', '.join(differ)}. Ask by the former, or make a "
        "generation by the latter with search_catalog.py index"
    )
