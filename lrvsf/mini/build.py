"""Writes Mini LRVS-F: product shards under train/, and test sets in the published layout: validation/, test/ and
two_of_a_kind/.

Every picture is drawn from (seed, split, row), so the same seed gives the same bytes on any number of processes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.mini.attributes import CATEGORIES, Garment, all_looks, near_miss, random_garment
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage
from lrvsf.mini.two_of_a_kind import pairs, stage_two
from lrvsf.prepare.rows import Picture, distractor_row, product_row, query_row
from lrvsf.prepare.workers import worker_map
from lrvsf.prepare.writers import ProductShardWriter, TestSetWriter, made_from
from lrvsf.report import write_report

MANIFEST = "mini.json"
# Each picture's seed is (seed, code of its set, row), so that no set's pictures depend on how many another one has.
TRAIN, TEST_SETS = 1, {"validation": 2, "test": 4}  # 3 and 5 are their distractors
TWO_OF_A_KIND, TWO = "two_of_a_kind", 9  # 6 to 8 are the shop's
JPEG_QUALITY = 88
SHARD_ROWS = 2000
NEAR_MISSES = 0.1  # share of a set's distractors that are near-misses of its products
CROPPED = 0.25  # share of scenes whose frame moves in on the target
SHOWN = 0.75  # share of a query's cloth, and of its emblems, in sight; in training it may be less, as in the wild
QUERY_TRIES = 20  # stagings; high boots alone may find none, because every hem covers them
FORMAT = 3  # raise it when the pictures change: an older folder is then refused


@dataclass(frozen=True)
class MiniSize:
    """How much to draw. The validation set has as many products as the test set and a fifth of its distractors.

    With `short_captions` they tell colour and kind, not all that can be seen: words alone then find no product.
    """

    products: int = 16_000
    test_products: int = 500
    distractors: int = 5_000
    image_size: int = 160
    seed: int = 0
    short_captions: bool = False

    def __post_init__(self):
        if min(self.products, self.test_products, self.distractors) < 1:
            raise ValueError(f"Mini LRVS-F needs at least one of each kind of product, got {self}")
        if self.image_size < 32:
            raise ValueError(f"image_size {self.image_size} is too small to see a pattern; take 32 or more")
        looks = len(CATEGORIES) * len(all_looks(CATEGORIES[0]))
        # Looks are drawn until a new one comes, which takes ever longer as few are left. Not tuned.
        if self.total > 3 * looks // 4:
            raise ValueError(
                f"{self.total} products asked for, but no two may look alike; ask for {3 * looks // 4} at most"
            )

    @property
    def settings(self) -> dict[str, int]:
        """What the pictures and the captions depend on."""
        settings = {"format": FORMAT, **asdict(self)}
        if not self.short_captions:  # drawn before there was a choice
            del settings["short_captions"]
        return settings

    def caption(self, garment: Garment) -> str:
        return garment.short_caption if self.short_captions else garment.caption

    @property
    def total(self) -> int:
        return self.products + 2 * self.test_products + self.distractors + self.distractors // 5


def draw_looks(size: MiniSize) -> dict[str, list[Garment]]:
    """Which garment each row shows, by split; no two rows of all splits show the same look."""
    rng = np.random.default_rng([size.seed, 0])  # one stream for all looks: who is taken depends on who came before
    taken: set[Garment] = set()

    def fresh(propose) -> Garment:
        while (garment := propose()) in taken:
            pass
        taken.add(garment)
        return garment

    def stock(count: int) -> list[Garment]:
        return [fresh(partial(random_garment, CATEGORIES[i % len(CATEGORIES)], rng)) for i in range(count)]

    def distract(products: list[Garment], count: int) -> list[Garment]:
        close = int(NEAR_MISSES * count)  # of the first products, one each
        misses = []
        for i in range(close):
            for _ in range(20):  # a look may have no near-miss left
                candidate = near_miss(products[i % len(products)], rng)
                if candidate not in taken:
                    taken.add(candidate)
                    misses.append(candidate)
                    break
        return misses + stock(count - len(misses))

    # Test sets first: they stay the same when more training products are asked for.
    looks = {"test": stock(size.test_products), "validation": stock(size.test_products)}
    looks["test_distractors"] = distract(looks["test"], size.distractors)
    looks["validation_distractors"] = distract(looks["validation"], max(1, size.distractors // 5))
    looks["train"] = stock(size.products)
    return looks


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def scene(garment: Garment, size: MiniSize, rng: np.random.Generator, tries: int = 1) -> Picture:
    """A figure that wears the garment among others; the caption names all of them.

    The first of `tries` that shows at least `SHOWN` of the garment is drawn, or the one that shows most.
    """
    best = None
    for _ in range(tries):
        # A staging is only numbers; the one that is kept is drawn, once.
        worn = outfit(garment, rng)
        cropped = bool(rng.random() < CROPPED)
        place = stage(worn, garment, size.image_size, rng, cropped)
        shown = place.shown(garment) if tries > 1 else 1.0
        if best is None or shown > best[0]:
            best = shown, worn, cropped, place
        if shown >= SHOWN:
            break
    _, worn, cropped, place = best
    picture = scene_picture([place], rng)
    names = [size.caption(g) for g in worn]
    rng.shuffle(names)  # no garment is the first: nothing says which one is asked about
    caption = f"a person wearing {', '.join(names[:-1])} and {names[-1]}"
    return Picture(SCENES[cropped], None, [caption], jpeg(picture))  # True is 1: a part of the figure


def simple(garment: Garment, size: MiniSize, rng: np.random.Generator) -> Picture:
    """The garment alone, with its category and caption."""
    drawn = jpeg(simple_picture(garment, size.image_size, rng))
    return Picture(SIMPLE, garment.category, [size.caption(garment)], drawn)


def draw_product(size: MiniSize, job: tuple[int, Garment]) -> dict:
    """One training product: a SIMPLE image and two scenes."""
    row, garment = job
    rng = np.random.default_rng([size.seed, TRAIN, row])
    pictures = [simple(garment, size, rng), *(scene(garment, size, rng) for _ in range(2))]
    return product_row(f"mini-{size.seed}-train-{row:06d}", pictures)


def draw_query(size: MiniSize, code: int, job: tuple[int, Garment]) -> dict:
    """One product of a test set: query and target. `code`: of the set, as in TEST_SETS."""
    row, garment = job
    rng = np.random.default_rng([size.seed, code, row])
    # The scene first: an argument's order is the order of the draws, and so of every later byte.
    worn = scene(garment, size, rng, tries=QUERY_TRIES)
    return query_row(f"mini-{size.seed}-{code}-{row:06d}", [worn, simple(garment, size, rng)])


def draw_two(size: MiniSize, job: tuple[int, tuple[Garment, Garment]]) -> bytes:
    """A scene of two figures that wear a product each; the number is the first one's row in the test set."""
    row, targets = job
    rng = np.random.default_rng([size.seed, TWO, row])
    best = None
    for _ in range(3 * QUERY_TRIES):  # two things must be in sight
        figures, shown = stage_two(targets, size.image_size, rng)
        if best is None or shown > best[0]:
            best = shown, figures
        if shown >= SHOWN:
            break
    return jpeg(scene_picture(best[1], rng))


