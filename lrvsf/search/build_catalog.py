"""Pictures become a catalog, and a catalog another generation of itself: index, add, remove, compact.

Whatever is whole is used again: a killed build goes on where it stopped, and no picture is embedded twice by one model,
whatever else its table says of it by now. The generation that answers is never touched.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from lrvsf.command import Command, called
from lrvsf.data.names import quoted
from lrvsf.durable import locked
from lrvsf.report import EXAMPLES
from lrvsf.search.commands import HowToEmbed, IndexKind
from lrvsf.search.filters import rows_where
from lrvsf.search.generations import BUILDING, Generation, Generations, Segment
from lrvsf.search.index import BuildIndex, GrowIndex, Progress, VectorIndex
from lrvsf.search.opening.opened import read_metadata
from lrvsf.search.own_model import load_encoder, load_own_encoder
from lrvsf.search.segments import (
    ROW,
    SOURCE,
    KnownPictures,
    digest_of,
    link,
    merge_segments,
    model_facts,
    write_segment,
)
from lrvsf.search.sources.kinds import open_source
from lrvsf.search.sources.lister import Source
from lrvsf.search.vectors import Vectors

SCRIPT = "search_catalog.py"


def index_images(
    model: str,
    images: str,
    images_folder: Path | None,
    split: str | None,
    out: Path,
    dims: int | None,
    kind: IndexKind,
    switch: bool,
    how: HowToEmbed,
) -> dict[str, Any]:
    """Makes a catalog of what IMAGES names, or another generation of the catalog that is there.

    Raises:
        InUse: another build is at work there.
        ValueError, OSError: what `open_source` refuses; the model cannot be used.
        TooManyBadImages: more than `how` puts up with.
    """
    catalog = Generations(out)
    with locked(out, f"{SCRIPT} index"):
        # Listed within the lock, as a data set is fetched into the catalog's folder.
        origin = _origin(images, images_folder, split)
        return _index(catalog, model, [(_open(catalog, origin), origin)], dims, kind, switch, how)


def index_again(
    model: str, out: Path, dims: int | None, kind: IndexKind, switch: bool, how: HowToEmbed
) -> dict[str, Any]:
    """Embeds the items of a catalog by another model, beside the generation that answers: its sources are read anew."""
    catalog = Generations(out)
    with locked(out, f"{SCRIPT} index"):
        origins = _origins(catalog.answering())
        sources = [(_source_of(catalog, origin, items), origin) for origin, items in origins]
        return _index(catalog, model, sources, dims, kind, switch, how)


def _index(
    catalog: Generations,
    model: str,
    sources: list[tuple[Source, dict[str, Any]]],
    dims: int | None,
    kind: IndexKind,
    switch: bool,
    how: HowToEmbed,
) -> dict[str, Any]:
    encoder = load_encoder(model, dims, how.device, bf16=how.bf16)
    facts = model_facts(encoder)
    # Of whole generations alone, which a build that was killed has left as they were: it goes on to the same bytes.
    known = KnownPictures(catalog, digest_of(facts))
    made = [write_segment(catalog, encoder, source, origin, known, how) for source, origin in sources]
    # A folder is found again from anywhere; a name on the Hub stays a name.
    there = str(Path(model).resolve()) if Path(model).is_dir() else model
    manifest = {"model": {"name": there, "digest": digest_of(facts), "facts": facts}, "dims": encoder.dim}
    name = write_generation(catalog, manifest, [segment for segment, _ in made], kind, how.build)
    # Beside one that answers, the new one waits to be looked at first.
    if switch or catalog.current() is None:
        catalog.switch(name)
    _forget_spools(catalog)
    return _report(catalog, name, made)


def add_images(
    images: str,
    images_folder: Path | None,
    split: str | None,
    out: Path,
    replace: bool,
    model: str | None,
    how: HowToEmbed,
) -> dict[str, Any]:
    """Makes the next generation of a catalog, which has further items, and lets it answer.

    Raises ValueError: an id is there already, unless `replace`; a column has another type.
    """
    catalog = Generations(out)
    with locked(out, f"{SCRIPT} add"):
        current = catalog.answering()
        origin = _origin(images, images_folder, split)
        source = _open(catalog, origin)
        metadata = read_metadata(current)
        _refuse_other_types(source, metadata)  # before minutes of embedding, as all that follows
        replaced = _rows_of(current, metadata, source.items["id"])
        if len(replaced) and not replace:
            ids = metadata["id"].take(pa.array(replaced[:EXAMPLES])).to_pylist()
            raise ValueError(
                f"{len(replaced):,} items of {out} have an id that {images} has too, such as "
                f"{', '.join(map(quoted, ids))}; remove them first, or take the new ones with --replace"
            )
        encoder = load_own_encoder(current, model, how.device, bf16=how.bf16)
        known = KnownPictures(catalog, current.manifest["model"]["digest"])
        segment, reused = write_segment(catalog, encoder, source, origin, known, how)
        # A replaced row is a removed one: segments never change, and their readers have them open.
        name = _grow(catalog, current, segment, np.union1d(current.removed, replaced), how.grow)
        catalog.switch(name)
        _forget_spools(catalog)
    return _report(catalog, name, [(segment, reused)]) | {"replaced": len(replaced)}


def _grow(
    catalog: Generations, current: Generation, segment: Segment, removed: np.ndarray, grow: GrowIndex | None
) -> str:
    """A generation of one segment more, whose index is the present one and the new rows; its name."""
    facts = {name: current.manifest[name] for name in ("model", "dims", "index")}
    segments = [*current.segments, segment]
    if there := catalog.same(segments, removed, facts["index"]["asked"]):
        return there
    work = _work(catalog, [current.name, *(one.folder.name for one in segments)])
    with catalog.writing(facts, segments, removed) as folder, StageBars() as bars:
        # Not trained again, which would cost what the whole catalog does; `compact` does it.
        grown = VectorIndex.load(current.folder, Vectors.open([one.folder for one in current.segments]))
        (grow or _grow_here)(work, grown, [one.folder for one in segments], bars)
        grown.save(folder)
        facts["index"] = facts["index"] | grown.about()
    shutil.rmtree(work, ignore_errors=True)
    return facts["name"]


def remove_items(out: Path, ids: list[str] | None, where: str | None) -> dict[str, Any]:
    """Makes the next generation of a catalog, without some items, and lets it answer.

    Raises ValueError: there are none such, or no others.
    """
    catalog = Generations(out)
    with locked(out, f"{SCRIPT} remove"):
        current = catalog.answering()
        metadata = read_metadata(current)
        if ids:
            gone = _rows_of(current, metadata, pa.array(ids))
            if missing := sorted(set(ids) - set(metadata["id"].take(pa.array(gone)).to_pylist())):
                more = f" and {len(missing) - EXAMPLES} more" if len(missing) > EXAMPLES else ""
                shown = ", ".join(map(quoted, missing[:EXAMPLES]))
                raise ValueError(f"{out} has no item {shown}{more}; nothing was removed")
        else:
            # The metadata still has removed rows, which a condition may find once more.
            gone = np.setdiff1d(rows_where(metadata, where).nonzero()[0], current.removed)
        if not len(gone):
            raise ValueError(f"{out} has no item where {where}; nothing was removed")
        if len(gone) == len(current):
            raise ValueError(f"nothing of {out} would be left to answer; remove its folder instead")
        name = _without(catalog, current, np.union1d(current.removed, gone))
        catalog.switch(name)
    return {"catalog": str(out), "generation": name, "removed": len(gone), "items": len(catalog.open(name))}


def _without(catalog: Generations, current: Generation, removed: np.ndarray) -> str:
    """A generation of the same segments and index, without other rows; its name."""
    facts = {name: current.manifest[name] for name in ("model", "dims", "index")}
    if there := catalog.same(current.segments, removed, facts["index"]["asked"]):
        return there
    with catalog.writing(facts, current.segments, removed) as folder:
        # The index keeps the removed rows, and no search may answer them: that is sooner done than building anew.
        for path in current.folder.glob("index.*"):
            link(path, folder / path.name)
    return facts["name"]


def compact_catalog(out: Path, drop_previous: bool) -> dict[str, Any]:
    """Makes one segment of all that is left, lets the generation of it answer, and removes what nobody will ask for."""
    catalog = Generations(out)
    with locked(out, f"{SCRIPT} compact"):
        before, current = catalog.bytes(), catalog.answering()
        whole = _has_whole_index(current)
        if len(current.removed) > 0 or len(current.segments) > 1 or not whole:
            facts = {name: current.manifest[name] for name in ("model", "dims")}
            kind = IndexKind(**current.manifest["index"]["asked"])
            catalog.switch(write_generation(catalog, facts, [_one_segment(catalog, current)], kind))
        # After the switch: a death before it has cost space and no answer.
        gone = catalog.sweep(keep_previous=whole and not drop_previous)  # nobody goes back to a damaged index
        current = catalog.answering()
    report = {"catalog": str(out), "generation": current.name, "items": len(current)}
    report |= {"removed": ", ".join(gone) or "nothing", "megabytes before": round(before / 1e6, 1)}
    report["megabytes now"] = round(catalog.bytes() / 1e6, 1)
    if kept := catalog.previous():
        report["kept for rollback"] = f"{kept}; --drop_previous frees it"
    return report


def _one_segment(catalog: Generations, generation: Generation) -> Segment:
    """What is left of a generation, as one segment."""
    if len(generation.segments) == 1 and not len(generation.removed):
        return generation.segments[0]
    keep = np.ones(generation.total, bool)
    keep[generation.removed] = False
    return merge_segments(catalog, generation.segments, keep)


class StageBars:
    """A context manager that shows a bar for each stage of building an index, called with (stage, done, total)."""

    def __init__(self) -> None:
        self._stage, self._bar = "", None

    def __enter__(self) -> Self:
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.__exit__()
            self._stage, self._bar = stage, tqdm(desc=f"index, {stage}", total=total, unit="row")
        # A stage says how far it has come, a bar wants to know how much farther.
        self._bar.update(done - self._bar.n)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def write_generation(
    catalog: Generations,
    facts: dict[str, Any],
    segments: list[Segment],
    kind: IndexKind,
    build: BuildIndex | None = None,
) -> str:
    """Builds the index over some segments; the name of the new generation, or of one that has just that.

    Args:
        build: what builds it; None: this process.
    """
    nothing = np.empty(0, np.int64)
    # The same command makes a damaged index anew, in a generation of its own.
    if (there := catalog.same(segments, nothing, vars(kind))) and _has_whole_index(catalog.open(there)):
        return there
    work = _work(catalog, [[one.folder.name for one in segments], vars(kind)])
    with catalog.writing(facts, segments, nothing) as folder, StageBars() as bars:
        paths = [segment.folder for segment in segments]
        built = (build or _build_here)(work, paths, kind.factory, kind.storage, kind.seed, bars)
        built.save(folder)
        facts["index"] = {**built.about(), "asked": vars(kind)}
    shutil.rmtree(work, ignore_errors=True)
    return facts["name"]


def _work(catalog: Generations, facts: Any) -> Path:
    """A folder for the parts of an index: named by what it is of, so that the same command finds a killed one's."""
    return catalog.folder / BUILDING / f"i-{digest_of(facts)}"


