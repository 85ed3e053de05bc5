"""Memory and time of `prepare_lrvsf.py products` at the full size of LRVS-F: 842,000 images of 272,000 products.

    python benchmarks/bench_products.py [--scale 0.01] [--side 8] [--processes 2]

The images are real JPEGs but tiny (8 x 8 pixels), so the number of rows is the real one and the number of bytes is not:
that shows what grows with rows. What grows with bytes shows at a small --scale and a large --side (128: 10 kB each).
Memory is that of all processes together: RSS counts pages that several of them share several times, PSS once. Both
count pages of mapped files, which the system takes back when it wants them.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.prepare.laion.write_products import products
from lrvsf.report import as_table

IMAGES, PRODUCTS = 842_000, 272_000
FILE_ROWS = 10_000  # img2dataset's default
KINDS = ("SIMPLE", "COMPLEX", "PARTIAL_COMPLEX", "COMPLEX")
SAMPLE_SECONDS = 0.2


def noise_jpeg(rng: np.random.Generator, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_downloads(folder: Path, images: int, count: int, side: int) -> None:
    """Files as img2dataset's, the images of a product scattered over them."""
    rng = np.random.default_rng(0)
    scattered = rng.permutation(images)
    for start in tqdm(range(0, images, FILE_ROWS), desc="downloads", unit="file"):
        rows = []
        for number in scattered[start : start + FILE_ROWS].tolist():
            product, kind = number % count, KINDS[number // count % len(KINDS)]
            row = {"url": f"https://shop.example/images/{number:08d}.jpg", "key": f"{number:09d}", "status": "success"}
            row |= {
                "product_id": f"product-{product:07d}",
                "type": kind,
                "split": "train",
                "jpg": noise_jpeg(rng, side),
            }
            row |= {"category": "Bags" if kind == "SIMPLE" else None, "captions": [f"a picture of product {product}"]}
            rows.append(row)
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{start // FILE_ROWS:05d}.parquet", row_group_size=100)


def run_products(downloads: Path, out: Path, processes: int | None) -> None:
    print(as_table(products(downloads, out, processes=processes)))


def watch(process: multiprocessing.Process) -> dict[str, int]:
    """The peaks of a process with all its children, in bytes, until it ends."""
    peaks = {"RSS": 0, "PSS": 0, "processes": 0}
    while process.is_alive():
        now = dict.fromkeys(peaks, 0)
        try:
            parent = psutil.Process(process.pid)
            for member in (parent, *parent.children(recursive=True)):
                memory = member.memory_full_info()
                now["RSS"] += memory.rss
                now["PSS"] += memory.pss
                now["processes"] += 1
        except psutil.NoSuchProcess:  # one ended while it was looked at: this sample is no peak
            process.join(SAMPLE_SECONDS)
            continue
        peaks = {name: max(peaks[name], now[name]) for name in peaks}
        process.join(SAMPLE_SECONDS)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images and products")
    parser.add_argument("--side", type=int, default=8, help="pixels a side")
    parser.add_argument("--processes", type=int, help="how many decode; all cores by default")
    args = parser.parse_args()
    images, count = round(IMAGES * args.scale), round(PRODUCTS * args.scale)
    with tempfile.TemporaryDirectory() as folder:
        downloads, out = Path(folder) / "downloads", Path(folder) / "out"
        write_downloads(downloads, images, count, args.side)
        size = sum(file.stat().st_size for file in downloads.iterdir())
        # Started afresh, so that what it took to make the downloads is not counted.
        process = multiprocessing.get_context("spawn").Process(
            target=run_products, args=(downloads, out, args.processes)
        )
        start = time.perf_counter()
        process.start()
        peaks = watch(process)
        seconds = time.perf_counter() - start
    if process.exitcode:
        raise SystemExit(f"products ended with exit code {process.exitcode}")
    print(
        f"\n{images:,} images of {count:,} products, {size / 1e6:,.0f} MB of downloads, {peaks['processes']} processes"
    )
    print(f"time       {seconds:,.0f} s, {images / seconds:,.0f} images/s")
    print(f"peak RSS   {peaks['RSS'] / 1e9:.2f} GB")
    print(f"peak PSS   {peaks['PSS'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
