"""What small vectors lose: bytes an item, R@1 and R@10, and the share of the exact top 10, for every form of a code.

    python prepare_lrvsf.py mini data/mini
    python search_catalog.py index assets/mini-condvit data/mini/test runs/mini/catalog
    python benchmarks/bench_compress.py runs/mini/catalog data/mini/test --plot docs/compress.png

Queries are those of the test set, under their condition. Bytes are those of an item's codes, which are in memory.
"alone" is the order of the codes; "rescored" takes the best 50 by the codes and scores them by the catalog's float16
rows. The exact top 10 is that of these rows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.images import Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.search.catalog import Catalog
from lrvsf.search.compress.compressed import FORMS, bytes_per_item, compressed, search_codes
from lrvsf.search.measuring.asked_queries import CONDITIONED, PLAIN, AskedQueries, ask_with
from lrvsf.search.measuring.hit_lists import Found, depth_for_ties, target_recall

K = 10
CUTS = (1, 2, 4, 8)  # all dimensions, a half, a quarter, an eighth
MARKS = {"float32": "o", "float16": "s", "int8": "^", "binary": "D"}


@dataclass(frozen=True)
class Line:
    """One form of the table; recalls are shares.

    Attributes:
        top: share of the exact top 10 that is among the first 10.
    """

    form: str
    dims: int
    rescored: bool
    size: int
    r1: float
    r10: float
    top: float


def measured(catalog: Catalog, queries: AskedQueries) -> list[Line]:
    """Every form at every cut, first alone, then rescored."""
    asked = queries.embeds[CONDITIONED if CONDITIONED in queries.embeds else PLAIN]
    products, dim = products_of(catalog), catalog.vectors.shape[1]
    exact = catalog.index.search(asked, K)[1]
    lines = []
    for cut in CUTS:
        for form in FORMS:
            small = compressed(catalog.vectors, form, dim // cut)
            for rescored in (False, True):
                # Codes may tie. Rescored scores do not, and deeper lists would have more candidates.
                scores, rows = small.search(asked, K) if rescored else search_codes(small, asked, depth_for_ties(K))
                lists = [
                    [Found(products[row], score) for row, score in zip(*found, strict=True) if row >= 0]
                    for found in zip(rows.tolist(), scores.tolist(), strict=True)
                ]
                recalls = [target_recall(lists, queries.targets, k) for k in (1, K)]
                top = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows[:, :K].tolist(), exact, strict=True)])
                lines.append(Line(form, dim // cut, rescored, bytes_per_item(small), *recalls, float(top)))
    return lines


def products_of(catalog: Catalog) -> list[str]:
    """Of each row; a catalog of a test set has one photo of each."""
    ids = catalog.metadata["id"].to_pylist()
    if len(catalog.generation.removed) or len(set(ids)) < len(ids):
        sys.exit(f"{catalog.generation.catalog} has photos of one product, or removed rows; index a test set afresh")
    return ids


def as_markdown(lines: list[Line]) -> str:
    head = "| form | dimensions | bytes | R@1 alone | rescored | R@10 alone | rescored | top 10 alone | rescored |"
    rows = [head, "|" + " --- |" * 9]
    for alone, again in zip(lines[::2], lines[1::2], strict=True):
        shares = (alone.r1, again.r1, alone.r10, again.r10)
        told = " | ".join(f"{100 * share:.1f}" for share in shares)
        rows.append(f"| {alone.form} | {alone.dims} | {alone.size} | {told} | {alone.top:.3f} | {again.top:.3f} |")
    return "\n".join(rows)


def draw(lines: list[Line], path: Path) -> None:
    """R@1 against bytes: a line for each form, from an eighth of the dimensions to all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, form in enumerate(FORMS):
        for rescored in (False, True):
            own = sorted((line.size, 100 * line.r1) for line in lines if (line.form, line.rescored) == (form, rescored))
            style = {"linestyle": "-" if rescored else ":", "fillstyle": "full" if rescored else "none"}
            label = f"{form}, {'rescored' if rescored else 'alone'}"
            axes.plot(*zip(*own, strict=True), marker=MARKS[form], color=f"C{number}", label=label, **style)
    sizes = sorted({line.size for line in lines})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("bytes an item, of its codes in memory")
    axes.set_ylabel("R@1 in %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2, loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path, help="of the test set's targets and distractors")
    parser.add_argument("testset", type=Path)
    parser.add_argument("--plot", type=Path, help="a .png to draw")
    args = parser.parse_args()
    catalog = Catalog.open(args.catalog)
    queries = ask_with(catalog, ProductTestSet(args.testset), 1000, 0, 64, Tolerance(0.01, 100))
    named = sum(target is not None for target in queries.targets)
    print(f"{len(catalog):,} items of {catalog.vectors.shape[1]} dimensions, {named} queries with a target\n")
    lines = measured(catalog, queries)
    print(as_markdown(lines))
    if args.plot:
        draw(lines, args.plot)


if __name__ == "__main__":
    main()
