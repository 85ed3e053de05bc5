"""Product shards on disk: which rows can be trained on, known before the first step.

Only types, categories and ids are read here, never an image: a few bytes a row.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lrvsf.data.schema import SCENES, SIMPLE

logger = logging.getLogger(__name__)


def fault(types: list[str], categories: list[str | None], known: list[str] | None) -> str | None:
    """Why a product gives no training pair, or None if it does. `known`: the categories to condition on, if any."""
    if SIMPLE not in types:
        return "no SIMPLE image"
    if not any(kind in SCENES for kind in types):
        return "no scene image"
    if known is not None and not any(k == SIMPLE and c in known for k, c in zip(types, categories, strict=True)):
        return "no SIMPLE image of a known category"
    return None


def category_of(types: list[str], categories: list[str | None]) -> str | None:
    """The category that a product stands under: its first SIMPLE image's."""
    return next((c for kind, c in zip(types, categories, strict=True) if kind == SIMPLE), None)


@dataclass
class ProductShards:
    """The shards of a training set, scanned.

    Attributes:
        files: the Parquet files, sorted by name.
        sizes: category -> how many of its products give a training pair.
        faulty: product id -> why it does not.
    """

    files: list[Path]
    sizes: Counter[str | None]
    faulty: dict[str, str]

    @property
    def usable(self) -> int:
        """How many products give a training pair."""
        return self.sizes.total()

    @classmethod
    def scan(cls, folder: str | Path, categories: list[str] | None = None) -> ProductShards:
        """Reads the structure of FOLDER/*.parquet.

        Args:
            categories: conditions that the model knows; None for training without a condition.

        Raises:
            FileNotFoundError: no shards.
            ValueError: a file is not a product shard, a product is there twice, or no product is usable.
        """
        folder = Path(folder)
        files = sorted(folder.glob("*.parquet"))
        if not files:
            raise FileNotFoundError(f"no *.parquet in {folder}; write product shards there with prepare_lrvsf.py")
        sizes: Counter[str | None] = Counter()
        faulty: dict[str, str] = {}
        seen: dict[str, Path] = {}
        for file in files:
            for product, types, names in _structure(file):
                if product in seen:
                    raise ValueError(
                        f"product {product!r} is in {seen[product]} and again in {file}; remove one of them"
                    )
                seen[product] = file
                if reason := fault(types, names, categories):
                    faulty[product] = reason
                else:
                    sizes[category_of(types, names)] += 1
        if faulty:
            counts = ", ".join(f"{reason}: {count}" for reason, count in Counter(faulty.values()).most_common())
            first = ", ".join(list(faulty)[:3])
            logger.warning("Skipped %d of %d products (%s), such as %s.", len(faulty), len(seen), counts, first)
        if len(seen) == len(faulty):
            raise ValueError(f"none of the {len(seen)} products in {folder} can be trained on: {faulty}"[:500])
        return cls(files, sizes, faulty)


def _structure(file: Path) -> list[tuple[str, list[str], list[str | None]]]:
    """(product_id, types, categories) of each row."""
    try:
        table = pq.ParquetFile(file).read(
            columns=["product_id", "images.list.element.type", "images.list.element.category"]
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet ({error}); write it again") from error
    if table.column_names != ["product_id", "images"]:
        raise ValueError(
            f"{file} has the columns {pq.read_schema(file).names}, not product_id and images with type and category; "
            "write product shards with prepare_lrvsf.py"
        )
    return [
        (row["product_id"], [i["type"] for i in row["images"]], [i["category"] for i in row["images"]])
        for row in table.to_pylist()
    ]
