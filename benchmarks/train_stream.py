"""Training fed from 256-pixel JPEGs: our stream into our step, the published loader into the published step.

The published loader is written from its description: product tars shared out to 8 workers, Pillow pads, crops, scales
and mirrors, workers give normalised float32 batches, and the main process takes them apart, shuffles 500 pairs and
builds batches again; nothing is pinned.
"""

from __future__ import annotations

import json
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from processing_condvit import to_pixel_values

TARS, SHUFFLED = 16, 500
WARM, TIMED = 4, 20  # batches, beyond those that loaders may have ready when the first step is over


def published_transform(image: Image.Image, size: int) -> np.ndarray:
    """White square, random crop of 80 to 100 % of the area, mirrored by half, normalised float32 (3, size, size)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    area, ratio = random.uniform(0.8, 1) * side**2, np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    width, height = (min(side, round((area * r) ** 0.5)) for r in (ratio, 1 / ratio))
    left, top = random.randint(0, side - width), random.randint(0, side - height)
    part = square.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return to_pixel_values(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part)


class PublishedPairs(IterableDataset):
    """(query, category, target) of each product of this worker's tars."""

    def __init__(self, tars: list[Path], size: int):
        self.tars, self.size = tars, size

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for path in self.tars[first::step]:
            with tarfile.open(path, "r|") as tar:
                product: dict[str, bytes] = {}
                for member in tar:
                    product[member.name.split(".", 1)[1]] = tar.extractfile(member).read()
                    if "json" in product:  # the product's last member
                        yield self.pair(product)
                        product = {}

    def pair(self, product: dict[str, bytes]) -> tuple[np.ndarray, int, np.ndarray]:
        kinds = {key: about["TYPE"] for key, about in json.loads(product["json"]).items()}
        chosen = [random.choice([k for k in kinds if (kinds[k] == "SIMPLE") is simple]) for simple in (False, True)]
        query, target = (Image.open(BytesIO(product[f"{key}.jpg"])).convert("RGB") for key in chosen)
        return published_transform(query, self.size), 0, published_transform(target, self.size)


def published_batches(tars: list[Path], size: int, batch: int, workers: int) -> Iterator[tuple]:
    loader = DataLoader(PublishedPairs(tars, size), batch, num_workers=workers)
    held: list[tuple] = []
    ready: list[tuple] = []
    for parts in loader:
        for pair in zip(*parts, strict=True):
            held.append(pair)
            if len(held) > SHUFFLED:
                ready.append(held.pop(random.randrange(len(held))))
            if len(ready) == batch:
                yield tuple(torch.stack(column) for column in zip(*ready, strict=True))
                ready = []


def our_batches(folder: Path, size: int, batch: int, workers: int, pinned: bool) -> Iterator[tuple]:
    from configuration_condvit import CATEGORIES
    from lrvsf.data.pairs import PairMaker
    from lrvsf.data.products import ProductShards
    from lrvsf.data.stream import PairLoader, ProductBatches

    batches = ProductBatches(ProductShards.scan(str(folder), list(CATEGORIES)), batch, seed=0)
    for made in PairLoader(batches, PairMaker(size, list(CATEGORIES), 0), workers, pin_memory=pinned):
        yield made["pixel_values"], made["category_indices"], made["target_pixel_values"]


def write_data(root: Path, products: int) -> tuple[Path, list[Path]]:
    """The same number of products as shards and as tars."""
    from bench_stream import photos, write_shards, write_tar

    images = photos(np.random.default_rng(0))
    write_shards(root / "shards", products, images)
    tars = [root / f"{number:02d}.tar" for number in range(TARS)]
    for path in tars:
        write_tar(path, -(-products // TARS), images)
    return root / "shards", tars


def fed_rate(step: Callable, batches: Iterator[tuple], warm: int) -> float:
    """Pairs a second of the wall over `TIMED` batches, after the `warm` ones that compile and empty the queues."""
    pairs, start = 0, 0.0
    for number, batch in zip(range(warm + TIMED), batches, strict=False):
        if number == warm:
            loss.item()  # noqa: F821 (waits for the device)
            pairs, start = 0, time.perf_counter()
        loss = step(*batch)
        pairs += len(batch[0])
    loss.item()
    return pairs / (time.perf_counter() - start)