def _build_here(_: Path, segments: list[Path], *kind_and_progress: Any) -> VectorIndex:
    return VectorIndex.build(Vectors.open(segments), *kind_and_progress)


def _grow_here(_: Path, index: VectorIndex, segments: list[Path], progress: Progress) -> None:
    index.add(Vectors.open(segments), len(index.vectors), progress)


def _has_whole_index(generation: Generation) -> bool:
    """Whether the index can be read, and is of the generation's rows. Raises ValueError: the rows are damaged."""
    vectors = Vectors.open([segment.folder for segment in generation.segments])
    try:
        VectorIndex.load(generation.folder, vectors)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _refuse_other_types(source: Source, metadata: pa.Table) -> None:
    """Refuses a column that holds, say, texts in the catalog and numbers in the new pictures."""
    for field in source.items.schema:
        if field.name in metadata.column_names:
            there = metadata.schema.field(field.name)
            try:
                # Joined as `read_metadata` joins them: whole numbers go with fractions, texts with neither.
                pa.unify_schemas([pa.schema([there]), pa.schema([field])], promote_options="permissive")
            except pa.ArrowException as error:
                raise ValueError(
                    f"{source.name} has {field.type} in the column {quoted(field.name)}, and the catalog has "
                    f"{there.type}; write the column alike, or rename it"
                ) from error


