"""Embeddings on the disk: of any rows, by one model, made once by any number of processes and read shard by shard.

    FOLDER/manifest.json                    what the embeddings were made with and of (`lrvsf.embedding.fingerprint`)
    FOLDER/KIND-00000.safetensors, ...      the embeddings of each kind: "query" and "target", the same rows;
                                            "distractor"
    FOLDER/WHAT-00000.parquet, ...          what a part keeps beside its shards, if it does

Shard k holds what could be read of a part's rows k * ROWS to (k + 1) * ROWS: `embeds` (n, dim) float16, or float32
where asked, and `row` (n,) int64, ascending. Its metadata has the other rows, with reasons; the product id of each row
from the first to the last, null where there is none; and the files that these rows are from, each with the row where it
begins and their number. A shard is whole or absent, so a killed run embeds only what is missing. No batch reaches over
a shard's end, so a shard's bytes depend neither on the number of processes nor on what was there already. (They do
depend, in the last bits, on what `fingerprint` does not see: the batch size, and on a CPU the threads of each process.)

Whoever reads gets the stored rows, renormalised, even if they were computed in this very run. One run writes at a time;
of several machines' processes all must see the folder.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from lrvsf.data.images import USUAL, BadImageCounter, Tolerance
from lrvsf.durable import LOCK, locked, write_whole
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import differences, fingerprint
from lrvsf.embedding.parts import Part
from lrvsf.embedding.pipeline import Embedded, embed_ranges
from lrvsf.embedding.top import NORM_TOLERANCE, checked_unit_rows
from lrvsf.processes import on_main_process, own_share

logger = logging.getLogger(__name__)

ROWS = 2048  # of a shard: what a killed process loses at most, and the block that is in memory
MANIFEST = "manifest.json"

DTYPES = {"float16": (torch.float16, "F16"), "float32": (torch.float32, "F32")}  # torch's, safetensors' name
Range = tuple[int, int]  # rows of a part: start, stop (excluded)
Bad = list[tuple[int, str]]  # rows that could not be read, ascending, with reasons
Shard = tuple[Path, int]  # a file of embeddings, and the place of the first of them in the part's `rows`
# Embeds ranges of a store's part and stores them, as `EmbeddingStore.embed_and_save` does: gives something for each
# range, in their order, when it is stored and its bad rows are counted.
Embed = Callable[["EmbeddingStore", Part, list[Range], BadImageCounter], Iterator[object]]


class DamagedShard(ValueError):
    """A file of a store that is not what the store wrote."""


class EmbeddingStore:
    """The embeddings of some parts by a model, in a folder. Nothing is read or written before `fill`.

    Args:
        folder: made if it is not there; one that holds a part of these embeddings is completed.
        parts: what to embed; no two share a name or a kind.
        data_root: where they lie, for whoever reads the manifest.
        batch_size: images per forward pass; a shard's last batch is smaller.
        tolerance: of bad images, those found in the folder among them.
        dtype: "float16" or "float32", of the embeddings in the files.
        remedy: what a message tells the user to do where this folder will not do.

    Attributes:
        made_with: after `fill`, the facts that the manifest holds, the digest of the weights among them.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder,
        parts: Sequence[Part],
        data_root: str | Path,
        batch_size: int = 256,
        tolerance: Tolerance = USUAL,
        dtype: str = "float16",
        remedy: str = "give another folder with --embeds",
    ) -> None:
        self.folder, self.encoder, self.parts, self.data_root = Path(folder), encoder, tuple(parts), data_root
        self.batch_size, self.tolerance, self.dtype, self.remedy = batch_size, tolerance, dtype, remedy
        self.shard_rows = ROWS
        self._part_of = {kind: part for part in self.parts for kind in part.kinds}
        self._stock: dict[str, tuple[Tensor, Bad]] = {}  # of each part
        self.made_with: dict[str, Any] = {}

    def fill(self, embed: Embed | None = None) -> None:
        """Embeds what is missing, on all processes together. Every process must call it; a second call does nothing.

        Args:
            embed: has the ranges of this process embedded somewhere else; by default they are embedded here.

        Raises:
            ValueError: the folder holds embeddings by another model, or of other data; an embedding is not finite.
            InUse: another run embeds into the folder.
            OSError: the folder cannot be written.
            TooMuchDamage: more are bad than `tolerance` allows, and not just a few.
        """
        if self._stock:
            return
        with ExitStack() as lock:
            # One process looks, for all: each for itself would see the folder at another moment, and a shard would be
            # made by two, or by none.
            self.made_with, found = on_main_process(lambda: self._open(lock))
            for part in self.parts:
                self._embed_missing(part, found[part.what], embed or EmbeddingStore.embed_and_save)
            PartialState().wait_for_everyone()
        # Everybody reads the headers of all shards, others' too: a folder that a machine does not see is noticed here.
        self._stock = {part.what: self._take_stock(part) for part in self.parts}

    def rows(self, what: str) -> Tensor:
        """(n,) the rows of a part, as "products" or "distractors", that could be read, ascending."""
        return self._stock[what][0]

    def skipped(self, what: str) -> dict[str, int]:
        """How many rows of a part could not be read, by reason."""
        return dict(Counter(reason for _, reason in self.bad(what)))

    def bad(self, what: str) -> Bad:
        """Those rows, ascending, each with its reason."""
        return self._stock[what][1]

    def whole(self, kind: str) -> Tensor:
        """All embeddings of a kind in memory, (n, dim) float32 unit rows, in the order of the part's `rows`."""
        return torch.cat([read_shard(path) for path, _ in self.placed(kind)])

    def blocks(self, kind: str) -> Iterator[tuple[Tensor, int]]:
        """This process's share of a kind, shard by shard: (n, dim) float32 unit rows, n at most ROWS, and the place of
        the first of them in the part's `rows`."""
        shards = self.placed(kind)
        # Whole shards: a process opens each of its files once, and none of another's.
        for path, first in shards[slice(*own_share(len(shards)))]:
            yield read_shard(path), first

    def placed(self, kind: str) -> list[Shard]:
        """All shards of a kind, in order."""
        part = self._part_of[kind]
        rows = self.rows(part.what)
        starts = [start for start, _ in self.shards(0, part.total)]
        return [(self._path(kind, start), int(torch.searchsorted(rows, start))) for start in starts]

    def beside(self, what: str) -> list[Path]:
        """The files that a part keeps beside its shards, in the order of the rows."""
        part = self.part(what)
        return [self._beside(part, start) for start, _ in self.shards(0, part.total)]

    def part(self, what: str) -> Part:
        """The part of that name."""
        (part,) = (part for part in self.parts if part.what == what)
        return part

    def shards(self, start: int, stop: int) -> list[Range]:
        """The rows of each shard from one that begins at `start` up to `stop` (excluded)."""
        return [(first, min(first + self.shard_rows, stop)) for first in range(start, stop, self.shard_rows)]

    def _path(self, kind: str, start: int) -> Path:
        return self.folder / f"{kind}-{start // self.shard_rows:05d}.safetensors"

    def _beside(self, part: Part, start: int) -> Path:
        return self._path(part.what, start).with_suffix(part.beside)

    def _files(self, part: Part, start: int) -> list[Path]:
        """All files of a shard."""
        return [self._path(kind, start) for kind in part.kinds] + ([self._beside(part, start)] if part.beside else [])

    def _open(self, lock: ExitStack) -> tuple[dict[str, Any], dict[str, dict[Range, Bad]]]:
        """Makes the folder, or compares its manifest. What the embeddings are made with, which hashes all weights, and
        what is there already, as `what` -> range -> its bad rows.

        Where something is missing the folder is locked, until `lock` ends; what is whole anybody may read.
        """
        files = (
            path for part in self.parts for start, _ in self.shards(0, part.total) for path in self._files(part, start)
        )
        if not all(path.is_file() for path in (self.folder / MANIFEST, *files)):
            self._lock(lock)
        made_with = {"rows_of_a_shard": self.shard_rows, "dtype": self.dtype, **fingerprint(self.encoder, self.parts)}
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            self._compare(manifest, made_with)
        else:
            # A lock is ours, and a part that of a run that was killed before it had written the manifest.
            others = sorted(path.name for path in self.folder.iterdir() if path.name != LOCK and path.suffix != ".part")
            if others:  # a catalog, a model, ...
                raise ValueError(
                    f"{self.folder} holds {', '.join(others[:3])} and no {MANIFEST}, so it is no folder of embeddings; "
                    f"{self.remedy}."
                )
            source = {"model": self.encoder.model.name_or_path, "data_root": str(self.data_root)}
            self._write(manifest, json.dumps({"made_with": made_with, "source": source}, indent=1).encode() + b"\n")
        found: dict[str, dict[Range, Bad]] = {}
        for part in self.parts:
            found[part.what] = {}
            for start, stop in self.shards(0, part.total):
                try:
                    found[part.what][start, stop] = self.header(part, start, stop)[1]
                except FileNotFoundError:
                    pass  # still to be made
                except DamagedShard as error:
                    logger.warning("%s It is made again.", error)
                    self._lock(lock)
        return made_with, found

    def _compare(self, manifest: Path, made_with: dict[str, Any]) -> None:
        try:
            then = json.loads(manifest.read_text())["made_with"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest} is damaged, or not of embeddings ({error!r}); {self.remedy}.") from error
        # Through JSON, as the file's are: a tuple would differ from its list.
        if lines := differences(then, json.loads(json.dumps(made_with))):
            listed = "\n".join(lines)
            raise ValueError(
                f"{self.folder} holds embeddings by another model, or of other data:\n{listed}\n"
                f"Take the same ones, {self.remedy}, or remove this folder."
            )

    def _embed_missing(self, part: Part, found: dict[Range, Bad], embed: Embed) -> None:
        """Has this process's share of the ranges that were not found embedded."""
        # Shared out is what is missing, not what there is, so that all processes help a resumed run.
        missing = [span for span in self.shards(0, part.total) if span not in found]
        own = missing[slice(*own_share(len(missing)))]
        counter, mine = BadImageCounter(part.what, self.tolerance), set(own)
        # Ranges in their order, found or made: bad rows are judged as in a run that was never interrupted.
        with closing(embed(self, part, own, counter)) as embedded:
            for span in self.shards(0, part.total):
                if span in found:
                    counter.recount(*span, found[span])
                elif span in mine:
                    next(embedded)
                else:
                    counter.in_a_row = 0  # another process's: bad rows before it and after it are not in a row

    def embed_and_save(
        self, part: Part, ranges: list[Range], counter: BadImageCounter, quiet: bool = False
    ) -> Iterator[Bad]:
        """Embeds ranges here and stores each, whole or not at all; then gives its bad rows, which are counted.

        Args:
            quiet: show no progress.

        Raises:
            ValueError: an embedding is not finite.
            OSError: the folder cannot be written.
            TooMuchDamage: as soon as the counter does.
        """
        with closing(embed_ranges(self.encoder, part, ranges, self.batch_size, counter, quiet)) as embedded:
            for span, made in zip(ranges, embedded, strict=True):
                self._save(part, span, made)
                yield made.bad

    def _save(self, part: Part, span: Range, embedded: Embedded) -> None:
        rows = torch.tensor(embedded.rows, dtype=torch.int64)  # (n,)
        origins = list(part.origins(*span))
        files = Counter(origin.file for origin in origins)  # in the order of the rows
        about = {
            "bad": embedded.bad,
            "product_ids": [origin.product_id for origin in origins],
            "files": [[file, next(o.row for o in origins if o.file == file), n] for file, n in files.items()],
        }
        # One entry: safetensors writes several in any order, and a shard's bytes would vary.
        metadata = {"rows": json.dumps(about)}
        # A part's files come one after another; a shard counts only with all of them.
        if part.beside:
            self._write(self._beside(part, span[0]), part.pack(embedded.rows, embedded.extras))
        for kind in part.kinds:
            lengths = torch.linalg.vector_norm(embedded.embeds[kind], dim=1)
            wrong = ~((lengths - 1).abs() <= NORM_TOLERANCE)  # also where one is not a number
            if wrong.any():
                raise ValueError(
                    f"Row {rows[wrong][0]} of the {part.what}: the model's {kind} embedding has length "
                    f"{lengths[wrong][0]}, so its shard was not stored. Try --bf16 false, or look at the weights."
                )
            embeds = embedded.embeds[kind].to(DTYPES[self.dtype][0])
            self._write(self._path(kind, span[0]), save({"embeds": embeds, "row": rows}, metadata))

    def _lock(self, lock: ExitStack) -> None:
        with self._explained(self.folder):
            lock.enter_context(locked(self.folder, "embedding"))

    def _write(self, path: Path, data: bytes) -> None:
        with self._explained(path):
            write_whole(path, data)

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: {path} could not be written. Make room or allow it, or {self.remedy}; what "
                "is whole there stays, and the next run embeds only what is missing.",
            ) from error

    def _take_stock(self, part: Part) -> tuple[Tensor, Bad]:
        """The rows (n,) that there are of a part, and its bad ones, which are judged over all shards in order."""
        counter = BadImageCounter(part.what, self.tolerance)
        rows, all_bad = [torch.empty(0, dtype=torch.int64)], []
        for span in self.shards(0, part.total):
            try:
                own, bad = self.header(part, *span)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error.filename} was made by another process and is not here. Processes on several machines need "
                    f"a folder that all of them see; {self.remedy}."
                ) from error
            counter.recount(*span, bad)
            rows.append(own)
            all_bad += bad
        counter.finish()
        return torch.cat(rows), all_bad

    def header(self, part: Part, start: int, stop: int) -> tuple[Tensor, Bad]:
        """What is known of a shard without its embeddings: its rows (n,), and the bad ones.

        Raises:
            FileNotFoundError: it is absent, or one of its files is.
            DamagedShard: a file is not whole, or not of these rows. (The one beside it is not looked into.)
        """
        for path in self._files(part, start):
            if not path.is_file():
                raise FileNotFoundError(2, "missing", str(path))
        headers = [self._header_of_file(self._path(kind, start), start, stop) for kind in part.kinds]
        for rows, _ in headers[1:]:
            if not torch.equal(rows, headers[0][0]):
                raise DamagedShard(f"{self._path(part.kinds[-1], start)} has other rows than its {part.kinds[0]}.")
        return headers[0]

    def _header_of_file(self, path: Path, start: int, stop: int) -> tuple[Tensor, Bad]:
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                # Shards of earlier versions tell their bad rows alone.
                about = json.loads(metadata["rows"])["bad"] if "rows" in metadata else json.loads(metadata["bad"])
                bad = [(row, reason) for row, reason in about]
                # A copy, as what is kept of a file keeps all of it mapped into memory.
                rows, embeds = file.get_tensor("row").clone(), file.get_slice("embeds")
                shape, dtype = embeds.get_shape(), embeds.get_dtype()
        except (SafetensorError, KeyError, ValueError) as error:
            raise DamagedShard(f"{path} is damaged ({error}).") from error
        if (shape, dtype) != ([len(rows), self.encoder.dim], DTYPES[self.dtype][1]):
            raise DamagedShard(f"{path} has embeds of shape {shape}, {dtype}, for {len(rows)} rows.")
        every = torch.cat([rows, torch.tensor([row for row, _ in bad], dtype=torch.int64)])
        if not torch.equal(every.sort().values, torch.arange(start, stop)) or not torch.equal(rows, rows.sort().values):
            raise DamagedShard(f"{path} has not each of the rows {start} to {stop - 1} once, in order.")
        return rows, bad


def read_shard(path: Path) -> Tensor:
    """A shard's embeddings (n, dim), float32, of length 1 once more.

    Raises ValueError: one that is not finite or not of length 1.
    """
    with safetensors.safe_open(path, "pt") as file:
        embeds = file.get_tensor("embeds")
    checked_unit_rows(f"{path}, which may be removed to make it again", embeds)
    return renormalised(embeds)


def renormalised(embeds: Tensor) -> Tensor:
    """Stored rows (n, dim) of nearly length 1 -> float32, of length 1 as far as float32 goes.

    The squares of float16 add up in float64 without rounding, in whatever order: equal rows stay equal, as ties need.
    """
    # float16's rounding makes a row a little longer or shorter, which would decide between items that nearly tie.
    exact = embeds.double()
    return (exact / exact.square().sum(1, keepdim=True).sqrt()).float()
