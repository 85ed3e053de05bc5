"""The service under load, in batches and one request at a time; and what one query's time is spent on.

    python benchmarks/bench_service.py [--models B/32 B/16] [--clients 32] [--seconds 60] [--items 20000] [--markdown]

Weights are random, and so are the items' vectors: neither changes what anything costs. Pictures are JPEGs of 256 x 341
pixels, each under one condition, ten hits each.

Latency is of one thread that asks a catalog in this process, without HTTP: the median of each part. Load is
`search_catalog.py serve` and clients on this machine, each of which sends its next request when it has the answer to
the last; they and the service share the processors. The second line has `--batch_size 1`. Memory is the service's
resident set, when a tenth of the time has gone and at the end.
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


def load(catalog: Path, clients: int, seconds: float, pictures: list[bytes], *words: str) -> list[str]:
    """A line of the table: requests a second, p50 and p95, errors, memory before and after."""
    taken: list[float] = []
    errors: list[object] = []
    numbers, begins, ends = count(), 0.0, 0.0

    def ask(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (started := time.perf_counter()) < ends:
            number = next(numbers)
            condition = CATEGORIES[number % 10].replace(" ", "%20")
            try:
                connection.request("POST", f"/search?condition={condition}", pictures[number % len(pictures)])
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)
                connection.close()
                continue
            if answer.status != 200:
                errors.append(answer.status)
            elif started >= begins:
                taken.append(time.perf_counter() - started)

    with service(catalog, *words) as (process, port):
        begins = time.perf_counter() + seconds / 10
        ends = begins + seconds
        threads = [threading.Thread(target=ask, args=(port,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(begins - time.perf_counter())
        before = megabytes(process)
        for thread in threads:
            thread.join()
        after = megabytes(process)
    p50, p95 = np.percentile(taken, [50, 95]) * 1000
    return [
        f"{len(taken) / seconds:.1f}",
        f"{p50:.0f}",
        f"{p95:.0f}",
        str(len(errors)),
        f"{before:.0f}",
        f"{after:.0f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["B/32", "B/16"], choices=SHAPES)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load, after a tenth more to warm up")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    args = parser.parse_args(arguments)
    pictures = photos(np.random.default_rng(0))
    parts, loads = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model, catalog = Path(folder, name.replace("/", "")), Path(folder, f"{name.replace('/', '')}.catalog")
            write_model(name, model)
            write_catalog(model, args.items, pictures, catalog)
            parts.append([name, *(f"{milliseconds:.1f}" for milliseconds in latency(catalog, pictures))])
            for way, words in (("batches", ()), ("one at a time", ("--batch_size", "1"))):
                loads.append([name, way, *load(catalog, args.clients, args.seconds, pictures, *words)])
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.items:,} items, {args.clients} clients\n"
    )
    print(table(["model", "decode, ms", "model, ms", "search, ms", "together, ms"], parts, args.markdown), "\n")
    header = ["model", "way", "requests/s", "p50, ms", "p95, ms", "errors", "MB, begin", "MB, end"]
    print(table(header, loads, args.markdown), flush=True)


if __name__ == "__main__":
    main()
