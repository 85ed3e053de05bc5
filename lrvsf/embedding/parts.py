"""What can be embedded: any source of numbered rows, as a `Part`; and the parts of a test set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from configuration_condvit import CondViTConfig
from lrvsf.data.images import decode_image
from lrvsf.data.parquet import describe_files
from lrvsf.data.testset import Origin, ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.views import Views, averaged, names_of

Item = tuple[int, Any]  # a row number, and what `Part.decode` makes pixels of


class Decoded(NamedTuple):
    """What a row's encoded images became."""

    pixels: list[np.ndarray]  # (3, S, S) uint8 each, in the order of the part's kinds
    extra: Any = None  # what the file beside the shard keeps of the row


class Part(ABC):
    """Rows 0 to `total` of a source. Each gives one embedding of each kind, or is skipped as a whole.

    Attributes:
        what: the name of the rows, in the plural: "products". Messages and the manifest use it.
        kinds: the names of the embeddings; a store's files begin with them.
        total: how many rows there are, readable or not.
        beside: the suffix of a file that a store keeps beside each shard, ".parquet"; None: no such file.
    """

    what: str
    kinds: tuple[str, ...]
    total: int
    beside: str | None = None

    @abstractmethod
    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Every row from start to stop (excluded), once and in order, whether it can be read or not."""

    def decode(self, encoder: Encoder, images: Any) -> Decoded:
        """An item's pixels; several threads call it at once. Raises BadImage, and the row is skipped and counted."""
        return Decoded([encoder.pixels(image) for image in images])

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """kind -> (B, dim) unit rows, from B arrays for each kind. Without a condition, unless a part knows one."""
        return {kind: encoder.embed(images) for kind, images in zip(self.kinds, pixels, strict=True)}

    @abstractmethod
    def origins(self, start: int, stop: int) -> Iterator[Origin]:
        """Where each row from start to stop (excluded) is from. No image is read."""

    @abstractmethod
    def describe(self) -> str:
        """The data, wherever they lie: another text for other data, as far as can be seen without reading images."""

    def conditions(self, encoder: Encoder) -> list[str | None]:
        """What each row is asked by, if the encoder conditions; none at all for a part without conditions."""
        return []

    def pack(self, rows: list[int], extras: list[Any]) -> bytes:
        """The file beside a shard, from what `decode` kept of its rows, ascending. Needed where `beside` is set."""
        raise NotImplementedError


class _TestSetPart(Part):
    def __init__(self, test_set: ProductTestSet) -> None:
        self.test_set, self.total = test_set, getattr(test_set, f"n_{self.what}")

    def origins(self, start: int, stop: int) -> Iterator[Origin]:
        return self.test_set.origins(self.what, start, stop)

    def describe(self) -> str:
        return describe_files(self.test_set.files[self.what])

    def embed_gallery(self, encoder: Encoder, rows: list[int], pixels: list[np.ndarray]) -> Tensor:
        """(B, dim) of pictures that are found, not asked with: without a condition, whatever they are asked for."""
        return encoder.embed(pixels)


class Products(_TestSetPart):
    """The products of a test set: its picture as "target", and a scene as "query", asked by the product's category or
    caption."""

    what, kinds = "products", ("query", "target")
    _texts: list[str] | None = None

    @cached_property  # not at once: a store whose arguments are wrong must be refused before a file is read
    def _categories(self) -> list[str | None]:
        return self.test_set.categories()

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for product in self.test_set.products(start, stop):
            yield product.row, (product.query_image, product.target_image)

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        queries, targets = pixels
        conditions = self.conditions(encoder)
        asked = [conditions[row] for row in rows]
        return {"query": encoder.embed(queries, asked), "target": self.embed_gallery(encoder, rows, targets)}

    def conditions(self, encoder: Encoder) -> list[str | None]:
        if encoder.conditioning == "text" and self._texts is None:
            self._texts = self.test_set.texts(encoder.model.config.text_template)
        return self._texts if encoder.conditioning == "text" else self._categories


class QueryViews(Products):
    """The queries of a test set's products once more, by several views, in a store of their own: targets have none."""

    kinds = ("query",)

    def __init__(self, test_set: ProductTestSet, views: Views) -> None:
        super().__init__(test_set)
        self.views = views

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for product in self.test_set.products(start, stop):
            yield product.row, product.query_image

    def decode(self, encoder: Encoder, image: bytes | None) -> Decoded:
        whole = decode_image(image)
        return Decoded([np.stack([encoder.pixels_of(view.of(whole)) for view in self.views])])  # (V, 3, S, S)

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        conditions = self.conditions(encoder)
        asked = [conditions[row] for row in rows]
        # A view at a time: a forward pass has no more pictures than without views.
        of_each = [encoder.embed(list(looks), asked).numpy() for looks in zip(*pixels[0], strict=True)]  # V of (B, dim)
        return {"query": torch.from_numpy(averaged(np.stack(of_each, axis=1)))}

    def describe(self) -> str:
        return f"{names_of(self.views)} of {super().describe()}"


def check_conditions(test_set: ProductTestSet, conditioning: str, config: CondViTConfig) -> None:
    """Refuses, before anything is embedded, a test set whose products a model cannot be asked for.

    Raises ValueError: a category that it does not know; by text, a product with neither caption nor category.
    """
    if conditioning == "category":
        test_set.check_categories(config.categories)
    elif conditioning == "text":
        test_set.texts(config.text_template)


class Distractors(_TestSetPart):
    """The distractors of a test set."""

    what, kinds = "distractors", ("distractor",)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for row, image in self.test_set.distractors(start, stop):
            yield row, (image,)

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        return {"distractor": self.embed_gallery(encoder, rows, pixels[0])}