def _origin(images: str, folder: Path | None, split: str | None) -> dict[str, Any]:
    """How a source is opened, now and by a later model: paths are absolute."""
    # A later model reads the source from wherever its command is given.
    name = str(Path(images).resolve()) if Path(images).exists() else images
    return {"name": name, "images": folder and str(folder.resolve()), "split": split}


def _open(catalog: Generations, origin: dict[str, Any]) -> Source:
    folder = Path(origin["images"]) if origin["images"] else None
    return open_source(origin["name"], folder, origin["split"], spool=catalog.folder / BUILDING)


def _origins(generation: Generation) -> list[tuple[dict[str, Any], pa.Table]]:
    """The sources of a generation, each with the `id` and `__row` of the items that are left of it."""
    found, start = [], 0
    for segment in generation.segments:
        table = pq.read_table(segment.items, columns=["id", ROW, SOURCE])
        left = np.isin(np.arange(start, start + len(table)), generation.removed, invert=True)
        # What `compact` made is of several sources.
        for number, origin in enumerate(segment.manifest["sources"]):
            own = left & (table[SOURCE].to_numpy() == number)
            if own.any():
                found.append((origin, table.filter(pa.array(own))))
        start += len(table)
    return found


def _source_of(catalog: Generations, origin: dict[str, Any], items: pa.Table) -> Source:
    """A source as it is now, of the items that the catalog still has; by id where it has changed since."""
    source = _open(catalog, origin)
    if source.fingerprint == origin["fingerprint"]:  # then row numbers are the same, which tell photos of one id apart
        return source.only(items[ROW].to_numpy())
    rows = pc.is_in(source.items["id"], value_set=items["id"]).to_numpy()
    if not rows.any():
        raise ValueError(f"{source.name} has none of the catalog's pictures any more; index it as a new source")
    there = set(source.items["id"].filter(pa.array(rows)).to_pylist())
    for name in items["id"].to_pylist():
        if name not in there:
            source.skips.add("item that its source no longer has", name)
    return source.only(rows.nonzero()[0])


