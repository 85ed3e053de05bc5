"""A published CondViT checkpoint -> a model folder that everything here reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from lrvsf.durable import follow_umask, whole_folder
from lrvsf.paths import near

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# The published weights' licence. The file does not say whose weights it holds, so their owner may name another.
PUBLISHED_LICENSE = "cc-by-nc-4.0"


def convert(
    source: Annotated[Path, Argument(help=f"checkpoint ({', '.join(SUFFIXES)}), or a folder with one")],
    out: Annotated[Path, Argument(help="model folder to write, new or empty")],
    categories: Annotated[
        list[str] | None, Option(help="names of the condition table's rows, one flag for each; LRVS-F's by default")
    ] = None,
    num_attention_heads: Annotated[int | None, Option(help="width / 64 by default, as in CLIP up to L/14")] = None,
    license: Annotated[str, Option(help="for the model card; the published weights' by default")] = PUBLISHED_LICENSE,
) -> str:
    """Turn a published CondViT checkpoint into a model folder, card included.

    No weight is changed. A pickle is read with weights_only=True: what it names is not run.
    """
    path = checkpoint_in(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already. Name a new folder, or an empty one.")

    # torch and transformers take seconds, which a wrong path must not cost.
    from lrvsf.hub.card import write_converted_card
    from lrvsf.hub.published import from_published
    from processing_condvit import CondViTProcessor

    try:
        model = from_published(state_dict(path), num_attention_heads, categories or None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    config = model.config
    with whole_folder(out) as writing:
        model.save_pretrained(writing)
        follow_umask(writing)
        CondViTProcessor(categories=config.categories, size=config.image_size).save_pretrained(writing)
        write_converted_card(writing, out.resolve().name, path.name, model, license)
    conditions = f"{len(config.categories)} categories" if config.condition == "category" else "no condition"
    return (
        f"Wrote {out}: {config.num_hidden_layers} layers of width {config.hidden_size}, images of {config.image_size} "
        f"pixels in patches of {config.patch_size}, {conditions}."
    )


def checkpoint_in(source: Path) -> Path:
    """The checkpoint's file: `source` itself, or the only one in that folder.

    Raises FileNotFoundError: there is none; ValueError: there are several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        # OWNER/NAME has two parts, and so may have a path.
        hub = f" If you mean the Hub's, `hf download {source}` prints its folder." if len(source.parts) == 2 else ""
        raise FileNotFoundError(f"There is no file or folder {source}{near(source)}.{hub}")
    found = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{source} has no file that ends in {', '.join(SUFFIXES)}. Name the checkpoint.")
    if safe := [path for path in found if path.suffix == ".safetensors"]:  # the same weights, for other loaders, beside
        found = safe
    if len(found) > 1:
        raise ValueError(f"{source} has several checkpoints: {', '.join(path.name for path in found)}. Name one file.")
    return found[0]


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by name, on the CPU. A training's checkpoint may hold them one level down.

    Raises ValueError: it cannot be read without running what it names, or holds no tensors by name.
    """
    import torch
    from safetensors.torch import load_file

    from lrvsf.hub.published import prefix_of

    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file every reader raises its own kind
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"this file cannot be read as weights alone ({told:.120}), and nothing is unpickled here. Save the state "
            "dict as safetensors, where the file can be trusted."
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"this file holds a {type(loaded).__name__}. Give the network's state dict.")
    # One level down as in {"model": {...}, "optimizer": {...}}. Which of two networks is meant would be a guess.
    inner = [value for value in loaded.values() if isinstance(value, Mapping) and prefix_of(value) is not None]
    tensors = dict(inner[0] if len(inner) == 1 else loaded)
    if other := [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{other[:5]} are no tensors. Give the network's state dict.")
    return tensors
