"""CondViT: CLIP's vision tower, told what to look for (arXiv 2306.02928).

- a condition is a token that joins the image's patches, so that every layer can attend to it: a category's is learned,
  a text's is its sentence embedding; without one, the tower is CLIP's, bit for bit;
- CLIP's parameter names are kept, so that any CLIP checkpoint is an initialisation;
- embeddings come out L2-normalised in float32, whatever precision the tower runs in: a dot product is a cosine.

Shapes below: B images, D = hidden_size, P = projection_dim, C = num_condition_tokens, E = text_dim,
T = 1 + patches (+ C) tokens.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedTokenizerFast
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPPreTrainedModel, CLIPVisionEmbeddings
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

try:
    from .configuration_condvit import WHERE, CondViTConfig  # on the Hub the files are siblings in a package
    from .text_condvit import CondViTTextEncoder, describe_text_encoder, load_tokenizer, text_dim_of
except ImportError:
    from configuration_condvit import WHERE, CondViTConfig  # in a checkout they are top-level modules
    from text_condvit import CondViTTextEncoder, describe_text_encoder, load_tokenizer, text_dim_of

ALIKE = 1 - 1e-5  # cosine above which two texts are one to their encoder


@dataclass
class CondViTOutput(ModelOutput):
    """What `CondViTModel` returns.

    Attributes:
        image_embeds: (B, P) float32 unit rows, `pixel_values` as seen under the condition.
        target_embeds: (B', P) float32 unit rows, `target_pixel_values` without condition.
        pooler_output: `image_embeds`, by the name that `pipeline("image-feature-extraction", pool=True)` asks for.
        last_hidden_state: (B, T, D), the last layer's output for `pixel_values`, before the final LayerNorm.
        hidden_states: each layer's (B, T, D), its input first, with `output_hidden_states=True`.
        attentions: each layer's (B, heads, T, T), with `output_attentions=True` and "eager" attention.
    """

    image_embeds: torch.Tensor | None = None
    target_embeds: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class CondViTVisionTower(CLIPPreTrainedModel):
    """CLIP's vision transformer with a door for more tokens. All its parts are CLIP's own."""

    config: CondViTConfig
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: CondViTConfig) -> None:
        super().__init__(config)
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # CLIP's spelling
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        condition_tokens: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Reads images (B, 3, H, W) and condition tokens (B, C, D); pools [CLS] into (B, D)."""
        known = ("return_dict", "output_hidden_states", "output_attentions", "use_cache")  # the last is Trainer's
        if unknown := [key for key in kwargs if key not in known and kwargs[key] is not None]:
            raise TypeError(f"Unknown argument {unknown[0]!r}. Conditions are category_indices or text_embeds.")
        hidden = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)  # (B, 1 + patches, D)
        if condition_tokens is not None:
            hidden = torch.cat([hidden, condition_tokens.to(hidden.dtype)], dim=1)  # (B, 1 + patches + C, D)
        hidden = self.encoder(inputs_embeds=self.pre_layrnorm(hidden), **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(hidden, pooler_output=self.post_layernorm(hidden[:, 0]))


class CondViTModel(CLIPPreTrainedModel):
    """Embeds an image, or the thing in it that a category names, for retrieval by dot product.

    >>> model = CondViTModel(CondViTConfig(num_hidden_layers=1)).eval()  # or CondViTModel.from_pretrained(PATH)
    >>> gallery = model(torch.rand(5, 3, 224, 224)).image_embeds  # products: (5, 512), once for all conditions
    >>> bag = model(torch.rand(1, 3, 224, 224), category_indices=torch.tensor([0])).image_embeds  # in a scene: (1, 512)
    >>> (bag @ gallery.T).shape  # cosines
    torch.Size([1, 5])
    """

    config: CondViTConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\."]  # CLIP's other half

    def __init__(self, config: CondViTConfig) -> None:
        super().__init__(config)
        self.vision_model = CondViTVisionTower._from_config(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        # Only a loss reads it. Loading a whole CLIP by `from_pretrained` brings CLIP's own; `from_clip` starts it anew.
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        shape = (config.num_condition_tokens, config.hidden_size)
        if config.condition != "none":  # a parameter that is never used would stop distributed training
            self.condition_position_embedding = nn.Parameter(torch.empty(shape))  # shared by all conditions
        if config.condition == "category":
            self.condition_embedding = nn.Parameter(torch.empty(len(config.categories), *shape))
        if config.condition == "text":
            # The published sentence embedding is the token itself. Where it does not fit, it is projected.
            if (config.text_dim, 1) != (config.hidden_size, config.num_condition_tokens):
                tokens = config.num_condition_tokens * config.hidden_size
                self.condition_projection = nn.Linear(config.text_dim, tokens, bias=False)
            # The categories' texts, embedded once, so that they are asked for by number without an encoder.
            self.register_buffer("category_text_embeds", torch.zeros(len(config.categories), config.text_dim))
            if config.text_encoder_in_checkpoint:
                self.text_encoder = CondViTTextEncoder(config.text_encoder)
        if config.gallery is not None:
            gallery = CondViTConfig(**config.gallery)
            gallery._attn_implementation = config._attn_implementation  # which no configuration file holds
            self.gallery = CondViTModel(gallery).requires_grad_(False)
        self._fetched: list[CondViTTextEncoder] = []  # in a list, it is no part of optimizer, DDP and checkpoint
        self._home: tuple[str, dict[str, Any]] = ("", {})  # the folder or repository that this model came from
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Adds the parameters that CLIP lacks: what neither this nor a checkpoint sets stays uninitialised memory."""
        super()._init_weights(module)
        if module is self:
            factor = self.config.initializer_factor
            std = self.config.hidden_size**-0.5 * factor
            init.normal_(self.visual_projection.weight, std=std)
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
            if self.config.condition != "none":  # as CLIP starts its [CLS] token and its positions
                init.normal_(self.condition_position_embedding, std=self.config.initializer_range * factor)
            if self.config.condition == "category":
                init.normal_(self.condition_embedding, std=std)
            if self.config.condition == "text":
                init.zeros_(self.category_text_embeds)
                if hasattr(self, "condition_projection"):
                    init.normal_(self.condition_projection.weight, std=std)

    @classmethod
    def from_pretrained(cls, name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers' own, but that a text encoder or gallery without weights is refused, not drawn at random."""
        model, info = super().from_pretrained(name_or_path, *args, output_loading_info=True, **kwargs)
        for frozen in ("text_encoder", "gallery"):
            if missing := sorted(key for key in info["missing_keys"] if key.startswith(f"{frozen}.")):
                its = f"its {frozen.replace('_', ' ')}'s weights"
                raise ValueError(f"{name_or_path} lacks {its} {missing[:5]}. Restore its checkpoint.")
            if hasattr(model, frozen):
                getattr(model, frozen).requires_grad_(False)  # loading makes new parameters
        model._home = str(name_or_path), {key: kwargs[key] for key in WHERE if key in kwargs}
        return (model, info) if output_loading_info else model

    @classmethod
    def from_clip(cls, name_or_path: str, categories: list[str] | None = None, **kwargs: Any) -> "CondViTModel":
        """Starts from a CLIP checkpoint, whole or vision tower; without a condition it then embeds exactly as CLIP.

        Args:
            name_or_path: a folder or a Hub repository, as for `from_pretrained`; the condition tokens are new.
            categories: the conditions' names; by default LRVS-F's ten.
            kwargs: CondViTConfig's other own fields, and `from_pretrained`'s arguments, such as `attn_implementation`.
                `dtype` is float32 unless given, because half-precision weights do not train well. `text_encoder` may
                also be the name of one, a sentence-transformers model or a CLIP: then texts are the conditions.
        """
        own = {key: kwargs.pop(key) for key in CondViTConfig.__annotations__ if key in kwargs}
        own |= {} if categories is None else {"categories": categories}
        where = {key: kwargs[key] for key in WHERE if key in kwargs}
        if isinstance(encoder := own.get("text_encoder"), str):
            about = describe_text_encoder(encoder, **(where if encoder == name_or_path else {}))  # a revision is CLIP's
            own = {"condition": "text", **own, "text_encoder": about, "text_dim": text_dim_of(about)}
        clip = AutoConfig.from_pretrained(name_or_path, **where)
        if clip.model_type not in ("clip", "clip_vision_model"):
            raise ValueError(f"{name_or_path} is a {clip.model_type!r} model. Give a CLIP or a CLIP vision model.")
        tower = getattr(clip, "vision_config", clip)
        shape = {key: getattr(tower, key) for key in CLIPVisionConfig.__annotations__ if hasattr(tower, key)}
        shape["projection_dim"] = clip.projection_dim  # a whole CLIP goes by its own, not by its vision_config's
        config = CondViTConfig(**shape, **own)
        kwargs = {"dtype": torch.float32, **kwargs, "config": config, "output_loading_info": True}
        model, info = super().from_pretrained(name_or_path, **kwargs)  # the text encoder's weights come from elsewhere
        if missing := sorted(key for key in info["missing_keys"] if key.startswith("vision_model.")):
            raise ValueError(f"{name_or_path} lacks {missing}. Give a checkpoint with CLIP's complete vision tower.")
        init.constant_(model.logit_scale.detach(), config.logit_scale_init_value)  # CLIP's is between images and texts
        if config.condition == "text" and config.text_encoder:
            about = config.text_encoder
            if config.text_encoder_in_checkpoint:
                model.text_encoder = CondViTTextEncoder.from_pretrained(
                    about["name"], about, revision=about["revision"]
                )
            model.embed_categories()
        return model

    def add_categories(self, names: list[str], like: str | None = None) -> None:
        """Adds categories; those that are there keep every bit. Give the processor the names, too.

        A category model gets rows of its condition table, for training to go on with: do this before an optimizer is
        made, as the table becomes a new parameter. A text model embeds the names, and needs no training.

        Args:
            names: the new categories, whose indices follow those of the old ones.
            like: the category whose row a new one starts as; by default the mean of all, or in a text model its text.
        """
        known, names = self.config.categories, [names] if isinstance(names, str) else list(names)
        if self.config.condition == "none":
            raise ValueError('This model has condition="none", so it can learn no category. Start anew from its CLIP.')
        if like is not None and like not in known:
            raise ValueError(f"like={like!r} is not one of this model's categories: {known}.")
        config = copy.deepcopy(self.config)
        config.categories = [*known, *names]
        config.validate_condition()  # before anything is changed
        if self.config.condition == "text":
            table = self.category_text_embeds  # (categories, E)
            added = self._texts_of(names) if like is None else table[known.index(like)].expand(len(names), -1)
            self.category_text_embeds = torch.cat([table, added.to(table)])
        else:
            table = self.condition_embedding.detach()
            row = table.mean(dim=0) if like is None else table[known.index(like)]  # (C, D)
            self.condition_embedding = nn.Parameter(torch.cat([table, row.expand(len(names), -1, -1)]))
        self.config.categories = self.vision_model.config.categories = config.categories
        if self.config.condition == "text" and like is None:
            self._warn_of_alike()

    def with_frozen_gallery(self) -> "CondViTModel":
        """A model whose gallery is this one as it is now, and whose queries' side starts as a copy of it.

        What this model has embedded without a condition stays valid, however the other's queries are trained. A model
        that has a frozen gallery already keeps that one.
        """
        if self.config.gallery is not None:
            return self
        config = copy.deepcopy(self.config)
        config.gallery = self.config.to_diff_dict()
        model = CondViTModel._from_config(config, attn_implementation=self.config._attn_implementation)
        state = self.state_dict()
        model.load_state_dict({**state, **{f"gallery.{name}": value for name, value in state.items()}})
        model._home = self._home
        return model.to(self.visual_projection.weight)

    def embed_categories(self) -> None:
        """Embeds the texts of a text model's categories, so that they are asked for by number without an encoder."""
        self.category_text_embeds = self._texts_of(self.config.categories).to(self.category_text_embeds)
        self._warn_of_alike()

    def categories_alike(self) -> list[str]:
        """A text model's categories whose texts have one embedding, as words that the encoder does not know may."""
        rows = F.normalize(self.category_text_embeds.float(), dim=1)  # one text in two places differs in the last bits
        return [name for name, row in zip(self.config.categories, rows, strict=True) if (rows @ row > ALIKE).sum() > 1]

    def _warn_of_alike(self) -> None:
        if alike := self.categories_alike():
            text = f"The text encoder cannot tell {alike} apart, nor can the model. Name them in words that it knows."
            warnings.warn(text, stacklevel=3)

    def _texts_of(self, names: list[str]) -> torch.Tensor:
        """(n, E), the embeddings of categories' texts."""
        texts = [self.config.text_template.format(name) for name in names]
        return self.sentence_encoder().embed(texts, self.sentence_tokenizer())

    def sentence_tokenizer(self) -> Any:
        """The text encoder's tokenizer: from this model's own folder or repository, or else from the encoder's."""
        about, (home, where) = self._about_texts(), self._home
        if home and cached_file(home, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **where):
            return PreTrainedTokenizerFast.from_pretrained(home, **where)  # AutoTokenizer asks to run the model's code
        return load_tokenizer(about["name"], about, revision=about["revision"])

    def sentence_encoder(self) -> CondViTTextEncoder:
        """The text encoder, which is fetched at the first call where the checkpoint is without it.

        Raises:
            ValueError: this model reads no texts, or only embeddings of them.
            OSError: its weights are not where the configuration says.
        """
        about = self._about_texts()
        if hasattr(self, "text_encoder"):
            return self.text_encoder
        if not self._fetched:
            self._fetched.append(CondViTTextEncoder.from_pretrained(about["name"], about, revision=about["revision"]))
        return self._fetched[0].to(self.visual_projection.weight.device)

    def forget_sentence_encoder(self) -> None:
        """Frees an encoder that was fetched; the next text fetches it again."""
        self._fetched.clear()

    def _about_texts(self) -> dict[str, Any]:
        """What the configuration says of the text encoder. Raises ValueError: there is none."""
        if (condition := self.config.condition) != "text" or self.config.text_encoder is None:
            without = "A text model without one reads text_embeds only."
            raise ValueError(f"This model has condition={condition!r} and no text encoder. {without}")
        return self.config.text_encoder

    def condition_tokens(self, category_indices: torch.Tensor) -> torch.Tensor:
        """The tokens (B, C, D) of categories (B,), position added: learned ones, or those of their texts."""
        if (condition := self.config.condition) == "none":
            raise ValueError('This model has condition="none". Call it without category_indices.')
        table = self.category_text_embeds if condition == "text" else self.condition_embedding.flatten(1)
        # On the CPU only: reading the values would make a GPU wait and break tracing. There the lookup itself fails.
        readable = category_indices.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and (wrong := [index for index in category_indices.tolist() if not 0 <= index < len(table)]):
            raise IndexError(f"category_indices holds {wrong}. This model's categories are 0 to {len(table) - 1}.")
        chosen = F.embedding(category_indices, table)  # (B, C * D) or (B, E)
        if condition == "text":
            return self.text_tokens(chosen)
        return chosen.unflatten(1, (self.config.num_condition_tokens, -1)) + self.condition_position_embedding

    def text_tokens(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """The tokens (B, C, D) of sentence embeddings (B, E), projected where they do not fit, position added."""
        if self.config.condition != "text":
            raise ValueError(f"This model has condition={self.config.condition!r}. Call it without a text.")
        if text_embeds.ndim != 2 or text_embeds.shape[1] != self.config.text_dim:
            shape = f"({len(text_embeds)}, {self.config.text_dim})"
            raise ValueError(f"text_embeds has shape {tuple(text_embeds.shape)}; this model reads {shape}.")
        readable = text_embeds.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and not text_embeds.isfinite().all():
            raise ValueError("text_embeds holds numbers that are not finite. Look at what embedded the texts.")
        projection = getattr(self, "condition_projection", None)
        rows = text_embeds if projection is None else projection(text_embeds.to(projection.weight.dtype))  # (B, C * D)
        return rows.unflatten(1, (self.config.num_condition_tokens, -1)) + self.condition_position_embedding

    def _tokens(self, batch: tuple[int, ...], **given: torch.Tensor | None) -> torch.Tensor | None:
        """The condition's tokens (B, C, D) from the one form in which it is given; None for no condition."""
        mask = given.pop("attention_mask")
        named = [name for name, value in given.items() if value is not None]
        if mask is not None and named != ["input_ids"]:
            raise ValueError("attention_mask was given without the input_ids that it speaks of.")
        if not named:
            return None
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} were given. An image has one condition: give one of them.")
        name, value = named[0], given[named[0]]
        if (value.shape if name == "category_indices" else value.shape[:1]) != batch:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but the batch of images {tuple(batch)}.")
        if name == "category_indices":
            return self.condition_tokens(value)
        return self.text_tokens(self.sentence_encoder()(value, mask) if name == "input_ids" else value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        category_indices: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        text_embeds: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CondViTOutput:
        """Embeds images, targets or both; both in one call, because distributed training wants one forward per step.

        Args:
            pixel_values: (B, 3, H, W), as `CondViTProcessor` makes them.
            category_indices: (B,) integers, what to look for in each image; without it, images are embedded as a whole.
            target_pixel_values: (B', 3, H, W), product images, embedded as a whole.
            interpolate_pos_encoding: accept any H and W, by interpolating the learned positions.
            text_embeds: (B, E) sentence embeddings, what to look for in each image, for a text model.
            input_ids, attention_mask: (B, L) tokens of such sentences, which the model embeds itself.
            kwargs: `return_dict`; `output_hidden_states` and `output_attentions`, which speak of `pixel_values`.
        """
        if pixel_values is None and target_pixel_values is None:
            raise ValueError("There is nothing to embed. Give pixel_values, target_pixel_values or both.")
        batch, output = () if pixel_values is None else pixel_values.shape[:1], CondViTOutput()
        texts = {"text_embeds": text_embeds, "input_ids": input_ids, "attention_mask": attention_mask}
        tokens = self._tokens(batch, category_indices=category_indices, **texts)
        # What has no condition is the gallery's, queries too: as it was before this model's own tower was trained on.
        whole = self if self.config.gallery is None else self.gallery
        if pixel_values is not None:
            model = self if tokens is not None else whole
            seen = model.vision_model(pixel_values, tokens, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
            output.image_embeds = output.pooler_output = model._embed(seen.pooler_output)
            output.last_hidden_state = seen.last_hidden_state
            output.hidden_states, output.attentions = seen.hidden_states, seen.attentions
        if target_pixel_values is not None:
            kwargs |= {"output_hidden_states": False, "output_attentions": False}
            seen = whole.vision_model(target_pixel_values, None, interpolate_pos_encoding, **kwargs)
            output.target_embeds = whole._embed(seen.pooler_output)
        return output

    def _embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, D) to unit rows (B, P): in float32, as a bfloat16 row's length would be off by up to a percent."""
        return F.normalize(self.visual_projection(pooled).float(), dim=-1)


CondViTModel.register_for_auto_class("AutoModel")
