"""The index of a catalog's vectors: exact, or one of faiss's kinds whose candidates are scored exactly.

faiss holds codes in memory and names candidates; the score of each, and so the order, comes from the float16 rows on
the disk. Up to FLAT_ITEMS rows there is nothing of faiss: one product of all rows is quick, needs no memory and no
building, and misses nothing.

A filtered search has faiss pass over what is not allowed, and looks for it the farther the less is allowed. Whether
faiss did is never taken on trust: some of its indexes drop a selector without a word, others refuse it, and one that
probes a part of its lists may find too little. What comes back is checked; what is missing is looked for more widely;
and what is still missing, or so rare that it is quicker, is searched exactly.
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
PROBED, LEAST_PROBED = 1 / 25, 32  # share of the lists that an unfiltered search looks into, at least so many lists
BEAM = 256  # nodes that an unfiltered search of an HNSW keeps
CANDIDATES, CANDIDATES_OF_K = 50, 5  # that are scored exactly, at least and for each hit
# A filter puts a query's best farther away, where lists and codes tell less of the order. Both grow with how rare the
# allowed rows are, up to these factors, so that a few removed rows cost nothing.
MORE_CANDIDATES, MORE_PROBED = 4, 2
EXACT_ROWS = 20_000  # allowed rows up to which they are searched exactly
WIDER = 4  # factor by which a search that found too little is widened
ADDED = 16_384  # rows added at a time
TOGETHER = 32  # queries whose candidates are in memory at a time

INDEX, ABOUT = "index.faiss", "index.json"
Progress = Callable[[str, int, int], None]  # stage, rows done, rows in all


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
        index = _made(vectors.shape[1], factory)
        if not index.is_trained:
            _train(index, vectors, factory, seed, progress)
        built = cls(vectors, factory, index)
        try:
            built._add_from(0, progress)
        except RuntimeError as error:
            raise ValueError(f"factory={factory} cannot be filled step by step ({_reason(error)}).") from error
        return built

    def add(self, vectors: Vectors, first_row: int, progress: Progress | None = None) -> None:
        """Adds rows.

        Args:
            vectors: those that the index has and, from `first_row` on, the new ones.
        """
        if first_row != len(self.vectors):
            raise ValueError(f"The index has {len(self.vectors)} rows; rows cannot be added from row {first_row} on.")
        self.vectors = vectors
        if self.index is not None:
            self._add_from(first_row, progress)

    def search(self, queries: np.ndarray, k: int, allowed: Selection | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query, or the nearest of the allowed ones.

        Args:
            queries: (Q, dim) unit rows.

        Returns: (Q, k) float32 scores, exact cosines of the stored rows, best first; (Q, k) int64 rows. Past the end,
        where fewer are allowed, scores are -inf and rows -1.
        """
        rows = checked_unit_rows("queries", torch.from_numpy(np.ascontiguousarray(queries)))
        if rows.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"Queries have {rows.shape[1]} dimensions, the index has {self.vectors.shape[1]}.")
        if allowed is not None and len(allowed.mask) != len(self.vectors):
            raise ValueError(f"The selection is of {len(allowed.mask)} rows, the index has {len(self.vectors)}.")
        count = len(self.vectors) if allowed is None else allowed.count
        scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
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

        Raises ValueError: a file is damaged, or the index is of other rows.
        """
        try:
            about = json.loads((folder / ABOUT).read_text())
            factory, items = about["factory"], about["items"]
            index = None if factory == EXACT else faiss.read_index(str(folder / INDEX))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder} has a damaged index ({error}). Build it again.") from error
        size = (items, vectors.shape[1]) if index is None else (index.ntotal, index.d)
        if size != vectors.shape:
            raise ValueError(
                f"The index in {folder} is of rows {size}, the vectors are {vectors.shape}. Build it again."
            )
        return cls(vectors, factory, index)

    def about(self) -> dict[str, str | int]:
        """What was built, for a manifest."""
        return {"factory": self.factory, "items": len(self.vectors)}

    def _add_from(self, first_row: int, progress: Progress | None) -> None:
        for start, rows in self.vectors.blocks(ADDED, first_row):
            self.index.add(rows)
            if progress:
                progress("add", start + len(rows), len(self.vectors))

    def _is_exact(self, count: int, k: int, allowed: Selection | None) -> bool:
        return self.index is None or count <= k or (allowed is not None and count <= EXACT_ROWS)

    def _search_exactly(self, queries: Tensor, k: int, allowed: Selection | None) -> tuple[np.ndarray, np.ndarray]:
        return self.vectors.best(queries, k, allowed)

    def _search_candidates(self, queries: Tensor, k: int, allowed: Selection | None) -> tuple[Tensor, Tensor]:
        rarity = 1.0 if allowed is None else len(self.vectors) / allowed.count
        count = int(max(CANDIDATES_OF_K * k, CANDIDATES) * min(rarity, MORE_CANDIDATES))
        candidates = np.full((len(queries), count), -1, dtype=np.int64)
        enough = min(count, len(self.vectors) if allowed is None else allowed.count)
        missing = np.arange(len(queries))  # queries
        for params in self._wider_and_wider(rarity, allowed):
            found = self._candidates(queries[missing].numpy(), count, params, allowed)
            candidates[missing] = found
            missing = missing[(found >= 0).sum(1) < enough]
            if not len(missing):
                break
        scores, items = self._scored(queries, candidates, k)
        short = missing[(candidates[missing] >= 0).sum(1) < k]
        if len(short):
            exact, rows = self._search_exactly(queries[short], k, allowed)
            scores[short], items[short] = torch.from_numpy(exact), torch.from_numpy(rows)
        return scores, items

    def _wider_and_wider(self, rarity: float, allowed: Selection | None) -> Iterator[faiss.SearchParameters]:
        """Parameters of searches that each look farther than the one before; the last looks as far as it can."""
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed.bits)
        breadth, farthest = _breadths(self.index)
        breadth *= rarity * min(rarity, MORE_PROBED)
        while breadth < farthest:
            yield _parameters(self.index, int(breadth), selector)
            breadth *= WIDER
        yield _parameters(self.index, farthest, selector)

    def _candidates(
        self, queries: np.ndarray, count: int, params: faiss.SearchParameters, allowed: Selection | None
    ) -> np.ndarray:
        """(Q, count) rows, -1 for what was not found; none that is not allowed."""
        try:
            _, rows = self.index.search(queries, count, params=params)
        except RuntimeError:  # some indexes take no parameters
            _, rows = self.index.search(queries, count)
        return rows if allowed is None else np.where(allowed.mask[rows], rows, -1)

    def _scored(self, queries: Tensor, candidates: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """The best k of each query's candidates (Q, C), -1 for none: (Q, k) float64 scores, (Q, k) rows."""
        rows = self.vectors.take(np.maximum(candidates, 0).ravel())
        embeds = on_grid(torch.from_numpy(rows)).view(*candidates.shape, -1)  # (Q, C, dim)
        scores = torch.einsum("qd,qcd->qc", on_grid(queries), embeds)
        scores[torch.from_numpy(candidates < 0)] = -torch.inf
        top = TopLists(len(queries), k)
        top.keep(scores, torch.from_numpy(candidates))
        return top.scores, top.items


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


