"""Kinds of index over a large catalog: building, memory, one query's latency, recall of the exact ten best, filters.

    python benchmarks/bench_search.py [--items 1000000] [--kinds Flat IVF4000,SQ8 ...] [--filters]

The vectors are clustered as embeddings of products are, not uniform noise, in which nothing is nearer than the rest.
20,000 centres lie in a random subspace of 64 of the 512 dimensions. An item is its centre plus a deviation in that
subspace, of 0.6 of a centre's length, plus noise in all 512 of a tenth of it. Clusters differ in size as categories of
a shop do (Zipf, exponent 0.5). So two items of a cluster have a cosine of 0.7, and the nearest of other clusters come
close to that. A query is an item moved once more, by half of that deviation, as another photo of the thing would be.

A filter passes a share of the items: drawn at random; or those that lie to one side of a plane, which is correlated
with the vectors as a category is; or, the worst that there is, just those that are least like the query. Recall is
against the exact search among what passes.

A process of its own loads each index. "Memory" is what it grew by until all queries were answered, the mapped vectors
left out, whose pages the system takes back as it likes (RssAnon); "resident" counts these too (VmRSS).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.search.index import VectorIndex
from lrvsf.search.vectors import Selection, Vectors

KINDS = ["Flat", "IVF4000,SQ8", "IVF4000,PQ64", "IVF4000,RaBitQ", "HNSW32,SQ8"]
DIM, INTRINSIC, CLUSTERS = 512, 64, 20_000
DEVIATION, NOISE = 0.6, 0.1
SHARD = 2048
SELECTIVITIES = (0.001, 0.01, 0.1, 0.5)
K = 10
OPPOSED = 10  # queries that are asked under the last kind of filter, which is each one's own


def draw(folder: Path, items: int, queries: int, seed: int) -> np.ndarray:
    """Writes the items as an embedding store's shards; the queries (Q, dim)."""
    rng = np.random.default_rng(seed)
    clusters = min(CLUSTERS, max(1, items // 50))
    basis = np.linalg.qr(rng.standard_normal((DIM, INTRINSIC)))[0].T.astype(np.float32)  # (64, 512)
    centres = rng.standard_normal((clusters, INTRINSIC), dtype=np.float32)
    sizes = 1 / np.arange(1, clusters + 1) ** 0.5
    cluster_of = rng.choice(clusters, items, p=sizes / sizes.sum())

    def unit(inner: np.ndarray) -> np.ndarray:
        rows = inner @ basis + NOISE * np.sqrt(INTRINSIC / DIM) * rng.standard_normal(
            (len(inner), DIM), dtype=np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def near(inner: np.ndarray, deviation: float) -> np.ndarray:
        return inner + deviation * rng.standard_normal(inner.shape, dtype=np.float32)

    asked = np.sort(rng.choice(items, queries, replace=False))
    found = []
    for number, start in enumerate(range(0, items, SHARD)):
        inner = near(centres[cluster_of[start : start + SHARD]], DEVIATION)
        rows = torch.from_numpy(unit(inner)).half()
        save_file(
            {"embeds": rows, "row": torch.arange(start, start + len(rows))}, folder / f"item-{number:05d}.safetensors"
        )
        own = asked[(asked >= start) & (asked < start + SHARD)] - start
        found.append(unit(near(inner[own], DEVIATION / 2)))
    return np.concatenate(found).astype(np.float32)


def memory(field: str) -> int:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


def timed(search, queries: np.ndarray, selections: list[Selection | None]) -> tuple[np.ndarray, float, float]:
    """Rows of each query asked alone, each with its selection, and the latencies' p50 and p95 in ms."""
    rows, seconds = [], []
    asked = list(zip(queries, selections, strict=False))
    for query, selection in asked[:20]:  # the pages of a mapped file come in once
        search(query[None], K, selection)
    for query, selection in asked:
        start = time.perf_counter()
        rows.append(search(query[None], K, selection)[1][0])
        seconds.append(time.perf_counter() - start)
    return np.array(rows), *(1000 * np.percentile(seconds, [50, 95]))


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows, truth, strict=True)]))


def filters(vectors: Vectors, queries: np.ndarray, rng: np.random.Generator) -> dict[str, list[Selection]]:
    """For each selectivity and kind of filter the selection of each query; of the last kind for some of them."""
    one, other = vectors.take(rng.choice(len(vectors), 2, replace=False))
    directions = np.stack([one - other, *-queries[:OPPOSED]])
    sides = np.concatenate([rows @ directions.T for _, rows in vectors.blocks(SHARD)]).T.copy()  # (1 + Q, n)
    found = {}
    for share in SELECTIVITIES:
        chosen = [Selection(side >= np.quantile(side, 1 - share)) for side in sides]
        found[f"{share:.1%} random"] = [Selection(rng.random(len(vectors)) < share)] * len(queries)
        found[f"{share:.1%} correlated"] = chosen[:1] * len(queries)
        found[f"{share:.1%} opposed"] = chosen[1:]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--filters", action="store_true", help="the filtered table too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
    try:
        run(args, folder)
    finally:
        shutil.rmtree(folder)


def run(args: argparse.Namespace, folder: Path) -> None:
    queries = draw(folder, args.items, args.queries, args.seed)
    vectors = Vectors.open([folder])
    truth = vectors.best(torch.from_numpy(queries), K)[1]
    print(f"{args.items:,} vectors of {DIM} dimensions, {len(queries)} queries one at a time, k = {K}, {machine()}\n")
    print("| kind | built in s | memory MB | resident MB | p50 ms | p95 ms | recall@10 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    places = {kind: folder / kind.replace(",", "-") for kind in args.kinds}
    for kind, place in places.items():
        place.mkdir()
        start = time.perf_counter()
        VectorIndex.build(vectors, kind, seed=args.seed).save(place)
        seconds = time.perf_counter() - start
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            rows, p50, p95, anonymous, resident = fresh.submit(
                asked_in_a_fresh_process, place, folder, queries
            ).result()
        told = f"{seconds:.0f} | {anonymous} | {resident} | {p50:.2f} | {p95:.2f} | {recall(rows, truth):.3f}"
        print(f"| {kind} | {told} |", flush=True)
    if args.filters:
        filtered(vectors, queries, places, np.random.default_rng(args.seed))


def asked_in_a_fresh_process(place: Path, folder: Path, queries: np.ndarray) -> tuple:
    """The rows found, p50 and p95, and by how much the process grew: without and with the mapped vectors."""
    warm = torch.from_numpy(queries[:1])
    assert (warm @ warm.T > 0).all()  # torch's threads, which are no index, are there before
    before = memory("RssAnon"), memory("VmRSS")
    index = VectorIndex.load(place, Vectors.open([folder]))
    rows, p50, p95 = timed(index.search, queries, [None] * len(queries))
    return rows, p50, p95, memory("RssAnon") - before[0], memory("VmRSS") - before[1]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores of an {model}"


def filtered(vectors: Vectors, queries: np.ndarray, places: dict[str, Path], rng: np.random.Generator) -> None:
    some = queries[:50]
    selections = filters(vectors, some, rng)
    print("\n| filter | " + " | ".join(places) + " |\n| --- |" + " --- |" * len(places))
    indexes = [VectorIndex.load(place, vectors) for place in places.values()]
    for name, each in selections.items():
        truth, _, _ = timed(lambda query, k, one: vectors.best(torch.from_numpy(query), k, one), some, each)
        cells = []
        for index in indexes:
            rows, p50, _ = timed(index.search, some, each)
            cells.append(f"{recall(rows, truth):.3f}, {p50:.1f} ms")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
