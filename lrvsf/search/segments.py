"""Segments of a catalog: pictures become embeddings, metadata and thumbnails, by one model, and never change again.

    SEGMENT/item-00000.safetensors, ...     `embeds` (n, dim) float16 and `row` (n,): shards of an embedding store
    SEGMENT/items.parquet                   in the order of the embeddings: id, metadata, `__thumbnail` (JPEG),
                                            `__digest` (SHA-256 of the picture's bytes), and `__row` of `__source`,
                                            one of the manifest's sources, where the picture is
    SEGMENT/manifest.json                   sources, number of items, what was left out and why

A segment grows in OUT/building as an embedding store with a file of thumbnails beside each shard; what is whole there
is never made again. A picture that the catalog has embedded before, by the same model, is read and hashed, but neither
decoded nor embedded: a shop's nightly table changes prices, hardly a picture.

Pictures are seen as a browser shows them, upright and on white, unlike in the published preprocessing: queries come
from telephones, which write which way is up and do not turn the picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from lrvsf.data.foreign.picture_files import read_file
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import Tolerance
from lrvsf.data.parquet import DAMAGE
from lrvsf.data.testset import Origin
from lrvsf.durable import whole_folder
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import fingerprint
from lrvsf.embedding.parts import Decoded, Item, Part
from lrvsf.embedding.store import ROWS, EmbeddingStore
from lrvsf.search.commands import HowToEmbed
from lrvsf.search.generations import BUILDING, FORMAT, MANIFEST, SEGMENTS, SOURCE, Generations, Segment, damaged
from lrvsf.search.sources.lister import WHERE, Picture, Source
from lrvsf.search.sources.metadata import INTERNAL
from lrvsf.search.vectors import Vectors

THUMBNAIL, ROW, DIGEST = f"{INTERNAL}thumbnail", f"{INTERNAL}row", f"{INTERNAL}digest"
SIDE, QUALITY = 128, 80  # of a thumbnail: its longer side in pixels; some 4 KB
NO_PIXELS = np.empty((3, 0, 0), np.uint8)  # of a picture that the model need not see
GROUP_ROWS = 256  # of items.parquet: what is read for one thumbnail, 1 MB


class Thumbnails:
    """The JPEGs of the items of some segments, whose rows are numbered one after the other. Threads may share it."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        files = [pq.ParquetFile(segment.items, memory_map=True) for segment in segments]
        groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        self._groups = groups  # in the order of the rows, which each begins at one of `_starts`
        self._starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for file, group in groups)])
        self._reading = threading.Lock()  # a ParquetFile is one reader's

    def take(self, rows: Sequence[int]) -> list[bytes]:
        """Those of some rows, in any order."""
        numbers, found = np.asarray(rows, np.int64), [b""] * len(rows)
        group_of = np.searchsorted(self._starts, numbers, "right") - 1
        for place in np.unique(group_of):  # a row group holds some hundred thumbnails, and is read as a whole
            file, group = self._groups[place]
            with self._reading:
                cells = file.read_row_group(group, [THUMBNAIL])[THUMBNAIL]
            for wanted in (group_of == place).nonzero()[0]:
                found[wanted] = cells[int(numbers[wanted] - self._starts[place])].as_py()
        return found


