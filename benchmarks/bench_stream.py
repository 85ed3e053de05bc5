"""Images per second and core: our stream, the published way of reading, and bare JPEG decoding.

    python benchmarks/bench_stream.py [--products 1000]

- ours: product shards -> stream -> decode, crop, mirror, resize -> uint8 batches, in one process, on one thread;
- published: product tars read with webdataset, then pad, resize, float normalise (pip install webdataset);
- decoding: `Image.open(...).convert("RGB")` of the same files, and nothing else.

Rates are per second of processor time, all threads counted; three turns, the median counts. Then what a picture costs
in our stream, in parts, and peak memory of our stream at once and ten times the data, each in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data import pairs
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.stream import PairLoader, ProductBatches
from processing_condvit import pad_and_resize, to_pixel_values

BATCH, SIZE, DIFFERENT = 64, 224, 64


def photos(rng: np.random.Generator) -> list[bytes]:
    """JPEGs of 256 x 341 pixels, as smooth and as rough as photographs: noise of every scale."""
    encoded = []
    for _ in range(DIFFERENT):
        pixels = np.zeros((341, 256, 3))
        for scale in (4, 16, 64, 256):
            noise = rng.integers(0, 256, (-(-341 // scale) + 1, 256 // scale + 1, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((256, 341), Image.Resampling.BICUBIC), float) / 4
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def write_shards(folder: Path, products: int, images: list[bytes]) -> None:
    """Product shards of one SIMPLE image and one scene a product."""
    folder.mkdir(parents=True)
    for file, start in enumerate(range(0, products, 1000)):
        with pq.ParquetWriter(folder / f"{file:05d}.parquet", PRODUCT_FEATURES.arrow_schema, compression="none") as out:
            for first in range(start, min(start + 1000, products), 64):
                rows = [
                    {
                        "product_id": f"p{number}",
                        "images": [
                            {"image": {"bytes": images[(number + i) % DIFFERENT]}, "type": kind, "category": "Bags"}
                            for i, kind in enumerate(("SIMPLE", "COMPLEX"))
                        ],
                    }
                    for number in range(first, min(first + 64, start + 1000, products))
                ]
                out.write_table(pa.Table.from_pylist(rows, schema=PRODUCT_FEATURES.arrow_schema))


def write_tar(path: Path, products: int, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(products):
            members = {f"p{number}.{i}.jpg": images[(number + i) % DIFFERENT] for i in range(2)}
            members[f"p{number}.json"] = json.dumps({"0": {"TYPE": "SIMPLE"}, "1": {"TYPE": "COMPLEX"}}).encode()
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def ours(folder: Path) -> int:
    batches = ProductBatches(ProductShards.scan(str(folder)), BATCH, seed=0)
    return sum(2 * len(batch["pixel_values"]) for batch in PairLoader(batches, PairMaker(SIZE, None, 0)))


def published(tar: Path) -> int:
    import webdataset

    def pair(sample: dict) -> tuple[np.ndarray, np.ndarray]:
        images = (Image.open(io.BytesIO(sample[f"{i}.jpg"])) for i in range(2))
        return tuple(to_pixel_values(pad_and_resize(image, SIZE)) for image in images)

    stream = webdataset.WebDataset(str(tar), shardshuffle=False).shuffle(1000).map(pair).batched(BATCH)
    return sum(2 * len(queries) for queries, _ in stream)


def parts_of_ours(folder: Path) -> dict[str, float]:
    """Microseconds of one picture in our stream: decoded, scaled, and all that its thread does."""
    spent = dict.fromkeys(("decoded and checked", "scaled"), 0.0)

    def timed(name: str, function: Callable) -> Callable:
        def run(*arguments, **options):
            start = time.thread_time()
            result = function(*arguments, **options)
            spent[name] += time.thread_time() - start
            return result

        return run

    with (
        patch.object(pairs, "decode_image", timed("decoded and checked", pairs.decode_image)),
        patch.object(pairs.F, "interpolate", timed("scaled", pairs.F.interpolate)),
    ):
        start = time.thread_time()
        count = ours(folder)
        whole = time.thread_time() - start
    return {name: 1e6 * seconds / count for name, seconds in (spent | {"in all": whole}).items()}


def decoding(images: list[bytes], count: int) -> int:
    for number in range(count):
        Image.open(io.BytesIO(images[number % DIFFERENT])).convert("RGB")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--memory_of", type=Path, help=argparse.SUPPRESS)  # what the processes below are asked
    args = parser.parse_args()
    if args.memory_of:
        ours(args.memory_of)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    images = photos(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_shards(root / "once", args.products, images)
        write_tar(root / "products.tar", args.products, images)
        ways = {
            "ours": lambda: ours(root / "once"),
            "published": lambda: published(root / "products.tar"),
            "decoding": lambda: decoding(images, 2 * args.products),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, way in ways.items():
                start = time.process_time()
                count = way()
                rates[name].append(count / (time.process_time() - start))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"{2 * args.products} JPEGs of 256 x 341 pixels, {np.mean([len(i) for i in images]) / 1e3:.0f} kB each")
        for name, rate in medians.items():
            beside = f"{rate / medians['published']:5.2f} times published {rate / medians['decoding']:6.2f} of decoding"
            print(f"{name:<10} {beside}")
        parts = ", ".join(f"{name} {cost:.0f}" for name, cost in parts_of_ours(root / "once").items())
        print(f"microseconds of a picture in our stream: {parts}; decoding alone {1e6 / medians['decoding']:.0f}")
        write_shards(root / "tenfold", 10 * args.products, images)
        for name in ("once", "tenfold"):
            command = [sys.executable, __file__, "--memory_of", str(root / name)]
            memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"peak memory of our stream, {name:<8} {memory:6.0f} MB")


if __name__ == "__main__":
    main()
