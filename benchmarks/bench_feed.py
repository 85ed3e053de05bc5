"""A shop's table that comes again with other prices, and a filter that is asked again: what the second time costs.

    python prepare_lrvsf.py mini_shop data/shop --items 4000 --seed 3
    python benchmarks/bench_feed.py assets/mini-condvit data/shop

Processor time of the whole process, imports left out. The shop's pictures lie in one Parquet file; Mini CondViT is a
small model, and a larger one makes the first build longer, the second one not.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.mini.shop import ITEMS
from lrvsf.search.build_catalog import index_images
from lrvsf.search.catalog import Catalog
from lrvsf.search.commands import HowToEmbed, IndexKind

FILTERS = ["price < 50", "price < 50 and category = 'Bags'", "title ilike '%red%' or price between 20 and 30"]
TIMES = 20


def spent(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("shop", type=Path, help="what prepare_lrvsf.py mini_shop drew")
    args = parser.parse_args()
    items = pq.read_table(args.shop / ITEMS)
    place = items.schema.get_field_index("price")
    with tempfile.TemporaryDirectory() as folder:
        table, catalog = Path(folder, "shop.parquet"), Path(folder, "catalog")

        def build() -> None:
            kind = IndexKind(None, None, 0)
            report = index_images(args.model, str(table), None, None, catalog, None, kind, True, HowToEmbed())
            print({name: report[name] for name in ("items", "embedded", "embeddings reused")})

        times = []
        for factor in (1, 1.1, 1.2):  # the first second time also pays for what is imported late
            pq.write_table(items.set_column(place, "price", pc.multiply(items["price"], pa.scalar(factor))), table)
            times.append(spent(build))
        print(f"build: {times[0]:.1f} s, again with other prices {times[2]:.2f} s: 1/{times[0] / times[2]:.0f}")
        opened = Catalog.open(catalog, args.model)
        query = opened.vectors.take(np.array([0]))
        for where in FILTERS:
            first, again = [], []
            for _ in range(TIMES):
                opened._selection.cache_clear()
                first.append(spent(lambda: opened.nearest(query, 10, where)))  # noqa: B023 - called at once
                again.append(spent(lambda: opened.nearest(query, 10, where)))  # noqa: B023
            times = [1000 * np.median(one) for one in (first, again)]
            print(f"{where}: {times[0]:.1f} ms, again {times[1]:.2f} ms: 1/{times[0] / times[1]:.0f}")


if __name__ == "__main__":
    main()
