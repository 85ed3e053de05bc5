"""What became of every query, next to results.json: queries.parquet, one row for each gallery size and product.

galleries        "galleries" or "stored_folds": the part of results.json that the row belongs to
size             distractors in the gallery
product_row      the product's row in products.parquet
product_id       its PRODUCT_ID; null where the test set has none
category         its category
draws            how often the folds drew it as a query, at least 1
mean_rank        the target's expected rank, mean over these draws
hit_at_1, _5, _10  the share of these draws that found the target among the first 1, 5, 10

A product that no fold drew has no row. The recalls of results.json are means over folds; where all folds count equally
many queries, as they do unless draws are missing, that is the mean of hit_at_K weighted by draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from lrvsf.data.parquet import open_parquet
from lrvsf.durable import whole_file
from lrvsf.evaluation.results import FIRST_KS

if TYPE_CHECKING:  # whoever only reads such a table does without torch
    from lrvsf.evaluation.embedded import EmbeddedTestSet
    from lrvsf.evaluation.recall import GalleryRanks

COLUMNS = ("galleries", "size", "product_row", "category", "draws", "mean_rank", *(f"hit_at_{k}" for k in FIRST_KS))


class QueryTable:
    """Collects the queries of a protocol's galleries. The same on every process, as the ranks are."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []

    def add(self, size: int, ranks: GalleryRanks, data: EmbeddedTestSet, galleries: str) -> None:
        """The P products of one gallery size, in the order of the ranks and of the test set's `rows`."""
        drawn = ranks.weights.sum(1).nonzero().flatten().tolist()  # what no fold drew was no query
        weights, expected = ranks.weights[drawn].double(), ranks.expected[drawn].double()  # (p, F)
        draws = weights.sum(1)  # (p,)
        columns = {
            "galleries": pa.array([galleries] * len(drawn), pa.string()),
            "size": pa.array([size] * len(drawn), pa.int64()),
            "product_row": pa.array([data.rows[place] for place in drawn], pa.int64()),
            "product_id": pa.array([data.product_ids[place] for place in drawn], pa.string()),
            "category": pa.array([data.category_names[place] for place in drawn], pa.string()),
            "draws": draws.long().numpy(),
            "mean_rank": ((weights * expected).sum(1) / draws).numpy(),
        }
        for k in FIRST_KS:
            columns[f"hit_at_{k}"] = ((weights * (expected <= k)).sum(1) / draws).numpy()
        self._parts.append(pa.table(columns))

    def table(self) -> pa.Table:
        """All rows."""
        return pa.concat_tables(self._parts)

    def save(self, path: str | Path) -> None:
        """Writes queries.parquet so that a reader never sees half of it."""
        with whole_file(path) as part:
            pq.write_table(self.table(), part)


def load_queries(folder: str | Path) -> pa.Table:
    """Reads the queries.parquet of a results folder.

    Raises:
        FileNotFoundError: there is none; results of an earlier version had none.
        ValueError: a table with other columns.
    """
    path = Path(folder, "queries.parquet")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Evaluate the model again: evaluate_lrvsf.py writes it.")
    with open_parquet(path) as file:
        table = file.read()
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it has {', '.join(table.column_names)}. Evaluate the model again."
        )
    return table
