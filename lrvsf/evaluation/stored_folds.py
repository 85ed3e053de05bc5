"""The draws that were published: read safely, and matched with the rows of a test set.

    evaluate_lrvsf.py folds bootstrap_IDs.pkl folds.safetensors \\
        --metadata distractors_metadata.parquet

The leaderboard's `bootstrapped_indices.pt` is a tensor (20, 1000) of row numbers of products.parquet; its distractors
were never stored. The paper's `bootstrap_IDs.pkl` is a pickle of {"test_subsets": PRODUCT_IDs of each fold,
"dist_N_subsets": for each size N, labels of each fold's distractors}. A pickle can run anything, so this command reads
it once, with an unpickler that makes plain arrays and containers and refuses all else, and writes safetensors:

    products.ids, distractors.ids  different names, UTF-8, one a line, as uint8
    products                       (F, draws) int32, positions in products.ids
    distractors.N                  (F, N) int32, positions in distractors.ids,
                                   for each size N

The labels of distractors are those of the metadata's index. With --metadata each becomes its row's PRODUCT_ID, which is
what a test set made by prepare_lrvsf.py keeps; without, the labels are taken to be the PRODUCT_IDs themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lrvsf.command import OneLineParser, script_name
from lrvsf.data.bounds.safe_pickle import labels_of, load_arrays, load_tensor
from lrvsf.data.parquet import open_parquet
from lrvsf.durable import write_whole

MAX_NAME = 1000  # characters of a label, not tuned: one of megabytes is no label


@dataclass(frozen=True)
class MatchedFolds:
    """Stored draws as rows of a test set.

    Attributes:
        rows: F times the row numbers, repeats kept; draws that the test set lacks are left out.
        draws: how many there were, those included.
    """

    rows: list[Tensor]
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
                "python evaluate_lrvsf.py folds bootstrap_IDs.pkl folds.safetensors"
            )
        self._tensors = load_file(self.path)
        if absent := {"products", "products.ids", "distractors.ids"} - self._tensors.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(absent))}; make it with evaluate_lrvsf.py folds.")
        self.sizes = sorted(int(key.split(".")[1]) for key in self._tensors if re.fullmatch(r"distractors\.\d+", key))
        self.folds = len(self._tensors["products"])

    def products(self, ids: Sequence[str]) -> MatchedFolds:
        """The products' folds, among rows whose PRODUCT_IDs are `ids`."""
        return self._matched("products", "products", ids)

    def distractors(self, size: int, ids: Sequence[str]) -> MatchedFolds:
        """The folds of one gallery size, among rows whose PRODUCT_IDs are `ids`; of equal ones the first is meant."""
        return self._matched("distractors", f"distractors.{size}", ids)

    def _matched(self, what: str, key: str, ids: Sequence[str]) -> MatchedFolds:
        row_of = {name: row for row, name in reversed(list(enumerate(ids)))}  # reversed: of equal ids the first stays
        names = bytes(self._tensors[f"{what}.ids"].numpy()).decode().split("\n")  # a tensor holds no texts
        rows = torch.tensor([row_of.get(name, -1) for name in names])[self._tensors[key].long()]  # (F, n)
        if rows.numel() and (rows < 0).all():
            raise ValueError(
                f"None of the {what} of {self.path}, such as {names[0]!r}, is in the test set, whose PRODUCT_IDs are "
                f"such as {ids[0]!r}. Are the folds another test set's, or was --metadata left out?"
            )
        return MatchedFolds([fold[fold >= 0] for fold in rows], rows.numel())


def read_indices(path: str | Path, products: int) -> Tensor:
    """The leaderboard's draws of products, (F, draws) int64 row numbers below `products`.

    Raises ValueError: something else than such a table. IndexError: a row that the test set does not have.
    """
    indices = load_tensor(path)
    if not isinstance(indices, np.ndarray) or indices.ndim != 2 or indices.dtype.kind not in "iu" or not indices.size:
        raise ValueError(f"{path} holds {_described(indices)}; a table (folds, draws) of row numbers is needed.")
    if indices.min() < 0 or indices.max() >= products:
        raise IndexError(
            f"{path} names rows {int(indices.min())} to {int(indices.max())}, but the test set has {products} "
            "products: it was drawn for another one."
        )
    return torch.from_numpy(indices.astype(np.int64))


