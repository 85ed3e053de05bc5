"""`prepare_lrvsf.py products`: downloaded images -> product shards to train on.

A product is kept if at least one SIMPLE and one scene image of it arrived and can be decoded. The same downloads give
the same bytes with any number of processes, after any number of kills.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.data.sharing import SharedPictures, number_of
from lrvsf.durable import locked
from lrvsf.prepare.laion.downloaded import Partitions, Source
from lrvsf.prepare.laion.spread import first_rows, refuse_none, write_by_jobs
from lrvsf.prepare.product_counts import ProductCounts
from lrvsf.prepare.rows import distinct, product_row
from lrvsf.prepare.workers import worker_map
from lrvsf.prepare.writers import ProductShardWriter, made_from, read_manifest
from lrvsf.report import write_report
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
        raise ValueError("--processes are this machine's; on a cluster --actors work")
    source = Source(downloaded, (split,), seed)
    folder, work, spread = (out / f"{split}{ending}" for ending in ("", ".partitions", ".spread"))
    with locked(out, "prepare_lrvsf.py products"):
        if not made_from(folder, source.fingerprint()):
            if cluster is None:
                with worker_map(processes) as mapper:
                    _write(source, folder, work, mapper)
            else:
                _write_on(cluster, source, folder, spread)
        manifest = read_manifest(folder)
        report = {
            "folder": str(folder),
            **manifest["note"]["report"],
            "shards": len(manifest["files"]),
            "image bytes": manifest["image_bytes"],
        }
        write_report(out / f"products-{split}.json", report)
        for made in (work, spread):  # after the report: a run killed in between finds the shards finished
            shutil.rmtree(made, ignore_errors=True)
    return report


def _write_on(cluster: Cluster, source: Source, folder: Path, work: Path) -> None:
    from lrvsf.scale.ray_prepare import cluster_map  # here, as Ray need not be installed

    with cluster_map(cluster, work, partial(first_rows, source)) as mapper:
        write_by_jobs(source, folder, work, mapper)


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
        refuse_none(source, report)
        shards.note = {"input": source.fingerprint(), "report": report}
