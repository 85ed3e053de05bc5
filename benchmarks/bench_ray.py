"""Embedding by actors of Ray against one process: images a second, and memory at N and 8N images.

    python benchmarks/bench_ray.py [--model assets/mini-condvit] [--images 4096] [--actors 2] [--markdown]

Both ways embed the same JPEGs of 256 x 341 pixels from a Parquet table into the same kind of store, in processes of
their own: the one with a thread for each core, the other with actors of one CPU. The rate is that between the times at
which shards were written: from when each actor has its first one, so starting Ray and loading the model are not in it,
to the last. "core ms" are milliseconds of processor time for each of the 7N images by which the second run is longer,
which other processes of a busy machine move less than the rate. Memory is the largest sum over driver, actors and Ray's
own processes, with what several share counted once (PSS); "spilled" is what Ray's object store wrote to the disk.
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
WORK = ("ShardEmbedder", "_fill", "_count_run")  # what Ray calls processes that embed, fill an index, count ranks
HEADER = ["way", "images", "seconds", "driver, MB", "actors, MB", "Ray, MB", "spilled, MB", "images/s", "core ms"]


def write_pictures(path: Path, count: int) -> None:
    """A table of `count` JPEGs, few of them different, in row groups of 100 as `datasets` writes them."""
    encoded = photos(np.random.default_rng(0))
    schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, count, 100):
            rows = range(start, min(start + 100, count))
            columns = [[f"x{row}" for row in rows], [encoded[row % len(encoded)] for row in rows]]
            writer.write_table(pa.table(columns, schema=schema))


class Watch(threading.Thread):
    """What a process, this one by default, and its children take, until `done` is set.

    Attributes:
        memory: bytes of the driver, of actors, of Ray's own processes, when their sum was largest; shared ones once.
        processor: process -> its seconds of processor time when it was last seen.
    """

    def __init__(self, driver: psutil.Process | None = None) -> None:
        super().__init__()
        self.driver = driver or psutil.Process()
        self.memory, self.processor, self.done = [0, 0, 0], {}, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            memory, all_of_them = [0, 0, 0], [self.driver]
            with suppress(psutil.Error):  # it has just ended
                all_of_them += self.driver.children(recursive=True)
            for one in all_of_them:
                with suppress(psutil.Error):
                    name = "".join(one.cmdline())
                    kind = 0 if one == self.driver else 1 if any(work in name for work in WORK) else 2
                    memory[kind] += one.memory_full_info().pss
                    self.processor[one.pid] = sum(one.cpu_times()[:2])
            self.memory = max(self.memory, memory, key=sum)


def measure(way: str, model: str, path: Path, actors: int) -> dict[str, float]:
    """Images a second, seconds, seconds of processor time, and megabytes, of embedding a table."""
    from lrvsf.embedding.store import ROWS, EmbeddingStore
    from lrvsf.search.generations import Generations
    from lrvsf.search.own_model import load_encoder
    from lrvsf.search.segments import Items, KnownPictures
    from lrvsf.search.sources.kinds import open_source

    watch = Watch()
    watch.start()
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
        written = sorted(shard.stat().st_mtime for shard in store.folder.glob("*.safetensors"))
        first = actors if way == "ray" else 1
        rate = (len(written) - first) * ROWS / (written[-1] - written[first - 1]) if len(written) > first else 0.0
    watch.done.set()
    watch.join()
    found = dict(zip(("driver", "actors", "ray"), (part / 1e6 for part in watch.memory), strict=True))
    return found | {"seconds": seconds, "processor": sum(watch.processor.values()), "spilled": spilled, "rate": rate}


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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tables = {count: Path(folder) / f"{count}.parquet" for count in (args.images, TIMES * args.images)}
        for count, path in tables.items():
            write_pictures(path, count)
        for way in ("one process", "ray"):
            command = [sys.executable, __file__, "--model", args.model, "--actors", str(args.actors), "--measure", way]
            before = 0.0
            for count, path in tables.items():
                made = subprocess.run([*command, str(path)], check=True, stdout=subprocess.PIPE)
                found = json.loads(made.stdout)
                numbers = [f"{found[name]:.0f}" for name in ("seconds", "driver", "actors", "ray", "spilled", "rate")]
                each = 1000 * (found["processor"] - before) / ((TIMES - 1) * args.images)
                rows.append([way, count, *numbers, f"{each:.2f}" if before else ""])
                before = found["processor"]
    print(f"{torch.get_num_threads()} threads of torch in the one process, {args.actors} actors\n")
    print(table(HEADER, rows, args.markdown))


if __name__ == "__main__":
    main()
