"""An index of faiss's in shards: trained once, filled by anybody anywhere, merged or asked together.

    FOLDER/trained.faiss          lists and codes that are trained on a sample of all rows; no row
    FOLDER/shards.json            what was asked, and at which rows the shards begin
    FOLDER/shard-00000.faiss      the codes of a shard's rows; whole or absent

A shard knows its own rows alone, so that each may be filled on another machine that sees the folders, and a killed fill
costs the shards that were not whole. All have the same lists and codes, so that what is found is what one index finds.
Every file is read into memory: faiss 1.15.1 dies of lists that are mapped from the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from lrvsf.durable import whole_file, write_whole
from lrvsf.search.index import (
    ADDED,
    EXACT,
    Progress,
    VectorIndex,
    add_rows,
    default_factory,
    ivf_in,
    made,
    nearest_codes,
    reason,
    train,
)
from lrvsf.search.vectors import Vectors

SHARD_ROWS = 100_000  # some seconds to a minute of one core, and 6 MB of the default codes; not tuned
TRAINED, ABOUT = "trained.faiss", "shards.json"
# What takes the codes of another index as they are. A graph does not, as its edges lead to its own rows only, and of
# the blocks of fast-scan codes faiss 1.15.1 dies: merged, they overwrite the memory behind them.
MERGED, UNMERGED = (faiss.IndexIVF, faiss.IndexFlatCodes), (faiss.IndexIVFFastScan, faiss.IndexFastScan)

Each = Callable[[Callable[[int], int], list[int]], Iterable[int]]  # as `map` does, here or on a cluster, in any order


def build_in_shards(
    folder: Path,
    segments: list[Path],
    factory: str | None = None,
    storage: str | None = None,
    seed: int = 0,
    each: Each = map,
    progress: Progress | None = None,
) -> VectorIndex:
    """`VectorIndex.build` of the rows of some segments by way of shards, of which a killed build leaves the whole ones.

    Args:
        folder: of the shards, which stay there.
        each: fills them; the function that it gets can be pickled, and gives how many rows a shard has.

    Raises ValueError: as `VectorIndex.build` and `IndexShards.begin` do.
    """
    vectors = Vectors.open(segments)
    factory = factory or default_factory(len(vectors), storage)
    if factory == EXACT:
        return VectorIndex(vectors, factory, None)
    shards = IndexShards.begin(folder, segments, factory, seed, SHARD_ROWS, progress)
    shards.fill_missing(each, progress)
    return shards.merged(progress)


def grow_in_shards(
    folder: Path, index: VectorIndex, segments: list[Path], each: Each = map, progress: Progress | None = None
) -> None:
    """`VectorIndex.add` of what some segments have after the rows of an index, by way of shards of these alone.

    Args:
        folder, each: as of `build_in_shards`.
        segments: those of the index, and further ones.

    Raises ValueError: the kind cannot be merged; the folder has shards of something else.
    """
    shards = IndexShards.begin_growth(folder, segments, index, SHARD_ROWS)
    shards.fill_missing(each, progress)
    shards.merge_into(index, progress)


def can_be_merged(index: faiss.Index) -> bool:
    """Whether such an index can be made in shards."""
    codes = _codes_of(index)
    return isinstance(codes, MERGED) and not isinstance(codes, UNMERGED)


@dataclass(frozen=True)
class IndexShards:
    """The shards of an index over the rows of some segments. It holds names only, and travels well."""

    folder: Path
    segments: tuple[Path, ...]

    @classmethod
    def begin(
        cls,
        folder: Path,
        segments: Iterable[Path],
        factory: str,
        seed: int,
        rows: int,
        progress: Progress | None = None,
    ) -> Self:
        """Trains the index, or finds it trained.

        Args:
            rows: of a shard, as few more as whole blocks make; the last one may have fewer.

        Raises ValueError: the kind cannot be merged; the folder has shards of something else; as `train` does.
        """
        shards = cls(Path(folder), tuple(map(Path, segments)))
        vectors = shards.vectors()
        index = made(vectors.shape[1], factory)

        def trained() -> faiss.Index:
            train(index, vectors, factory, seed, progress)
            return index

        shards._begin({"factory": factory, "seed": seed}, 0, rows, index, trained)
        return shards

    @classmethod
    def begin_growth(cls, folder: Path, segments: Iterable[Path], index: VectorIndex, rows: int) -> Self:
        """Shards of the rows that an index lacks, which has the first ones of the segments. Otherwise as `begin`."""
        shards = cls(Path(folder), tuple(map(Path, segments)))

        def emptied() -> faiss.Index:
            empty = faiss.clone_index(index.index)
            empty.reset()
            return empty

        shards._begin({"factory": index.factory}, len(index.vectors), rows, index.index, emptied)
        return shards

    def _begin(
        self, facts: dict[str, Any], first_row: int, rows: int, kind: faiss.Index, trained: Callable[[], faiss.Index]
    ) -> None:
        if not can_be_merged(kind):
            raise ValueError(
                f"factory={facts['factory']} cannot be made in shards: graphs and fast-scan codes cannot be merged. "
                "Take an IVF of other codes, such as IVF4096,RaBitQ"
            )
        vectors = self.vectors()
        asked = facts | {"segments": [path.name for path in self.segments], "items": len(vectors)}
        asked |= {"dim": vectors.shape[1], "starts": _starts(vectors, first_row, rows)}
        about = self.folder / ABOUT
        if about.is_file():
            if (there := json.loads(about.read_text())) != asked:
                differs = ", ".join(name for name in asked if there.get(name) != asked[name])
                raise ValueError(
                    f"{self.folder} has shards of another index ({differs}). Remove it, or name another folder"
                )
            return
        with whole_file(self.folder / TRAINED) as part:
            faiss.write_index(trained(), str(part))
        write_whole(about, json.dumps(asked, indent=1).encode())  # last: with it the folder is begun

    @cached_property
    def about(self) -> dict[str, Any]:
        """What was asked for. Raises FileNotFoundError: nothing was begun here."""
        return json.loads((self.folder / ABOUT).read_text())

    def vectors(self) -> Vectors:
        """All rows, mapped."""
        return Vectors.open(self.segments)

    def missing(self) -> list[int]:
        """The numbers of the shards that are still to be filled."""
        return [number for number in range(len(self.about["starts"])) if not self._path(number).is_file()]

    def rows(self, number: int) -> int:
        """How many rows a shard has."""
        start, stop = self._span(number)
        return stop - start

    def fill_missing(self, each: Each, progress: Progress | None = None) -> None:
        """Makes the missing shards; `each` as of `build_in_shards`."""
        missing, total = self.missing(), self.about["items"]
        done = total - sum(map(self.rows, missing))
        for rows in each(self.fill, missing):
            done += rows
            if progress:
                progress("add", done, total)

    def fill(self, number: int) -> int:
        """Makes one shard, by whichever process on whichever machine; how many rows it has."""
        index = _read(self.folder / TRAINED)
        add_rows(index, self.vectors(), *self._span(number))
        with whole_file(self._path(number)) as part:
            faiss.write_index(index, str(part))
        return index.ntotal

    def merged(self, progress: Progress | None = None) -> VectorIndex:
        """One index of all shards, which a catalog reads; in memory are its codes and one shard's.

        Raises ValueError: shards are missing or damaged.
        """
        merged = VectorIndex(self.vectors(), self.about["factory"], _read(self.folder / TRAINED))
        self.merge_into(merged, progress)
        return merged

    def merge_into(self, begun: VectorIndex, progress: Progress | None = None) -> None:
        """Adds all shards to the index that they grow. Raises ValueError: as `merged` does."""
        index = begun.index
        for number in self._whole():
            shard = self._shard(number)
            # Lists keep numbers of rows, which go on; plain codes have none and stand one after the other.
            index.merge_from(shard, index.ntotal if ivf_in(index) else 0)
            if progress:
                progress("merge", index.ntotal, self.about["items"])
        begun.vectors = self.vectors()

    def together(self) -> ShardedIndex:
        """All shards, which are asked one after the other. Raises ValueError: shards are missing or damaged."""
        return ShardedIndex(self.vectors(), self.about["factory"], [self._shard(number) for number in self._whole()])

    def _whole(self) -> range:
        if missing := self.missing():
            raise ValueError(
                f"{self.folder} lacks {len(missing)} shards, such as {self._path(missing[0]).name}: fill them"
            )
        return range(len(self.about["starts"]))

    def _shard(self, number: int) -> faiss.Index:
        index = _read(self._path(number))
        if index.ntotal != self.rows(number):
            raise ValueError(f"{self._path(number)} has {index.ntotal:,} rows, not {self.rows(number):,}. {AGAIN}")
        return index

    def _span(self, number: int) -> tuple[int, int]:
        """The first row of a shard, and the first after it."""
        return list(pairwise([*self.about["starts"], self.about["items"]]))[number]

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.faiss"


class ShardedIndex(VectorIndex):
    """Asks several indexes of one training, and merges what they name; scores are exact, as ever."""

    def __init__(self, vectors: Vectors, factory: str, shards: list[faiss.Index]) -> None:
        super().__init__(vectors, factory, shards[0])
        self.shards = shards

    def _nearest_codes(self, queries: np.ndarray, depth: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        found, start = [], 0
        for shard in self.shards:
            scores, rows = nearest_codes(shard, queries, depth, count)
            found.append((np.where(rows < 0, -np.inf, scores), np.where(rows < 0, -1, rows + start)))
            start += shard.ntotal
        scores, rows = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))  # (Q, shards x count)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


AGAIN = "Remove it: it is then filled again"


def _starts(vectors: Vectors, first_row: int, rows: int) -> list[int]:
    """Where shards begin: at blocks as one build would add them, for a product of other shape has other last bits."""
    starts: list[int] = []
    for start in vectors.block_starts(ADDED, first_row):
        if not starts or start - starts[-1] >= rows:
            starts.append(start)
    return starts


def _codes_of(index: faiss.Index) -> faiss.Index:
    """What stands behind the transforms of an index."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def _read(path: Path) -> faiss.Index:
    """Raises ValueError: the file is damaged."""
    try:
        return faiss.read_index(str(path))  # not IO_FLAG_MMAP, see above
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({reason(error)}). {AGAIN}") from error
