"""Very many tiny pictures through the whole pipeline once: index, query, evaluate, on a Ray cluster of this machine.

    python benchmarks/million_tiny.py [--images 1000000] [--actors 2] [--folder FOLDER]

The pictures are JPEGs of 32 x 32 pixels, no two alike, in the layout of a test set: 2,048 products, each with a scene,
and the others as distractors. `index` takes all of them but the scenes, `evaluate_lrvsf.py --protocol leaderboard` has
them as galleries. The tower is a toy of 2 layers with random weights, so recalls mean nothing; what is measured is what
surrounds a model.

Each stage is a command in processes of its own. Memory is as in bench_ray.py: the largest sum over the command, the
processes that work for it, and Ray's own. Afterwards is checked, row by row:

- the catalog has each picture once, in order, and each vector is that of the evaluation, which embedded it anew;
- the vectors of some shards are those that this process makes, bit for bit;
- the index has each row once, and is what one process builds, to the byte; vectors find themselves;
- the evaluation's results.json is what one process writes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_ray import Watch
from bench_search import machine
from bench_train import table

from configuration_condvit import CondViTConfig
from lrvsf.data.images import BadImageCounter
from lrvsf.data.testset import DISTRACTOR_SCHEMA, QUERY_SCHEMA
from lrvsf.embedding.pipeline import embed_ranges
from lrvsf.embedding.store import ROWS
from lrvsf.scale.faiss_shards import SHARD_ROWS
from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import Generations
from lrvsf.search.index import INDEX, add_rows, made, train
from lrvsf.search.own_model import load_own_encoder
from lrvsf.search.segments import DIGEST, Items, KnownPictures
from lrvsf.search.sources.kinds import open_source
from lrvsf.search.vectors import SHARDS
from modeling_condvit import CondViTModel

ROOT = Path(__file__).parent.parent
PRODUCTS = ROWS  # a shard of the catalog, so that the others begin where those of the distractors do
FILE = 100_000  # rows
CELLS, CELL = 4, 8  # on a side of a picture; pixels on a side of a cell, JPEG's own
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER |= {"image_size": 32, "patch_size": 16, "projection_dim": 64}
SHARPER = 20  # times the patches' first weights, which would else give nearly the same vector for all pictures
BATCH = 256
AGAIN, ASKED = 4, 2000  # shards that are embedded once more, vectors that look for themselves
HEADER = ["stage", "seconds", "command, MB", "processes, MB", "Ray, MB", "of these seconds"]


def pictures(seed: int, count: int) -> Iterator[bytes]:
    """JPEGs of random cells."""
    cells = np.random.default_rng(seed).integers(0, 256, (count, CELLS, CELLS, 3), np.uint8)
    for picture in cells:
        out = io.BytesIO()
        Image.fromarray(picture.repeat(CELL, 0).repeat(CELL, 1)).save(out, "JPEG", quality=90)
        yield out.getvalue()


def write_test_set(folder: Path, images: int) -> None:
    """A test set of `images` pictures in galleries, and the scenes that ask."""
    (folder / "distractors").mkdir(parents=True)
    names = CondViTConfig().categories
    columns = {"PRODUCT_ID": ids(0, PRODUCTS), "TYPE": None, "CATEGORY": [names[row % 10] for row in range(PRODUCTS)]}
    columns |= {"blip2_caption1": None, "SIMPLE_IMG": list(pictures(0, PRODUCTS))}
    write(folder / "products.parquet", columns | {"COMPLEX_IMG": list(pictures(1, PRODUCTS))}, QUERY_SCHEMA)
    for start in range(PRODUCTS, images, FILE):
        stop = min(start + FILE, images)
        columns = {"PRODUCT_ID": ids(start, stop), "TYPE": None, "CATEGORY": None, "blip2_caption1": None}
        columns["jpg"] = list(pictures(start, stop - start))
        write(folder / f"distractors/part-{start:09d}.parquet", columns, DISTRACTOR_SCHEMA)


def write(path: Path, columns: dict[str, list[Any] | None], schema: pa.Schema) -> None:
    rows = len(columns["PRODUCT_ID"])
    filled = {name: [None] * rows if cells is None else cells for name, cells in columns.items()}
    pq.write_table(pa.table(filled, schema=schema), path, row_group_size=1000, use_dictionary=False)


def ids(start: int, stop: int) -> list[str]:
    return [f"tiny-{number:09d}" for number in range(start, stop)]


def write_tower(folder: Path) -> None:
    torch.manual_seed(0)
    model = CondViTModel(CondViTConfig(**TOWER))
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight *= SHARPER
    model.save_pretrained(folder)


def measured(stage: str, script: str, *words: Any) -> tuple[list[Any], str]:
    """The beginning of a line of the table, and what the command printed."""
    began = time.time()
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = Watch(psutil.Process(process.pid))
        watch.start()
        printed = process.stdout.read()
    watch.done.set()
    watch.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    memory = [f"{part / 1e6:,.0f}" if part else "" for part in watch.memory]
    print(f"{stage}: {time.time() - began:.0f} s", flush=True)
    return [stage, f"{time.time() - began:.0f}", *memory], printed


def parts_of(out: Path, began: float) -> str:
    """What took how long in `index`, by when its files were written."""
    segment, generation = (next((out / name).iterdir()) for name in ("segments", "generations"))
    written = [path.stat().st_mtime for path in segment.glob(SHARDS)]
    ends = {"first shards": min(written), "embedding": max(written)}
    ends |= {"metadata": (segment / "items.parquet").stat().st_mtime, "index": (generation / INDEX).stat().st_mtime}
    starts = [began, *ends.values()]
    return ", ".join(f"{name} {end - start:.0f}" for (name, end), start in zip(ends.items(), starts, strict=False))


def check_catalog(out: Path, test_set: Path, embeds: Path, images: int) -> Iterator[str]:
    """What holds of the catalog. Raises AssertionError: something does not."""
    (segment,) = Generations(out).answering().segments
    items = pq.read_table(segment.items, columns=["id", DIGEST])
    assert items["id"].to_pylist() == ids(0, images)
    assert len(items[DIGEST].unique()) == images
    shards, theirs = sorted(segment.folder.glob(SHARDS)), sorted(embeds.glob("distractor-*.safetensors"))
    rows = np.concatenate([content(path)[1] for path in shards])
    assert np.array_equal(rows, np.arange(images))
    yield f"{images:,} rows, each once and in order, of {images:,} different pictures"
    others = [*embeds.glob("target-*.safetensors"), *theirs]
    assert len(others) == len(shards)
    assert all(np.array_equal(content(a)[0], content(b)[0]) for a, b in zip(shards, others, strict=True))
    yield f"{images:,} vectors equal to those of the evaluation, bit for bit"
    again = np.random.default_rng(0).choice(len(shards) - 1, min(AGAIN, len(shards) - 1), replace=False)
    places = sorted([*again.tolist(), len(shards) - 1])
    ranges = [(ROWS * place, min(ROWS * (place + 1), images)) for place in places]
    encoder = load_own_encoder(Generations(out).answering(), None, "cpu")
    part = Items(open_source(str(test_set)), KnownPictures(Generations(out), ""))
    counter = BadImageCounter(part.what)
    for place, embedded in zip(places, embed_ranges(encoder, part, ranges, BATCH, counter, True), strict=True):
        assert np.array_equal(embedded.embeds["item"].half().numpy(), content(shards[place])[0])
    yield f"{sum(stop - start for start, stop in ranges):,} of them embedded again by one process, bit for bit"


def content(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and row numbers of a shard."""
    with safe_open(path, "np") as file:
        return file.get_tensor("embeds"), file.get_tensor("row")


