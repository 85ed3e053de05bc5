"""Small vectors: float16, int8 or binary codes of the first dimensions, searched as they are or rescored.

    small = compressed(catalog.vectors, "binary", dims=64)
    bytes_per_item(small)                           # 16
    scores, rows = search_codes(small, queries, 10)     # by the codes alone
    scores, rows = small.search(queries, 10)            # the best 50 by the codes, scored exactly by the catalog's rows

A code is one of faiss's that `index --storage` takes, and a cut of dimensions a transform before it, so that rescoring,
filters and threads are those of every `VectorIndex`. Codes are compared with a query that is not compressed.
benchmarks/bench_compress.py has what each form finds.
"""

from __future__ import annotations

import faiss
import numpy as np

from lrvsf.search.index import CODES, EXACT, VectorIndex, add_rows, made, nearest_codes, train
from lrvsf.search.vectors import Vectors

FORMS = {"float32": EXACT, **CODES}  # form of a coordinate -> faiss's code: 4 bytes, 2, 1, and 1 bit with 8 bytes a row


def compressed(vectors: Vectors, form: str, dims: int | None = None, seed: int = 0) -> VectorIndex:
    """The codes of all rows, in memory.

    Args:
        vectors: (n, dim) rows, by which `VectorIndex.search` scores what the codes name; they stay where they are.
        form: of a coordinate: "float32", "float16", "int8" or "binary".
        dims: keep this many first dimensions, renormalised, of a model that was trained with `matryoshka_dims`.
        seed: of the sample of rows from which a code learns its range.

    Raises ValueError: an unknown form; more dimensions than there are, or none.
    """
    if form not in FORMS:
        raise ValueError(f"form={form} is unknown; take {', '.join(FORMS)}")
    dim = vectors.shape[1]
    kept = dim if dims is None else dims
    if not 0 < kept <= dim:
        raise ValueError(f"dims={dims} must be above 0 and at most {dim}, as many as the vectors have")
    index = made(kept, FORMS[form])
    if kept < dim:
        index = faiss.IndexPreTransform(faiss.NormalizationTransform(kept), index)
        index.prepend_transform(faiss.RemapDimensionsTransform(dim, kept, False))  # the first ones, as they are
    train(index, vectors, FORMS[form], seed, None)
    add_rows(index, vectors, 0, len(vectors))
    return VectorIndex(vectors, FORMS[form], index)


def search_codes(small: VectorIndex, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows by the codes alone.

    Args:
        queries: (Q, dim) float32 unit rows, of all dimensions.

    Returns: (Q, k) float32 scores of the codes, which are near to cosines, best first; (Q, k) int64 rows, -1 for none.
    """
    return nearest_codes(small.index, np.ascontiguousarray(queries, np.float32), k, k)


def bytes_per_item(small: VectorIndex) -> int:
    """What the codes of a row take in memory. Rescoring reads the float16 rows of the candidates besides, 2 bytes a
    dimension, from the disk."""
    return small.index.sa_code_size()
