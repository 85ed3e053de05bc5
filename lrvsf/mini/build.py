"""Writes Mini LRVS-F: product shards under train/, test sets in the published layout under validation/ and test/.

Every picture is drawn from (seed, split, row), so the same seed gives the same bytes on any number of processes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.testset import DISTRACTOR_SCHEMA, QUERY_SCHEMA
from lrvsf.data.workers import worker_map
from lrvsf.mini.attributes import CATEGORIES, Garment, all_looks, near_miss, random_garment
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage

JPEG_QUALITY = 88
SHARD_ROWS = 2000
ROW_GROUP = 64
NEAR_MISSES = 0.1  # share of a set's distractors that are near-misses of its products
CROPPED = 0.25  # share of scenes whose frame moves in on the target
SHOWN = 0.75  # share of a query's cloth, and of its emblems, in sight; in training it may be less, as in the wild
QUERY_TRIES = 20  # stagings; high boots alone may find none, because every hem covers them
FORMAT = 3  # raise it when the pictures change: an older folder is then refused


@dataclass(frozen=True)
class MiniSize:
    """How much to draw. The validation set has as many products as the test set and a fifth of its distractors."""

    products: int = 16_000
    test_products: int = 500
    distractors: int = 5_000
    image_size: int = 160
    seed: int = 0

    def __post_init__(self):
        if min(self.products, self.test_products, self.distractors) < 1:
            raise ValueError(f"Mini LRVS-F needs at least one of each kind of product, got {self}")
        if self.image_size < 32:
            raise ValueError(f"image_size {self.image_size} is too small to see a pattern; take 32 or more")
        looks = len(CATEGORIES) * len(all_looks(CATEGORIES[0]))
        if self.total > 3 * looks // 4:  # looks are drawn until a new one comes
            raise ValueError(
                f"{self.total} products asked for, but no two may look alike; ask for {3 * looks // 4} at most"
            )

    @property
    def total(self) -> int:
        return self.products + 2 * self.test_products + self.distractors + self.distractors // 5


def draw_looks(size: MiniSize) -> dict[str, list[Garment]]:
    """Which garment each row shows, by split; no two rows of all splits show the same look."""
    rng = np.random.default_rng([size.seed, 0])
    taken: set[Garment] = set()

    def fresh(propose) -> Garment:
        while (garment := propose()) in taken:
            pass
        taken.add(garment)
        return garment

    def stock(count: int) -> list[Garment]:
        return [fresh(partial(random_garment, CATEGORIES[i % len(CATEGORIES)], rng)) for i in range(count)]

    def distract(products: list[Garment], count: int) -> list[Garment]:
        close = int(NEAR_MISSES * count)
        misses = []
        for i in range(close):
            for _ in range(20):  # a look may have no near-miss left
                candidate = near_miss(products[i % len(products)], rng)
                if candidate not in taken:
                    taken.add(candidate)
                    misses.append(candidate)
                    break
        return misses + stock(count - len(misses))

    looks = {"test": stock(size.test_products), "validation": stock(size.test_products)}
    looks["test_distractors"] = distract(looks["test"], size.distractors)
    looks["validation_distractors"] = distract(looks["validation"], max(1, size.distractors // 5))
    looks["train"] = stock(size.products)
    return looks


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def scene(garment: Garment, size: int, rng: np.random.Generator, tries: int = 1) -> tuple[bytes, str, str]:
    """(encoded picture, TYPE, caption) of a figure that wears the garment among others.

    Of `tries` the first one that shows at least `SHOWN` of the garment is drawn, or the one that shows most.
    """
    best = None
    for _ in range(tries):
        worn = outfit(garment, rng)
        cropped = bool(rng.random() < CROPPED)
        place = stage(worn, garment, size, rng, cropped)
        shown = place.shown(garment) if tries > 1 else 1.0
        if best is None or shown > best[0]:
            best = shown, worn, cropped, place
        if shown >= SHOWN:
            break
    _, worn, cropped, place = best
    picture = scene_picture(place, rng)
    names = [g.caption for g in worn]
    rng.shuffle(names)
    caption = f"a person wearing {', '.join(names[:-1])} and {names[-1]}"
    return jpeg(picture), "PARTIAL_COMPLEX" if cropped else "COMPLEX", caption


def product_row(size: MiniSize, job: tuple[int, Garment]) -> dict:
    """One training product: a SIMPLE image and two scenes (see lrvsf.data.schema)."""
    row, garment = job
    rng = np.random.default_rng([size.seed, 1, row])
    name = f"mini-{size.seed}-train-{row:06d}"
    pictures = [(jpeg(simple_picture(garment, size.image_size, rng)), "SIMPLE", garment.category, garment.caption)]
    for _ in range(2):
        encoded, kind, caption = scene(garment, size.image_size, rng)
        pictures.append((encoded, kind, None, caption))
    images = [
        {"image": {"bytes": encoded, "path": f"{name}.{i}.jpg"}, "type": kind, "category": category}
        | {"captions": [caption]}
        for i, (encoded, kind, category, caption) in enumerate(pictures)
    ]
    return {"product_id": name, "images": images}


def query_row(size: MiniSize, split: int, job: tuple[int, Garment]) -> dict:
    """One product of a test set: query and target."""
    row, garment = job
    rng = np.random.default_rng([size.seed, split, row])
    encoded, kind, _ = scene(garment, size.image_size, rng, tries=QUERY_TRIES)
    return {
        "PRODUCT_ID": f"mini-{size.seed}-{split}-{row:06d}",
        "TYPE": kind,
        "CATEGORY": garment.category,
        "blip2_caption1": garment.caption,
        "SIMPLE_IMG": jpeg(simple_picture(garment, size.image_size, rng)),
        "COMPLEX_IMG": encoded,
    }


def distractor_row(size: MiniSize, split: int, job: tuple[int, Garment]) -> dict:
    row, garment = job
    rng = np.random.default_rng([size.seed, split, row])
    return {
        "PRODUCT_ID": f"mini-{size.seed}-{split}-{row:06d}",
        "TYPE": "SIMPLE",
        "CATEGORY": garment.category,
        "blip2_caption1": garment.caption,
        "jpg": jpeg(simple_picture(garment, size.image_size, rng)),
    }


def write_shard(path: Path, rows: Iterator[dict], count: int, schema: pa.Schema) -> None:
    """Takes `count` rows and writes them in groups; the file appears under its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, schema, compression="none") as writer:  # JPEG does not compress further
        for start in range(0, count, ROW_GROUP):
            group = [next(rows) for _ in range(min(ROW_GROUP, count - start))]
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=ROW_GROUP)
    os.replace(temporary, path)