def draw_distractor(size: MiniSize, code: int, job: tuple[int, Garment]) -> dict:
    """One distractor. `code`: of its test set, plus 1."""
    row, garment = job
    rng = np.random.default_rng([size.seed, code, row])
    return distractor_row(f"mini-{size.seed}-{code}-{row:06d}", simple(garment, size, rng))


def build_mini(out: str | Path, size: MiniSize, processes: int | None = None) -> bool:
    """Draws Mini LRVS-F into a folder; False if it is there already, drawn with the same settings.

    A drawing that was interrupted goes on with the first folder that is not whole.

    Args:
        out: folder; gets train/*.parquet, validation/, test/, two_of_a_kind/ (if there are more than ten test products)
            and mini.json (settings and files, written last).
        processes: how many draw; the machine's cores by default.

    Raises:
        ValueError: the folder holds other data, or some of its files are cut or missing.
    """
    out = Path(out)
    settings = size.settings
    names = ["train", *TEST_SETS, *([TWO_OF_A_KIND] if pairs(size.test_products) else [])]
    if _is_drawn(out, settings, names):
        return False
    source = json.dumps(settings)
    missing = [name for name in names if not made_from(out / name, source)]
    looks = draw_looks(size)
    # Small shards, and a dictionary of equal cells: the bytes that the published models were trained on.
    layout = {"shard_rows": SHARD_ROWS, "dictionary": True}
    bar = tqdm(total=sum(map(len, looks.values())), desc="drawing", unit="product")
    with worker_map(processes) as mapper, bar:

        def rows(draw: Callable, name: str) -> Iterator[dict]:
            for row in mapper(draw, enumerate(looks[name]), chunksize=32):
                bar.update()
                yield row

        for name in missing:
            with (ProductShardWriter if name == "train" else TestSetWriter)(out / name, **layout) as writer:
                writer.note = {"input": source}
                if name == "train":
                    for row in rows(partial(draw_product, size), name):
                        writer.add(row)
                elif name == TWO_OF_A_KIND:
                    _write_two_of_a_kind(writer, out / "test", size, looks["test"], mapper)
                else:
                    for row in rows(partial(draw_query, size, TEST_SETS[name]), name):
                        writer.add_query(row)
                    for row in rows(partial(draw_distractor, size, TEST_SETS[name] + 1), f"{name}_distractors"):
                        writer.add_distractor(row)
    files = sorted(path for name in names for path in (out / name).rglob("*.parquet"))
    sizes = {str(path.relative_to(out)): path.stat().st_size for path in files}
    write_report(out / MANIFEST, {**settings, "files": sizes})
    return True


def _write_two_of_a_kind(
    writer: TestSetWriter, test: Path, size: MiniSize, looks: list[Garment], mapper: Callable
) -> None:
    """The test set's targets with new scenes, and its distractors as they are."""
    queries = pq.read_table(test / "products.parquet").to_pylist()
    couples = pairs(len(looks))
    jobs = [(first, (looks[first], looks[second])) for first, second in couples]
    for couple, scene in zip(couples, mapper(partial(draw_two, size), jobs, chunksize=4), strict=True):
        for row in couple:
            writer.add_query(queries[row] | {"COMPLEX_IMG": scene, "TYPE": SCENES[False]})
    for file in sorted(test.glob("distractors/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            writer.add_distractor(row)


def _is_drawn(out: Path, settings: dict[str, int], names: list[str]) -> bool:
    """Whether a folder holds all of a Mini LRVS-F of these settings; of an older one, a set may be missing."""
    manifest = out / MANIFEST
    if not manifest.is_file():
        return False
    found = json.loads(manifest.read_text())
    files = found.pop("files", {})
    if found != settings:
        raise ValueError(f"{out} holds a Mini LRVS-F drawn with {found}; remove it or choose another folder")
    for name, size in files.items():
        if not (out / name).is_file() or (out / name).stat().st_size != size:
            raise ValueError(f"{out} is not whole: {name} is missing or cut; remove {out} to draw it again")
    return set(names) <= {name.split("/")[0] for name in files}
