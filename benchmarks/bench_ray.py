"""Embedding by actors of Ray against one process: images a second, and memory at N and 8N images.

    python benchmarks/bench_ray.py [--model assets/mini-condvit] [--images 4096] [--actors 2] [--markdown]

Both ways embed the same JPEGs of 256 x 341 pixels from a Parquet table into the same kind of store, in processes of
their own: the one with a thread for each core, the other with actors of one CPU. The rate is that of the 7N images by
which the second run is longer, so starting Ray and loading the model, told as "start", are not in it. Memory is the
largest sum over a process and all its children, with what several share counted once (PSS); "spilled" is what Ray's
object store wrote to the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_stream import photos
from bench_train import table

TIMES = 8
HEADER = ["way", "images", "seconds", "memory, MB", "spilled, MB", "images/s", "of one process", "start, s"]


def write_pictures(path: Path, count: int) -> None:
    """A table of `count` JPEGs, few of them different, in row groups of 100 as `datasets` writes them."""
    encoded = photos(np.random.default_rng(0))
    schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, count, 100):
            rows = range(start, min(start + 100, count))
            columns = [[f"x{row}" for row in rows], [encoded[row % len(encoded)] for row in rows]]
            writer.write_table(pa.table(columns, schema=schema))


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and its children, shared ones once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            total += one.memory_full_info().pss
    return total


def measure(way: str, model: str, path: Path, actors: int) -> dict[str, float]:
    """Seconds, bytes of memory and megabytes spilled of embedding a table; in this process and its children."""
    from lrvsf.embedding.store import EmbeddingStore
    from lrvsf.search.generations import Generations
    from lrvsf.search.own_model import load_encoder
    from lrvsf.search.segments import Items, KnownPictures
    from lrvsf.search.sources.kinds import open_source

    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.5):
            most = max(most, memory_of(psutil.Process()))

    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory() as folder:
        items = Items(open_source(str(path)), KnownPictures(Generations(Path(folder)), ""))
        store = EmbeddingStore(Path(folder) / "store", load_encoder(model, None, "cpu"), [items], path, 64)
        began, spilled = time.monotonic(), 0.0
        if way == "ray":
            import ray

            from lrvsf.scale.engine import Cluster
            from lrvsf.scale.ray_embed import embedding_on_ray

            ray.init("local", num_cpus=actors, include_dashboard=False, logging_level="ERROR")
            with embedding_on_ray(Cluster("local", actors, 1), gpu=False) as embed:
                store.fill(embed)
            spills = Path(ray._private.worker.global_worker.node.get_session_dir_path()).rglob("ray_spilled_objects*/*")
            spilled = sum(file.stat().st_size for file in spills) / 1e6
        else:
            store.fill()
        seconds = time.monotonic() - began
    done.set()
    watching.join()
    return {"seconds": seconds, "memory": most / 1e6, "spilled": spilled}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent.parent / "assets/mini-condvit"))
    parser.add_argument("--images", type=int, default=4096, help="N")
    parser.add_argument("--actors", type=int, default=os.cpu_count())
    parser.add_argument("--markdown", action="store_true", help="print a table for a page")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "TABLE"), help="one run, by which this starts itself")
    args = parser.parse_args(arguments)
    if args.measure:
        way, path = args.measure
        print(json.dumps(measure(way, args.model, Path(path), args.actors)))
        return
    rows, rates = [], {}
    with tempfile.TemporaryDirectory() as folder:
        tables = {count: Path(folder) / f"{count}.parquet" for count in (args.images, TIMES * args.images)}
        for count, path in tables.items():
            write_pictures(path, count)
        for way in ("one process", "ray"):
            command = [sys.executable, __file__, "--model", args.model, "--actors", str(args.actors), "--measure", way]
            first, second = (
                json.loads(subprocess.run([*command, str(path)], check=True, stdout=subprocess.PIPE).stdout)
                for path in tables.values()
            )
            rates[way] = (TIMES - 1) * args.images / (second["seconds"] - first["seconds"])
            start = first["seconds"] - args.images / rates[way]
            told = [f"{rates[way]:.0f}", f"{rates[way] / rates['one process']:.2f}", f"{start:.0f}"]
            for count, found, more in zip(tables, (first, second), ([""] * 3, told), strict=True):
                numbers = (f"{found[name]:.0f}" for name in ("seconds", "memory", "spilled"))
                rows.append([way, count, *numbers, *more])
    print(f"{torch.get_num_threads()} threads of torch in the one process, {args.actors} actors\n")
    print(table(HEADER, rows, args.markdown))


if __name__ == "__main__":
    main()
