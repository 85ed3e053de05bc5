"""From product rows to training pairs: which two images, how they are cropped, and what to do when one is damaged.

Every draw comes from (seed, epoch, product id), so a pair does not depend on the worker, the process or the batch that
makes it, and a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lrvsf.data.images import BadImage, BadImageCounter, TooMuchDamage, decode_image
from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.data.sharing import marks
from lrvsf.data.wording import Wording, text_hash

CROP = (0.8, 1.0)  # of an image's area


def draws_of(seed: int, epoch: int, product_id: str) -> np.random.Generator:
    """The generator of one product in one epoch."""
    # Not hash(): Python salts it, so that each process would draw something else.
    name = int.from_bytes(hashlib.blake2b(product_id.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng([seed, epoch, name])


def random_box(side: int, rng: np.random.Generator, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random part of a square, in pixels, as torchvision's RandomResizedCrop draws it.

    The area's share is uniform in `scale` and the aspect log-uniform within 3:4. A box that does not fit is drawn anew:
    cut to the square it would be smaller than `scale` allows. After ten the whole square is taken.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * side * side
        # Uniform in the logarithm: 3:4 is drawn as often as 4:3.
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = (round(math.sqrt(area * r)) for r in (ratio, 1 / ratio))
        if 0 < width <= side and 0 < height <= side:
            return int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1)), width, height
    return 0, 0, side, side


def augment(image: Image.Image, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Pads to a white square, crops a random part, scales it, mirrors half: uint8 (3, size, size).

    `CROP` bounds the part's share of the area, see `random_box`. Torch's antialiased bilinear filter is Pillow's, in
    half the time; the exact Pillow resize is for evaluation (processing_condvit).
    """
    # Cut first and scaled after, so that only the part that is used is scaled. The white margin is cut like the image.
    side = max(image.size)
    left, top, width, height = random_box(side, rng, CROP)
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    x, y = (side - image.width) // 2, (side - image.height) // 2
    square[y : y + image.height, x : x + image.width] = image
    part = torch.from_numpy(square[top : top + height, left : left + width]).permute(2, 0, 1)[None]  # (1, 3, h, w)
    pixels = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
    return pixels.flip(-1) if rng.random() < 0.5 else pixels


def picture_numbers(row: dict, condition: int | str | None) -> list[int]:
    """Distinct numbers of a product's pictures: products with one in common are one thing (see lrvsf.data.sharing).

    Args:
        row: a product row.
        condition: the category that the pair is asked by: its index, -1 without one, or its name if words ask.
    """
    cells = [(image["type"], image["image"]["bytes"]) for image in row["images"] if image and image["image"]]
    return sorted({m for kind, data in cells if data for m in marks(hashlib.sha256(data).digest(), kind, condition)})


def target_cells(row: dict, categories: list[str] | None, wording: Wording | None) -> list[dict]:
    """A product's pictures that may be its target: SIMPLE ones that can be asked for."""
    simples = [image for image in row["images"] if image is not None and image["type"] == SIMPLE]
    if categories is not None:  # a target of another category could not be asked for
        simples = [image for image in simples if image["category"] in categories]
    return simples if wording is None else [image for image in simples if wording.drawable(image)]


