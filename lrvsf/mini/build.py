"""Writes Mini LRVS-F: product shards under train/, and test sets in the published layout: validation/, test/ and
two_of_a_kind/.

Every picture is drawn from (seed, split, row), so the same seed gives the same bytes on any number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.mini.attributes import Garment, careless_caption
from lrvsf.mini.camera import exposed, grainy, jpeg, overlaid
from lrvsf.mini.scenes import Stage, outfit, scene_picture, simple_picture, stage, stage_two
from lrvsf.mini.stock import COPY, MIX, NEAR_MISS, VARIANT, Split, companion, draw_stock, pairs, wardrobes
from lrvsf.prepare.rows import Picture, distractor_row, product_row, query_row
from lrvsf.prepare.workers import worker_map
from lrvsf.prepare.writers import ProductShardWriter, TestSetWriter, made_from
from lrvsf.report import write_report

MANIFEST = "mini.json"
# Each picture's seed is (seed, code of its set, row), so that no set's pictures depend on how many another one has.
TRAIN, TEST_SETS = 1, {"validation": 2, "test": 4}  # 3 and 5 are their distractors
TWO_OF_A_KIND, TWO = "two_of_a_kind", 9  # 6 to 8 are the shop's
SETS = ("train", *TEST_SETS, TWO_OF_A_KIND)
SHARD_ROWS = 2000
SHOWN = 0.75  # share of a query's cloth in sight; in training it may be less, as in the wild
QUERY_TRIES = 20  # stagings; where all hide more, as a long hem hides boots, the least hidden is taken: 6 % of queries
IN_SIGHT = 0.25  # share from which a thing counts as shown beside the one that is asked for
PORTRAIT = (0.66, 0.8)  # width of a narrow scene, its height being 1
FORMAT = 4  # raise it when the pictures change: an older folder is then refused


@dataclass(frozen=True)
class MiniSize:
    """How much to draw. The validation set has a quarter of the test set's products and a fifth of its distractors."""

    products: int = 16_000
    test_products: int = 2_000
    distractors: int = 5_000
    image_size: int = 160
    seed: int = 0

    def __post_init__(self):
        if min(self.products, self.test_products, self.distractors) < 1:
            raise ValueError(f"Mini LRVS-F needs at least one of each kind of product, got {self}")
        if self.image_size < 32:
            raise ValueError(f"image_size {self.image_size} is too small to see a print; take 32 or more")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is below 0; take another")

    @property
    def settings(self) -> dict[str, int]:
        """What the pictures and the captions depend on."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def tests(self) -> dict[str, tuple[int, int]]:
        """Test set -> how many products and distractors."""
        # Ten at least, where there are ten: R@5 of a smaller set would say nothing.
        few = max(min(10, self.test_products), self.test_products // 4), max(1, self.distractors // 5)
        return {"test": (self.test_products, self.distractors), "validation": few}


def draw_looks(size: MiniSize) -> dict[str, Split]:
    """Which garment each row shows, by split."""
    return draw_stock(size.seed, size.tests, size.products)


def photograph(image: Image.Image, rng: np.random.Generator, scene: bool) -> bytes:
    """The file of a drawing, as a camera and a shop leave it."""
    if scene:
        image = exposed(image, rng)
        if rng.random() < MIX.grain:
            image = grainy(image, rng)
    if rng.random() < MIX.overlays:
        image = overlaid(image, rng)
    return jpeg(image, int(rng.integers(*MIX.quality)))


def staged(
    garment: Garment, size: MiniSize, rng: np.random.Generator, wardrobe: dict[str, Garment], tries: int
) -> list[Stage]:
    """A figure that wears the garment; in part of the scenes beside another one with a thing of its kind.

    The first of `tries` that shows at least `SHOWN` of the garment is taken, or the one that shows most.
    """
    two, cropped, portrait = (rng.random(3) < (MIX.companions, MIX.cropped, MIX.portraits)).tolist()

    def attempt() -> tuple[list[Stage], float]:
        if two:
            targets = [companion(garment, rng, wardrobe.get(garment.category)), garment]
            if rng.random() < 0.5:  # neither side is the one that is asked for
                targets.reverse()
            return stage_two(targets, size.image_size, rng, wardrobe)
        width = int(size.image_size * (rng.uniform(*PORTRAIT) if portrait else 1))
        worn = outfit(garment, rng, wardrobe)
        place = stage(worn, garment, (width, size.image_size), rng, cropped)
        return [place], place.shown(garment) if tries > 1 else 1.0

    return first_shown(attempt, tries)


def first_shown(attempt: Callable[[], tuple[list[Stage], float]], tries: int) -> list[Stage]:
    """The first attempt that shows enough, or the one that shows most: a staging is only numbers, and drawn later."""
    best = None
    for _ in range(tries):
        figures, shown = attempt()
        if best is None or shown > best[1]:
            best = figures, shown
        if shown >= SHOWN:
            break
    return best[0]


def scene(figures: list[Stage], rng: np.random.Generator) -> Picture:
    """The picture of a scene; its caption names all that is worn.

    Words for what is asked about are short; those of a scene tell what a scene shows, and Mini CLIP learns to see by
    them.
    """
    picture = scene_picture(figures, rng)
    alone = len(figures) == 1
    # Ten full captions are more words than Mini CLIP reads.
    names = [garment.full_caption if alone else garment.caption for figure in figures for garment in figure.worn]
    rng.shuffle(names)  # no garment is the first: nothing says which one is asked about
    caption = f"{'a person' if alone else 'two people'} wearing {', '.join(names[:-1])} and {names[-1]}"
    return Picture(SCENES[figures[0].cropped], None, [caption], photograph(picture, rng, scene=True))  # True is 1


def simple(garment: Garment, size: MiniSize, rng: np.random.Generator, careless: bool = False) -> Picture:
    """The garment alone, with its category and caption."""
    drawn = photograph(simple_picture(garment, size.image_size, rng), rng, scene=False)
    caption = careless_caption(garment, rng) if careless else garment.caption
    return Picture(SIMPLE, garment.category, [caption], drawn)


def draw_product(size: MiniSize, job: tuple[int, Garment]) -> dict:
    """One training product: a SIMPLE image and two scenes."""
    row, garment = job
    rng = np.random.default_rng([size.seed, TRAIN, row])
    careless = bool(rng.random() < MIX.careless)
    pictures = [simple(garment, size, rng, careless)]
    pictures += [scene(staged(garment, size, rng, {}, tries=1), rng) for _ in range(2)]
    return product_row(f"mini-{size.seed}-train-{row:06d}", pictures)


def test_id(size: MiniSize, code: int, row: int) -> str:
    """The PRODUCT_ID of a row of a test set. `code`: of the set, as in TEST_SETS, plus 1 for its distractors."""
    return f"mini-{size.seed}-{code}-{row:06d}"


def draw_query(size: MiniSize, code: int, job: tuple[int, Garment, dict[str, Garment]]) -> tuple[dict, set[Garment]]:
    """One product of a test set, query and target, and all that the query shows.

    Args:
        code: of the set, as in TEST_SETS.
        job: row, garment, and what else its figure may wear, by category.
    """
    row, garment, wardrobe = job
    rng = np.random.default_rng([size.seed, code, row])
    # The scene first: an argument's order is the order of the draws, and so of every later byte.
    figures = staged(garment, size, rng, wardrobe, QUERY_TRIES)
    worn = scene(figures, rng)
    drawn = query_row(test_id(size, code, row), [worn, simple(garment, size, rng)])
    return drawn, {
        garment
        for place, figure in enumerate(figures)
        for garment in figure.worn
        if figure.shown(garment, figures[place + 1 :]) >= IN_SIGHT
    }


def draw_two(size: MiniSize, job: tuple[int, tuple[Garment, Garment]]) -> bytes:
    """A scene of two figures that wear a product each; the number is the first one's row in the test set."""
    row, targets = job
    rng = np.random.default_rng([size.seed, TWO, row])
    # Two things must be in sight.
    figures = first_shown(lambda: stage_two(targets, size.image_size, rng), 3 * QUERY_TRIES)
    return photograph(scene_picture(figures, rng), rng, scene=True)