def convert(source: str | Path, target: str | Path, metadata: str | Path | None = None) -> None:
    """Writes the paper's folds as safetensors; the module's docstring says how. Refuses folds of unequal lengths."""
    stored = load_arrays(source)
    if not isinstance(stored, dict) or "test_subsets" not in stored:
        raise ValueError(f"{source} holds {_described(stored)}; a dictionary with test_subsets is needed.")
    # Size 0 is no draw at all: the protocol measures it without being told.
    sizes = {
        int(m[1]): stored[k] for k in stored if (m := re.fullmatch(r"dist_(\d{1,9})_subsets", str(k))) and m[1] != "0"
    }
    products, ids = _as_positions({"test_subsets": stored["test_subsets"]}, source)
    distractors, labels = _as_positions(sizes, source)
    if metadata is not None:
        names = _product_ids(metadata)
        if absent := [label for label in labels if label not in names]:
            raise ValueError(f"{metadata} has no row {absent[0]!r}, which {source} names ({len(absent)} such rows).")
        labels = [names[label] for label in labels]
    if any(len(folds) != len(products[0]) for folds in distractors):  # fold f of both is one gallery
        raise ValueError(f"{source}: test_subsets has {len(products[0])} folds, but not every size has as many.")
    tensors = {"products": products[0], "products.ids": _as_bytes(ids), "distractors.ids": _as_bytes(labels)}
    tensors |= {f"distractors.{size}": folds for size, folds in zip(sizes, distractors, strict=True)}
    write_whole(Path(target), save(tensors))


def _as_positions(groups: dict[Any, Any], source: str | Path) -> tuple[list[Tensor], list[str]]:
    """Groups of folds of names -> for each group (F, n) int32 positions in the list of different names."""
    number_of: dict[str, int] = {}  # in the order of their first draws
    groups_of_numbers = []
    for size, folds in groups.items():
        try:
            groups_of_numbers.append([_numbered(fold, number_of) for fold in labels_of(folds)])
        except ValueError as error:
            raise ValueError(f"{source}, {size}: {error}") from error
    if long := [name for name in number_of if len(name) > MAX_NAME]:
        raise ValueError(f"{source} has the label {long[0][:40]!r}..., of {len(long[0])} characters.")
    names = sorted(number_of)
    # From numbers in the order of the draws to positions in the sorted list: the file does not depend on that order.
    position_of = np.empty(len(names), dtype=np.int32)
    position_of[[number_of[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    tables = [np.stack(folds) if folds else np.empty((0, 0), dtype=np.int64) for folds in groups_of_numbers]
    return [torch.from_numpy(position_of[table]) for table in tables], names


def _numbered(fold: Sequence[Any] | np.ndarray, number_of: dict[str, int]) -> np.ndarray:
    """(n,) the number of each label; a new one gets the next."""
    if not isinstance(fold, np.ndarray) or fold.dtype.kind == "O":
        return np.array([number_of.setdefault(str(label), len(number_of)) for label in fold], dtype=np.int64)
    if not len(fold):  # numpy's empty list is one of floats
        return np.empty(0, dtype=np.int64)
    different, inverse = np.unique(fold, return_inverse=True)  # a fold of two million labels has them in C
    names = [label.decode() if isinstance(label, bytes) else str(label) for label in different.tolist()]
    return np.array([number_of.setdefault(name, len(number_of)) for name in names], dtype=np.int64)[inverse.ravel()]


def _as_bytes(names: list[str]) -> Tensor:
    if bad := [name for name in names if "\n" in name]:
        raise ValueError(f"the name {bad[0]!r} holds a line break.")
    return torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)


def _product_ids(metadata: str | Path) -> dict[str, str]:
    """Label of the index -> PRODUCT_ID, of a Parquet file that pandas wrote."""
    file = open_parquet(metadata)
    described = (file.schema_arrow.pandas_metadata or {}).get("index_columns") or [{"kind": "range"}]
    ids = file.read(["PRODUCT_ID"])["PRODUCT_ID"].to_pylist()
    if isinstance(described[0], str):
        labels = file.read([described[0]])[described[0]].to_pylist()
    else:  # a range is described, not stored
        start, step = described[0].get("start") or 0, described[0].get("step") or 1
        labels = range(start, start + step * len(ids), step)
    return {str(label): str(name) for label, name in zip(labels, ids, strict=True)}


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a tensor {value.shape} of {value.dtype}"
    items = list(value)[:5] if isinstance(value, dict | list) else []
    shown = [str(item)[:40] for item in items if isinstance(item, str | int)]
    return f"a {type(value).__name__}" + (f" with {', '.join(shown)}" if shown else "")


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__, prog=f"{script_name()} folds")
    parser.add_argument("source", help="bootstrap_IDs.pkl")
    parser.add_argument("target", help="safetensors file to write")
    parser.add_argument("--metadata", help="the distractors' metadata, whose index the labels are of")
    args = parser.parse_args(arguments)
    convert(args.source, args.target, args.metadata)
    folds = StoredFolds(args.target)
    print(f"{args.target}: {folds.folds} folds, sizes {', '.join(map(str, folds.sizes)) or 'none'}")
