"""The model that a run starts from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from transformers import PretrainedConfig

from lrvsf.data.names import did_you_mean, quoted
from lrvsf.embedding.encoder import load_condvit
from lrvsf.paths import CONFIG, check_model
from lrvsf.training.arguments import ModelArguments
from lrvsf.training.fast_tower import use_patch_product
from lrvsf.training.source import catalog_categories
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor
from text_condvit import describe_text_encoder, text_dim_of

logger = logging.getLogger(__name__)

OWN_TOWER = "clip"  # the text encoder of the CLIP that a run starts from


def start_model(args: ModelArguments) -> CondViTModel:
    """CondViT from a CLIP checkpoint, or further training of a CondViT one; float32 weights."""
    if is_condvit(args.model):
        return use_patch_product(from_condvit(args))
    if args.freeze_gallery:
        raise ValueError(f"freeze_gallery: {args.model} is a CLIP, of which no catalog is; train a CondViT first")
    return use_patch_product(from_clip(args))


def with_frozen_gallery(model: CondViTModel, args: ModelArguments) -> CondViTModel:
    """A trained CondViT whose queries go on training, beside itself as it is, or beside the gallery that it has.

    Raises ValueError: it has no condition, which would leave no query to train; other weights would be saved.
    """
    if model.config.condition == "none":
        raise ValueError(f"freeze_gallery: {args.model} has no condition, so that its queries are its gallery's, too")
    model = model.with_frozen_gallery()
    dtype = getattr(torch, args.save_dtype)
    if any(not torch.equal(weight, weight.to(dtype).to(weight)) for weight in model.gallery.parameters()):
        raise ValueError(
            f"save_dtype={args.save_dtype} would round the gallery's weights, and its indexes would be of another "
            "model; leave it out"
        )
    return model


def is_condvit(name: str) -> bool:
    """Whether a model is a CondViT, not a CLIP. Raises ValueError: it has no configuration."""
    check_model(name)
    config, _ = PretrainedConfig.get_config_dict(name)
    if not config:
        raise ValueError(f"{name} has no config.json; give a folder or Hub name of a CLIP or CondViT checkpoint")
    return config.get("model_type") == "condvit"


def start_processor(model: CondViTModel) -> CondViTProcessor:
    """The processor that is saved with the model, with the tokenizer of a text model."""
    config = model.config
    tokenizer = model.sentence_tokenizer() if config.condition == "text" else None
    return CondViTProcessor(categories=config.categories, tokenizer=tokenizer, size=config.image_size)


def from_clip(args: ModelArguments) -> CondViTModel:
    """CLIP's tower, with the condition tokens and the temperature of the run."""
    if args.condition == "none" and args.num_condition_tokens is not None:
        raise ValueError(f"num_condition_tokens={args.num_condition_tokens} with condition='none': leave one out")
    if args.new_category_like is not None:
        raise ValueError(f"new_category_like={args.new_category_like!r}: {args.model} is a CLIP, which has no category")
    condition, categories = args.condition or "category", args.categories
    if categories is None and condition != "none":
        categories = catalog_categories(args.data)
    for name in ("text_encoder", "text_encoder_in_checkpoint"):
        if (value := getattr(args, name)) is not None and condition != "text":
            raise ValueError(f"{name}={value!r} with condition={condition!r}: add --condition text")
    asked = {"num_condition_tokens": args.num_condition_tokens, "logit_scale_init_value": args.logit_scale_init_value}
    asked = {name: value for name, value in asked.items() if value is not None}  # the others are as published
    if condition == "text":
        asked |= _text_encoder(args.text_encoder or OWN_TOWER, args.model, args.text_encoder_in_checkpoint)
    model = CondViTModel.from_clip(args.model, categories=categories, condition=condition, **asked, **_loading(args))
    if condition != "none" and args.condition_init == "published":
        if condition == "category":
            # As nn.Embedding draws them: sqrt(width) times as long as CLIP's own, as which `from_clip` starts them.
            nn.init.normal_(model.condition_embedding)
        nn.init.normal_(model.condition_position_embedding, std=model.config.hidden_size**-0.5)
    return model


