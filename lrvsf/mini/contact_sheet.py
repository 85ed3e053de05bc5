"""`prepare_lrvsf.py mini_sheet`: a contact sheet of Mini LRVS-F, to look at.

One column per category: the product alone, worn, and worn in a cropped scene; two products each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from typer import Argument

from lrvsf.durable import whole_file
from lrvsf.mini.attributes import CATEGORIES, random_garment
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage

SIZE, GAP = 120, 4


def contact_sheet(seed: int = 0) -> Image.Image:
    """RGB picture, two times three rows of ten."""
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