class PairMaker:
    """Makes batches of pairs from batches of product rows; runs in the loader's workers.

    Args:
        image_size: pixels a side.
        categories: the model's conditions in index order, or None to train without them.
        seed: of every draw, with the epoch and the product's id.
        wording: how words ask, for a model that reads texts.
        places: where the targets are embedded already: (rows,) the place of each row's target among them, or -1 for one
            that could not be read. A product's target is then always the first of its pictures that may be one.
    """

    def __init__(
        self,
        image_size: int,
        categories: list[str] | None,
        seed: int,
        wording: Wording | None = None,
        places: np.ndarray | None = None,
    ):
        self.image_size, self.categories, self.seed, self.wording = image_size, categories, seed, wording
        self.places = places

    def batch(self, epoch: int, rows: list[dict], spares: list[dict]) -> dict[str, Any]:
        """Pairs of `rows`; a product without a readable pair is replaced by the next spare: B never changes.

        Returns:
            `pixel_values` and `target_pixel_values`, uint8 (B, 3, S, S); in place of the latter `target_places`, int64
            (B,), of targets that are embedded already; if conditioned `category_indices`, int64 (B,), or
            `text_hashes`, uint64 (B,) of numpy, whose texts the loader turns into `text_embeds`;
            `pictures`: int64 (B, P) numbers of all pictures of each product, 0 where it has fewer than P;
            `product_ids`: their ids, list of B; `tried`: for `count_images`, a list of (product id, None or why it
            cannot be used), one for each image in the order in which they were decoded. Where the spares do not suffice
            there are no pixels, and `unfilled` says so: it is the process that trains which knows of all batches, and
            ends the run.
        """
        pairs, ids, pictures, tried, spare = [], [], [], [], iter(spares)
        for row in rows:
            pair = self.pair(row, epoch, tried)
            # In the order given, on any worker: which spare a product gets does not depend on who decodes faster.
            while pair is None:
                if (row := next(spare, None)) is None:
                    why = f"only {len(pairs)} of a batch of {len(rows)} products, with {len(spares)} spare ones"
                    return {"product_ids": ids, "tried": tried, "unfilled": why}
                pair = self.pair(row, epoch, tried)
            pairs.append(pair)
            ids.append(row["product_id"])
            pictures.append(torch.tensor(picture_numbers(row, pair[2])))
        queries, targets, _, conditions = zip(*pairs, strict=True)
        batch: dict[str, Any] = {"pixel_values": torch.stack(queries)}
        batch |= {"target_pixel_values": torch.stack(targets)} if self.places is None else {}
        batch |= {"target_places": torch.tensor(targets)} if self.places is not None else {}
        batch |= {"product_ids": ids, "pictures": pad_sequence(pictures, batch_first=True)}  # (B, P), 0 is no number
        if self.categories is not None:
            batch["category_indices"] = torch.tensor(conditions)
        if self.wording is not None:
            batch["text_hashes"] = np.array(conditions, np.uint64)
        return {**batch, "tried": tried}

    def pair(self, row: dict, epoch: int, tried: list[tuple[str, str | None]]):
        """One product's query, target, category (see `picture_numbers`) and condition, the category's index or a text's
        hash; None if no scene or no SIMPLE image can be read."""
        if not row["images"]:
            tried.append((row["product_id"], "lost in a damaged shard"))
            return None
        # One generator a product: the draws of others, readable or not, do not move this one's.
        rng = draws_of(self.seed, epoch, row["product_id"])
        scenes = [image for image in row["images"] if image is not None and image["type"] in SCENES]
        simples = target_cells(row, self.categories, self.wording)
        query = self._first_readable(row, scenes, rng, tried)
        target = self._first_readable(row, simples, rng, tried) if self.places is None else self._place(row, simples)
        if query is None or target is None:
            return None
        (scene, _), (target, cell) = query, target
        pixels = [augment(scene, self.image_size, rng)]
        pixels.append(augment(target, self.image_size, rng) if self.places is None else target)
        if self.wording is not None:  # after the crops, which are those of a model without words
            # The category says what is one thing, as two captions of one picture are one question.
            return *pixels, cell["category"], text_hash(self.wording.draw(cell, rng))
        index = self.categories.index(cell["category"]) if self.categories is not None else -1
        return *pixels, index, index

    def _place(self, row: dict, simples: list[dict]) -> tuple[int, dict] | None:
        """Where the product's target is embedded, and the cell of its picture; counted where it was embedded."""
        place = int(self.places[row["row"]])
        return (place, simples[0]) if place >= 0 else None

    def _first_readable(self, row: dict, images: list[dict], rng: np.random.Generator, tried: list):
        """The first readable one in random order, decoded and as it is in the row."""
        # A damaged picture costs itself: the product is lost only if all of a kind are damaged.
        for index in rng.permutation(len(images)):
            try:
                image = decode_image(_encoded(images[index]["image"]))
            except BadImage as error:
                tried.append((row["product_id"], error.reason))
            else:
                tried.append((row["product_id"], None))
                return image, images[index]
        return None


def count_images(batch: dict[str, Any], counter: BadImageCounter) -> None:
    """Takes the record of its images out of a batch and counts them, in their order.

    Raises:
        TooMuchDamage: the counter has had enough, or the batch is not full; with the reasons of all batches.
    """
    for product, reason in batch.pop("tried"):
        if reason is None:
            counter.add_good()
        else:
            counter.add_bad(f"an image of product {product}", reason)
    if why := batch.pop("unfilled", None):
        raise TooMuchDamage(
            f"{counter.summary()}\n{why}, have readable images. Repair the data; where a batch takes nearly all "
            "products, make it smaller."
        )


def _encoded(cell: dict | None) -> bytes | None:
    """An image cell's bytes. A path is never opened: it names a file of the machine that wrote the shard."""
    if cell and not cell["bytes"] and cell["path"]:
        raise BadImage("a path and no bytes", cell["path"])
    return cell["bytes"] if cell else None
