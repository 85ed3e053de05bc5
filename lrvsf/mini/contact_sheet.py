"""A contact sheet of Mini LRVS-F, to look at: python -m lrvsf.mini.contact_sheet docs/mini-lrvsf.png

One column per category: the product alone, worn, and worn in a cropped scene; two products each.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from lrvsf.command import OneLineParser, run
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
                pictures.append(scene_picture(stage(outfit(garment, rng), garment, SIZE, rng, cropped), rng))
            for row, picture in enumerate(pictures):
                corner = (GAP + column * (SIZE + GAP), GAP + (3 * product + row) * (SIZE + GAP))
                sheet.paste(picture, corner)
    return sheet


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("picture", help="PNG to write")
    contact_sheet().save(parser.parse_args(arguments).picture, optimize=True)


if __name__ == "__main__":
    run(main, "lrvsf.mini.contact_sheet")