def draw_distractor(size: MiniSize, code: int, job: tuple[int, Garment]) -> dict:
    """One distractor. `code`: of its test set, plus 1."""
    row, garment = job
    rng = np.random.default_rng([size.seed, code, row])
    return distractor_row(test_id(size, code, row), simple(garment, size, rng))


def build_mini(out: str | Path, size: MiniSize, processes: int | None = None, only: str | None = None) -> bool:
    """Draws Mini LRVS-F into a folder; False if it is there already, drawn with the same settings.

    A drawing that was interrupted goes on with the first folder that is not whole.

    Args:
        out: folder; gets train/*.parquet, validation/, test/, two_of_a_kind/ (if two test products have one category)
            and mini.json (settings and files, written last). Under "note", the manifest.json of a test set tells which
            distractors are "copies", "variants" and "near-misses" of which products, and which other products of the
            set are "worn" in a query, a quarter in sight at least.
        processes: how many draw; the machine's cores by default.
        only: the one folder to draw now, all by default; mini.json is written when all are there.

    Raises:
        ValueError: the folder holds other data, or some of its files are cut or missing; there is no such set.
    """
    out = Path(out)
    settings = size.settings
    if _is_drawn(out, settings):
        return False
    source = json.dumps(settings)
    looks = draw_looks(size)
    names = [name for name in SETS if name != TWO_OF_A_KIND or pairs(looks["test"].looks)]
    if only is not None and only not in names:
        raise ValueError(f"Mini LRVS-F of {size.test_products:,} test products has no {only!r}, but {', '.join(names)}")
    missing = [name for name in names if not made_from(out / name, source)]
    now = [name for name in missing if only in (None, name)]
    if only == TWO_OF_A_KIND and "test" in missing:
        raise ValueError(f"{TWO_OF_A_KIND} has the products of test, which is not drawn: draw that first")
    # Small shards, and a dictionary of equal cells: scenes are no two the same, captions and categories are.
    layout = {"shard_rows": SHARD_ROWS, "dictionary": True}
    drawn = [name for name in looks if name.removesuffix("_distractors") in now]
    bar = tqdm(total=sum(len(looks[name].looks) for name in drawn), desc="drawing", unit="product")
    with worker_map(processes) as mapper, bar:

        def rows(draw: Callable, jobs: Iterable[tuple]) -> Iterator[Any]:
            for row in mapper(draw, jobs, chunksize=32):
                bar.update()
                yield row

        for name in now:
            with (ProductShardWriter if name == "train" else TestSetWriter)(out / name, **layout) as writer:
                writer.note = {"input": source}
                if name == "train":
                    for row in rows(partial(draw_product, size), enumerate(looks[name].looks)):
                        writer.add(row)
                elif name == TWO_OF_A_KIND:
                    _write_two_of_a_kind(writer, out / "test", size, looks, mapper)
                else:
                    writer.note |= kin_by_id(size, looks, name)
                    _write_test_set(writer, name, size, looks, rows)
    if now != missing:
        return bool(now)
    files = sorted(path for name in names for path in (out / name).rglob("*.parquet"))
    sizes = {str(path.relative_to(out)): path.stat().st_size for path in files}
    write_report(out / MANIFEST, {**settings, "files": sizes})
    return True


