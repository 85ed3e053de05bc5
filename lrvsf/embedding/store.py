"""Embeddings on the disk: a test set's, of one model, made once by any number of processes and read block by block.

    FOLDER/manifest.json                    what the embeddings were made with and of (`lrvsf.embedding.fingerprint`)
    FOLDER/query-00000.safetensors, ...     products: their queries' and their targets' embeddings, the same rows
    FOLDER/target-00000.safetensors, ...
    FOLDER/distractor-00000.safetensors, ...

Shard k holds what could be read of the test set's rows k * ROWS to (k + 1) * ROWS: `embeds` (n, dim) float16, or
float32 where asked, and `row` (n,) int64, ascending. Its metadata has the other rows, with reasons; the PRODUCT_ID of
each row from the first to the last, null where there is none; and the files that these rows are from, each with the
row where it begins and their number. A shard is whole or absent, so a killed run embeds only what is missing. No batch
reaches over a shard's end, so a shard's bytes depend neither on the number of processes nor on what was there already.
(They do depend, in the last bits, on what `fingerprint` does not see: the batch size, and on a CPU the threads of each
process.)

What is measured is what the store gives, lengths made good, whether it was just written or not. One run writes at a
time; of several machines' processes all must see the folder.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
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
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import locked, write_whole
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import differences, fingerprint
from lrvsf.embedding.pipeline import Distractors, Embedded, Products, embed_ranges
from lrvsf.embedding.top import NORM_TOLERANCE, unit_rows
from lrvsf.processes import on_main_process, own_share

logger = logging.getLogger(__name__)

ROWS = 2048  # of a shard: what a killed process loses at most, and the block that is in memory
MANIFEST = "manifest.json"

Part = Products | Distractors
DTYPES = {"float16": (torch.float16, "F16"), "float32": (torch.float32, "F32")}  # torch's, safetensors' name
Range = tuple[int, int]  # rows of the test set: start, stop (excluded)
Bad = list[tuple[int, str]]  # rows that could not be read, ascending, with reasons


class DamagedShard(ValueError):
    """A file of a store that is not what the store wrote."""


class EmbeddingStore:
    """The embeddings of a test set by a model, in a folder. Nothing is read or written before `fill`.

    Args:
        folder: made if it is not there; one that holds a part of these embeddings is completed.
        batch_size: images per forward pass; a shard's last batch is smaller.
        tolerance: of bad images, those found in the folder among them.
        dtype: "float16" or "float32", of the embeddings in the files.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder,
        test_set: ProductTestSet,
        batch_size: int = 256,
        tolerance: Tolerance = USUAL,
        dtype: str = "float16",
    ) -> None:
        self.folder, self.encoder, self.test_set, self.batch_size = Path(folder), encoder, test_set, batch_size
        self.dtype, self.tolerance = dtype, tolerance
        self._rows: dict[str, Tensor] = {}
        self._skipped: dict[str, dict[str, int]] = {}
        self._bad: dict[str, Bad] = {}

    def fill(self) -> None:
        """Embeds what is missing, on all processes together. Every process must call it; a second call does nothing.

        Raises:
            ValueError: the folder holds embeddings by another model, or of other data; an embedding is not finite.
            InUse: another run embeds into the folder.
            OSError: the folder cannot be written, for what reason ever.
            TooManyBadImages: more are bad than `tolerance` allows, and not just a few.
        """
        if self._rows:
            return
        parts = Products(self.test_set), Distractors(self.test_set)
        with ExitStack() as held:
            found = on_main_process(lambda: self._open(parts, held))
            for part in parts:
                self._embed_missing(part, found[part.what])
            PartialState().wait_for_everyone()
        stock = {part.what: self._take_stock(part) for part in parts}
        self._rows = {what: rows for what, (rows, _, _) in stock.items()}
        self._skipped = {what: skipped for what, (_, skipped, _) in stock.items()}
        self._bad = {what: bad for what, (_, _, bad) in stock.items()}

    def rows(self, what: str) -> Tensor:
        """(n,) the rows of the "products" or "distractors" that could be read, ascending."""
        return self._rows[what]

    def skipped(self, what: str) -> dict[str, int]:
        """How many of the "products" or "distractors" could not be read, by reason."""
        return self._skipped[what]

    def bad(self, what: str) -> Bad:
        """Those rows, ascending, each with its reason."""
        return self._bad[what]

    def products(self) -> tuple[Tensor, Tensor]:
        """The queries and the targets of all products that could be read, (P, dim) float32 unit rows each."""
        ranges = _ranges(self.test_set.n_products)
        queries, targets = (torch.cat([self._read(kind, start) for start, _ in ranges]) for kind in Products.kinds)
        return queries, targets

    def distractors(self) -> Iterator[tuple[Tensor, int]]:
        """This process's share, in blocks of at most ROWS: (n, dim) float32 unit rows, and the place of the first of
        them among all distractors that could be read."""
        ranges = _ranges(self.test_set.n_distractors)
        for start, _ in ranges[slice(*own_share(len(ranges)))]:
            first = int(torch.searchsorted(self._rows["distractors"], start))
            yield self._read("distractor", start), first

    def _path(self, kind: str, start: int) -> Path:
        return self.folder / f"{kind}-{start // ROWS:05d}.safetensors"

    def _open(self, parts: tuple[Part, ...], held: ExitStack) -> dict[str, dict[Range, Bad]]:
        """Makes the folder, or compares its manifest. What is there already, as `what` -> range -> its bad rows.

        Where something is missing it is locked, until `held` ends; what is whole anybody may read.
        """
        files = (self._path(kind, start) for part in parts for kind in part.kinds for start, _ in _ranges(part.total))
        if not all(path.is_file() for path in (self.folder / MANIFEST, *files)):
            self._lock(held)
        made_with = {"rows_of_a_shard": ROWS, "dtype": self.dtype, **fingerprint(self.encoder, self.test_set)}
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            self._compare(manifest, made_with)
        else:
            if any(self.folder.glob("*.safetensors")):
                raise ValueError(
                    f"{self.folder} has .safetensors files but no {MANIFEST} that says what they are. Give another "
                    "folder with --embeds."
                )
            source = {"model": self.encoder.model.name_or_path, "data_root": str(self.test_set.root)}
            self._write(manifest, json.dumps({"made_with": made_with, "source": source}, indent=1).encode() + b"\n")
        found: dict[str, dict[Range, Bad]] = {}
        for part in parts:
            found[part.what] = {}
            for start, stop in _ranges(part.total):
                try:
                    found[part.what][start, stop] = self._header(part, start, stop)[1]
                except FileNotFoundError:
                    pass  # still to be made
                except DamagedShard as error:
                    logger.warning("%s It is made again.", error)
                    self._lock(held)
        return found

    def _compare(self, manifest: Path, made_with: dict[str, Any]) -> None:
        try:
            then = json.loads(manifest.read_text())["made_with"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{manifest} is damaged, or not of embeddings ({error!r}). Give another folder with --embeds."
            ) from error
        if lines := differences(then, json.loads(json.dumps(made_with))):
            listed = "\n".join(lines)
            raise ValueError(
                f"{self.folder} holds embeddings by another model, or of other data:\n{listed}\n"
                "Evaluate with the same, give another folder with --embeds, or remove this one."
            )

    def _embed_missing(self, part: Part, found: dict[Range, Bad]) -> None:
        """Embeds this process's share of the ranges that were not found."""
        missing = [of for of in _ranges(part.total) if of not in found]
        own = missing[slice(*own_share(len(missing)))]
        counter = self._counter(part)
        with closing(embed_ranges(self.encoder, part, own, self.batch_size, counter)) as embedded:
            for of in _ranges(part.total):
                if of in found:
                    counter.recount(*of, found[of])
                elif of in own:
                    self._save(part, of, next(embedded))
                else:
                    counter.in_a_row = 0  # another process's: bad rows before it and after it are not in a row

    def _save(self, part: Part, of: Range, embedded: Embedded) -> None:
        rows = torch.tensor(embedded.rows, dtype=torch.int64)
        origins = list(self.test_set.origins(part.what, *of))
        files = Counter(origin.file for origin in origins)  # in the order of the rows
        about = {
            "bad": embedded.bad,
            "product_ids": [origin.product_id for origin in origins],
            "files": [[file, next(o.row for o in origins if o.file == file), n] for file, n in files.items()],
        }
        one = {"rows": json.dumps(about)}  # safetensors writes several entries in any order, and a shard's bytes vary
        for kind in part.kinds:
            lengths = torch.linalg.vector_norm(embedded.embeds[kind], dim=1)
            wrong = ~((lengths - 1).abs() <= NORM_TOLERANCE)  # also where one is not a number
            if wrong.any():
                raise ValueError(
                    f"Row {rows[wrong][0]} of the {part.what}: the model's {kind} embedding has length "
                    f"{lengths[wrong][0]}, so its shard was not stored. Try --bf16 false, or look at the weights."
                )
            self._write(
                self._path(kind, of[0]),
                save({"embeds": embedded.embeds[kind].to(DTYPES[self.dtype][0]), "row": rows}, one),
            )

    def _lock(self, held: ExitStack) -> None:
        with self._explained(self.folder):
            held.enter_context(locked(self.folder, "embedding"))

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
                f"{error.strerror}: {path} could not be written. Make room or allow it, or give another folder with "
                "--embeds; what is whole there stays, and the next run embeds only what is missing.",
            ) from error

    def _take_stock(self, part: Part) -> tuple[Tensor, dict[str, int], Bad]:
        """The rows that there are, (n,); the bad ones by reason, judged over all shards in order; and one by one."""
        counter, rows, all_bad = self._counter(part), [torch.empty(0, dtype=torch.int64)], []
        for of in _ranges(part.total):
            try:
                own, bad = self._header(part, *of)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error.filename} was made by another process and is not here. Processes on several machines need "
                    "a folder that all of them see: give one with --embeds."
                ) from error
            counter.recount(*of, bad)
            rows.append(own)
            all_bad += bad
        counter.finish()
        return torch.cat(rows), dict(counter.reasons), all_bad

    def _counter(self, part: Part) -> BadImageCounter:
        return BadImageCounter(part.what, self.tolerance)

    def _header(self, part: Part, start: int, stop: int) -> tuple[Tensor, Bad]:
        """What is known of a shard without its embeddings: its rows (n,), and the bad ones.

        Raises:
            FileNotFoundError: it is absent, or one of its files is.
            DamagedShard: a file is not whole, or not of these rows.
        """
        headers = [self._header_of_file(self._path(kind, start), start, stop) for kind in part.kinds]
        for rows, _ in headers[1:]:
            if not torch.equal(rows, headers[0][0]):
                raise DamagedShard(f"{self._path(part.kinds[-1], start)} has other rows than its {part.kinds[0]}.")
        return headers[0]

    def _header_of_file(self, path: Path, start: int, stop: int) -> tuple[Tensor, Bad]:
        if not path.is_file():
            raise FileNotFoundError(2, "missing", str(path))
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

    def _read(self, kind: str, start: int) -> Tensor:
        """A shard's embeddings (n, dim), float32, of length 1 once more.

        Raises ValueError: one that is not finite or not of length 1.
        """
        path = self._path(kind, start)
        with safetensors.safe_open(path, "pt") as file:
            embeds = file.get_tensor("embeds")
        unit_rows(f"{path}, which may be removed to make it again", embeds)
        return made_good(embeds)


def made_good(embeds: Tensor) -> Tensor:
    """Stored rows (n, dim) of nearly length 1 -> float32, of length 1 as far as float32 goes.

    Squares of float16 add up in float64 without rounding, in whatever order: equal rows stay equal, as ties need.
    """
    exact = embeds.double()
    return (exact / exact.square().sum(1, keepdim=True).sqrt()).float()


def _ranges(total: int) -> list[Range]:
    """The rows of each shard."""
    return [(start, min(start + ROWS, total)) for start in range(0, total, ROWS)]
