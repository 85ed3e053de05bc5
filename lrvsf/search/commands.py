"""The steps of search_catalog.py: what they take, and what is wrong before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from lrvsf.command import quiet_libraries
from lrvsf.embedding.views import read_views
from lrvsf.paths import check_model, check_new_folder, check_output, near
from lrvsf.scale.engine import Actors, Address, Cluster, CpusPerActor, Engine, cluster_asked

if TYPE_CHECKING:
    from lrvsf.embedding.store import Embed
    from lrvsf.search.generations import Generations
    from lrvsf.search.index import BuildIndex, GrowIndex

STORAGES = ("float16", "int8", "binary")
KS, MOST_KS = (1, 5, 10), 7  # of R@K, as in evaluate_lrvsf.py's tables; how many of them fit a line of `measure`

Images = Annotated[
    str,
    Argument(
        help="a folder of pictures; a .csv or .parquet table with a column image (a path from the table's folder, or "
        "bytes); product shards, a test set or tars; a data set, as OWNER/NAME; .parquet at an address, s3://..."
    ),
]
Out = Annotated[Path, Argument(help="the catalog's folder")]
ImagesFolder = Annotated[Path | None, Option(help="of a table: the folder that paths start from; its own by default")]
Split = Annotated[str | None, Option(help="of a data set that has several splits: which one")]
BatchSize = Annotated[int, Option(help="pictures that the model embeds at once")]
MaxBad = Annotated[float, Option(help="largest share of pictures that may be unreadable")]
MaxInARow = Annotated[int, Option(help="this many unreadable pictures one after another are too many")]
Device = Annotated[str | None, Option(help="cpu or cuda; a GPU by default where there is one")]
Model = Annotated[str | None, Option(help="where the catalog's model is now, or one whose frozen gallery it is")]
Where = Annotated[str | None, Option(help="a condition on the metadata, as \"price > 50 and brand = 'x'\"")]


@dataclass(frozen=True)
class IndexKind:
    """How the vectors are searched.

    Attributes:
        factory: a string of faiss's index factory; None chooses by the number of items.
        storage: what is searched first: float16, int8 or binary; scores are always those of the float16 rows.
        seed: of the sample that the index is trained on.
    """

    factory: str | None
    storage: str | None
    seed: int

    def __post_init__(self) -> None:
        if self.storage not in (None, *STORAGES):
            raise ValueError(f"storage={self.storage} is unknown; take {', '.join(STORAGES)}")


@dataclass(frozen=True)
class HowToEmbed:
    """How pictures are embedded, whatever they are.

    Attributes:
        batch_size: pictures of one forward pass.
        max_bad_fraction, max_bad_in_a_row: unreadable pictures that are put up with.
        device: "cpu" or "cuda"; None takes a GPU where there is one.
        embed: what embeds many pictures in place of this process, see `EmbeddingStore.fill`; then `device` is not its.
        build, grow: what builds the index, or adds to the one that is there, in place of this process.
        bf16: whether in bfloat16; None: as it is fast on `device`.
    """

    batch_size: int = 64
    max_bad_fraction: float = 0.01
    max_bad_in_a_row: int = 100
    device: str | None = None
    embed: Embed | None = None
    build: BuildIndex | None = None
    grow: GrowIndex | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more")


def index(
    model: Annotated[str, Argument(help="a model folder, or a model on the Hub")],
    images: Images,
    out: Annotated[
        Path | None,
        Argument(help="the catalog's folder; left out, IMAGES is a catalog, whose pictures the model embeds anew"),
    ] = None,
    images_folder: ImagesFolder = None,
    split: Split = None,
    dims: Annotated[int | None, Option(help="keep this many first dimensions, of a Matryoshka model")] = None,
    factory: Annotated[str | None, Option(help="faiss's string for an index, as HNSW32; by size otherwise")] = None,
    storage: Annotated[str | None, Option(help="what is searched first: float16, int8 or binary")] = None,
    switch: Annotated[bool, Option(help="let the new generation answer at once, where another one does")] = False,
    batch_size: BatchSize = HowToEmbed.batch_size,
    max_bad_fraction: MaxBad = HowToEmbed.max_bad_fraction,
    max_bad_in_a_row: MaxInARow = HowToEmbed.max_bad_in_a_row,
    seed: Annotated[int, Option(help="of the sample that an index is trained on")] = 0,
    device: Device = None,
    engine: Engine = None,
    address: Address = None,
    actors: Actors = None,
    cpus_per_actor: CpusPerActor = None,
) -> dict[str, Any]:
    """Make a catalog of pictures, or the next generation of one beside that which answers.

    A build that was killed goes on where it stopped, by the same command. Pictures that the catalog has embedded by
    this model are not embedded again, whatever else has changed in their table.
    """
    how, kind = HowToEmbed(batch_size, max_bad_fraction, max_bad_in_a_row, device), IndexKind(factory, storage, seed)
    check_model(model)
    cluster = cluster_asked(engine, address, actors, cpus_per_actor)
    if out is None:
        if images_folder or split:
            raise ValueError("--images_folder and --split say how IMAGES is read; a catalog knows that of its own")
        if not _is_catalog(Path(images)):
            raise ValueError(f"name the catalog's folder after {images}, which is no catalog to be embedded anew")
        _changeable(Path(images))
        from lrvsf.search.build_catalog import index_again

        quiet_libraries()
        with _embedding(cluster, how) as how:
            return index_again(model, Path(images), dims, kind, switch, how)
    check_place(out, images)
    from lrvsf.search.build_catalog import index_images

    quiet_libraries()
    with _embedding(cluster, how) as how:
        return index_images(model, images, images_folder, split, out, dims, kind, switch, how)


def add(
    images: Images,
    out: Out,
    replace: Annotated[bool, Option(help="let new pictures take the place of those with the same id")] = False,
    images_folder: ImagesFolder = None,
    split: Split = None,
    model: Model = None,
    batch_size: BatchSize = HowToEmbed.batch_size,
    max_bad_fraction: MaxBad = HowToEmbed.max_bad_fraction,
    max_bad_in_a_row: MaxInARow = HowToEmbed.max_bad_in_a_row,
    device: Device = None,
    engine: Engine = None,
    address: Address = None,
    actors: Actors = None,
    cpus_per_actor: CpusPerActor = None,
) -> dict[str, Any]:
    """Add pictures to a catalog. An id that is there already is refused, or replaced with --replace."""
    how = HowToEmbed(batch_size, max_bad_fraction, max_bad_in_a_row, device)
    cluster = cluster_asked(engine, address, actors, cpus_per_actor)
    _changeable(out)
    from lrvsf.search.build_catalog import add_images

    quiet_libraries()
    with _embedding(cluster, how) as how:
        return add_images(images, images_folder, split, out, replace, model, how)


def remove(
    out: Out,
    ids: Annotated[list[str] | None, Argument(help="ids of items; all photos of a product that is one")] = None,
    where: Where = None,
) -> dict[str, Any]:
    """Take items out of a catalog, by their ids or by a condition. `compact` frees their space."""
    if bool(ids) == bool(where):
        raise ValueError("name the items to remove by their ids, or by --where; one of the two")
    _changeable(out)
    from lrvsf.search.build_catalog import remove_items

    return remove_items(out, ids, where)


def info(out: Out) -> dict[str, Any]:
    """Tell what a catalog has: items, columns, model, index, generations, and what it takes on the disk."""
    return _generations(out, table=True).describe()


def compact(
    out: Out,
    drop_previous: Annotated[bool, Option(help="also remove the generation to which `rollback` returns")] = False,
) -> dict[str, Any]:
    """Free what removed items take, and make one segment of all; older generations go, but for the one before."""
    _changeable(out)
    from lrvsf.search.build_catalog import compact_catalog

    return compact_catalog(out, drop_previous)


def switch(
    out: Out, generation: Annotated[str, Argument(help="the generation that answers from now on, as `info` lists it")]
) -> dict[str, Any]:
    """Let another generation answer. What is open keeps answering as it did until it is opened anew."""
    if not _is_catalog(out):
        _answering(out)  # tells so; the name in CURRENT may be damaged, which this step mends
    check_output(out, "OUT")
    return {"catalog": str(out), "answered before": _generations(out).switch_alone(generation), "answers": generation}


def rollback(out: Out) -> dict[str, Any]:
    """Let the generation answer again that did before."""
    before = _changeable(out)
    return {"catalog": str(out), "answered before": before, "answers": _generations(out).switch_alone(None)}


def calibrate(
    model: Annotated[Path, Argument(help="a model's folder, into which what is found is written")],
    scenes: Annotated[Path, Argument(help="a test set, of whose queries one category each is known: a validation set")],
    dims: Annotated[int | None, Option(help="for catalogs that keep this many first dimensions")] = None,
    max_bad_fraction: MaxBad = HowToEmbed.max_bad_fraction,
    max_bad_in_a_row: MaxInARow = HowToEmbed.max_bad_in_a_row,
    device: Device = None,
) -> dict[str, Any]:
    """Learn from scenes to tell whether a thing is in a picture, and whether a catalog has anything like it."""
    if not model.is_dir():
        raise FileNotFoundError(f"{model} is no folder; name a model's folder, download one from the Hub first")
    check_model(str(model))
    check_output(model, "MODEL")
    from lrvsf.data.images import Tolerance
    from lrvsf.search.calibrate import calibrate_model

    quiet_libraries()
    return calibrate_model(model, scenes, dims, device, Tolerance(max_bad_fraction, max_bad_in_a_row))


def query(
    out: Out,
    image: Annotated[Path, Option(help="the picture to ask with")],
    category: Annotated[list[str] | None, Option(help="what is meant, a condition; again for more")] = None,
    text: Annotated[list[str] | None, Option(help="what is meant, in words, for a model that reads them")] = None,
    all: Annotated[bool, Option(help="ask under every condition that the model knows")] = False,
    query_views: Annotated[str | None, Option(help="looks at the picture to average, as whole,center0.8,flip")] = None,
    where: Where = None,
    k: Annotated[int, Option(help="how many hits")] = 10,
    every_photo: Annotated[bool, Option(help="let every photo of a product be a hit of its own")] = False,
    fold: Annotated[bool, Option(help="take copies of one picture, in other sizes too, for one hit")] = False,
    html: Annotated[Path | None, Option(help="write a page with pictures to this file")] = None,
    as_json: Annotated[bool, Option("--json", help="print JSON instead of a table")] = False,
    model: Model = None,
    device: Device = None,
) -> str:
    """Ask a catalog with a picture, under one condition or several or none, by name or in words."""
    if not image.is_file():
        raise FileNotFoundError(f"there is no picture {image}")
    if sum(map(bool, (category, text, all))) > 1:
        raise ValueError("--category, --text and --all each say what is meant; give one of them")
    read_views(query_views)  # refused before torch is imported
    if html and html.is_dir():
        raise ValueError(f"html={html} is a folder; name a file for the page, such as {html / 'sheet.html'}")
    if k < 1:
        raise ValueError(f"k={k} must be 1 or more")
    _answering(out, table=True)
    from lrvsf.search.answers import ask
    from lrvsf.search.catalog import Catalog

    quiet_libraries()
    catalog = Catalog.open(out, model, device)
    how = {"group": None if every_photo else "product", "near_duplicates": "fold" if fold else "keep"}
    return ask(catalog, image, category, k, where, html, as_json, all, text, query_views=query_views, **how)


def measure(
    out: Out,
    testset: Annotated[Path, Option(help="a test set: its scenes ask, and its products' ids are looked for")],
    k: Annotated[list[int] | None, Option(help="a K of R@K and recall@K, again for more; 1, 5, 10 otherwise")] = None,
    queries: Annotated[int, Option(help="ask at most this many, drawn by the seed")] = 1000,
    seed: Annotated[int, Option(help="of the draw of queries")] = 0,
    as_json: Annotated[bool, Option("--json", help="print JSON instead of tables")] = False,
    batch_size: BatchSize = HowToEmbed.batch_size,
    max_bad_fraction: MaxBad = HowToEmbed.max_bad_fraction,
    max_bad_in_a_row: MaxInARow = HowToEmbed.max_bad_in_a_row,
    model: Model = None,
    device: Device = None,
) -> str:
    """Measure how well and how quickly a catalog answers: with conditions, filtered by category, both, neither."""
    how = HowToEmbed(batch_size, max_bad_fraction, max_bad_in_a_row, device)
    ks = sorted(set(k or KS))
    if ks[0] < 1 or len(ks) > MOST_KS:
        raise ValueError(f"k={', '.join(map(str, ks))} must be 1 or more each, and at most {MOST_KS} different ones")
    if queries < 1:
        raise ValueError(f"queries={queries} must be 1 or more")
    _answering(out, table=True)
    from lrvsf.data.testset import ProductTestSet

    test_set = ProductTestSet(testset)  # refused before torch is imported
    from lrvsf.search.catalog import Catalog
    from lrvsf.search.measuring.measure_catalog import measure_catalog
    from lrvsf.search.measuring.measured_table import as_tables

    quiet_libraries()
    measured = measure_catalog(Catalog.open(out, model, device), test_set, ks, queries, seed, how)
    return json.dumps(measured, indent=1, ensure_ascii=False, allow_nan=False) if as_json else as_tables(measured)


def serve(
    out: Out,
    host: Annotated[str, Option(help="the address to listen at; 0.0.0.0 for other machines too")] = "127.0.0.1",
    port: Annotated[int, Option(help="0 for any that is free")] = 8000,
    waiting: Annotated[int, Option(help="requests that are taken at once; the next one gets 429")] = 64,
    seconds: Annotated[float, Option(help="longest time to an answer; a slower one is 504")] = 30.0,
    batch_size: Annotated[int, Option(help="pictures that the model embeds at once; more for a GPU")] = 8,
    token_file: Annotated[Path | None, Option(help="a file with the token that clients send; or LRVSF_TOKEN")] = None,
    cors: Annotated[
        list[str] | None, Option(help="the origin of web pages that may ask, as https://shop.example; again for more")
    ] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Answer over HTTP: /search, /embed, /items, /health, /ready, /metrics; /docs shows how.

    Conditions are asked for by name, or in words where the model reads texts, as /ready says. A new generation answers
    as soon as it is switched to. SIGTERM ends the service when it has answered what it took.
    """
    from lrvsf.search.serving.limits import Limits

    limits = Limits(waiting=waiting, seconds=seconds, batch=batch_size)
    if not 0 <= port < 65536:
        raise ValueError(f"port={port} must be in 0..65535")
    _answering(out, table=True)
    # Before torch loads OpenMP, whose threads would by default spin while they wait for one another. They would keep
    # the cores from the threads that decode and search, and wait the longer themselves: beside two busy processes on
    # two cores, a B/32 took 2.0 s for a picture, and takes 0.2 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from lrvsf.search.serving.serve import read_token, serve_catalog

    quiet_libraries()
    serve_catalog(out, host, port, limits, model, device, read_token(token_file), cors or ())