def kin_by_id(
    size: MiniSize, looks: dict[str, Split], name: str, products: set[int] | None = None
) -> dict[str, dict[str, str]]:
    """Kind of kin -> distractor's id -> id of the product that it is a copy, a variant or a near-miss of.

    `products`: rows of these only.
    """
    code, kin = TEST_SETS[name], looks[f"{name}_distractors"].kin
    found: dict[str, dict[str, str]] = {kind: {} for kind in (COPY, VARIANT, NEAR_MISS)}
    for row, (kind, origin) in kin.items():
        if products is None or origin in products:
            found[kind][test_id(size, code + 1, row)] = test_id(size, code, origin)
    return found


def _write_test_set(writer: TestSetWriter, name: str, size: MiniSize, looks: dict[str, Split], rows: Callable) -> None:
    """Queries whose figures wear products of the same set, so that other conditions have their answers in the gallery,
    too. A second figure wears its own."""
    code, garments = TEST_SETS[name], looks[name].looks
    chosen = wardrobes(garments, np.random.default_rng([size.seed, code]))
    jobs = (
        (row, garment, {category: garments[other] for category, other in chosen[row].items()})
        for row, garment in enumerate(garments)
    )
    writer.note["worn"] = worn = {}
    for row, (query, shown) in enumerate(rows(partial(draw_query, size, code), jobs)):
        writer.add_query(query)
        others = {category: other for category, other in chosen[row].items() if garments[other] in shown}
        worn[query["PRODUCT_ID"]] = {c: test_id(size, code, other) for c, other in others.items() if other != row}
    for row in rows(partial(draw_distractor, size, code + 1), enumerate(looks[f"{name}_distractors"].looks)):
        writer.add_distractor(row)


def _write_two_of_a_kind(
    writer: TestSetWriter, test: Path, size: MiniSize, looks: dict[str, Split], mapper: Callable
) -> None:
    """The test set's targets with new scenes, and its distractors as they are."""
    garments = looks["test"].looks
    couples = pairs(garments)
    # Products without a partner are left out, and so is what is known of their kin.
    writer.note |= kin_by_id(size, looks, "test", {row for rows in couples for row in rows})
    jobs = [(rows, tuple(garments[row] for row in rows)) for rows in couples]
    queries = pq.read_table(test / "products.parquet").to_pylist()
    scenes = mapper(partial(draw_two, size), [(rows[0], targets) for rows, targets in jobs], chunksize=4)
    for (rows, _), scene in zip(jobs, scenes, strict=True):
        for row in rows:
            writer.add_query(queries[row] | {"COMPLEX_IMG": scene, "TYPE": SCENES[False]})
    for file in sorted(test.glob("distractors/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            writer.add_distractor(row)


def _is_drawn(out: Path, settings: dict[str, int]) -> bool:
    """Whether a folder holds all of a Mini LRVS-F of these settings."""
    manifest = out / MANIFEST
    if not manifest.is_file():
        return False
    try:
        found = json.loads(manifest.read_text())
        files = found.pop("files", {})
    except (ValueError, AttributeError, TypeError) as error:  # no JSON, or another one
        raise ValueError(f"{manifest} is damaged ({error}); remove {out} to draw it again") from error
    if found != settings:
        raise ValueError(f"{out} holds a Mini LRVS-F drawn with {found}; remove it or choose another folder")
    for name, size in files.items():
        if not (out / name).is_file() or (out / name).stat().st_size != size:
            raise ValueError(f"{out} is not whole: {name} is missing or cut; remove {out} to draw it again")
    return True
