"""Steps that draw: `prepare_lrvsf.py mini`, the data set; `mini_shop`, a catalog with scenes to search it by; and
`mini_sheet`, a sheet to look at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from typer import Argument, Option

from lrvsf.durable import locked, whole_file
from lrvsf.mini.attributes import CATEGORIES, random_garment
from lrvsf.mini.build import SETS, MiniSize, build_mini
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage
from lrvsf.mini.shop import ShopSize, draw_shop

SIZE, GAP = 120, 4


def mini(
    out: Annotated[Path, Argument(help="folder to write: train/, validation/, test/, two_of_a_kind/")],
    products: Annotated[int, Option(help="training products")] = MiniSize.products,
    test_products: Annotated[int, Option(help="queries of the test set; the validation set has a quarter")] = (
        MiniSize.test_products
    ),
    distractors: Annotated[int, Option(help="distractors of the test set; the validation set has a fifth")] = (
        MiniSize.distractors
    ),
    image_size: Annotated[int, Option(help="pixels along the longer side")] = MiniSize.image_size,
    seed: Annotated[int, Option(help="seed of all draws; the same one gives the same bytes")] = MiniSize.seed,
    only: Annotated[str | None, Option(help=f"draw one folder now: {', '.join(SETS)}")] = None,
) -> dict[str, Any]:
    """Draw Mini LRVS-F: product shards and test sets, no download."""
    size = MiniSize(products, test_products, distractors, image_size, seed)
    with locked(out, "prepare_lrvsf.py mini"):
        drawn = build_mini(out, size, only=only)
    sizes = {"training products": products, "queries": test_products, "distractors": distractors}
    return {
        "folder": str(out if only is None else out / only),
        "drawn now": "yes" if drawn else "no, it was there already",
        **(sizes if only is None else {}),
        "seed": seed,
    }


def mini_shop(
    out: Annotated[Path, Argument(help="folder to write: items.parquet, scenes/, scenes.json")],
    items: Annotated[int, Option(help="items of the shop")] = ShopSize.items,
    scenes: Annotated[int, Option(help="pictures of figures that wear items of the shop")] = ShopSize.scenes,
    image_size: Annotated[int, Option(help="pixels along the longer side")] = ShopSize.image_size,
    seed: Annotated[int, Option(help="the same seed gives the same bytes")] = ShopSize.seed,
) -> dict[str, Any]:
    """Draw a catalog of Mini's garments, and scenes whose every garment it holds."""
    size = ShopSize(items, scenes, image_size, seed)
    with locked(out, "prepare_lrvsf.py mini_shop"):
        drawn = draw_shop(out, size)
    return {
        "folder": str(out),
        "drawn now": "yes" if drawn else "no, it was there already",
        "items": items,
        "scenes": scenes,
        "seed": seed,
    }


def contact_sheet(seed: int = 0) -> Image.Image:
    """One column for each category: the product alone, worn, and worn in a cropped scene; two products each.

    RGB picture, two times three rows of ten.
    """
    rng = np.random.default_rng(seed)
    sheet = Image.new("RGB", (len(CATEGORIES) * (SIZE + GAP) + GAP, 6 * (SIZE + GAP) + GAP), (214, 214, 214))
    for column, category in enumerate(CATEGORIES):
        for product in range(2):
            garment = random_garment(category, rng)
            pictures = [simple_picture(garment, SIZE, rng)]
            for cropped in (False, True):
                pictures.append(scene_picture([stage(outfit(garment, rng), garment, (SIZE, SIZE), rng, cropped)], rng))
            for row, picture in enumerate(pictures):
                corner = (GAP + column * (SIZE + GAP), GAP + (3 * product + row) * (SIZE + GAP))
                sheet.paste(picture, corner)
    return sheet


def mini_sheet(picture: Annotated[Path, Argument(help="PNG to write")]) -> dict[str, Any]:
    """Draw a contact sheet of Mini LRVS-F: products of each category, alone and worn."""
    with whole_file(picture) as part:
        contact_sheet().save(part, "PNG", optimize=True)
    return {"picture": str(picture)}