def space(
    out: Out,
    folder: Annotated[Path, Argument(help="the folder to write, which is not there yet")],
    examples: Annotated[Path | None, Option(help="a folder of photos to pick from; the first 12 are taken")] = None,
    model: Model = None,
) -> dict[str, Any]:
    """Write a folder that shows a catalog as a page: it runs anywhere, and can be pushed as a Hugging Face Space."""
    check_new_folder(folder, "FOLDER", out)
    if examples and not examples.is_dir():
        raise FileNotFoundError(f"there is no folder {examples}{near(examples)}; --examples names one of photos")
    _answering(out)
    from lrvsf.search.space.write_space import write_space

    quiet_libraries()
    return write_space(out, folder, examples, model)


def _embedding(cluster: Cluster | None, how: HowToEmbed) -> AbstractContextManager[HowToEmbed]:
    """How pictures are embedded and indexed there, for as long as the cluster is connected."""
    if cluster is None:
        return nullcontext(how)
    from lrvsf.scale.ray_index import indexing_on_ray

    return indexing_on_ray(cluster, how)


def check_place(out: Path, images: str) -> None:
    """Refuses a folder for a catalog that holds other things, or lies among its pictures."""
    check_output(out, "OUT")
    if Path(images).is_dir() and out.resolve().is_relative_to(Path(images).resolve()):
        raise ValueError(f"{out} is inside {images}, whose pictures are read; choose another folder")
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if others and not _is_catalog(out):
        raise ValueError(f"{out} is no catalog and holds {', '.join(others[:3])}; name a new folder")


def _is_catalog(folder: Path) -> bool:
    from lrvsf.search.generations import is_catalog

    return is_catalog(folder)


def _generations(out: Path, table: bool = False) -> Generations:
    from lrvsf.search.generations import Generations, generations_in

    return generations_in(out) if table else Generations(out)


def _answering(out: Path, table: bool = False) -> str:
    """The generation that answers, `table`: of a Lance table too. Raises FileNotFoundError where none does."""
    return _generations(out, table).answering().name


def _changeable(out: Path) -> str:
    """Likewise, of a catalog that is to be changed. Raises OSError where it cannot be."""
    answering = _answering(out)
    check_output(out, "OUT")
    return answering
