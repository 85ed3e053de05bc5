"""What a test set knows of its rows besides images: categories and PRODUCT_IDs, which only some protocols need.

Categories join products and distractors by name. What does not join would be missing in the galleries of a category,
and recall would rise without a word; so it is counted, and refused unless it is asked for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lrvsf.data.names import did_you_mean, identified, lookalikes, quoted
from lrvsf.data.parquet import opened
from lrvsf.data.testset import RESTORE, ProductTestSet

SHOWN = 5  # names in a message, not tuned


def ids_of(test_set: ProductTestSet, what: str) -> list[str]:
    """The PRODUCT_ID of each of the "products" or "distractors", in row order; empty where there is none."""
    files = test_set.files[what]
    return [names[place] or "" for names, places, _ in _names(files, "PRODUCT_ID") for place in places.tolist()]


def told_of_ids(test_set: ProductTestSet, name: str) -> dict[str, Any]:
    """What ROOT/manifest.json tells of PRODUCT_IDs under "note" and this name; nothing where it does not.

    Raises ValueError: the file is damaged, or tells something that is no mapping.
    """
    path = test_set.root / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is damaged ({error}). Restore it; without it no {name} are known.") from error
    note = manifest.get("note") if isinstance(manifest, dict) else None
    told = note.get(name) if isinstance(note, dict) else None
    if not isinstance(told, dict | None):
        raise ValueError(f'{path}: "{name}" under "note" must be a mapping of PRODUCT_IDs. Correct it, or take it out.')
    return told or {}


def copies_in(test_set: ProductTestSet) -> Tensor | None:
    """(N,) the row of the product that each distractor is known to be a copy of, or -1; None if no copy is known.

    They stand in ROOT/manifest.json, under "note" and "copies": a distractor's PRODUCT_ID -> the product's.

    Raises ValueError: an id that the test set lacks, or that two of its rows have; and as `told_of_ids` does.
    """
    known = {copy: identified(product)[0] or "" for copy, product in told_of_ids(test_set, "copies").items()}
    if not known:
        return None
    rows = {}
    for what, wanted in (("distractors", set(known)), ("products", set(known.values()))):
        found = [(name, row) for row, name in enumerate(ids_of(test_set, what)) if name in wanted]
        rows[what] = dict(found)
        if wrong := sorted((wanted - rows[what].keys()) or {name for name, row in found if rows[what][name] != row}):
            raise ValueError(
                f"{test_set.root / 'manifest.json'} tells of copies, and {quoted(wrong[0])} is not the PRODUCT_ID of "
                f"exactly one of the {what}; so it is with {len(wrong) - 1} others. Correct it, or take the copies out."
            )
    copies = torch.full((test_set.n_distractors,), -1)
    for copy, product in known.items():
        copies[rows["distractors"][copy]] = rows["products"][product]
    return copies


@dataclass(frozen=True)
class Categories:
    """The categories of a test set as numbers.

    Attributes:
        names: the products' categories, by number.
        products: (P,) the number of each product.
        distractors: (N,) the number of each distractor; -1 for a category that no product has, or none.
        nameless: why a distractor has no category -> how many.
        foreign: category that no product has -> how many distractors.
        root: the test set's folder, for messages.
    """

    names: list[str]
    products: Tensor
    distractors: Tensor
    nameless: dict[str, int]
    foreign: dict[str, int]
    root: Path

    def without_distractors(self) -> list[str]:
        """The products' categories that no distractor has."""
        counts = torch.bincount(self.distractors + 1, minlength=len(self.names) + 1)[1:]  # the first bin is that of -1
        return [name for name, count in zip(self.names, counts.tolist(), strict=True) if not count]

    def facts(self) -> dict[str, Any]:
        """What was joined and what did not join, of JSON's types."""
        return {
            "categories": self.names,
            "distractors_without_category": self.nameless,
            "distractors_of_other_categories": self.foreign,
            "categories_without_distractors": self.without_distractors(),
        }

    def faults(self) -> list[str]:
        """A line for each thing that makes galleries of a category too small."""
        lines = [f"{count:,} distractors have no category ({why})" for why, count in self.nameless.items()]
        for name in self.without_distractors()[:SHOWN]:
            products = int((self.products == self.names.index(name)).sum())
            lines.append(
                f"{products:,} products are of category {quoted(name)}, which no distractor has."
                + did_you_mean(name, self.foreign)
            )
        if len(more := self.without_distractors()) > SHOWN:
            lines.append(f"and {len(more) - SHOWN} more categories have no distractor")
        for group in lookalikes([*self.names, *self.foreign])[:SHOWN]:
            if set(group) & set(self.names):  # two names that no product has put nothing into a wrong gallery
                lines.append(f"{' and '.join(map(quoted, group))} look alike and are not the same category")
        return lines

    def check(self) -> None:
        """Raises ValueError: something does not join, so that recall within a category would be too good."""
        if faults := self.faults():
            raise ValueError(
                f"The distractors of {self.root} do not join its products by category:\n  " + "\n  ".join(faults) + "\n"
                "Galleries of one category would lack them, and recall would be too good. Correct the column CATEGORY, "
                "or give --allow_unmatched_categories True; the results say how many items each category's gallery has."
            )


