"""Grouping downloads by product: our step, on one machine and on a cluster, and Ray Data's two shuffles of its rows.

    python benchmarks/bench_shuffle.py [--images 4000] [--times 4] [--store 128] [--markdown]

- one process, ray: `prepare_lrvsf.py products`, by itself and with two actors; pictures are decoded, shards written;
- sort, hash: nothing but the exchange of keys and pictures by `Dataset.sort` and `Dataset.repartition(keys=)`, whose
  rows are counted. Who used them would decode and write besides.

Pictures are JPEGs of 256 x 341 pixels in files of 500, two of a product. Memory is the largest sum over all processes,
with what several share counted once (PSS); "spilled" is what Ray's object store of --store MiB says it wrote to the
disk. Each run has a cluster of two CPUs of its own, and ends after 90 seconds ("-").
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_ray import Watch
from bench_stream import photos
from bench_train import table

WAYS = ("one process", "ray", "sort", "hash")
HEADER = ["way", "images", "MB", "seconds", "memory, MB", "spilled, MB"]
FILE_ROWS, PARTITIONS, ACTORS, LIMIT = 500, 16, 2, 90


def write_downloads(folder: Path, images: int) -> None:
    """Files as `prepare_lrvsf.py download` leaves them; the pictures of a product are in two of them."""
    encoded = photos(np.random.default_rng(0))
    for start in range(0, images, FILE_ROWS):
        rows = []
        for number in range(start, min(start + FILE_ROWS, images)):
            data = encoded[number % len(encoded)] + number.to_bytes(8, "big")  # decoders pass over it
            kind = "SIMPLE" if number < images // 2 else "COMPLEX"
            text = {"product_id": f"p{number % (images // 2)}", "type": kind, "split": "train", "status": "success"}
            rows.append({"url": str(number), "sha256": hashlib.sha256(data).hexdigest(), "jpg": data} | text)
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{start:08d}.parquet", row_group_size=100)


def keys_and_pictures(batch: dict[str, Any]) -> Iterator[pa.Table]:
    """The rows of a file, with a hash of the product for a key."""
    for group in pq.ParquetFile(str(batch["file"][0])).iter_batches(64, columns=["product_id", "jpg"]):
        keys = [hashlib.blake2b(name.encode(), digest_size=8).hexdigest() for name in group["product_id"].to_pylist()]
        yield pa.table({"key": keys, "jpg": group["jpg"]})


def exchange(way: str, folder: Path) -> None:
    """Ray Data's shuffle of the rows, counted block by block."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.shuffle_strategy = ray.data.context.ShuffleStrategy(
        "hash_shuffle" if way == "hash" else context.shuffle_strategy
    )
    files = [{"file": str(file)} for file in sorted(folder.glob("*.parquet"))]
    rows = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(keys_and_pictures, batch_size=1)
    moved = rows.sort("key") if way == "sort" else rows.repartition(PARTITIONS, keys=["key"])
    counted = moved.map_batches(lambda block: {"rows": [len(block["key"])]}, batch_size=None)
    count = sum(row["rows"] for row in counted.iter_rows())
    if count != sum(pq.read_metadata(file["file"]).num_rows for file in files):
        raise SystemExit(f"{count} rows came out")


def measure(way: str, folder: Path, store: int) -> dict[str, float]:
    """Seconds, and megabytes of memory and of what was spilled."""
    from lrvsf.prepare.laion.write_products import products

    watch, spilled = Watch(), 0.0
    watch.start()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        if way == "one process":
            products(folder, Path(out), processes=ACTORS)
        else:
            import ray
            from ray._private.internal_api import memory_summary

            options = {"object_store_memory": store * 2**20, "include_dashboard": False, "logging_level": "ERROR"}
            ray.init("local", num_cpus=ACTORS, **options)
            if way == "ray":
                products(folder, Path(out), engine="ray", actors=ACTORS)
            else:
                exchange(way, folder)
            said = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
            found = re.search(r"Spilled (\d+) MiB", said)
            spilled = int(found[1]) * 2**20 / 1e6 if found else 0.0
        seconds = time.monotonic() - began
    watch.done.set()
    watch.join()
    return {"seconds": seconds, "memory": sum(watch.memory) / 1e6, "spilled": spilled}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="N")
    parser.add_argument("--times", type=int, default=4, help="and this many times N")
    parser.add_argument("--store", type=int, default=128, help="MiB of Ray's object store")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--markdown", action="store_true", help="print a table for a page")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help="one run, by which this starts itself")
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.store)))
        return
    rows = []
    for images in (args.images, args.times * args.images):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "downloaded"
            write_downloads(folder, images)
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            for way in args.ways:
                command = [sys.executable, __file__, "--store", str(args.store), "--measure", way, str(folder)]
                try:
                    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=LIMIT)
                    numbers = [f"{number:.0f}" for number in json.loads(made.stdout.splitlines()[-1]).values()]
                except subprocess.TimeoutExpired:
                    numbers = ["-", "-", "-"]
                rows.append([way, images, f"{size:.0f}", *numbers])
                print(*rows[-1], file=sys.stderr)
    print(table(HEADER, rows, args.markdown))


if __name__ == "__main__":
    main()
