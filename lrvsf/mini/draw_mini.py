"""`prepare_lrvsf.py mini`: draws Mini LRVS-F."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.durable import locked
from lrvsf.mini.build import MiniSize, build_mini


def mini(
    out: Annotated[Path, Argument(help="folder to write: train/, validation/, test/")],
    products: Annotated[int, Option(help="training products")] = MiniSize.products,
    test_products: Annotated[int, Option(help="queries of the test set, and of the validation set")] = (
        MiniSize.test_products
    ),
    distractors: Annotated[int, Option(help="distractors of the test set; the validation set has a fifth")] = (
        MiniSize.distractors
    ),
    image_size: Annotated[int, Option(help="pixels along the longer side")] = MiniSize.image_size,
    seed: Annotated[int, Option(help="seed of all draws; the same one gives the same bytes")] = MiniSize.seed,
) -> dict[str, Any]:
    """Draw Mini LRVS-F: product shards and test sets, no download."""
    size = MiniSize(products, test_products, distractors, image_size, seed)
    with locked(out, "prepare_lrvsf.py mini"):
        drawn = build_mini(out, size)
    return {
        "folder": str(out),
        "drawn now": "yes" if drawn else "no, it was there already",
        "training products": products,
        "queries": test_products,
        "distractors": distractors,
        "seed": seed,
    }
