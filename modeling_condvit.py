"""CondViT: CLIP's vision tower, told what to look for (arXiv 2306.02928).

- a condition is a learned token that joins the image's patches, so that every layer can attend to it; without one, the
  tower is CLIP's, bit for bit;
- CLIP's parameter names are kept, so that any CLIP checkpoint is an initialisation;
- embeddings come out L2-normalised in float32, whatever precision the tower runs in: a dot product is a cosine.

Shapes below: B images, D = hidden_size, P = projection_dim, C = num_condition_tokens, T = 1 + patches (+ C) tokens.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, CLIPVisionConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPPreTrainedModel, CLIPVisionEmbeddings
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

try:
    from .configuration_condvit import CondViTConfig  # on the Hub the files are siblings in a package
except ImportError:
    from configuration_condvit import CondViTConfig  # in a checkout they are top-level modules


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
            raise TypeError(f"Unknown argument {unknown[0]!r}. A condition is given as category_indices.")
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
        if config.condition == "category":  # a parameter that is never used would stop distributed training
            shape = (config.num_condition_tokens, config.hidden_size)
            self.condition_embedding = nn.Parameter(torch.empty(len(config.categories), *shape))
            self.condition_position_embedding = nn.Parameter(torch.empty(shape))  # shared by all categories
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Adds the parameters that CLIP lacks: what neither this nor a checkpoint sets stays uninitialised memory."""
        super()._init_weights(module)
        if module is self:
            factor = self.config.initializer_factor
            std = self.config.hidden_size**-0.5 * factor
            init.normal_(self.visual_projection.weight, std=std)
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
            if self.config.condition == "category":  # as CLIP starts its [CLS] token and its positions
                init.normal_(self.condition_embedding, std=std)
                init.normal_(self.condition_position_embedding, std=self.config.initializer_range * factor)

    @classmethod
    def from_clip(cls, name_or_path: str, categories: list[str] | None = None, **kwargs: Any) -> "CondViTModel":
        """Starts from a CLIP checkpoint, whole or vision tower; without a condition it then embeds exactly as CLIP.

        Args:
            name_or_path: a folder or a Hub repository, as for `from_pretrained`; the condition tokens are new.
            categories: the conditions' names; by default LRVS-F's ten.
            kwargs: CondViTConfig's other own fields, and `from_pretrained`'s arguments, such as `attn_implementation`.
                `dtype` is float32 unless given, because half-precision weights do not train well.
        """
        own = {key: kwargs.pop(key) for key in CondViTConfig.__annotations__ if key in kwargs}
        own |= {} if categories is None else {"categories": categories}
        where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        clip = AutoConfig.from_pretrained(name_or_path, **{key: kwargs[key] for key in where if key in kwargs})
        if clip.model_type not in ("clip", "clip_vision_model"):
            raise ValueError(f"{name_or_path} is a {clip.model_type!r} model. Give a CLIP or a CLIP vision model.")
        tower = getattr(clip, "vision_config", clip)
        shape = {key: getattr(tower, key) for key in CLIPVisionConfig.__annotations__ if hasattr(tower, key)}
        shape["projection_dim"] = clip.projection_dim  # a whole CLIP goes by its own, not by its vision_config's
        config = CondViTConfig(**shape, **own)
        kwargs = {"dtype": torch.float32, **kwargs, "config": config, "output_loading_info": True}
        model, info = cls.from_pretrained(name_or_path, **kwargs)
        if missing := sorted(key for key in info["missing_keys"] if key.startswith("vision_model.")):
            raise ValueError(f"{name_or_path} lacks {missing}. Give a checkpoint with CLIP's complete vision tower.")
        init.constant_(model.logit_scale.detach(), config.logit_scale_init_value)  # CLIP's is between images and texts
        return model

    def add_categories(self, names: list[str], like: str | None = None) -> None:
        """Adds rows to the condition table, for training to go on with; those that are there keep every bit.

        Do this before an optimizer is made, as the table becomes a new parameter; give the processor the names, too.

        Args:
            names: the new categories, whose indices follow those of the old ones.
            like: the category whose row a new one starts as; by default the mean of all.
        """
        known, names = self.config.categories, [names] if isinstance(names, str) else list(names)
        if self.config.condition == "none":
            raise ValueError('This model has condition="none", so it can learn no category. Start anew from its CLIP.')
        if like is not None and like not in known:
            raise ValueError(f"like={like!r} is not one of this model's categories: {known}.")
        config = copy.deepcopy(self.config)
        config.categories = [*known, *names]
        config.validate_condition()  # before anything is changed
        table = self.condition_embedding.detach()
        row = table.mean(dim=0) if like is None else table[known.index(like)]  # (C, D)
        self.condition_embedding = nn.Parameter(torch.cat([table, row.expand(len(names), -1, -1)]))
        self.config.categories = self.vision_model.config.categories = config.categories

    def condition_tokens(self, category_indices: torch.Tensor) -> torch.Tensor:
        """The learned tokens (B, C, D) of categories (B,), position added."""
        if self.config.condition == "none":
            raise ValueError('This model has condition="none". Call it without category_indices.')
        count, tokens, _ = self.condition_embedding.shape
        # On the CPU only: reading the values would make a GPU wait and break tracing. There the lookup itself fails.
        readable = category_indices.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and (wrong := [index for index in category_indices.tolist() if not 0 <= index < count]):
            raise IndexError(f"category_indices holds {wrong}. This model's categories are 0 to {count - 1}.")
        chosen = F.embedding(category_indices, self.condition_embedding.flatten(1))  # (B, C * D)
        return chosen.unflatten(1, (tokens, -1)) + self.condition_position_embedding

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        category_indices: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> CondViTOutput:
        """Embeds images, targets or both; both in one call, because distributed training wants one forward per step.

        Args:
            pixel_values: (B, 3, H, W), as `CondViTProcessor` makes them.
            category_indices: (B,) integers, what to look for in each image; without it, images are embedded as a whole.
            target_pixel_values: (B', 3, H, W), product images, embedded as a whole.
            interpolate_pos_encoding: accept any H and W, by interpolating the learned positions.
            kwargs: `return_dict`; `output_hidden_states` and `output_attentions`, which speak of `pixel_values`.
        """
        if pixel_values is None and target_pixel_values is None:
            raise ValueError("There is nothing to embed. Give pixel_values, target_pixel_values or both.")
        tokens, output = None, CondViTOutput()
        if category_indices is not None:
            batch = () if pixel_values is None else pixel_values.shape[:1]
            if (got := category_indices.shape) != batch:
                raise ValueError(f"category_indices has shape {tuple(got)}, but the batch of images {tuple(batch)}.")
            tokens = self.condition_tokens(category_indices)
        if pixel_values is not None:
            seen = self.vision_model(pixel_values, tokens, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
            output.image_embeds = output.pooler_output = self._embed(seen.pooler_output)
            output.last_hidden_state = seen.last_hidden_state
            output.hidden_states, output.attentions = seen.hidden_states, seen.attentions
        if target_pixel_values is not None:
            kwargs |= {"output_hidden_states": False, "output_attentions": False}
            seen = self.vision_model(target_pixel_values, None, interpolate_pos_encoding, **kwargs)
            output.target_embeds = self._embed(seen.pooler_output)
        return output

    def _embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, D) to unit rows (B, P): in float32, as a bfloat16 row's length would be off by up to a percent."""
        return F.normalize(self.visual_projection(pooled).float(), dim=-1)


CondViTModel.register_for_auto_class("AutoModel")
