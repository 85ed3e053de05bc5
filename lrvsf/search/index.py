"""The index of a catalog's vectors: exact, or one of faiss's kinds whose candidates are scored exactly.

faiss holds codes in memory and names candidates; the score of each, and so the order, comes from the float16 rows on
the disk. Up to FLAT_ITEMS rows there is nothing of faiss: one product of all rows is quick, needs no memory and no
building, and misses nothing.

A filter does not reach faiss, whose indexes treat it each in its own way: some drop it without a word, some refuse it,
and one that probes few of its lists may find too little, or what is far from the best. Instead the nearest rows of all
are named, and those that the filter passes are kept. So it is seen how deep the k-th of them lies, and the search is
repeated deeper until it lies well within what was named. Where that is too deep, as where a filter passes just what is
least like the query, and where few rows pass, those rows are searched exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from lrvsf.embedding.top import TopLists, checked_unit_rows, on_grid
from lrvsf.search.vectors import Selection, Vectors

FLAT_ITEMS = 200_000  # up to this many the exact search is the default
EXACT = "Flat"
CODES = {"float16": "SQfp16", "int8": "SQ8", "binary": "RaBitQ"}  # --storage -> faiss's code
DEFAULT_STORAGE = "binary"  # of an IVF: a sixth of the memory of int8, as quick, and as good once scored exactly

TRAINED = 50  # rows of the sample for each list; k-means warns below 39
LEAST_TRAINED = 20_000  # rows of the sample, so that a code of 256 centroids is trained well
# How far is looked for the `depth` nearest rows, those that a filter drops counted: so many candidates for each, twice
# as many where there is a filter, as then the k-th may lie among many that score nearly the same; and in this share of
# the lists at depth 10. Deeper rows are spread over more lists: of 300,000 rows in 2,191 lists, as
# benchmarks/bench_search.py draws them, 98 in 100 are found in 4 % of the lists at depth 10, in 8 % at 50, 32 % at 200.
CANDIDATES_OF_DEPTH, LEAST_CANDIDATES, FILTERED = 5, 50, 2
PROBED, LEAST_PROBED, SPREAD = 1 / 25, 32, 0.75
BEAM = 256  # nodes that a search of an HNSW keeps at least
EXACT_ROWS = 20_000  # allowed rows up to which they are searched exactly
RARE = 1 / 25  # share of allowed rows below which that takes less time than the depth at which they lie by chance
DEEPER = 4  # factor by which a search that found too little goes deeper
DEEPEST = 2_000  # depth from which the exact search is as quick (not tuned)
ADDED = 16_384  # rows added at a time
TOGETHER, SCORED = 32, 256  # queries and candidates of each that are in memory at a time

INDEX, ABOUT = "index.faiss", "index.json"
REMEDY = "search_catalog.py compact makes it anew"
Progress = Callable[[str, int, int], None]  # stage, rows done, rows in all


# Builds an index of the rows of some segments: a folder of its own for what a killed build shall leave, the segments'
# folders, and as `VectorIndex.build` has them factory, storage, seed and progress.
BuildIndex = Callable[[Path, list[Path], str | None, str | None, int, Progress], "VectorIndex"]
# Adds to an index the rows that it lacks of some segments: a folder likewise, the index, all segments, progress.
GrowIndex = Callable[[Path, "VectorIndex", list[Path], Progress], None]


class VectorIndex:
    """Finds the rows nearest to a query.

    Args:
        vectors: all rows that the index has, in order.
        factory: what faiss calls such an index.
        index: faiss's, or None for the exact search.
    """

    def __init__(self, vectors: Vectors, factory: str, index: faiss.Index | None) -> None:
        self.vectors, self.factory, self.index = vectors, factory, index

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        factory: str | None = None,
        storage: str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> VectorIndex:
        """Trains an index on a sample of the rows, and adds them all.

        Args:
            factory: faiss's name of the index ("HNSW32", "IVF4096,PQ64"), or "Flat"; None: by the number of rows.
            storage: the codes in memory where no factory names them: "float16", "int8" or "binary"; None chooses.
            seed: of the sample.

        Raises ValueError: faiss has no such index, or cannot train it on these rows or add to it.
        """
        factory = factory or default_factory(len(vectors), storage)
        if factory == EXACT:
            return cls(vectors, factory, None)
        index = made(vectors.shape[1], factory)
        train(index, vectors, factory, seed, progress)
        try:
            add_rows(index, vectors, 0, len(vectors), progress)
        except RuntimeError as error:
            raise ValueError(f"factory={factory} cannot be filled step by step ({reason(error)}).") from error
        return cls(vectors, factory, index)

    def add(self, vectors: Vectors, first_row: int, progress: Progress | None = None) -> None:
        """Adds rows.

        Args:
            vectors: those that the index has and, from `first_row` on, the new ones.
        """
        if first_row != len(self.vectors):
            raise ValueError(f"The index has {len(self.vectors)} rows; rows cannot be added from row {first_row} on.")
        self.vectors = vectors
        if self.index is not None:
            add_rows(self.index, vectors, first_row, len(vectors), progress)

    def search(self, queries: np.ndarray, k: int, allowed: Selection | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query, or the nearest of the allowed ones.

        Args:
            queries: (Q, dim) unit rows.

        Returns: (Q, k) float64 scores, exact cosines of the stored rows, best first; (Q, k) int64 rows. Past the end,
        where fewer are allowed, scores are -inf and rows -1.
        """
        rows = checked_unit_rows("queries", torch.from_numpy(np.ascontiguousarray(queries)))
        if rows.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"Queries have {rows.shape[1]} dimensions, the index has {self.vectors.shape[1]}.")
        if allowed is not None and len(allowed.mask) != len(self.vectors):
            raise ValueError(f"The selection is of {len(allowed.mask)} rows, the index has {len(self.vectors)}.")
        count = len(self.vectors) if allowed is None else allowed.count
        scores = np.full((len(rows), k), -np.inf)  # float64, as ties would arise from rounding
        found = np.full((len(rows), k), -1, dtype=np.int64)
        search = self._search_exactly if self._is_exact(count, k, allowed) else self._search_candidates
        with _one_thread_if(len(rows) == 1):
            for first in range(0, len(rows), TOGETHER):
                part = slice(first, first + TOGETHER)
                best, items = search(rows[part], min(k, count), allowed)
                scores[part, : min(k, count)], found[part, : min(k, count)] = best, items
        return scores, found

    def save(self, folder: Path) -> None:
        """Writes what the rows do not say themselves. Whole or absent is the folder's affair."""
        if self.index is not None:
            faiss.write_index(self.index, str(folder / INDEX))
        (folder / ABOUT).write_text(json.dumps(self.about(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, vectors: Vectors) -> VectorIndex:
        """Reads what `save` wrote. `vectors` are those that the index was made of.

        Raises:
            FileNotFoundError: a file is gone.
            ValueError: a file is damaged, or the index is of other rows.
        """
        path = folder / ABOUT
        try:
            about = json.loads(path.read_text())
            factory, items = about["factory"], about["items"]
            path = folder / INDEX
            index = None if factory == EXACT else faiss.read_index(str(path))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RuntimeError) as error:
            # Told apart here, as faiss does not: where `compact` has just removed a folder, another one answers.
            if not path.exists():
                raise FileNotFoundError(f"{path} is gone; {REMEDY}") from error
            raise ValueError(f"{path} is damaged ({reason(error)}); {REMEDY}") from error
        size = (items, vectors.shape[1]) if index is None else (index.ntotal, index.d)
        if size != vectors.shape:
            raise ValueError(f"The index in {folder} is of rows {size}, the vectors are {vectors.shape}; {REMEDY}")
        return cls(vectors, factory, index)

    def about(self) -> dict[str, str | int]:
        """What was built, for a manifest."""
        return {"factory": self.factory, "items": len(self.vectors)}

    def _is_exact(self, count: int, k: int, allowed: Selection | None) -> bool:
        return self.index is None or count <= k or (allowed is not None and count <= EXACT_ROWS)

    def _search_exactly(self, queries: Tensor, k: int, allowed: Selection | None) -> tuple[np.ndarray, np.ndarray]:
        return self.vectors.best(queries, k, allowed)

    def _search_candidates(self, queries: Tensor, k: int, allowed: Selection | None) -> tuple[Tensor, Tensor]:
        scores = torch.empty(len(queries), k, dtype=torch.float64)
        items = torch.empty(len(queries), k, dtype=torch.int64)
        missing = np.arange(len(queries))  # queries
        more = 1 if allowed is None else FILTERED
        for depth in _depths(k, None if allowed is None else allowed.count / len(self.vectors)):
            named = self._named(queries[missing].numpy(), depth, more)
            passed = named >= 0
            if allowed is not None:
                passed &= allowed.mask[named]
            # The k-th that passes has to lie as deep as was looked for, not only somewhere in what came back.
            found = passed[:, :depth].sum(1) >= k
            if found.any():
                own = missing[found]
                scores[own], items[own] = self._scored(queries[own], _nearest(named[found], passed[found], k, more), k)
                missing = missing[~found]
            if not len(missing):
                return scores, items
        exact, rows = self._search_exactly(queries[missing], k, allowed)
        scores[missing], items[missing] = torch.from_numpy(exact), torch.from_numpy(rows)
        return scores, items

    def _named(self, queries: np.ndarray, depth: int, more: int) -> np.ndarray:
        """(Q, C) rows, nearest first by their codes, -1 for none, with the `depth` nearest of all among them."""
        count = min(more * max(CANDIDATES_OF_DEPTH * depth, LEAST_CANDIDATES), len(self.vectors))
        return self._nearest_codes(queries, depth, count)[1]

    def _nearest_codes(self, queries: np.ndarray, depth: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, count) scores of the codes, best first, and rows, -1 for none."""
        return nearest_codes(self.index, queries, depth, count)

    def _scored(self, queries: Tensor, candidates: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """The best k of each query's candidates (Q, C), -1 for none: (Q, k) float64 scores, (Q, k) rows."""
        top, own = TopLists(len(queries), k), on_grid(queries)
        for some in np.array_split(candidates, -(-candidates.shape[1] // SCORED), axis=1):
            rows = self.vectors.take(np.maximum(some, 0).ravel())
            embeds = on_grid(torch.from_numpy(rows)).view(*some.shape, -1)  # (Q, c, dim)
            scores = torch.einsum("qd,qcd->qc", own, embeds)
            scores[torch.from_numpy(some < 0)] = -torch.inf
            top.keep(scores, torch.from_numpy(some))
        return top.scores, top.items


def _depths(k: int, share: float | None) -> Iterator[int]:
    """How deep to look for k rows that a filter passes, this share of all; deeper and deeper, while it may pay."""
    if share is None:
        depth, last = k, DEEPEST
    else:
        by_chance = k / share  # the depth of the k-th, where the filter has nothing to do with the query
        depth, last = int(2 * by_chance - k) + 1, min(DEEPER * by_chance, DEEPEST)
        if DEEPER * k < min(depth, DEEPEST):  # a filter often passes what lies near, as a category does
            yield DEEPER * k
        if share < RARE:
            return
    while depth <= max(last, k):
        yield depth
        depth *= DEEPER


def _nearest(named: np.ndarray, passed: np.ndarray, k: int, more: int) -> np.ndarray:
    """Of rows (Q, C) those that passed, from the left, -1 after them; none deeper than is needed for the best k."""
    kth = (passed.cumsum(1) < k).sum(1, keepdims=True) + 1  # its depth, from 1
    enough = more * np.maximum(CANDIDATES_OF_DEPTH * kth, LEAST_CANDIDATES)
    kept = passed & (np.arange(named.shape[1]) < enough)
    first = np.argsort(~kept, axis=1, kind="stable")[:, : kept.sum(1).max()]
    return np.where(np.take_along_axis(kept, first, 1), np.take_along_axis(named, first, 1), -1)


@contextmanager
def _one_thread_if(alone: bool) -> Iterator[None]:
    """A query alone is one thread's: others help it little, and where cores are busy it waits for them at every step.

    The number is the calling thread's own, as OpenMP has it: searches in other threads keep theirs. It holds for torch
    too where, as in Linux's wheels, both use one OpenMP; torch's own call would change threads that start meanwhile.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if alone else before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def default_factory(rows: int, storage: str | None = None) -> str:
    """faiss's name of the index that this many rows get.

    Raises ValueError: an unknown storage.
    """
    if storage not in (None, *CODES):
        raise ValueError(f"storage={storage}: one of {', '.join(CODES)} is needed.")
    if rows <= FLAT_ITEMS:
        return EXACT if storage in (None, "float16") else CODES[storage]
    return f"IVF{round(4 * rows**0.5)},{CODES[storage or DEFAULT_STORAGE]}"


def made(dim: int, factory: str) -> faiss.Index:
    """An empty index. Raises ValueError: faiss has none of that name, or it has numbers or scores of its own."""
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"factory={factory} is no index of {dim} dimensions to faiss ({reason(error)}). Examples: Flat, HNSW32, "
            "IVF4096,SQ8 and IVF4096,PQ64."
        ) from error
    inner = index
    while inner is not None:
        if isinstance(inner, faiss.IndexIDMap | faiss.IndexRefine):
            # A map's numbers would be the rows' own, and it refuses search parameters of some indexes.
            raise ValueError(
                f"factory={factory}: leave out IDMap and refining. Rows have numbers, and candidates are scored from "
                "the vectors on the disk."
            )
        inner = faiss.downcast_index(inner.index) if isinstance(inner, faiss.IndexPreTransform) else None
    return index


def train(index: faiss.Index, vectors: Vectors, factory: str, seed: int, progress: Progress | None) -> None:
    """Trains an index, in place, on a sample of all rows. Raises ValueError: they are too few."""
    if index.is_trained:  # some kinds have nothing to learn
        return
    ivf = ivf_in(index)
    count = min(len(vectors), max(LEAST_TRAINED, TRAINED * ivf.nlist if ivf else 0))
    if progress:
        progress("train", 0, count)
    rows = np.random.default_rng(seed).choice(len(vectors), count, replace=False, shuffle=False)
    if ivf and faiss.get_num_gpus():  # what takes longest, k-means; the index itself stays on the CPU
        ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))
    try:
        index.train(vectors.take(np.sort(rows)))
    except RuntimeError as error:
        raise ValueError(f"factory={factory} cannot be trained on {count} rows ({reason(error)}).") from error
    if progress:
        progress("train", count, count)


def add_rows(
    index: faiss.Index, vectors: Vectors, first_row: int, last_row: int, progress: Progress | None = None
) -> None:
    """Adds the blocks of rows that begin from `first_row` on and before `last_row`."""
    for start, rows in vectors.blocks(ADDED, first_row):
        if start >= last_row:
            return
        index.add(rows)
        if progress:
            progress("add", start + len(rows), len(vectors))


def nearest_codes(index: faiss.Index, queries: np.ndarray, depth: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What an index itself finds: (Q, count) scores of its codes, best first, and rows, -1 for none."""
    try:
        return index.search(queries, count, params=_parameters(index, depth, count))
    except RuntimeError:  # some indexes take no parameters
        return index.search(queries, count)


def reason(error: Exception) -> str:
    """What faiss, or JSON's reader, says, without the place in its source."""
    return re.sub(r"^(.*\.(cpp|h):\d+: )?(Error: )?", "", " ".join(str(error).split()))


def ivf_in(index: faiss.Index) -> faiss.IndexIVF | None:
    """The lists of an index, which may stand behind a transform; None: it has none."""
    return faiss.try_extract_index_ivf(index)


def probed_lists(lists: int, depth: int) -> int:
    """In how many of an IVF's lists the `depth` nearest rows are looked for."""
    return min(int(max(LEAST_PROBED, PROBED * lists) * max(1, depth / 10) ** SPREAD), lists)


def _parameters(index: faiss.Index, depth: int, candidates: int) -> faiss.SearchParameters | None:
    """Of this one search: an index that several threads ask is never changed."""
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), depth, candidates)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if ivf := ivf_in(index):
        return faiss.SearchParametersIVF(nprobe=probed_lists(ivf.nlist, depth))
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(BEAM, candidates))
    return None
