"""The vector index of a Lance table: an IVF that is trained once for all rows, and filled here or by a Ray cluster.

Lance merges no segments of an index that were trained apart, so lance-ray trains the lists on the driver, and gives
each worker fragments to fill them with. Rows that come later are added to the lists that there are.
"""

from __future__ import annotations

from typing import Any

from lrvsf.scale.lance_table import lance
from lrvsf.search.index import FLAT_ITEMS, TRAINED

METRIC = "dot"  # of rows whose length is 1, to float16's precision
BITS = 1  # of a dimension in RaBitQ's codes, as faiss's; Lance takes 5 by default


def index_of(table: lance.LanceDataset, column: str) -> Any | None:
    """Lance's description of a column's index; None where it has none."""
    return next((one for one in table.describe_indices() if one.field_names == [column]), None)


def keep_index(table: lance.LanceDataset, column: str, address: str | None) -> lance.LanceDataset:
    """The table with an index of all rows of a column, if they are more than are searched exactly by default.

    Args:
        address: of the Ray cluster that builds it; None builds it in this process.
    """
    rows = table.count_rows()
    there = index_of(table, column)
    if there is not None:
        indexed = table.stats.index_stats(there.name)["num_unindexed_rows"] == 0
        if not indexed:
            table.optimize.optimize_indices(index_names=[there.name])
        return table
    if rows <= FLAT_ITEMS:
        return table
    lists = round(4 * rows**0.5)
    kind: dict[str, Any] = {"column": column, "name": f"{column}_ivf", "metric": METRIC, "num_partitions": lists}
    kind["sample_rate"] = max(2, min(TRAINED, rows // lists))  # rows for each list; lance-ray refuses to have fewer
    # RaBitQ turns whole bytes of dimensions.
    whole_bytes = table.schema.field(column).type.list_size % 8 == 0
    kind |= {"index_type": "IVF_RQ", "num_bits": BITS} if whole_bytes else {"index_type": "IVF_SQ"}
    return table.create_index(**kind) if address is None else _by_cluster(table, kind, address)


def _by_cluster(table: lance.LanceDataset, kind: dict[str, Any], address: str) -> lance.LanceDataset:
    import lance_ray
    import ray

    from lrvsf.scale.cluster import connected

    with connected(address):
        workers = min(len(table.get_fragments()), int(ray.cluster_resources()["CPU"]))
        return lance_ray.create_index(table.uri, num_workers=workers, **kind)
