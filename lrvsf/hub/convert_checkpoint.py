"""A published CondViT checkpoint -> a model folder that everything here reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from lrvsf.command import quiet_libraries
from lrvsf.durable import follow_umask, whole_folder
from lrvsf.hub.checkpoint_files import SUFFIXES, Source, find, read_tensors
from lrvsf.hub.misfits import Misfits, listed

if TYPE_CHECKING:
    from lrvsf.hub.published import Tensors
    from modeling_condvit import CondViTModel

# The published weights' licence, and that of OpenAI's CLIP. The file does not say whose weights it holds, so their
# owner may name another.
PUBLISHED_LICENSE, OPENAI_LICENSE = "cc-by-nc-4.0", "mit"


def convert(
    source: Annotated[
        Path,
        Argument(help=f"checkpoint ({', '.join(SUFFIXES)}, or the index of several), a folder with one, or OWNER/NAME"),
    ],
    out: Annotated[Path, Argument(help="model folder to write, new or empty")],
    categories: Annotated[
        list[str] | None, Option(help="names of the condition table's rows, one flag for each; LRVS-F's by default")
    ] = None,
    num_attention_heads: Annotated[
        int | None, Option(help="what config.json says beside it, or else width / 64, as in CLIP up to L/14")
    ] = None,
    license: Annotated[
        str | None,
        Option(help=f"for the card; {PUBLISHED_LICENSE} by default, of OpenAI's CLIP {OPENAI_LICENSE}"),
    ] = None,
    revision: Annotated[str | None, Option(help="of OWNER/NAME; main by default")] = None,
    text_encoder: Annotated[
        Path | None,
        Option(help="folder of a textual model's encoder, for tokenizer and configuration; by default the Hub's"),
    ] = None,
    with_text_encoder: Annotated[
        bool, Option("--with_text_encoder", help="put the encoder's weights into OUT; by default they are left out")
    ] = False,
    text_template: Annotated[
        str | None, Option(help="the text of a textual model's category, {} for its name, which it is by default")
    ] = None,
) -> str:
    """Turn a published CondViT checkpoint into a model folder, card included.

    No weight is changed. A pickle is read with weights_only=True: what it names is not run. What is unknown, missing,
    of another shape or not finite is named, and nothing is written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already. Name a new folder, or an empty one.")
    if text_encoder is not None and not text_encoder.is_dir():
        raise FileNotFoundError(f"There is no folder {text_encoder}. Give that of the text encoder.")
    found = find(source, revision)

    # torch and transformers take seconds, which a wrong path must not cost.
    from huggingface_hub.errors import StrictDataclassError

    quiet_libraries()
    network = {"num_attention_heads": num_attention_heads, "categories": categories or None}
    texts = {"text_encoder": text_encoder, "with_text_encoder": with_text_encoder, "text_template": text_template}
    try:
        converted = _converted(found, network, texts)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{found.path}: {' '.join(str(error).split())}") from error
    _write(out, converted, found, license or converted.license)
    config = converted.model.config
    conditions = {
        "category": f"{len(config.categories)} categories",
        "text": f"texts as conditions, {len(config.categories)} categories by their names",
        "none": "no condition",
    }
    return (
        f"Wrote {out}: {config.num_hidden_layers} layers of width {config.hidden_size}, images of {config.image_size} "
        f"pixels in patches of {config.patch_size}, {conditions[config.condition]}.{converted.left_out}"
    )


@dataclass
class Converted:
    """A model, of a textual one its tokenizer, and in words what of the checkpoint is not in it."""

    model: CondViTModel
    tokenizer: Any = None
    left_out: str = ""
    license: str = PUBLISHED_LICENSE


def _converted(found: Source, network: dict[str, Any], texts: dict[str, Any]) -> Converted:
    """A network of any layout; `network` and `texts` are what flags say of it and of a text encoder."""
    from lrvsf.hub.published import clips_texts, from_published, is_textual

    tensors, network = read_tensors(found.path), network | {"settings": found.settings()}
    if is_textual(tensors):
        return _textual(tensors, network, **texts)
    if given := [f"--{flag}" for flag, value in texts.items() if value]:
        raise ValueError(f"Its conditions are not texts. Leave {' and '.join(given)} out.")
    model = from_published(tensors, **network)
    if other := clips_texts(tensors):
        told = f" It is OpenAI's CLIP; left out are {len(other)} tensors of its other half: {listed(other)}."
        return Converted(model, left_out=told, license=OPENAI_LICENSE)
    return Converted(model)


def _textual(
    tensors: Tensors,
    network: dict[str, Any],
    text_encoder: Path | None,
    with_text_encoder: bool,
    text_template: str | None,
) -> Converted:
    from lrvsf.hub.encoder_place import check_found_anywhere
    from lrvsf.hub.published import from_published
    from lrvsf.hub.published_text import TextSource, weights_of

    source, misfits = TextSource(network["settings"], text_encoder), Misfits()
    remedy = "take it along by --with_text_encoder, or name its repository, lm_backbone, in a config.json beside this"
    check_found_anywhere({"text_encoder": source.about, "text_encoder_in_checkpoint": with_text_encoder}, remedy)
    encoder = source.encoder(tensors, misfits)
    fields = {"text_encoder": source.about, "text_template": text_template or "{}"}
    model = from_published(tensors, **network, misfits=misfits, **fields)
    source.tell(model, encoder, with_text_encoder)
    if with_text_encoder:
        return Converted(model, source.tokenizer)
    told = f" The text encoder is in {source.about['name']}, where the model fetches it at the first text."
    count, size = weights_of(tensors)
    if count:
        told += f" Left out are its {count} tensors of {size / 1e6:,.0f} MB; --with_text_encoder takes them along."
    return Converted(model, source.tokenizer, told)


def _write(out: Path, converted: Converted, found: Source, license: str) -> None:
    """Writes the model folder, whole or not at all."""
    from lrvsf.hub.card import write_converted_card
    from processing_condvit import CondViTProcessor

    model, config = converted.model, converted.model.config
    with whole_folder(out) as writing:
        model.save_pretrained(writing)
        follow_umask(writing)
        processor = CondViTProcessor(config.categories, converted.tokenizer, size=config.image_size)
        processor.save_pretrained(writing)
        write_converted_card(writing, out.resolve().name, found.name, model, license, found.revision)