def _rows_of(generation: Generation, metadata: pa.Table, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The rows that are left of some ids, ascending."""
    found = pc.is_in(metadata["id"], value_set=ids).to_numpy().nonzero()[0]
    return np.setdiff1d(found, generation.removed)


def _forget_spools(catalog: Generations) -> None:
    """Removes the pictures of data sets that were streamed, now that they are embedded."""
    for spool in (catalog.folder / BUILDING).glob("stream-*"):
        shutil.rmtree(spool)


def _report(catalog: Generations, name: str, made: list[tuple[Segment, int]]) -> dict[str, Any]:
    """What a user wants to know of a generation.

    Args:
        made: its last segments, with how many of their embeddings were there before.
    """
    generation = catalog.open(name)
    current = catalog.answering().name
    report = {"catalog": str(catalog.folder), "generation": name, "items": len(generation)}
    report["embedded"] = sum(len(segment) - reused for segment, reused in made)
    report["embeddings reused"] = sum(reused for _, reused in made)
    for segment, _ in made:
        report |= segment.manifest.get("left out", {})
        if unused := segment.manifest.get("columns not kept"):
            report["columns not kept"] = ", ".join(unused)
    report["index"] = generation.manifest["index"]["factory"]
    if current != name:
        report["answers still"] = current
        report["to let it answer"] = Command([*called("search"), "switch", catalog.folder, name])
    else:
        report["ask it"] = Command([*called("search"), "query", catalog.folder, "--image", "photo.jpg"])
    return report
