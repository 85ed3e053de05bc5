"""Segments of a catalog: pictures become embeddings, metadata and thumbnails, by one model, and never change again.

    SEGMENT/item-00000.safetensors, ...     `embeds` (n, dim) float16 and `row` (n,): shards of an embedding store
    SEGMENT/items.parquet                   in the order of the embeddings: id, metadata, `__thumbnail` (JPEG), and
                                            `__row` of `__source`, one of the manifest's sources, where the picture is
    SEGMENT/manifest.json                   sources, number of items, what was left out and why

A segment grows in OUT/building as an embedding store with a file of thumbnails beside each shard; what is whole there
is never made again. Pictures are seen as a browser shows them, upright and on white, unlike in the published
preprocessing: queries come from telephones, which write which way is up and do not turn the picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
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
from lrvsf.data.testset import Origin
from lrvsf.durable import whole_folder
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import fingerprint
from lrvsf.embedding.parts import Decoded, Item, Part
from lrvsf.embedding.store import ROWS, EmbeddingStore
from lrvsf.search.commands import HowToEmbed
from lrvsf.search.generations import BUILDING, FORMAT, MANIFEST, SEGMENTS, SOURCE, Generations, Segment
from lrvsf.search.sources.lister import WHERE, Source

THUMBNAIL = "__thumbnail"
ROW = "__row"
SIDE, QUALITY = 128, 80  # of a thumbnail: its longer side in pixels; some 4 KB
GROUP_ROWS = 256  # of items.parquet: what is read for one thumbnail, 1 MB


class Items(Part):
    """A source's pictures as rows to embed, without a condition; their thumbnails stand beside the shards."""

    what, kinds, beside = "items", ("item",), ".parquet"

    def __init__(self, source: Source) -> None:
        self.source, self.total = source, len(source)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        yield from enumerate(self.source.pictures(start, stop), start)

    def decode(self, encoder: Encoder, picture: str | bytes | None) -> Decoded:
        data = read_file(picture, self.source.folder) if isinstance(picture, str) else picture
        image = decode_shown(data)
        return Decoded([encoder.pixels_of(image)], thumbnail(image))

    def origins(self, start: int, stop: int) -> Iterator[Origin]:
        ids = self.source.items["id"].slice(start, stop - start).to_pylist()
        return (Origin(name, self.source.name, row) for row, name in enumerate(ids, start))

    def describe(self) -> str:
        return self.source.fingerprint

    def pack(self, rows: list[int], extras: list[bytes]) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({ROW: pa.array(rows, pa.int64()), THUMBNAIL: pa.array(extras, pa.binary())}), sink)
        return sink.getvalue().to_pybytes()


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """A small JPEG of an RGB image, which is never made larger."""
    small = image.copy()  # the model gets the large one
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def model_facts(encoder: Encoder) -> dict[str, Any]:
    """What must be the same for queries and items: weights, shape, preprocessing, dimensions; not the condition."""
    # A GPU's bfloat16 moves last bits only, and items have no condition.
    other = ("conditioning", "compute_dtype", "data.categories")
    return {name: value for name, value in fingerprint(encoder, ()).items() if name not in other}


def digest_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def write_segment(
    catalog: Generations, encoder: Encoder, source: Source, origin: dict[str, Any], how: HowToEmbed
) -> Segment:
    """Embeds what a source lists, or takes the segment of the same pictures by the same model that is there.

    Args:
        origin: how the source is opened again, for a later model.

    Raises:
        ValueError: no picture can be read.
        TooManyBadImages: more than the tolerance.
    """
    part = Items(source)
    # Named by all that decides its bytes, so that the same command finds its own leftovers and nobody else's.
    name = f"s-{digest_of(fingerprint(encoder, (part,)))}"
    building = catalog.folder / BUILDING / name
    if found := catalog.segment(name):
        shutil.rmtree(building, ignore_errors=True)  # a build was killed after its last step but one
        return found
    tolerance = Tolerance(how.max_bad_fraction, how.max_bad_in_a_row)
    store = EmbeddingStore(
        building, encoder, [part], source.name, how.batch_size, tolerance, remedy="name another folder for the catalog"
    )
    store.fill()
    for row, reason in store.bad("items"):
        source.skips.add(reason, source.items[WHERE][row].as_py())
    if not (items := len(store.rows("items"))):
        raise ValueError(f"{source.name} has no picture that can be read; look at the warnings above")
    manifest = {"sources": [origin | {"fingerprint": source.fingerprint}], "items": items}
    manifest |= {"left out": source.skips.report("not used"), "columns not kept": source.unused}
    with _whole_segment(catalog, name, manifest) as folder:
        for shard in sorted(building.glob("item-*.safetensors")):
            link(shard, folder / shard.name)
        write_items(folder / "items.parquet", _items_of(source, store), items)
    shutil.rmtree(building)
    return catalog.segment(name)


def _items_of(source: Source, store: EmbeddingStore) -> Iterator[pa.Table]:
    """The items of each shard, with thumbnails."""
    for path in store.beside("items"):
        beside = pq.read_table(path)
        table = source.items.drop_columns([WHERE]).take(beside[ROW])
        table = table.append_column(SOURCE, pa.array(np.zeros(len(table), np.int16)))
        yield table.append_column(ROW, beside[ROW]).append_column(THUMBNAIL, beside[THUMBNAIL])


def merge_segments(catalog: Generations, segments: Iterable[Segment], keep: np.ndarray) -> Segment:
    """One segment of the rows of several that are to be kept.

    Args:
        keep: (total,) true for rows to keep.
    """
    segments = list(segments)
    name = f"s-{digest_of([[one.folder.name for one in segments], hashlib.sha256(keep).hexdigest()])}"
    if found := catalog.segment(name):
        return found
    sources = [source for segment in segments for source in segment.manifest["sources"]]
    with _whole_segment(catalog, name, {"sources": sources, "items": int(keep.sum())}) as folder:
        masks = np.split(keep, np.cumsum([len(segment) for segment in segments])[:-1])
        _merge_embeddings(folder, segments, keep)
        write_items(folder / "items.parquet", _kept_items(segments, masks), int(keep.sum()))
    return catalog.segment(name)


def _kept_items(segments: list[Segment], masks: list[np.ndarray]) -> Iterator[pa.Table]:
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
                names = [name for name in table.column_names if name != THUMBNAIL]
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