def _made(dim: int, factory: str) -> faiss.Index:
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"factory={factory} is no index of {dim} dimensions to faiss ({_reason(error)}). Examples: Flat, HNSW32, "
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


def _train(index: faiss.Index, vectors: Vectors, factory: str, seed: int, progress: Progress | None) -> None:
    ivf = _ivf(index)
    count = min(len(vectors), max(LEAST_TRAINED, TRAINED * ivf.nlist if ivf else 0))
    if progress:
        progress("train", 0, count)
    rows = np.random.default_rng(seed).choice(len(vectors), count, replace=False, shuffle=False)
    if ivf and faiss.get_num_gpus():  # what takes longest, k-means; the index itself stays on the CPU
        ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))
    try:
        index.train(vectors.take(np.sort(rows)))
    except RuntimeError as error:
        raise ValueError(f"factory={factory} cannot be trained on {count} rows ({_reason(error)}).") from error
    if progress:
        progress("train", count, count)


def _reason(error: RuntimeError) -> str:
    """What faiss says, without the place in its source."""
    return re.sub(r"^(.*\.(cpp|h):\d+: )?(Error: )?", "", " ".join(str(error).split()))


def _ivf(index: faiss.Index) -> faiss.IndexIVF | None:
    return faiss.try_extract_index_ivf(index)


def _breadths(index: faiss.Index) -> tuple[float, int]:
    """How broadly an unfiltered search looks, and how broadly one may look: lists of an IVF, a list of an HNSW."""
    if ivf := _ivf(index):
        return max(LEAST_PROBED, ivf.nlist * PROBED), ivf.nlist
    return (BEAM, index.ntotal) if isinstance(index, faiss.IndexHNSW) else (1, 1)


def _parameters(index: faiss.Index, breadth: int, selector: faiss.IDSelector | None) -> faiss.SearchParameters:
    """Of this one search: an index that several threads ask is never changed."""
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), breadth, selector)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if _ivf(index):
        return faiss.SearchParametersIVF(sel=selector, nprobe=breadth)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=breadth)
    return faiss.SearchParameters(sel=selector)
