"""What it costs to list the pictures of a table, which `search_catalog.py index` does in one process, on any engine.

    python benchmarks/bench_listing.py [--rows 300000]

The table is Parquet files of 100,000 rows: an id of 18 letters, a title, a brand, a price, and an `image` of a few
bytes, which the listing passes over. Rows a second are of processor time, so that they hold on a busy machine. Memory
is by how much the process grew, at the most and once it had listed, in bytes a row.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.search.sources.kinds import open_source

FILE = 100_000  # rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=300_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="bench-listing-") as folder:
        draw(Path(folder), min(rows, 1000))  # what is imported and opened once is no row's
        open_source(folder)
        draw(Path(folder), rows)
        before, start = resident(), time.process_time()
        source = open_source(folder)
        seconds, after = time.process_time() - start, resident()
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = f"{(most - before) / rows:,.0f} bytes a row at the most, {(after - before) / rows:,.0f} once listed"
    print(f"{len(source):,} rows, {rows / seconds:,.0f} a second; {told}")


if __name__ == "__main__":
    main()
