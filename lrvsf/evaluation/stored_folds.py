"""The draws that were published: read safely, and matched with the rows of a test set.

python -m lrvsf.evaluation.stored_folds bootstrap_IDs.pkl folds.safetensors [--metadata distractors_metadata.parquet]

The leaderboard's `bootstrapped_indices.pt` is a tensor (20, 1000) of row numbers of products.parquet; its distractors
were never stored. The paper's `bootstrap_IDs.pkl` is a pickle of {"test_subsets": PRODUCT_IDs of each fold,
"dist_N_subsets": for each size N, labels of each fold's distractors}. A pickle can run anything, so this command reads
it once, with an unpickler that knows arrays and plain containers and refuses every other name, and writes safetensors:

    products.ids, distractors.ids     the different names, UTF-8, one a line, as uint8
    products                          (F, draws) int32, positions in products.ids
    distractors.N                     (F, N) int32, positions in distractors.ids, for each size N

The labels of distractors are those of the metadata's index. With --metadata each becomes its row's PRODUCT_ID, which is
what a test set made by prepare_lrvsf.py keeps; without, the labels are taken to be the PRODUCT_IDs themselves.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ADMITTED = {  # module -> names; numpy has moved its private module once
    "collections": ("OrderedDict",),
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct",),
    "numpy._core.multiarray": ("_reconstruct",),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    "torch._utils": ("_rebuild_tensor_v2",),
    "torch.storage": ("_load_from_bytes",),
}


class ArraysOnly(pickle.Unpickler):
    """Loads numpy arrays, torch tensors, numbers, texts and plain containers; any other name ends it."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is no array: it is not loaded.")
        if name == "_load_from_bytes":  # torch's own would unpickle without limits
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        return super().find_class(module, name)


@dataclass(frozen=True)
class MatchedFolds:
    """Stored draws as rows of a test set.

    Attributes:
        rows: F times the row numbers, repeats kept; draws that the test set lacks are left out.
        missing: how many draws of all folds those are.
        draws: how many there were.
    """

    rows: list[Tensor]
    missing: int
    draws: int


class StoredFolds:
    """A file that `convert` wrote: folds by name, matched with any test set that has the PRODUCT_IDs.

    Raises ValueError: a file with other contents.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise ValueError(
                f"{path}: stored folds are read from safetensors only. Make the file from the published pickle once: "
                "python -m lrvsf.evaluation.stored_folds bootstrap_IDs.pkl folds.safetensors"
            )
        self._tensors = load_file(self.path)
        if absent := {"products", "products.ids", "distractors.ids"} - self._tensors.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(absent))}; make it with lrvsf.evaluation.stored_folds.")
        self.sizes = sorted(int(key.split(".")[1]) for key in self._tensors if re.fullmatch(r"distractors\.\d+", key))
        self.folds = len(self._tensors["products"])

    def products(self, ids: Sequence[str]) -> MatchedFolds:
        """The products' folds, among rows whose PRODUCT_IDs are `ids`."""
        return self._matched("products", "products", ids)

    def distractors(self, size: int, ids: Sequence[str]) -> MatchedFolds:
        """The folds of one gallery size, among rows whose PRODUCT_IDs are `ids`; of equal ones the first is meant."""
        return self._matched("distractors", f"distractors.{size}", ids)

    def _matched(self, what: str, key: str, ids: Sequence[str]) -> MatchedFolds:
        row_of = {name: row for row, name in reversed(list(enumerate(ids)))}
        names = bytes(self._tensors[f"{what}.ids"].numpy()).decode().split("\n")
        rows = torch.tensor([row_of.get(name, -1) for name in names])[self._tensors[key].long()]  # (F, n)
        if rows.numel() and (rows < 0).all():
            raise ValueError(
                f"None of the {what} of {self.path}, such as {names[0]!r}, is in the test set, whose PRODUCT_IDs are "
                f"such as {ids[0]!r}. Are the folds another test set's, or was --metadata left out?"
            )
        return MatchedFolds([fold[fold >= 0] for fold in rows], int((rows < 0).sum()), rows.numel())