class KnownPictures:
    """What a catalog has of the pictures that one model has embedded, by the SHA-256 of their bytes.

    Names and times say nothing about a picture: a shop writes another photo under the old name, and copies a folder
    without its times. Bytes do, and hashing them costs a small part of decoding and embedding them.
    """

    def __init__(self, catalog: Generations, model: str) -> None:
        """
        Args:
            model: the digest of its facts, preprocessing and dimensions included.
        """
        self._opened = catalog, model
        made = [one for one in map(catalog.open, catalog.names()) if one.manifest["model"]["digest"] == model]
        segments = {segment.folder: segment for generation in made for segment in generation.segments}.values()
        # An earlier program wrote no digests: what it embedded is embedded once more.
        digests = [(one, column) for one in segments if (column := digests_of(one)) is not None]
        segments = [one for one, _ in digests]
        numbered = enumerate(digest for _, column in digests for digest in column)
        self._rows = {digest: row for row, digest in numbered if digest is not None}
        self._vectors = Vectors.open([one.folder for one in segments]) if segments else None
        self._thumbnails = Thumbnails(segments)

    def __reduce__(self) -> tuple[Any, ...]:
        return KnownPictures, self._opened  # opened anew in the process to which it is sent, from the same folder

    def row(self, digest: bytes) -> int | None:
        """The number under which a picture is known, or None."""
        return self._rows.get(digest)

    def embeds(self, rows: Sequence[int]) -> torch.Tensor:
        """(n, dim) float32 of the very values that are stored: float16 again, they are the same bits."""
        return self._vectors.stored(np.array(rows)).float()

    def thumbnails(self, rows: Sequence[int]) -> list[bytes]:
        return self._thumbnails.take(rows)


class Items(Part):
    """A source's pictures as rows to embed, without a condition; thumbnails and digests stand beside the shards."""

    what, kinds, beside = "items", ("item",), ".parquet"

    def __init__(self, source: Source, known: KnownPictures) -> None:
        self.source, self.total, self.known = source, len(source), known
        self._known_rows: dict[int, int] = {}  # row -> the number under which its picture is known

    def items(self, start: int, stop: int) -> Iterator[Item]:
        return ((row, (row, picture)) for row, picture in enumerate(self.source.pictures(start, stop), start))

    def decode(self, encoder: Encoder, item: tuple[int, Picture]) -> Decoded:
        row, picture = item
        data = read_file(picture, self.source.folder) if isinstance(picture, str) else picture
        digest = hashlib.sha256(data or b"").digest()  # an empty cell is none of those known, and refused below
        if (known := self.known.row(digest)) is not None:
            self._known_rows[row] = known
            return Decoded([NO_PIXELS], (digest, None))
        image = decode_shown(data)
        return Decoded([encoder.pixels_of(image)], (digest, thumbnail(image)))

    def embed(self, encoder: Encoder, rows: list[int], pixels: list[list[np.ndarray]]) -> dict[str, torch.Tensor]:
        embeds = torch.empty(len(rows), encoder.dim)
        old = [place for place, row in enumerate(rows) if row in self._known_rows]
        new = [place for place, row in enumerate(rows) if row not in self._known_rows]
        if old:
            embeds[old] = self.known.embeds([self._known_rows[rows[place]] for place in old])
        if new:
            # A smaller batch, so the last bits may be others than a catalog made afresh would have.
            embeds[new] = encoder.embed([pixels[0][place] for place in new])
        return {"item": embeds}

    def origins(self, start: int, stop: int) -> Iterator[Origin]:
        ids = self.source.items["id"].slice(start, stop - start).to_pylist()
        return (Origin(name, self.source.name, row) for row, name in enumerate(ids, start))

    def describe(self) -> str:
        return f"{self.source.fingerprint}, with digests"  # a killed build of an earlier program left files without

    def pack(self, rows: list[int], extras: list[tuple[bytes, bytes | None]]) -> bytes:
        digests, thumbnails = map(list, zip(*extras, strict=True)) if extras else ([], [])
        old = [place for place, row in enumerate(rows) if row in self._known_rows]
        for place, small in zip(old, self.known.thumbnails([self._known_rows[rows[one]] for one in old]), strict=True):
            thumbnails[place] = small
        columns = {ROW: pa.array(rows, pa.int64()), THUMBNAIL: pa.array(thumbnails, pa.binary())}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns | {DIGEST: pa.array(digests, pa.binary())}), sink)
        return sink.getvalue().to_pybytes()