def check_index(out: Path, images: int) -> Iterator[str]:
    """What holds of the index. Raises AssertionError: something does not."""
    index = Catalog.open(out).index
    assert index.index.ntotal == images
    lists = index.index.invlists
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    there = [faiss.rev_swig_ptr(lists.get_ids(number), size) for number, size in enumerate(sizes) if size]
    assert np.array_equal(np.sort(np.concatenate(there)), np.arange(images))
    yield f"{index.factory}: each of {images:,} rows in one list, once"
    rows = np.sort(np.random.default_rng(1).choice(images, ASKED, replace=False))
    queries = index.vectors.take(rows)
    nearest = index.vectors.best(torch.from_numpy(queries), 1)[1][:, 0]
    began = time.perf_counter()
    found = np.array([index.search(query[None], 10)[1][0] for query in queries])
    each = 1000 * (time.perf_counter() - began) / ASKED
    first, among = (found[:, 0] == rows).mean(), (found == rows[:, None]).any(1).mean()
    yield (
        f"of {ASKED:,} vectors {(nearest == rows).mean():.2%} find themselves first by the exact search; by the index "
        f"{first:.2%}, among ten {among:.2%}, in {each:.1f} ms each"
    )
    built = made(index.vectors.shape[1], index.factory)
    faiss.omp_set_num_threads(os.cpu_count())  # as the command has, which trains
    train(built, index.vectors, index.factory, 0, None)
    if images > SHARD_ROWS:  # else the command fills, too; a process of the cluster has one thread
        faiss.omp_set_num_threads(1)
    add_rows(built, index.vectors, 0, images)
    assert np.array_equal(faiss.serialize_index(built), faiss.serialize_index(index.index))
    yield "the index is, to the byte, what one process builds"


