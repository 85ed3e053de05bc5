"""Near duplicates on a drawn shop: which copies of a picture are folded, and which other items are.

    python prepare_lrvsf.py mini_shop data/shop --items 4000 --seed 3
    python benchmarks/bench_copies.py assets/mini-condvit data/shop

Two rules are compared: cosines alone, and thumbnails from a cosine on (`lrvsf/search/copies.py`). A line has the share
of copies of each kind that is folded with the original, and the share of items that are folded with another item.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.mini.shop import ITEMS
from lrvsf.search.copies import ALIKE, CELLS, grid
from lrvsf.search.own_model import load_encoder
from lrvsf.search.segments import thumbnail

COPIED = 600  # items of which copies are made
SHARES = (0.15, 0.2, 0.25, 0.3, 0.4)
COSINES = (0.995, 0.99, 0.98, 0.95, 0.9, ALIKE)
BLOCK = 2048  # pairs


def jpeg(image: Image.Image, quality: int = 85) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return decode_shown(out.getvalue())


def smaller(image: Image.Image, factor: int) -> Image.Image:
    return jpeg(image.resize((image.width // factor, image.height // factor), Image.Resampling.BICUBIC))


def trimmed(image: Image.Image, pixels: int) -> Image.Image:
    return image.crop((pixels, pixels, image.width - pixels, image.height - pixels))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 60": lambda image: jpeg(image, 60),
    "JPEG, quality 30": lambda image: jpeg(image, 30),
    "half": lambda image: smaller(image, 2),
    "quarter": lambda image: smaller(image, 4),
    "trimmed by 2 px": lambda image: jpeg(trimmed(image, 2)),
    "half, trimmed by 2": lambda image: smaller(trimmed(image, 2), 2),
    "trimmed by 8 px": lambda image: jpeg(trimmed(image, 8)),
    "mirrored": lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def looked_at(encoder, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim) embeddings, (n, CELLS * CELLS, 3) grids of the thumbnails."""
    batches = [images[start : start + 64] for start in range(0, len(images), 64)]
    rows = [encoder.embed([encoder.pixels_of(image) for image in batch]).numpy() for batch in batches]
    grids = np.stack([grid(decode_shown(thumbnail(image))) for image in images])
    return np.concatenate(rows), grids.reshape(-1, CELLS * CELLS, 3)


def compared(
    rows: np.ndarray, grids: np.ndarray, others: np.ndarray, theirs: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(2, n): cosines, and differences of the grids as shares of the larger contrast, for pairs of places."""
    contrasts = [np.linalg.norm(one - one.mean(1, keepdims=True), axis=(1, 2)) for one in (grids, theirs)]
    cosines, differences = np.empty((2, len(pairs[0])))
    for start in range(0, len(pairs[0]), BLOCK):  # a pair of grids is 24 KB, and there are millions of pairs
        one, two = (places[start : start + BLOCK] for places in pairs)
        cosines[start : start + BLOCK] = (rows[one] * others[two]).sum(1)
        apart = np.linalg.norm((grids[one] - theirs[two]).reshape(len(one), -1), axis=1)
        differences[start : start + BLOCK] = apart / np.maximum(contrasts[0][one], contrasts[1][two])
    return np.stack([cosines, differences])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("shop", type=Path, help="what prepare_lrvsf.py mini_shop drew")
    args = parser.parse_args()
    encoder = load_encoder(args.model, None, "cpu")
    images = [decode_shown(data) for data in pq.read_table(args.shop / ITEMS)["image"].to_pylist()]
    rows, grids = looked_at(encoder, images)
    copied = np.random.default_rng(0).choice(len(images), min(COPIED, len(images)), replace=False)
    found = {}
    for name, change in KINDS.items():
        copies = looked_at(encoder, [change(images[item]) for item in copied])
        found[name] = compared(*copies, rows, grids, (np.arange(len(copied)), copied))
    one, two = np.nonzero(np.triu(rows @ rows.T >= ALIKE, 1))
    pairs = compared(rows, grids, rows, grids, (one, two))
    print(f"{len(one):,} pairs of items have a cosine of {ALIKE}: {2 * len(one) / len(images):,.0f} others an item.\n")

    def line(rule: str, folds: Callable[[np.ndarray], np.ndarray]) -> None:
        wrong = folds(pairs)
        touched = len(np.union1d(one[wrong], two[wrong])) / len(images)
        print(f"| {rule} |", *(f"{folds(of_kind).mean():.2f} |" for of_kind in found.values()), f"{touched:.1%} |")

    print("| folded |", *(f"{name} |" for name in KINDS), "with another item |")
    print("|" + " --- |" * (len(KINDS) + 2))
    for cosine in COSINES:
        line(f"cosine {cosine}", lambda pair, least=cosine: pair[0] >= least)
    for share in SHARES:
        line(f"difference {share}", lambda pair, most=share: (pair[0] >= ALIKE) & (pair[1] <= most))


if __name__ == "__main__":
    main()
