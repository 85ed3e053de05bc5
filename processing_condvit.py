"""CondViT's processor: images, and category names or texts, become the model's inputs.

An image is embedded as its file stores it, whichever way it comes. EXIF does not turn it, as it does not in the
published training and evaluation. Such an image is warned of; `PIL.ImageOps.exif_transpose` turns it.
"""

import io
import json
import warnings
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from transformers import ImageFeatureExtractionPipeline, PreTrainedTokenizerFast
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, infer_channel_dimension_format
from transformers.utils import cached_file

try:
    from .configuration_condvit import CATEGORIES, WHERE  # on the Hub the files are siblings in a package
except ImportError:
    from configuration_condvit import CATEGORIES, WHERE  # in a checkout they are top-level modules

IMAGE_MEAN, IMAGE_STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
SETTINGS = ("size", "image_mean", "image_std", "return_tensors", "input_data_format")  # what a call may change
FIXED = {"resample": Image.Resampling.BILINEAR, "rescale_factor": 1 / 255, "do_center_crop": False}
# Without these two files sentence-transformers would average the last layer's tokens, which are no embedding.
INPUTS = dict.fromkeys(("image", "image+text"), {"method": "forward", "method_output_name": "image_embeds"})
TASK = {"transformer_task": "feature-extraction", "modality_config": INPUTS, "module_output_name": "sentence_embedding"}
MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}


def pad_and_resize(image: Image.Image, size: int) -> Image.Image:
    """An image as RGB of `size` x `size`: centred on a white square, then resized bilinearly; nothing is cropped.

    Transparency is dropped, not blended. This is the published evaluation transform, bit for bit.
    """
    image, side = image.convert("RGB"), max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def to_pixel_values(image: Any, mean: tuple[float, ...] = IMAGE_MEAN, std: tuple[float, ...] = IMAGE_STD) -> np.ndarray:
    """An RGB image or array (H, W, 3) of 0..255 as normalised float32 (3, H, W)."""
    pixels = np.asarray(image, np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1))


def read_image(source: Any, channels: str | None = None) -> Image.Image:
    """A path, address, bytes, open file, array or PIL image as a PIL image, as it is stored.

    Arrays are (H, W), (H, W, C) or (C, H, W), by `channels` where the shape does not say: of 0 to 255, or floats to 1.
    """
    if hasattr(source, "ndim"):
        array = np.atleast_3d(source)
        if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
            array = np.rint(255 * array)  # 0.2 as a float32 may come out below 51
        if channels is None and source.ndim == 3:
            channels = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        return to_pil_image(array, input_data_format=channels or "channels_last")
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        source = urlopen(Request(source, headers={"User-Agent": "CondViT"}), timeout=60).read()
    source = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    if not isinstance(source, Image.Image | str | Path) and not hasattr(source, "read"):
        raise ValueError(f"{source!r:.80} is no image. Give a path, bytes, an open file, a PIL image or an array.")
    image = source if isinstance(source, Image.Image) else Image.open(source)
    with suppress(Exception):  # a damaged tag is no reason to refuse good pixels
        if (turn := image.getexif().get(0x0112, 1)) != 1:
            warnings.warn(f"EXIF orientation {turn} is ignored; ImageOps.exif_transpose(image) obeys it.", stacklevel=2)
    return image


def did_you_mean(word: Any, known: list[str]) -> str:
    """The nearest known word as a hint, or an empty string."""
    lower = {name.lower(): name for name in known}
    near = get_close_matches(str(word).strip().lower(), lower, n=1)
    return f" Did you mean {lower[near[0]]!r}?" if near else ""


def one_for_each(what: str, given: str | list[str], count: int) -> list[str]:
    """One word for all images, or a list with one for each, as such a list."""
    words = [given] * count if isinstance(given, str) or not hasattr(given, "__iter__") else list(given)
    if len(words) != count:
        raise ValueError(f"Images: {count}, {what}: {words!s:.99}. Give one for all, or one for each.")
    return words


