"""A caption store of a million texts: built and read with flat memory, and how long a batch waits for its rows.

    python benchmarks/bench_captions.py [--texts 1000000] [--dim 768]

The encoder is a fake that costs nothing, so that the store's own time and memory are seen. Memory is the process's own
(anonymous pages), without the files that the system's cache holds for all.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.wording import text_hash
from lrvsf.embedding.captions import CaptionStore

BATCH = 360  # the published batch
LOOKUPS = 200


def own_memory() -> float:
    """MB of anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def texts(count: int) -> Iterator[str]:
    return (f"a photo of garment number {number}, worn by a person in a street" for number in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        row = torch.linspace(-1, 1, args.dim)
        before, start, most = own_memory(), time.perf_counter(), 0.0
        added = 0
        for part in CaptionStore(Path(folder), args.dim).add(
            texts(args.texts), lambda batch: row.expand(len(batch), -1)
        ):
            added, most = added + part, max(most, own_memory() - before)
        built = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        print(f"built: {added:,} texts in {built:.0f} s, {size:,.0f} MB of files, own memory +{most:.0f} MB at most")
        start = time.perf_counter()
        again = sum(
            CaptionStore(Path(folder), args.dim).add(texts(args.texts), lambda batch: row.expand(len(batch), -1))
        )
        print(f"a later run finds all in {time.perf_counter() - start:.0f} s, {again} texts new")
        before, start = own_memory(), time.perf_counter()
        store = CaptionStore(Path(folder), args.dim)
        print(f"opened: {len(store.parts)} parts in {1e3 * (time.perf_counter() - start):.0f} ms")
        rng, waits = np.random.default_rng(0), []
        for _ in range(LOOKUPS):
            drawn = rng.integers(args.texts, size=BATCH).tolist()
            wanted = (f"a photo of garment number {number}, worn by a person in a street" for number in drawn)
            hashes = np.array([text_hash(text) for text in wanted], np.uint64)
            start = time.perf_counter()
            store(hashes)
            waits.append(1e3 * (time.perf_counter() - start))
        print(
            f"{BATCH} rows: {np.median(waits):.1f} ms (median of {LOOKUPS}), own memory {own_memory() - before:+.0f} MB"
        )


if __name__ == "__main__":
    main()
