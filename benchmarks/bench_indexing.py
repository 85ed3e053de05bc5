"""What `search_catalog.py index` costs besides the model: listing a table, which one process does, and decoding.

    python benchmarks/bench_indexing.py [--rows 300000] [--seconds 3]

The table is Parquet files of 100,000 rows: an id of 18 letters, a title, a brand, a price, and an `image` of a few
bytes, which the listing passes over. Rates are of processor time, of one thread, so that they hold on a busy machine.
Memory is by how much the process grew, at the most and once it had listed, in bytes a row.

An index decodes a picture as a browser shows it, makes the model's pixels and a thumbnail, and hashes the bytes;
evaluation decodes it and makes the pixels. Both take turns at the JPEGs of 256 x 341 pixels that bench_embed.py takes.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_stream import photos

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import decode_image
from lrvsf.search.segments import thumbnail
from lrvsf.search.sources.kinds import open_source
from processing_condvit import pad_and_resize

FILE = 100_000  # rows
SIZE = 224  # pixels


def draw(folder: Path, rows: int) -> None:
    for start in range(0, rows, FILE):
        numbers = range(start, min(start + FILE, rows))
        columns = {
            "id": [f"shop-{number:013d}" for number in numbers],
            "title": [f"a striped thing, the {number % 9973}th of its kind" for number in numbers],
            "brand": [f"brand {number % 500}" for number in numbers],
            "price": [number % 10_000 / 100 for number in numbers],
            "image": [b"\xff\xd8 no picture"] * len(numbers),
        }
        pq.write_table(pa.table(columns), folder / f"part-{start // FILE:05d}.parquet")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def listed(rows: int) -> str:
    """What listing this many rows took, in words."""
    with tempfile.TemporaryDirectory(prefix="bench-indexing-") as folder:
        draw(Path(folder), min(rows, 1000))  # what is imported and opened once is no row's
        open_source(folder)
        draw(Path(folder), rows)
        before, start = resident(), time.process_time()
        source = open_source(folder)
        seconds, after = time.process_time() - start, resident()
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = f"{(most - before) / rows:,.0f} bytes a row at the most, {(after - before) / rows:,.0f} once listed"
    return f"listing: {len(source):,} rows, {rows / seconds:,.0f} a second; {told}"


def for_evaluation(data: bytes) -> None:
    pad_and_resize(decode_image(data), SIZE)


def for_index(data: bytes) -> None:
    hashlib.sha256(data).digest()
    image = decode_shown(data)
    pad_and_resize(image, SIZE)
    thumbnail(image)


def decoded(seconds: float) -> str:
    """What decoding takes for an index and for an evaluation, in words."""
    encoded, ways = photos(np.random.default_rng(0)), (for_evaluation, for_index)
    spent: dict[Callable[[bytes], None], float] = dict.fromkeys(ways, 0.0)
    rounds = 0
    while sum(spent.values()) < seconds:
        for way in ways:
            start = time.process_time()
            for data in encoded:
                way(data)
            spent[way] += time.process_time() - start
        rounds += 1
    plain, full = (1000 * spent[way] / rounds / len(encoded) for way in ways)
    return f"decoding: {full:.2f} ms for an index, {plain:.2f} for an evaluation, {full / plain:.2f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of decoding")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(listed(args.rows))
    print(decoded(args.seconds))


if __name__ == "__main__":
    main()