class CondViTProcessor(PilBackend):
    """`processor(images, categories="Bags")` gives `pixel_values` and `category_indices`.

    Args:
        categories: the names that the model knows, in the order of its configuration; saved with the processor.
        tokenizer: of a text model, its encoder's; saved in the same folder.
        kwargs: `size` (the model's `image_size`), `image_mean`, `image_std`.
    """

    size = {"height": 224, "width": 224}
    image_mean, image_std = IMAGE_MEAN, IMAGE_STD

    def __init__(self, categories: list[str] | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        if isinstance(categories, str):
            raise ValueError(f"categories={categories!r} is one name. Give a list of all that the model knows.")
        self.categories = list(CATEGORIES if categories is None else categories)

    def __call__(
        self,
        images: Any,
        categories: str | list[str] | None = None,
        texts: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch: `pixel_values` (B, 3, S, S) float32, and for a condition `category_indices` (B,) int64 or
        `input_ids` and `attention_mask` (B, L) int64.

        Args:
            images: one or a list of what `read_image` reads, or an array of images.
            categories: what to look for: one name for all images, or a list with one for each.
            texts: the same in words, for a text model; what is longer than it reads is cut, and warned of.
            kwargs: SETTINGS for this call; tensors are torch's by default. `text` is sentence-transformers' word for
                `texts`, or for `categories`.
        """
        if (text := kwargs.pop("text", None)) is not None and categories is None and texts is None:
            categories, texts = (None, text) if self.tokenizer else (text, None)
        if unknown := [key for key in kwargs if key not in self.valid_kwargs.__annotations__]:
            known = ["categories", "texts", *SETTINGS]
            raise TypeError(f"Unknown argument {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
        if categories is not None and texts is not None:
            raise ValueError("categories and texts were given. An image has one condition: give one of them.")
        data = dict(self.preprocess(images, **{**kwargs, "return_tensors": None}))
        if categories is not None:
            names = one_for_each("categories", categories, len(data["pixel_values"]))
            if unknown := [name for name in names if name not in self.categories]:
                known = f"This model knows {self.categories}; for no condition, leave categories out."
                raise ValueError(f"Unknown category {unknown[0]!r}.{did_you_mean(unknown[0], self.categories)} {known}")
            data["category_indices"] = np.array([self.categories.index(name) for name in names], np.int64)
        if texts is not None:
            data |= self.tokens_of(one_for_each("texts", texts, len(data["pixel_values"])))
        return BatchFeature(data=data, tensor_type=kwargs.get("return_tensors", "pt"))

    def tokens_of(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Texts as `input_ids` and `attention_mask` (B, L)."""
        if self.tokenizer is None:
            raise ValueError(f"This model reads no texts. Its conditions are categories: {self.categories}.")
        if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"texts holds {wrong[0]!r}, which says nothing. For no condition, leave texts out.")
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_attention_mask=True)
        if any(encoding.overflowing for encoding in tokens.encodings or []):
            most = self.tokenizer.model_max_length
            warnings.warn(f"A text is longer than {most} tokens; its end is cut.", stacklevel=3)
        return {key: np.array(tokens[key], np.int64) for key in ("input_ids", "attention_mask")}

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[Image.Image]:
        """One input or many as PIL images. PilBackend would turn files by EXIF, and takes neither bytes nor (H, W)."""
        if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
            return [image for item in images for image in self._prepare_image_like_inputs(item, **kwargs)]
        return [read_image(images, kwargs.get("input_data_format"))]

    def _preprocess(self, images: list, size: Any, image_mean: Any, image_std: Any, **kwargs: Any) -> BatchFeature:
        """Replaces PilBackend's chain of general steps, which is slower and cannot pad to a square first."""
        if not size.height or size.height != size.width:
            raise ValueError(f'size={size} is not a square. Give one integer, or an equal "height" and "width".')
        for key, value in kwargs.items():
            if key not in SETTINGS and value not in (None, FIXED.get(key, True)):
                raise ValueError(f"{key}={value!r} is not how the model was trained. Leave it out.")
        pixels = [to_pixel_values(pad_and_resize(image, size.height), image_mean, image_std) for image in images]
        pixels = pixels or np.empty((0, 3, size.height, size.width), np.float32)
        return BatchFeature({"pixel_values": pixels}, tensor_type=kwargs.get("return_tensors"))

    @classmethod
    def from_pretrained(cls, name_or_path: Any, **kwargs: Any) -> "CondViTProcessor":
        """As transformers' own, and with the tokenizer, where its files are in the folder."""
        where = {key: kwargs[key] for key in WHERE if key in kwargs}
        processor = super().from_pretrained(name_or_path, **kwargs)
        if cached_file(name_or_path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **where):
            processor.tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, **where)
        return processor

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds; the tokenizer has files of its own."""
        told = super().to_dict()
        told.pop("tokenizer", None)
        if self.tokenizer is not None and (names := told.get("auto_map")):
            # Beside a tokenizer, AutoProcessor would take that for the processor.
            told["auto_map"] = {**names, "AutoProcessor": names["AutoImageProcessor"]}
        return told

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Saves the processor, and what tells sentence-transformers that `image_embeds` is the embedding."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        saved = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        for name, content in {"modules.json": [MODULE], "sentence_bert_config.json": TASK}.items():
            Path(save_directory, name).write_text(json.dumps(content, indent=2) + "\n")
        return saved


class CondViTPipeline(ImageFeatureExtractionPipeline):
    """`extract(images, categories="Bags")`, or `texts=`: transformers' own drops them in silence, and obeys EXIF."""

    def _sanitize_parameters(self, image_processor_kwargs=None, return_tensors=None, pool=None, **asked):
        return super()._sanitize_parameters({**(image_processor_kwargs or {}), **asked}, return_tensors, pool)

    def preprocess(self, image: Any, **kwargs: Any) -> BatchFeature:
        return self.image_processor(image, return_tensors="pt", **kwargs).to(self.dtype)  # integers stay integers


CondViTProcessor.register_for_auto_class("AutoImageProcessor")
