"""What can be embedded: any source of numbered rows, as a `Part`; and the two parts of a test set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lrvsf.data.parquet import describe_files
from lrvsf.data.testset import Origin, ProductTestSet
from lrvsf.embedding.encoder import Encoder

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

    def conditions(self) -> list[str | None]:
        """What each row is conditioned by, if the encoder conditions; none at all for a part without conditions."""
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


class Products(_TestSetPart):
    """The products of a test set: a scene as "query", under the product's category, and its picture as "target"."""

    what, kinds = "products", ("query", "target")

    @cached_property  # not at once: a store whose arguments are wrong must be refused before a file is read
    def _categories(self) -> list[str | None]:
        return self.test_set.categories()

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for product in self.test_set.products(start, stop):
            yield product.row, (product.query_image, product.target_image)

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, Tensor]:
        queries, targets = pixels
        # Only queries are conditioned: a gallery is embedded once, whatever it is asked for.
        categories = [self._categories[row] for row in rows]
        return {"query": encoder.embed(queries, categories), "target": encoder.embed(targets)}

    def conditions(self) -> list[str | None]:
        return self._categories


class Distractors(_TestSetPart):
    """The distractors of a test set."""

    what, kinds = "distractors", ("distractor",)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        for row, image in self.test_set.distractors(start, stop):
            yield row, (image,)
