"""`prepare_lrvsf.py products`: downloaded images -> product shards to train on.

A product is kept if at least one SIMPLE and one scene image of it arrived and can be decoded. The same downloads give
the same bytes with any number of processes, after any number of kills.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.data.schema import SIMPLE
from lrvsf.data.sharing import SharedPictures, number_of
from lrvsf.durable import locked
from lrvsf.prepare.laion.downloaded import Partitions, Source
from lrvsf.prepare.rows import NO_CATEGORY, TWICE, Picture, distinct, product_row, why_incomplete
from lrvsf.prepare.workers import worker_map
from lrvsf.prepare.writers import ProductShardWriter, made_from, read_manifest
from lrvsf.report import Ledger, as_table, write_report
from lrvsf.scale.engine import Actors, Address, Cluster, CpusPerActor, Engine, cluster_asked


def products(
    downloaded: Annotated[Path, Argument(help="folder that `download` wrote")],
    out: Annotated[Path, Argument(help="data folder; gets SPLIT/*.parquet")],
    split: Annotated[str, Option(help="split to take, and name of the folder to write")] = "train",
    seed: Annotated[int, Option(help="seed of the order of the products")] = 0,
    processes: Annotated[int | None, Option(help="processes that decode images; all cores by default")] = None,
    engine: Engine = None,
    address: Address = None,
    actors: Actors = None,
    cpus_per_actor: CpusPerActor = None,
) -> dict[str, Any]:
    """Group downloaded images by product into shuffled product shards."""
    cluster = cluster_asked(engine, address, actors, cpus_per_actor)
    if cluster and processes is not None:
        raise ValueError("--processes are this machine's; on a cluster --actors decode")
    source = Source(downloaded, (split,), seed)
    folder, work = out / split, out / f"{split}.partitions"
    fingerprint = source.fingerprint()
    with locked(out, "prepare_lrvsf.py products"):
        if not made_from(folder, fingerprint):
            with _mapping(cluster, processes) as mapper:
                _write(source, folder, work, mapper)
        manifest = read_manifest(folder)
        report = {
            "folder": str(folder),
            **manifest["note"]["report"],
            "shards": len(manifest["files"]),
            "image bytes": manifest["image_bytes"],
        }
        write_report(out / f"products-{split}.json", report)
        shutil.rmtree(work, ignore_errors=True)  # after the report: a run killed in between finds the shards finished
    return report


def _mapping(cluster: Cluster | None, processes: int | None) -> AbstractContextManager[Callable]:
    """A `map` in processes of this machine, or on the cluster."""
    if cluster is None:
        return worker_map(processes)
    from lrvsf.scale.ray_prepare import cluster_map  # here, as Ray need not be installed

    return cluster_map(cluster)


def _write(source: Source, folder: Path, work: Path, mapper: Callable) -> None:
    partitions = Partitions.of(source, work)
    counts, shared = ProductCounts(), SharedPictures()
    with ProductShardWriter(folder) as shards:
        for product_id, pictures in partitions.products(mapper):
            usable = distinct(pictures)
            if counts.complete(pictures, usable):
                shards.add(product_row(product_id, usable))
                shared.add(product_id, [number_of(picture.sha256) for picture in usable])
        report = {"seed": source.seed, **counts.report(), **shared.report(), **partitions.skipped}
        if not shards.ids:
            raise ValueError(
                f"{source.folder} gives no complete product of the split {source.splits[0]!r}; download more, or name "
                f"another --split\n{as_table(report)}"
            )
        shards.note = {"input": source.fingerprint(), "report": report}


class ProductCounts:
    """What became of URLs and products; every URL is either kept or counted under one reason."""

    def __init__(self) -> None:
        self.urls: Counter[str] = Counter(listed=0, fetched=0, decodable=0, kept=0)
        self.products: Counter[str] = Counter(listed=0, complete=0)
        self.categories: dict[str, Counter[str]] = defaultdict(Counter)
        self.lost = Ledger()

    def complete(self, pictures: list[Picture], usable: list[Picture]) -> bool:
        """Counts one product; whether it is complete. `usable`: the distinct pictures that can be decoded."""
        decodable = sum(picture.data is not None for picture in pictures)
        self.urls.update(listed=len(pictures), fetched=sum(p.fetched for p in pictures), decodable=decodable)
        self.lost.counts.update(picture.failure for picture in pictures if picture.failure is not None)
        self.lost.counts[TWICE] += decodable - len(usable)
        lacks = why_incomplete(usable)
        if lacks is None:
            self.urls["kept"] += len(usable)
        else:
            self.lost.counts["readable, but of an incomplete product"] += len(usable)
        outcome = lacks or "complete"
        self.products.update(["listed", outcome])
        # A product that lost its SIMPLE image is still known by its category in the list of URLs.
        category = next((name for part in (usable, pictures) if (name := _category(part))), NO_CATEGORY)
        self.categories[category][outcome] += 1
        return lacks is None

    def report(self) -> dict[str, Any]:
        return {
            "URLs": dict(self.urls),
            "images not kept": self.lost.table(),
            "products": dict(self.products),
            "categories": {name: dict(self.categories[name]) for name in sorted(self.categories)},
        }


def _category(pictures: list[Picture]) -> str | None:
    return next((picture.category for picture in pictures if picture.type == SIMPLE), None)