def build_mini(out: str | Path, size: MiniSize, processes: int | None = None) -> bool:
    """Draws Mini LRVS-F into a folder; False if it is there already, drawn with the same settings.

    Args:
        out: folder; gets train/*.parquet, validation/, test/ and mini.json (settings and files, written last).
        processes: how many draw; the machine's cores by default.
    """
    out = Path(out)
    settings = {"format": FORMAT, **asdict(size)}
    manifest = out / "mini.json"
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        files = found.pop("files", {})
        if found == settings:
            if lost := [name for name, bytes_ in files.items() if _size(out / name) != bytes_]:
                raise ValueError(f"{out} is not whole: {lost[0]} is missing or cut; remove {manifest} to draw it again")
            return False
        raise ValueError(f"{out} holds a Mini LRVS-F drawn with {found}; remove it or choose another folder")
    started = out / "mini.started"
    stale = _shards(out)
    if stale and not started.is_file():
        raise ValueError(f"{out} holds other data, such as {stale[0]}; choose another folder")
    for path in stale:  # of a drawing that was interrupted
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    started.touch()
    product_schema = PRODUCT_FEATURES.arrow_schema
    looks = draw_looks(size)
    train_job = partial(product_row, size)
    plan = [("train/%05d.parquet", looks["train"], train_job, product_schema)]
    for code, name in ((2, "validation"), (4, "test")):
        plan.append((name + "/products.parquet", looks[name], partial(query_row, size, code), QUERY_SCHEMA))
        rows = looks[name + "_distractors"]
        plan.append(
            (name + "/distractors/%05d.parquet", rows, partial(distractor_row, size, code + 1), DISTRACTOR_SCHEMA)
        )
    with (
        worker_map(processes) as mapper,
        tqdm(total=sum(len(garments) for _, garments, _, _ in plan), desc="drawing", unit="product") as bar,
    ):
        for pattern, garments, job, schema in plan:
            rows = advance(bar, mapper(job, enumerate(garments), chunksize=32))
            per_file = SHARD_ROWS if "%" in pattern else len(garments)
            for shard, start in enumerate(range(0, len(garments), per_file)):
                path = out / (pattern % shard if "%" in pattern else pattern)
                write_shard(path, rows, min(per_file, len(garments) - start), schema)
    drawn = {str(path.relative_to(out)): _size(path) for path in _shards(out)}
    manifest.write_text(json.dumps({**settings, "files": drawn}, indent=1) + "\n")
    started.unlink()
    return True


def _shards(out: Path) -> list[Path]:
    return sorted(path for name in ("train", "validation", "test") for path in (out / name).rglob("*.parquet"))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def advance(bar: tqdm, rows: Iterator[dict]) -> Iterator[dict]:
    for row in rows:
        bar.update()
        yield row
