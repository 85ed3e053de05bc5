"""A shop of Mini's garments, and scenes to search it by, of which it is known what each shows.

    OUT/items.parquet     a catalog: id, title, category, price, image
    OUT/scenes/*.jpg      figures; each garment that one wears is an item of the shop
    OUT/scenes.json       [{"image": "scenes/00000.jpg", "shows": {"Bags": {"id": "shop-000012", "share": 0.97}, ...}}]

The titles are captions, the prices are drawn, everything from one seed. No scene or item is part of Mini LRVS-F itself.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from lrvsf.durable import whole_folder
from lrvsf.mini.attributes import CATEGORIES, Garment, random_garment
from lrvsf.mini.build import FORMAT, SHOWN
from lrvsf.mini.camera import jpeg
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage
from lrvsf.prepare.row_writer import parquet_writer
from lrvsf.prepare.workers import worker_map

ITEMS, SCENES, TRUTH = "items.parquet", "scenes", "scenes.json"
SCHEMA = pa.schema(
    [("id", pa.string()), ("title", pa.string()), ("category", pa.string())]
    + [("price", pa.float64()), ("image", pa.binary())]
)
# Codes of the seeds, beyond those of the sets in `build`: looks, items, scenes.
LOOKS, ITEM, SCENE = 6, 7, 8
QUALITY = 88  # of JPEG: a shop serves its own pictures
TRIES = 20  # stagings of a scene, of which the one is drawn that hides its most hidden garment least


@dataclass(frozen=True)
class ShopSize:
    """How much to draw. Items are those that the scenes show, and others."""

    items: int = 2_000
    scenes: int = 48
    image_size: int = 160
    seed: int = 0

    def __post_init__(self):
        if self.scenes < 1 or self.items < 5 * self.scenes:
            raise ValueError(
                f"items={self.items} do not hold what scenes={self.scenes} show, up to 5 each; ask for 1 scene at "
                f"least, and for {5 * max(self.scenes, 1)} items"
            )
        if self.image_size < 32:
            raise ValueError(f"image_size={self.image_size} is too small to see a pattern; take 32 or more")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is below 0; take another")

    @property
    def settings(self) -> dict[str, int]:
        """What the pictures depend on."""
        return {"format": FORMAT, **asdict(self)}


def draw_shop(out: str | Path, size: ShopSize, processes: int | None = None) -> bool:
    """Draws the shop into a folder, whole or not at all; False if it is there already.

    Raises ValueError: the folder holds something else.
    """
    out = Path(out)
    if (out / TRUTH).is_file() and _drawn_with(out / TRUTH) == size.settings:
        return False
    if out.exists() and any(path.name != ".lock" for path in out.iterdir()):
        raise ValueError(
            f"{out} holds other data, or a shop drawn with other settings or by an earlier version; remove it or "
            "choose another"
        )
    outfits, garments = _looks(size)
    number = {garment: place for place, garment in enumerate(garments)}
    with (
        whole_folder(out) as folder,
        worker_map(processes) as mapper,
        tqdm(total=len(garments) + len(outfits), desc="drawing", unit="picture") as bar,
    ):
        with closing(parquet_writer(folder / ITEMS, SCHEMA)) as writer:
            for row in mapper(partial(_item, size), enumerate(garments), chunksize=32):
                writer.add(row, len(row["image"]))
                bar.update()
        (folder / SCENES).mkdir()
        truth = []
        for place, (picture, shares) in enumerate(mapper(partial(_scene, size), enumerate(outfits), chunksize=4)):
            name = f"{SCENES}/{place:05d}.jpg"
            (folder / name).write_bytes(picture)
            shows = {
                g.category: {"id": _name(number[g]), "share": round(shares[g.category], 3)} for g in outfits[place]
            }
            truth.append({"image": name, "shows": shows})
            bar.update()
        (folder / TRUTH).write_text(json.dumps({"drawn_with": size.settings, "scenes": truth}, indent=1) + "\n")
    return True


def read_scenes(shop: str | Path) -> list[dict[str, Any]]:
    """The scenes of a shop: `image`, a path, and `shows`: category -> `id` and `share`, how much of it is in sight."""
    shop = Path(shop)
    return [{**scene, "image": shop / scene["image"]} for scene in json.loads((shop / TRUTH).read_text())["scenes"]]


def _drawn_with(truth: Path) -> Any:
    """None of a file that says nothing of it: it is another one's."""
    try:
        return json.loads(truth.read_text()).get("drawn_with")
    except (ValueError, AttributeError):
        return None


def _looks(size: ShopSize) -> tuple[list[list[Garment]], list[Garment]]:
    """What each scene's figure wears, and the items: no two look alike."""
    rng = np.random.default_rng([size.seed, LOOKS])
    outfits: list[list[Garment]] = []
    taken: dict[Garment, None] = {}  # in order
    while len(outfits) < size.scenes:
        worn = outfit(random_garment(CATEGORIES[len(outfits) % len(CATEGORIES)], rng), rng)
        if not any(garment in taken for garment in worn):
            outfits.append(worn)
            taken |= dict.fromkeys(worn)
    while len(taken) < size.items:
        taken.setdefault(random_garment(CATEGORIES[len(taken) % len(CATEGORIES)], rng))
    garments = list(taken)
    return outfits, [garments[place] for place in rng.permutation(len(garments))]  # what is shown stands anywhere


def _item(size: ShopSize, job: tuple[int, Garment]) -> dict[str, Any]:
    place, garment = job
    rng = np.random.default_rng([size.seed, ITEM, place])
    image = jpeg(simple_picture(garment, size.image_size, rng), QUALITY)
    row = {"id": _name(place), "title": garment.full_caption, "category": garment.category}
    return {**row, "price": round(float(rng.uniform(5, 150)), 2), "image": image}


def _scene(size: ShopSize, job: tuple[int, list[Garment]]) -> tuple[bytes, dict[str, float]]:
    """A scene's JPEG, and the share of each garment that is in sight."""
    place, worn = job
    rng = np.random.default_rng([size.seed, SCENE, place])
    best, shares = None, {}
    for _ in range(TRIES):
        staged = stage(worn, worn[0], (size.image_size, size.image_size), rng, cropped=False)
        shown = {garment.category: staged.shown(garment) for garment in worn}
        if best is None or min(shown.values()) > min(shares.values()):
            best, shares = staged, shown
        if min(shares.values()) >= SHOWN:
            break
    return jpeg(scene_picture([best], rng), QUALITY), shares


def _name(place: int) -> str:
    return f"shop-{place:06d}"
