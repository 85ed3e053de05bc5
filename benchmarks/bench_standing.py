"""The verdict "no close match" on drawn scenes, half of whose things the catalog lacks: is it right?

    python prepare_lrvsf.py mini_shop data/scenes --scenes 500 --items 2500 --seed 11
    python benchmarks/bench_standing.py assets/mini-condvit data/scenes

Each thing of which at least a quarter is in sight is asked for under its condition. "lacking" are the queries whose
item was left out of the catalog; a verdict is right for them, and wrong for the others. Their mean standing, in the
last column, is 0.5 if the scale is true. AUC is the chance that a query with its item in the catalog stands higher than
one without; beside it stands the AUC of the best score's lead over the mean of the next nine hits, which one might look
at instead.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from bench_presence import SEEN, auc

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.mini.shop import ITEMS, read_scenes
from lrvsf.search.build_catalog import index_images
from lrvsf.search.catalog import Catalog
from lrvsf.search.commands import HowToEmbed, IndexKind


def catalog_without(shop: Path, lacking: set[str], model: str, folder: Path) -> Catalog:
    """A catalog of a shop's items but for some."""
    items = pq.read_table(shop / ITEMS)
    pq.write_table(items.filter([name not in lacking for name in items["id"].to_pylist()]), folder / "items.parquet")
    out = folder / "catalog"
    kind = IndexKind(None, None, 0)
    index_images(model, str(folder / "items.parquet"), None, None, out, None, kind, False, HowToEmbed())
    return Catalog.open(out, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a calibrated model")
    parser.add_argument("shop", type=Path, help="what prepare_lrvsf.py mini_shop drew")
    parser.add_argument("--seed", type=int, default=0, help="of which items are left out")
    args = parser.parse_args()
    scenes = read_scenes(args.shop)
    shown = sorted({item["id"] for scene in scenes for item in scene["shows"].values()})
    lacking = set(np.random.default_rng(args.seed).permutation(shown)[: len(shown) // 2].tolist())
    with tempfile.TemporaryDirectory() as folder:
        catalog = catalog_without(args.shop, lacking, args.model, Path(folder))
        began = time.perf_counter()
        for name in catalog.conditions:
            catalog.scale(name)
        print(f"{len(catalog):,} items; the scales of all conditions took {time.perf_counter() - began:.2f} s")
        print("| asked | queries | lacking | precision | recall | greyed, but there | AUC | of its lead | standing |")
        print("|" + " --- |" * 9)
        lines = []
        for name in catalog.conditions:
            asked = [scene for scene in scenes if scene["shows"].get(name, {"share": 0})["share"] >= SEEN]
            found = catalog.search([scene["image"] for scene in asked], name, k=10)
            hits = [best for best, *_ in found]
            lead = np.array([best.score - np.mean([hit.score for hit in others]) for best, *others in found])
            lacks = np.array([scene["shows"][name]["id"] in lacking for scene in asked])
            far, standing = ~np.array([hit.close for hit in hits]), np.array([hit.standing for hit in hits])
            right = (far & lacks).sum()
            told = [right / max(far.sum(), 1), right / lacks.sum(), far[~lacks].mean()]
            areas = auc(standing, ~lacks), auc(lead, ~lacks)
            lines.append([len(asked), lacks.mean(), *told, *areas, standing[lacks].mean()])
            print(row(name, lines[-1]))
        print(row("mean", np.mean(lines, axis=0)))


def row(name: str, numbers) -> str:
    count, lacks, *others = numbers
    return f"| {name} | {count:.0f} | {lacks:.0%} | " + " | ".join(f"{number:.2f}" for number in others) + " |"


if __name__ == "__main__":
    main()