def _text_encoder(name: str, clip: str, inside: bool | None) -> dict[str, object]:
    """`from_clip`'s arguments for a text encoder: the CLIP's own tower, a folder, NAME or NAME@REVISION."""
    if name in (OWN_TOWER, clip):  # by default one checkpoint, and no second model to fetch
        return {"text_encoder": clip, "text_encoder_in_checkpoint": inside is not False}
    if inside is None:
        inside = Path(name).is_dir()  # which other machines do not find
    revision = None
    if not Path(name).is_dir():
        name, _, revision = name.partition("@")
        check_model(name)
    elif Path(name, CONFIG).is_file() and is_condvit(name):  # before its own code is asked for
        raise ValueError(f"text_encoder={name!r} is a CondViT; give a sentence-transformers model or a CLIP")
    about = describe_text_encoder(name, **({"revision": revision} if revision else {}))
    return {"text_encoder": about, "text_dim": text_dim_of(about), "text_encoder_in_checkpoint": inside}


def from_condvit(args: ModelArguments) -> CondViTModel:
    """A trained CondViT, with a frozen gallery and the run's categories where it asks for them."""
    model = load_condvit(args.model, **_loading(args))
    for name in ("text_encoder", "text_encoder_in_checkpoint"):
        if (value := getattr(args, name)) is not None:
            raise ValueError(
                f"{name}={value!r}: {args.model} was trained with condition={model.config.condition!r} and keeps what "
                "it reads; leave it out or start from CLIP"
            )
    for name in ("condition", "num_condition_tokens"):
        asked, trained = getattr(args, name), getattr(model.config, name)
        if asked is not None and asked != trained:
            raise ValueError(
                f"{args.model} was trained with {name}={trained!r}, the run asks for {asked!r}; leave it out or start "
                "from CLIP"
            )
    if args.freeze_gallery or model.config.gallery is not None:
        model = with_frozen_gallery(model, args)  # first, as indexes are of the model with the categories that it had
    if args.categories is not None and args.categories != model.config.categories:
        said = take_categories(model, args.categories, args.new_category_like)
        if PartialState().is_main_process:
            logger.warning("%s %s", args.model, said)
    elif args.new_category_like is not None:
        raise ValueError(f"new_category_like={args.new_category_like!r}, but no category is new; name it in categories")
    return model


def take_categories(model: CondViTModel, names: list[str], like: str | None = None) -> str:
    """Gives a trained model these categories, in this order, and says in one line what became of each.

    Those that it knows keep their tokens bit for bit; new ones start as those of the category `like`, by default as the
    mean of all that the model knew; the others are dropped.
    """
    known = model.config.categories
    new, dropped = [name for name in names if name not in known], [name for name in known if name not in names]
    if like is not None and (like not in known or not new):
        unknown = f"which the model does not know.{did_you_mean(like, known)}"
        raise ValueError(f"new_category_like={like!r}, {'but no category is new' if like in known else unknown}")
    model.add_categories(new, like)
    model.config.categories = model.vision_model.config.categories = list(names)
    model.config.validate_condition()
    # `add_categories` appends rows; a parameter of the rows that are asked for, in their order, takes their place.
    rows = torch.tensor([[*known, *new].index(name) for name in names])
    if model.config.condition == "text":
        model.category_text_embeds = model.category_text_embeds[rows]
    else:
        model.condition_embedding = nn.Parameter(model.condition_embedding.detach()[rows])
    mean = "by their names" if model.config.condition == "text" else "from the mean of all that it knew"
    source = mean if like is None else f"from the tokens of {quoted(like)}"
    meant = "".join(f" {quoted(name)} is new.{near}" for name in new if (near := did_you_mean(name, dropped)))
    parts = (("kept", [name for name in names if name in known]), (f"new, {source}", new), ("dropped", dropped))
    told = "; ".join(f"{what}: {', '.join(map(quoted, which))}" for what, which in parts if which)
    return f"takes other categories. {told[0].upper()}{told[1:]}.{meant}"


def _loading(args: ModelArguments) -> dict[str, object]:
    return {"dtype": torch.float32, "attn_implementation": args.attn_implementation}
