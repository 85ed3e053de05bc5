"""One catalog, searched exactly, by faiss and as a Lance table: recall, latency, disk, time to build, filters.

    python benchmarks/bench_lance.py [--items 200000]

Vectors, queries and filters are drawn as benchmarks/bench_search.py says. Items have an id, a price and 1 KB in place
of a thumbnail. The table's index is built by pylance in this process, and once more by lance-ray on a Ray cluster of
this machine, which has been started before. "MB" is what is searched takes on the disk, vectors and index. Latency is
of one query at a time, ten hits, with all files in the system's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from bench_search import DIM, K, draw, filters, machine, recall, timed

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.scale import lance_index
from lrvsf.scale.cluster import connected
from lrvsf.scale.lance_index import index_of, keep_index
from lrvsf.scale.lance_table import TableGenerations, open_latest
from lrvsf.scale.write_lance import write_lance
from lrvsf.search.build_catalog import write_generation
from lrvsf.search.catalog import Catalog
from lrvsf.search.commands import IndexKind
from lrvsf.search.generations import FORMAT, Generations
from lrvsf.search.index import VectorIndex
from lrvsf.search.segments import DIGEST, ROW, SOURCE, THUMBNAIL, write_items

Found = tuple[VectorIndex, float, int]
FILTERED = 10  # queries that are asked under each filter


def catalog_of(folder: Path, items: int, queries: int) -> tuple[Path, np.ndarray]:
    """A catalog of drawn vectors, whose index is the exact search, and queries (Q, dim)."""
    out, rng = folder / "catalog", np.random.default_rng(0)
    segment = out / "segments" / "s-drawn"
    segment.mkdir(parents=True)
    asked = draw(segment, items, queries, 0)
    names = [f"item-{number:07d}" for number in range(items)]
    columns = {"id": names, "price": rng.integers(1, 100, items), SOURCE: np.zeros(items, np.int16)}
    columns |= {ROW: np.arange(items), THUMBNAIL: [rng.bytes(1000) for _ in names]}
    columns[DIGEST] = [hashlib.sha256(name.encode()).digest() for name in names]
    write_items(segment / "items.parquet", [pa.table(columns)], items)
    (segment / "manifest.json").write_text(json.dumps({"format": FORMAT, "sources": [{}], "items": items}))
    return out, asked


def by_faiss(out: Path, factory: str) -> Found:
    """The catalog by a kind of index: how it is searched, seconds to build it, bytes of the index."""
    catalog = Generations(out)
    facts = {"model": {"name": "drawn", "digest": "0" * 12, "facts": {}}, "dims": DIM}
    start = time.perf_counter()
    name = write_generation(catalog, facts, [catalog.segment("s-drawn")], IndexKind(factory, None, 0))
    seconds = time.perf_counter() - start
    catalog.switch(name)
    index = out / "generations" / name / "index.faiss"
    return Catalog.open(out).index, seconds, index.stat().st_size if index.exists() else 0


def by_lance(path: Path, address: str | None) -> Found:
    """The table by an index that is built anew; the table keeps each as a version."""
    table = open_latest(path)
    column = TableGenerations(path).answering().column
    if there := index_of(table, column):
        table.drop_index(there.name)
    start = time.perf_counter()
    table = keep_index(table, column, address)
    seconds = time.perf_counter() - start
    size = index_of(table, column).total_size_bytes
    return Catalog.open(f"{path}@{table.latest_version}").index, seconds, size


def measure(folder: Path, items: int, queries: int) -> None:
    out, asked = catalog_of(folder, items, queries)
    found = {"catalog, Flat": by_faiss(out, "Flat")}
    factory = f"IVF{round(4 * items**0.5)},RaBitQ"  # what more than FLAT_ITEMS get by default
    found[f"catalog, {factory}"] = by_faiss(out, factory)
    lance_index.FLAT_ITEMS = items
    path, start = folder / "table.lance", time.perf_counter()
    write_lance(out, path, None)
    print(f"writing the table took {time.perf_counter() - start:.1f} s, without an index")
    found["table, no index"] = Catalog.open(path).index, 0, 0
    lance_index.FLAT_ITEMS = 0
    for name, address in (("pylance", None), ("lance-ray", "local")):
        made = by_lance(path, address)
        found[f"table, {made[0].factory.removeprefix('Lance ')} by {name}"] = made
    sizes = [sum(one.stat().st_size for one in place.rglob("*") if one.is_file()) / 1e6 for place in (out, path)]
    print(f"the catalog takes {sizes[0]:.0f} MB, the table {sizes[1]:.0f} MB, each with all of its indexes")
    report(found, asked)


def report(found: dict[str, Found], asked: np.ndarray) -> None:
    vectors = next(iter(found.values()))[0].vectors
    truth = vectors.best(torch.from_numpy(asked), K)[1]
    print(f"\n{len(vectors):,} vectors of {DIM} dimensions, {len(asked)} queries one at a time, {machine()}\n")
    print("| kind | built in s | MB | p50 ms | p95 ms | recall@10 |\n| --- | --- | --- | --- | --- | --- |")
    for kind, (index, seconds, size) in found.items():
        rows, p50, p95 = timed(index.search, asked, [None] * len(asked))
        megabytes = (2 * DIM * len(vectors) + size) / 1e6
        told = f"{seconds:.0f} | {megabytes:.0f} | {p50:.2f} | {p95:.2f} | {recall(rows, truth):.3f}"
        print(f"| {kind} | {told} |", flush=True)
    some = asked[:FILTERED]
    found = {kind: one for kind, one in found.items() if one[0].index is not None}  # others are exact, filtered too
    print("\n| filter | " + " | ".join(found) + " |\n| --- |" + " --- |" * len(found))
    for name, each in filters(vectors, some, np.random.default_rng(0)).items():
        truth = timed(lambda query, k, one: vectors.best(torch.from_numpy(query), k, one), some, each)[0]
        cells = []
        for index, _, _ in found.values():
            rows, p50, _ = timed(index.search, some, each)
            cells.append(f"{recall(rows, truth):.3f}, {p50:.1f} ms")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-lance-"))
    try:
        with connected("local"):
            measure(folder, args.items, args.queries)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