def read_indices(path: str | Path, products: int) -> Tensor:
    """The leaderboard's draws of products, (F, draws) int64 row numbers below `products`.

    Raises ValueError: something else than such a table. IndexError: a row that the test set does not have.
    """
    try:
        indices = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, so it is not loaded: {error}") from error
    if not isinstance(indices, Tensor) or indices.ndim != 2 or indices.is_floating_point() or not indices.numel():
        raise ValueError(f"{path} holds {_described(indices)}; a table (folds, draws) of row numbers is needed.")
    if indices.min() < 0 or indices.max() >= products:
        raise IndexError(
            f"{path} names rows {int(indices.min())} to {int(indices.max())}, but the test set has {products} "
            "products: it was drawn for another one."
        )
    return indices.long()


def convert(source: str | Path, target: str | Path, metadata: str | Path | None = None) -> None:
    """Writes the paper's folds as safetensors; the module's docstring says how. Refuses folds of unequal lengths."""
    with open(source, "rb") as file:
        stored = ArraysOnly(file).load()
    if not isinstance(stored, dict) or "test_subsets" not in stored:
        raise ValueError(f"{source} holds {_described(stored)}; a dictionary with test_subsets is needed.")
    sizes = {int(m[1]): stored[k] for k in stored if (m := re.fullmatch(r"dist_(\d+)_subsets", str(k))) and m[1] != "0"}
    products, ids = _as_positions([stored["test_subsets"]])
    distractors, labels = _as_positions(list(sizes.values()))
    if metadata is not None:
        names = _product_ids(metadata)
        if absent := [label for label in labels if label not in names]:
            raise ValueError(f"{metadata} has no row {absent[0]!r}, which {source} names ({len(absent)} such rows).")
        labels = [names[label] for label in labels]
    if any(len(folds) != len(products[0]) for folds in distractors):
        raise ValueError(f"{source}: test_subsets has {len(products[0])} folds, but not every size has as many.")
    tensors = {"products": products[0], "products.ids": _as_bytes(ids), "distractors.ids": _as_bytes(labels)}
    tensors |= {f"distractors.{size}": folds for size, folds in zip(sizes, distractors, strict=True)}
    save_file(tensors, target)


def _as_positions(groups: list[Iterable[Any]]) -> tuple[list[Tensor], list[str]]:
    """Groups of folds of names -> for each group (F, n) int32 positions in the list of different names."""
    arrays = [np.stack([np.asarray(fold).astype(str) for fold in folds]) for folds in groups]
    if not arrays:
        return [], []
    names, positions = np.unique(np.concatenate([array.ravel() for array in arrays]), return_inverse=True)
    parts = np.split(positions.ravel(), np.cumsum([array.size for array in arrays])[:-1])
    folds = [
        torch.from_numpy(part.reshape(array.shape).astype(np.int32)) for part, array in zip(parts, arrays, strict=True)
    ]
    return folds, names.tolist()


def _as_bytes(names: list[str]) -> Tensor:
    if bad := [name for name in names if "\n" in name]:
        raise ValueError(f"the name {bad[0]!r} holds a line break.")
    return torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)


def _product_ids(metadata: str | Path) -> dict[str, str]:
    """Label of the index -> PRODUCT_ID, of a Parquet file that pandas wrote."""
    file = pq.ParquetFile(metadata)
    described = (file.schema_arrow.pandas_metadata or {}).get("index_columns") or [{"kind": "range"}]
    ids = file.read(["PRODUCT_ID"])["PRODUCT_ID"].to_pylist()
    if isinstance(described[0], str):
        labels = file.read([described[0]])[described[0]].to_pylist()
    else:  # a range is described, not stored
        start, step = described[0].get("start") or 0, described[0].get("step") or 1
        labels = range(start, start + step * len(ids), step)
    return {str(label): str(name) for label, name in zip(labels, ids, strict=True)}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}" + (f" with {', '.join(map(str, list(value)[:5]))}" if value else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="bootstrap_IDs.pkl")
    parser.add_argument("target", help="safetensors file to write")
    parser.add_argument("--metadata", help="the distractors' metadata, whose index the labels are of")
    args = parser.parse_args(arguments)
    convert(args.source, args.target, args.metadata)
    folds = StoredFolds(args.target)
    print(f"{args.target}: {folds.folds} folds, sizes {', '.join(map(str, folds.sizes)) or 'none'}")


if __name__ == "__main__":
    main()