def digests_of(segment: Segment) -> list[bytes | None] | None:
    """(n,) of its pictures; None where it has none at all. Raises ValueError: the file is damaged."""
    try:
        if DIGEST not in pq.read_schema(segment.items).names:
            return None
        return pq.read_table(segment.items, columns=[DIGEST])[DIGEST].to_pylist()
    except DAMAGE as error:
        raise damaged(segment.items, error) from error


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """A small JPEG of an RGB image, which is never made larger."""
    small = image.copy()  # the model gets the large one
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def model_facts(encoder: Encoder) -> dict[str, Any]:
    """What must be the same for queries and items: weights, shape, preprocessing, dimensions; not the condition."""
    return query_facts(encoder.gallery)  # where it is frozen, queries of all later trainings find their items in it


def query_facts(encoder: Encoder) -> dict[str, Any]:
    """Likewise of what asks, which is what items are embedded by unless the gallery is frozen."""
    # A GPU's bfloat16 moves last bits only, and items have no condition.
    other = ("conditioning", "compute_dtype", "data.categories")
    return {name: value for name, value in fingerprint(encoder, ()).items() if name not in other}


def digest_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def write_segment(
    catalog: Generations,
    encoder: Encoder,
    source: Source,
    origin: dict[str, Any],
    known: KnownPictures,
    how: HowToEmbed,
) -> tuple[Segment, int]:
    """Embeds what a source lists, or takes the segment of the same pictures by the same model that is there.

    Args:
        origin: how the source is opened again, for a later model.
        known: pictures of this model that are not embedded again.

    Returns: the segment, and how many of its embeddings were there already.

    Raises:
        ValueError: no picture can be read.
        TooManyBadImages: more than the tolerance.
    """
    part = Items(source, known)
    # Named by all that decides its bytes, so that the same command finds its own leftovers and nobody else's.
    name = f"s-{digest_of(fingerprint(encoder, (part,)))}"
    building = catalog.folder / BUILDING / name
    if found := catalog.segment(name):
        shutil.rmtree(building, ignore_errors=True)  # a build was killed after its last step but one
        return found, len(found)
    tolerance = Tolerance(how.max_bad_fraction, how.max_bad_in_a_row)
    store = EmbeddingStore(
        building, encoder, [part], source.name, how.batch_size, tolerance, remedy="name another folder for the catalog"
    )
    store.fill(how.embed)
    for row, reason in store.bad("items"):
        source.skips.add(reason, source.items[WHERE][row].as_py())
    if not (items := len(store.rows("items"))):
        raise ValueError(f"{source.name} has no picture that can be read; look at the warnings above")
    manifest = {"sources": [origin | {"fingerprint": source.fingerprint}], "items": items}
    manifest |= {"left out": source.skips.report("not used"), "columns not kept": source.unused}
    # Linked, not moved: until the segment has its name, a death must leave the store whole.
    with _whole_segment(catalog, name, manifest) as folder:
        for shard in sorted(building.glob("item-*.safetensors")):
            link(shard, folder / shard.name)
        write_items(folder / "items.parquet", _items_of(source, store), items)
    # Counted by what is beside the shards, as a build that was killed may have copied some of them.
    digests = [pq.read_table(path, columns=[DIGEST])[DIGEST].to_pylist() for path in store.beside("items")]
    reused = sum(known.row(digest) is not None for column in digests for digest in column)
    shutil.rmtree(building)
    return catalog.segment(name), reused


def _items_of(source: Source, store: EmbeddingStore) -> Iterator[pa.Table]:
    """The items of each shard, with thumbnails and digests."""
    for path in store.beside("items"):
        beside = pq.read_table(path)
        table = source.items.drop_columns([WHERE]).take(beside[ROW])
        table = table.append_column(SOURCE, pa.array(np.zeros(len(table), np.int16)))
        for name in beside.column_names:
            table = table.append_column(name, beside[name])
        yield table


