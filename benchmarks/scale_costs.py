"""Hours, money, disks and memory of a catalog of very many pictures, from one table of assumptions.

    python benchmarks/scale_costs.py [--images 1e8 1e10] [--set gpus=8 gpu_price=2.2 ...]

Every number that goes in is printed first, with where it is from: a page whose command measured it, or "assumed".
`--set` changes any of them. What comes out is arithmetic: no catalog of such a size was made.

A catalog has one listing, one table of items and one index, each made by one process; so very many pictures become
several catalogs, one after the other. Embedding is as quick as the slowest of five things that work side by side. An
index of 4 sqrt(n) lists compares each of n rows with each list, and its k-means does so ten times with its sample, so
building it takes n to the power of 1.5; the rate is that of 1,000,000 rows, which was measured. A query looks into a
fixed share of the lists, so its time is taken as proportional to n.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

MEASURED_ROWS, MEASURED_CORES = 1_000_000, 2  # of the index that docs/search.md tells of
LISTS, SAMPLE, ROUNDS = 4, 50, 10  # lists over sqrt(rows); rows of the sample for each; faiss's rounds of k-means
MONTH = 730  # hours
LEAST = 1_000_000  # pictures: below it other things count than those here

# name, value, unit, where it is from
ASSUMPTIONS = (
    ("gpus", 32, "", "assumed"),
    ("gpus_per_node", 8, "", "assumed"),
    ("cores_per_gpu", 12, "", "assumed"),
    ("actor_images_per_s", 1_660, "a GPU", "gpu.md: B/16 fed by one process"),
    ("gpu_images_per_s", 5_660, "a GPU", "gpu.md: B/16, bfloat16, at rest"),
    ("core_images_per_s", 664, "a core", "gpu.md: 1,660 is 2.50 threads"),
    ("decode_times", 1.7, "times", "bench_indexing.py: thumbnails, too"),
    ("cpu_images_per_s", 2.4, "a core", "search.md: B/16, two cores: 4.8"),
    ("node_gbit", 25, "Gbit/s", "assumed"),
    ("disk_gigabytes_per_s", 2, "GB/s", "assumed: the disk that all share"),
    ("image_kilobytes", 30, "kB", "assumed: JPEG of 256 pixels"),
    ("thumbnail_kilobytes", 4, "kB", "assumed"),
    ("metadata_bytes", 100, "bytes", "assumed"),
    ("dims", 512, "", "of B/16; two bytes each"),
    ("images_per_read", 256, "", "assumed: a row group; files: 1"),
    ("images_per_catalog", 1e8, "", "assumed: see scale.md"),
    ("listed_per_s", 97_000, "a core", "bench_indexing.py"),
    ("listing_bytes", 679, "bytes", "bench_indexing.py, at the most"),
    ("listed_bytes", 191, "bytes", "bench_indexing.py, once listed"),
    ("copy_gigabytes_per_s", 0.2, "GB/s", "assumed: one process"),
    ("index_seconds", 66, "s", "search.md: 1M of 512, two cores"),
    ("index_cores", 16, "", "assumed"),
    ("index_bytes", 86, "bytes", "search.md: RaBitQ, 1M of 512"),
    ("query_ms", 1.35, "ms", "search.md: RaBitQ, 1M of 512"),
    ("questions_per_s", 100, "", "assumed"),
    ("server_cores", 64, "", "assumed"),
    ("server_gigabytes", 256, "GB", "assumed"),
    ("server_terabytes", 8, "TB", "assumed: disks of its own"),
    ("gpu_price", 3.0, "$/h", "assumed, with its cores, 2026"),
    ("core_price", 0.05, "$/h", "assumed, 2026"),
    ("server_price", 4.0, "$/h", "assumed, 2026"),
    ("bucket_price", 23, "$/TB month", "assumed: object storage, 2026"),
    ("disk_price", 80, "$/TB month", "assumed: network disks, 2026"),
    ("read_price", 0.4, "$/million", "assumed: reads of objects, 2026"),
)


@dataclass(frozen=True)
class Costs:
    """What comes out for one number of pictures.

    Attributes:
        rates: images a second of the whole cluster that each thing allows by itself.
        servers: machines that are busy, or full, by each of their parts.
    """

    catalogs: int
    rates: dict[str, float]
    embed_hours: float
    cpu_core_hours: float
    list_hours: float
    copy_hours: float
    index_hours: float
    list_gigabytes: float
    node_gigabytes: float
    pictures_terabytes: float
    catalog_terabytes: float
    index_gigabytes: float
    question_core_ms: float
    servers: dict[str, float]
    embed_dollars: float
    cpu_dollars: float
    one_process_dollars: float
    reads_dollars: float
    pictures_dollars: float
    catalog_dollars: float
    servers_dollars: float

    @property
    def hours(self) -> float:
        return self.embed_hours + self.list_hours + self.copy_hours + self.index_hours


def index_flops(rows: float, dims: float) -> float:
    """Products of building an IVF: each row with each list, and ten times each row of the sample."""
    lists = round(LISTS * math.sqrt(rows))
    return 2 * dims * lists * (rows + ROUNDS * SAMPLE * lists)


def costs(images: float, a: dict[str, float]) -> Costs:
    """
    Args:
        a: the assumptions by name.
    """
    catalogs = math.ceil(images / a["images_per_catalog"])
    each = images / catalogs
    item_bytes = 2 * a["dims"] + 1000 * a["thumbnail_kilobytes"] + a["metadata_bytes"]
    rates = embedding_rates(a, item_bytes)
    embed_hours = images / min(rates.values()) / 3600
    flops_per_s = index_flops(MEASURED_ROWS, 512) / a["index_seconds"] / MEASURED_CORES * a["index_cores"]
    in_one = {
        "list_hours": images / a["listed_per_s"] / 3600,
        "copy_hours": images * item_bytes / 1e9 / a["copy_gigabytes_per_s"] / 3600,
        "index_hours": catalogs * index_flops(each, a["dims"]) / flops_per_s / 3600,
    }
    cpu_core_hours = images / a["cpu_images_per_s"] / 3600
    pictures, catalog = images * a["image_kilobytes"] / 1e9, images * item_bytes / 1e12
    memory = images * (a["index_bytes"] + a["metadata_bytes"]) / 1e9
    question = a["query_ms"] * images / MEASURED_ROWS
    servers = {
        "memory": memory / a["server_gigabytes"],
        "cores": question / 1000 * a["questions_per_s"] / a["server_cores"],
        "disks": catalog / a["server_terabytes"],
    }
    return Costs(
        catalogs=catalogs,
        rates=rates,
        embed_hours=embed_hours,
        cpu_core_hours=cpu_core_hours,
        **in_one,
        list_gigabytes=each * a["listing_bytes"] / 1e9,
        node_gigabytes=each * a["listed_bytes"] / 1e9,
        pictures_terabytes=pictures,
        catalog_terabytes=catalog,
        index_gigabytes=memory,
        question_core_ms=question,
        servers=servers,
        embed_dollars=embed_hours * a["gpus"] * a["gpu_price"],
        cpu_dollars=cpu_core_hours * a["core_price"],
        one_process_dollars=sum(in_one.values()) * a["index_cores"] * a["core_price"],
        reads_dollars=images / a["images_per_read"] / 1e6 * a["read_price"],
        pictures_dollars=pictures * a["bucket_price"],
        catalog_dollars=catalog * a["disk_price"],
        servers_dollars=math.ceil(max(servers.values())) * a["server_price"] * MONTH,
    )


def embedding_rates(a: dict[str, float], item_bytes: float) -> dict[str, float]:
    """Images a second of the whole cluster that each thing allows by itself.

    Args:
        item_bytes: what is written of each picture.
    """
    moved = 1000 * a["image_kilobytes"] + item_bytes
    decoding = 1 / a["decode_times"]  # gpu.md's processes and threads made no thumbnails
    return {
        "one process a GPU": a["gpus"] * a["actor_images_per_s"] * decoding,
        "GPUs": a["gpus"] * a["gpu_images_per_s"],
        "cores": a["gpus"] * a["cores_per_gpu"] * a["core_images_per_s"] * decoding,
        "network of nodes": a["gpus"] / a["gpus_per_node"] * a["node_gbit"] * 1e9 / 8 / moved,
        "disk": a["disk_gigabytes_per_s"] * 1e9 / moved,
    }


def rows_of(all_costs: list[Costs], a: dict[str, float]) -> list[tuple[str, list[str]]]:
    """The lines of the result: what, and a cell for each number of pictures; headings have none."""

    def line(what: str, value: Callable[[Costs], float]) -> tuple[str, list[str]]:
        return what, [number(value(one)) for one in all_costs]

    def marked(what: str, all_parts: list[dict[str, float]], name: str, first) -> tuple[str, list[str]]:
        stars = ["* " if parts[name] == first(parts.values()) else "" for parts in all_parts]
        return what, [star + number(parts[name]) for star, parts in zip(stars, all_parts, strict=True)]

    rates, servers = [one.rates for one in all_costs], [one.servers for one in all_costs]

    return [
        line("catalogs", lambda one: one.catalogs),
        ("embedding, images/s; * saturates first", []),
        *(marked(f"  {name}", rates, name, min) for name in rates[0]),
        ("hours", []),
        line(f"  embedding on {number(a['gpus'])} GPUs", lambda one: one.embed_hours),
        line("  listing, one process", lambda one: one.list_hours),
        line("  items.parquet, one process", lambda one: one.copy_hours),
        line(f"  index, {number(a['index_cores'])} cores", lambda one: one.index_hours),
        line("  together, one after the other", lambda one: one.hours),
        line("core hours of embedding without GPUs", lambda one: one.cpu_core_hours),
        ("dollars, once", []),
        line("  GPUs", lambda one: one.embed_dollars),
        line("  the other hours", lambda one: one.one_process_dollars),
        line("  reads of objects", lambda one: one.reads_dollars),
        line("  cores in place of GPUs", lambda one: one.cpu_dollars),
        ("memory of one catalog's build, GB", []),
        line("  the command", lambda one: one.list_gigabytes),
        line("  each node", lambda one: one.node_gigabytes),
        ("on disks, TB", []),
        line("  pictures", lambda one: one.pictures_terabytes),
        line("  catalogs", lambda one: one.catalog_terabytes),
        ("dollars a month", []),
        line("  pictures, object storage", lambda one: one.pictures_dollars),
        line("  catalogs, network disks", lambda one: one.catalog_dollars),
        line("  machines that answer", lambda one: one.servers_dollars),
        ("answering", []),
        line("  index and metadata in memory, GB", lambda one: one.index_gigabytes),
        line("  a question, ms of one core", lambda one: one.question_core_ms),
        (f"machines for {number(a['questions_per_s'])} questions/s; * saturates first", []),
        *(marked(f"  by their {name}", servers, name, max) for name in servers[0]),
    ]


def number(value: float) -> str:
    """Two digits, or all before the point: 0.52, 5.2, 52, 5,208."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if value >= 0.01 else f"{value:.1g}"