def run(folder: Path, images: int, actors: int) -> None:
    test_set, model, out, results = (folder / name for name in ("test", "model", "catalog", "results"))
    began = time.time()
    write_test_set(test_set, images)
    write_tower(model)
    print(f"{images:,} pictures drawn in {time.time() - began:.0f} s; {machine()}", flush=True)
    cluster = ["--engine", "ray", "--actors", actors, "--batch_size", BATCH]
    factory = f"IVF{round(4 * images**0.5)},RaBitQ"  # what more than FLAT_ITEMS get by default
    began = time.time()
    flags = [model, test_set, out, "--factory", factory]
    lines = [measured("index", "search_catalog.py", "index", *flags, *cluster)[0]]
    lines[0].append(parts_of(out, began))
    photo = folder / "photo.jpg"
    photo.write_bytes(next(pictures(0, 1)))
    line, printed = measured("query", "search_catalog.py", "query", out, "--image", photo, "--json")
    hits = json.loads(printed)
    lines.append([*line, ""])
    flags = ["--model", model, "--data_root", test_set, "--protocol", "leaderboard"]
    own = [*flags, "--output_dir", results, *cluster]
    lines.append([*measured("evaluate", "evaluate_lrvsf.py", *own)[0], ""])
    shared = [*flags, "--output_dir", folder / "one", "--embeds", results / "embeds", "--batch_size", BATCH]
    lines.append([*measured("the same by one process, embedded already", "evaluate_lrvsf.py", *shared)[0], ""])
    print(f"\n{table(HEADER, lines, True)}\n")
    print(f"the picture asked with: {json.dumps(hits)[:300]}")
    for told in check_catalog(out, test_set, results / "embeds", images):
        print(told, flush=True)
    for told in check_index(out, images):
        print(told, flush=True)
    assert (results / "results.json").read_bytes() == (folder / "one/results.json").read_bytes()
    print("results.json is, to the byte, what one process writes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--actors", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where all is written, to be kept; 1.4 GB for a million")
    args = parser.parse_args()
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # else its processes yield to all others
    torch.set_num_threads(1)  # as an actor of one CPU has: other numbers, other last bits
    if args.folder:
        run(args.folder, args.images, args.actors)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.images, args.actors)


if __name__ == "__main__":
    main()