def merge_segments(catalog: Generations, segments: Iterable[Segment], keep: np.ndarray) -> Segment:
    """One segment of the rows of several that are to be kept.

    Args:
        keep: (total,) true for rows to keep.
    """
    # Named by what it is of, so that a compact that was killed after it finds it.
    segments = list(segments)
    name = f"s-{digest_of([[one.folder.name for one in segments], hashlib.sha256(keep).hexdigest()])}"
    if found := catalog.segment(name):
        return found
    sources = [source for segment in segments for source in segment.manifest["sources"]]
    with _whole_segment(catalog, name, {"sources": sources, "items": int(keep.sum())}) as folder:
        _merge_embeddings(folder, segments, keep)
        write_items(folder / "items.parquet", kept_items(segments, keep), int(keep.sum()))
    return catalog.segment(name)


def kept_items(segments: Sequence[Segment], keep: np.ndarray) -> Iterator[pa.Table]:
    """The items of several segments that are to be kept, in order; `keep` as of `merge_segments`."""
    masks = np.split(keep, np.cumsum([len(segment) for segment in segments])[:-1])
    schema = pa.unify_schemas([pq.read_schema(one.items) for one in segments], promote_options="permissive")
    first_source = 0
    for segment, mask in zip(segments, masks, strict=True):
        row = 0
        with pq.ParquetFile(segment.items) as file:
            for batch in file.iter_batches(ROWS):
                table = pa.Table.from_batches([batch]).filter(pa.array(mask[row : row + len(batch)]))
                # The merged segment lists the sources of all, one after the other.
                moved = pc.add(table[SOURCE], pa.scalar(first_source, pa.int16())).cast(pa.int16())
                table = table.set_column(table.schema.get_field_index(SOURCE), SOURCE, moved)
                missing = [field for field in schema if field.name not in table.column_names]
                for field in missing:
                    table = table.append_column(field, pa.nulls(len(table), field.type))
                yield table.select(schema.names).cast(schema)
                row += len(batch)
        first_source += len(segment.manifest["sources"])


def _merge_embeddings(folder: Path, segments: list[Segment], keep: np.ndarray) -> None:
    """Shards of ROWS rows, each row with the bits that it had."""
    waiting, row, written = [], 0, 0

    def write(rows: torch.Tensor) -> None:
        nonlocal written
        numbers = torch.arange(written, written + len(rows))
        save_file({"embeds": rows.contiguous(), "row": numbers}, folder / f"item-{written // ROWS:05d}.safetensors")
        written += len(rows)

    for path in (path for segment in segments for path in sorted(segment.folder.glob("item-*.safetensors"))):
        embeds = load_file(path)["embeds"]
        # Bits are copied, not made anew: scores before and after are the same.
        waiting.append(embeds[torch.from_numpy(keep[row : row + len(embeds)])])
        row += len(embeds)
        while sum(map(len, waiting)) >= ROWS:
            rows = torch.cat(waiting)
            write(rows[:ROWS])
            waiting = [rows[ROWS:]]
    if sum(map(len, waiting)):
        write(torch.cat(waiting))


def write_items(path: Path, tables: Iterable[pa.Table], total: int) -> None:
    """items.parquet, in small row groups, because thumbnails are read one at a time; JPEGs do not compress further."""
    writer, bar = None, tqdm(desc="thumbnails", total=total, unit="row", delay=1)
    try:
        for table in tables:
            if writer is None:
                plain = {name: "NONE" if name == THUMBNAIL else "ZSTD" for name in table.column_names}
                names = [name for name in table.column_names if name not in (THUMBNAIL, DIGEST)]  # none is there twice
                writer = pq.ParquetWriter(path, table.schema, compression=plain, use_dictionary=names)
            writer.write_table(table, row_group_size=GROUP_ROWS)
            bar.update(len(table))
    finally:
        bar.close()
        if writer:
            writer.close()


@contextmanager
def _whole_segment(catalog: Generations, name: str, manifest: dict[str, Any]) -> Iterator[Path]:
    """A folder that becomes the segment when the block succeeds, with its manifest."""
    with whole_folder(catalog.folder / SEGMENTS / name) as folder:
        yield folder
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n")


def link(source: Path, target: Path) -> None:
    """The same bytes under another name, without another copy where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
