"""What a test set knows of its rows besides images: categories and PRODUCT_IDs, which only some protocols need."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lrvsf.data.parquet import DAMAGE, open_parquet
from lrvsf.data.testset import ProductTestSet


def product_ids(test_set: ProductTestSet) -> list[str]:
    """The PRODUCT_ID of every product, in row order."""
    return _text(_column([_products(test_set)], "PRODUCT_ID"))


def distractor_ids(test_set: ProductTestSet) -> list[str]:
    """The PRODUCT_ID of every distractor, in row order; empty where there is none."""
    return _text(_column(_distractors(test_set), "PRODUCT_ID"))


def category_numbers(test_set: ProductTestSet) -> tuple[Tensor, Tensor]:
    """The category of every product and of every distractor, as numbers; -1 for one that no product has."""
    products = pa.chunked_array([pa.array(test_set.categories())])
    known = products.unique()
    return _numbers(products, known), _numbers(_column(_distractors(test_set), "CATEGORY"), known)


def _numbers(column: pa.ChunkedArray, known: pa.Array) -> Tensor:
    numbers = pc.fill_null(pc.index_in(column.cast(known.type), value_set=known), -1)
    return torch.from_numpy(numbers.to_numpy().copy()).long()


def _column(files: list[Path], name: str) -> pa.ChunkedArray:
    chunks: list[pa.Array] = []
    for file in files:
        try:
            with open_parquet(file) as parquet:
                names = parquet.schema_arrow.names
                if name not in names:
                    raise ValueError(
                        f"{file} has no column {name}, which this protocol needs; it has {', '.join(names)}. "
                        "Test sets made by prepare_lrvsf.py have it; or choose another protocol."
                    )
                chunks += parquet.read([name])[name].cast(pa.string()).chunks
        except DAMAGE as error:
            raise OSError(f"{file}, column {name}: {error}. Restore this file.") from error
    return pa.chunked_array(chunks, pa.string())


def _text(column: pa.ChunkedArray) -> list[str]:
    return pc.fill_null(column, "").to_pylist()


def _products(test_set: ProductTestSet) -> Path:
    return test_set.root / "products.parquet"


def _distractors(test_set: ProductTestSet) -> list[Path]:
    return test_set.files["distractors"]