def join_categories(test_set: ProductTestSet) -> Categories:
    """The categories of all products and distractors, joined by name: blanks around a name and a column's type do not
    count, capitals and accents do. Raises ValueError: products without a category."""
    product_names = test_set.categories()
    if without := [row for row, name in enumerate(product_names) if name is None]:
        raise ValueError(
            f"{len(without)} products of {test_set.root} have no category, the first is row {without[0]}. A gallery of "
            "the target's category needs one: fill CATEGORY, or measure without it."
        )
    numbers = {name: number for number, name in enumerate(dict.fromkeys(product_names))}  # by first appearance
    parts, nameless, foreign = [torch.empty(0, dtype=torch.int64)], Counter(), Counter()
    for names, indices, reasons in _names(test_set.files["distractors"], "CATEGORY"):
        # Names are few and rows are millions: Python sees each name once, and tensors see the rows.
        counts = torch.bincount(indices, minlength=len(names)).tolist()
        for name, reason, count in zip(names, reasons, counts, strict=True):
            if name is None:
                nameless[reason] += count
            elif name not in numbers:
                foreign[name] += count
        parts.append(torch.tensor([numbers.get(name, -1) for name in names])[indices])  # (n,)
    return Categories(
        list(numbers),
        torch.tensor([numbers[name] for name in product_names]),
        torch.cat(parts),
        {reason: count for reason, count in nameless.items() if count},
        {name: count for name, count in foreign.most_common() if count},
        test_set.root,
    )


def _names(files: list[Path], name: str) -> Iterator[tuple[list[str | None], Tensor, list[str]]]:
    """For each part of a column: its different names, None where a cell has none, the place (n,) of each row's name
    among them, and why there is none."""
    for chunk in _chunks(files, name):
        coded = pc.dictionary_encode(chunk, null_encoding="encode")  # a null is a name, too, or its row had no place
        values = coded.dictionary
        # Python's float does not tell what float32 rounded; numpy's does.
        narrow = pa.types.is_float32(values.type) or pa.types.is_float16(values.type)
        cells = list(values.to_numpy(zero_copy_only=False)) if narrow else values.to_pylist()
        read = [identified(cell) for cell in cells]
        places = torch.from_numpy(coded.indices.to_numpy(zero_copy_only=False).copy()).long()
        yield [name for name, _ in read], places, [f"the cell is {why or 'empty'}" for _, why in read]


def _chunks(files: list[Path], name: str) -> Iterator[pa.Array]:
    for file in files:
        with opened(file, RESTORE) as parquet:
            names = parquet.schema_arrow.names
            if name not in names:
                raise ValueError(
                    f"{file} has no column {name}, which this protocol needs; it has {', '.join(names)}. "
                    "Test sets made by prepare_lrvsf.py have it; or choose another protocol."
                )
            column = parquet.read([name])[name]
        if pa.types.is_nested(column.type):
            raise ValueError(f"{file} has {column.type} in {name}, where text must be. Save the column as text.")
        if pa.types.is_dictionary(column.type):  # its chunks may have dictionaries of their own
            column = column.cast(column.type.value_type)
        yield from column.chunks