def exact(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def in_words(images: float) -> str:
    """100 million, 10 billion."""
    size, word = (1e9, "billion") if images >= 1e9 else (1e6, "million")
    return f"{images / size:g} {word}"


def changed(settings: list[str]) -> dict[str, tuple[float, str, str]]:
    """The assumptions by name: value, unit, where it is from. Raises ValueError: NAME=VALUE is none of them."""
    table = {name: (float(value), unit, source) for name, value, unit, source in ASSUMPTIONS}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if name not in table:
            raise ValueError(f"{setting}: {name} is no assumption; there are {', '.join(table)}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (equals and 0 < value < math.inf):
            raise ValueError(f"{setting}: give {name}= a number above 0")
        table[name] = value, table[name][1], "--set"
    return table


def report(images: list[float], settings: list[str]) -> str:
    """Both tables, at most 80 columns wide for two numbers of pictures."""
    table = changed(settings)
    lines = [f"{name:<22}{exact(value):>12} {unit:<10} {source}" for name, (value, unit, source) in table.items()]
    values = {name: value for name, (value, _, _) in table.items()}
    found = [costs(count, values) for count in images]
    lines += ["", " " * 44 + "".join(f"{in_words(count):>16}" for count in images)]
    lines += [f"{what:<44}" + "".join(f"{cell:>16}" for cell in cells) for what, cells in rows_of(found, values)]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", nargs="+", type=float, default=[1e8, 1e10], help="how many pictures")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other assumptions")
    args = parser.parse_args(arguments)
    if not all(LEAST <= count < math.inf for count in args.images):
        parser.error(f"--images takes {LEAST:,} or more")
    try:
        print(report(args.images, args.set))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
