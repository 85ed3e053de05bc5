"""The service under load, against one client and against batches of one; and what one query's time is spent on.

    python benchmarks/bench_service.py --models B/32 [--clients 32] [--seconds 60] [--items 5000] [--markdown]

Weights are random, and so are the items' vectors: neither changes what anything costs. Pictures are JPEGs of 256 x 341
pixels, each under one condition, ten hits each.

Latency is of one thread that asks a catalog in this process, without HTTP: the median of each part, and of all of it.
Load is `search_catalog.py serve` and clients on this machine, each of which sends its next request when it has the
answer to the last; they and the service share the processors. Three ways take turns, so that what else the machine does
meets all of them: many clients, one client, and many clients of a service with `--batch_size 1`. "times" is requests a
second by those of one client. Memory is the service's resident set, before its way's first turn and after its last.

A request that fails ends the benchmark with status 1, after the tables.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `serve` does, before torch is there

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_stream import photos
from bench_train import table
from train_parts import SHAPES

import search_catalog
from configuration_condvit import CATEGORIES, CondViTConfig
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.embedding.encoder import Encoder
from lrvsf.search.catalog import Catalog
from modeling_condvit import CondViTModel

SCRIPT = Path(__file__).parent.parent / "search_catalog.py"
QUERIES = 60  # of the latency, after ten that are not counted
TURNS = 3  # of each way


def write_model(name: str, folder: Path) -> None:
    """A model of a CLIP's size with random weights."""
    shape = SHAPES[name]
    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    sizes |= {"intermediate_size": 4 * shape.width, "patch_size": shape.patch, "image_size": shape.size}
    torch.manual_seed(0)
    CondViTModel(CondViTConfig(**sizes, projection_dim=shape.projection)).save_pretrained(folder)


def write_catalog(model: Path, items: int, pictures: list[bytes], out: Path) -> None:
    """A catalog by that model, whose items' vectors are random: the model itself would take hours for them."""
    rng = np.random.default_rng(0)

    def embed(encoder: Encoder, pixels: list, categories: list | None = None) -> torch.Tensor:
        rows = torch.from_numpy(rng.standard_normal((len(pixels), encoder.dim), dtype=np.float32))
        return torch.nn.functional.normalize(rows, dim=1)

    listed = out.with_suffix(".parquet")
    images = [pictures[row % len(pictures)] for row in range(items)]
    prices = rng.integers(1, 500, items)
    pq.write_table(pa.table({"id": [f"i{row}" for row in range(items)], "image": images, "price": prices}), listed)
    with mock.patch.object(Encoder, "embed", embed):
        search_catalog.main(["index", str(model), str(listed), str(out)])


def latency(folder: Path, pictures: list[bytes]) -> list[float]:
    """Medians in milliseconds: decode, model, search, all of it."""
    catalog, taken = Catalog.open(folder, device="cpu"), []
    for number in range(QUERIES + 10):
        times = [time.perf_counter()]
        pixels = catalog.encoder.pixels_of(decode_shown(pictures[number % len(pictures)]))
        times.append(time.perf_counter())
        rows = catalog.embed_pixels([pixels], [CATEGORIES[number % 10]])
        times.append(time.perf_counter())
        catalog.nearest(rows, k=10)
        times.append(time.perf_counter())
        taken.append([*np.diff(times), times[-1] - times[0]])
    return (1000 * np.median(taken[10:], axis=0)).tolist()


@contextmanager
def service(catalog: Path, *words: str):
    """A process of `serve`, and its port."""
    command = [sys.executable, str(SCRIPT), "serve", str(catalog), "--port", "0", *words]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process, int(process.stdout.readline().rpartition("/docs")[0].rpartition(":")[2])
        finally:
            process.terminate()


def megabytes(process: subprocess.Popen) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass
class Way:
    """How a service is asked, and what came of it in all turns."""

    name: str
    clients: int
    process: subprocess.Popen
    port: int
    seconds: list[float] = field(default_factory=list)  # of each answer
    errors: list[object] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # megabytes, before each turn and after it

    def turn(self, seconds: float, pictures: list[bytes], first: int) -> None:
        """Asks for a while. A tenth more, before it, is not counted: it warms up what the other ways have cooled."""
        begins = time.perf_counter() + seconds / 10
        ends, numbers = begins + seconds, count(first)

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            while (started := time.perf_counter()) < ends:
                number = next(numbers)
                condition = CATEGORIES[number % 10].replace(" ", "%20")
                try:
                    connection.request("POST", f"/search?condition={condition}", pictures[number % len(pictures)])
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.errors.append(repr(error))
                    connection.close()
                    continue
                if answer.status != 200:
                    self.errors.append(answer.status)
                elif started >= begins:
                    self.seconds.append(time.perf_counter() - started)

        threads = [threading.Thread(target=ask) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        time.sleep(begins - time.perf_counter())
        self.memory.append(megabytes(self.process))
        for thread in threads:
            thread.join()
        self.memory.append(megabytes(self.process))


def load(catalog: Path, clients: int, seconds: float, pictures: list[bytes]) -> list[Way]:
    """Three ways, in turns."""
    with service(catalog) as usual, service(catalog, "--batch_size", "1") as alone:
        ways = [Way(f"{clients} clients", clients, *usual), Way("1 client", 1, *usual)]
        ways.append(Way(f"{clients} clients, batches of 1", clients, *alone))
        for turn in range(TURNS):
            for way in ways:
                way.turn(seconds / TURNS, pictures, turn)
    return ways


def rows_of(model: str, ways: list[Way], seconds: float) -> list[list[str]]:
    """Lines of the table."""
    rates = [len(way.seconds) / seconds for way in ways]
    rows = []
    for way, rate in zip(ways, rates, strict=True):
        percentiles = np.percentile(way.seconds, [50, 95]) * 1000 if way.seconds else [np.nan, np.nan]
        figures = [f"{rate:.1f}", f"{rate / rates[1]:.2f}", *(f"{one:.0f}" for one in percentiles)]
        rows.append([model, way.name, *figures, len(way.errors), f"{way.memory[0]:.0f}", f"{way.memory[-1]:.0f}"])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["B/32", "B/16"], choices=SHAPES)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each way, in all its turns")
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    args = parser.parse_args(arguments)
    pictures = photos(np.random.default_rng(0))
    parts, loads, errors = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model, catalog = Path(folder, name.replace("/", "")), Path(folder, f"{name.replace('/', '')}.catalog")
            write_model(name, model)
            write_catalog(model, args.items, pictures, catalog)
            parts.append([name, *(f"{milliseconds:.1f}" for milliseconds in latency(catalog, pictures))])
            ways = load(catalog, args.clients, args.seconds, pictures)
            loads += rows_of(name, ways, args.seconds)
            errors += [error for way in ways for error in way.errors]
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {args.items:,} items, {args.seconds:g} s of each way\n")
    print(table(["model", "decode, ms", "model, ms", "search, ms", "together, ms"], parts, args.markdown), "\n")
    header = ["model", "way", "requests/s", "times", "p50, ms", "p95, ms", "errors", "MB, begin", "MB, end"]
    print(table(header, loads, args.markdown), flush=True)
    if errors:
        sys.exit(f"{len(errors)} requests failed, the first with {errors[0]}")


if __name__ == "__main__":
    main()
