"""CondViT's processor: images and category names become the model's inputs.

`pad_and_resize` and `to_pixel_values` are its image path as plain functions, for evaluation. No torchvision.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, infer_channel_dimension_format

try:
    from .configuration_condvit import CATEGORIES  # on the Hub the files are siblings in a package
except ImportError:
    from configuration_condvit import CATEGORIES  # in a checkout they are top-level modules

IMAGE_MEAN, IMAGE_STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)


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


class CondViTProcessor(PilBackend):
    """`processor(images, categories=None, return_tensors="pt")` gives `pixel_values` and `category_indices`.

    Args:
        categories: the names that the model knows, in the order of its configuration; saved with the processor.
        kwargs: `size` (the model's `image_size`), `image_mean`, `image_std`.
    """

    size = {"height": 224, "width": 224}
    image_mean, image_std = IMAGE_MEAN, IMAGE_STD

    def __init__(self, categories: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(categories, str):
            raise ValueError(f"categories={categories!r} is one name. Give a list of all that the model knows.")
        self.categories = list(CATEGORIES if categories is None else categories)

    def __call__(self, images: Any, categories: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Prepares a batch: `pixel_values` (B, 3, S, S) float32 and, with categories, `category_indices` (B,) int64.

        Args:
            images: one or a list: PIL images, arrays (H, W, 3) or (3, H, W), or paths and URLs.
            categories: what to look for, one name for each image; a string for one image.
            kwargs: `return_tensors` ("pt", "np" or None) and, for this call, `size`, `image_mean`, `image_std`.
        """
        return_tensors = kwargs.pop("return_tensors", None)
        data = dict(self.preprocess(images, **kwargs))
        if categories is not None:
            names, count = [categories] if isinstance(categories, str) else list(categories), len(data["pixel_values"])
            if len(names) != count:
                raise ValueError(f"Got {count} images and {len(names)} categories. Give one category for each image.")
            if unknown := [name for name in names if name not in self.categories]:
                raise ValueError(f"Unknown category {unknown[0]!r}. This model knows {self.categories}.")
            data["category_indices"] = [self.categories.index(name) for name in names]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def process_image(self, image: Any, **kwargs: Any) -> Image.Image:
        """One input image as a PIL image, which PilBackend would turn into an array."""
        if isinstance(image, Image.Image):
            return image
        image = np.asarray(image)
        return to_pil_image(image, input_data_format=infer_channel_dimension_format(image, num_channels=(1, 3, 4)))

    def _preprocess(self, images: list, size: Any, image_mean: Any, image_std: Any, **kwargs: Any) -> BatchFeature:
        """Replaces PilBackend's chain of general steps, which is slower and cannot pad to a square first."""
        if not size.height or size.height != size.width:
            raise ValueError(f'size={size} is not a square. Give one integer, or "height" and "width" alike.')
        if other := [key for key in kwargs if key.startswith("do_") and kwargs[key] is (key == "do_center_crop")]:
            raise ValueError(f"{other[0]}={kwargs[other[0]]} is not how the model was trained. Leave it out.")
        pixels = [to_pixel_values(pad_and_resize(image, size.height), image_mean, image_std) for image in images]
        return BatchFeature({"pixel_values": pixels})


CondViTProcessor.register_for_auto_class("AutoImageProcessor")
