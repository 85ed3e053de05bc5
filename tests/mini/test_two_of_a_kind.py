import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from lrvsf.mini import build
from lrvsf.mini.attributes import CATEGORIES, random_garment
from lrvsf.mini.build import MiniSize, build_mini, draw_two
from lrvsf.mini.scenes import outfit, scene_picture, stage, stage_two
from lrvsf.mini.stock import pairs

SMALL = MiniSize(products=2, test_products=23, distractors=5, image_size=48)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    build_mini(folder, SMALL, processes=1)
    return folder


def read(folder):
    return pq.read_table(folder / "products.parquet").to_pylist(), pq.read_table(folder / "distractors").to_pylist()


def test_two_queries_share_a_scene_and_a_category_and_nothing_else(mini):
    (rows, distractors), (tested, others) = read(mini / "two_of_a_kind"), read(mini / "test")
    assert len(rows) >= 14 and distractors == others
    products = {row["PRODUCT_ID"]: row for row in tested}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["CATEGORY"] == second["CATEGORY"] and first["blip2_caption1"] != second["blip2_caption1"]
        assert first["COMPLEX_IMG"] == second["COMPLEX_IMG"] and first["SIMPLE_IMG"] != second["SIMPLE_IMG"]
    for row in rows:
        known = products.pop(row["PRODUCT_ID"])  # each product once
        assert row["COMPLEX_IMG"] != known["COMPLEX_IMG"]
        assert row == known | {"COMPLEX_IMG": row["COMPLEX_IMG"], "TYPE": "COMPLEX"}


def test_products_are_paired_within_their_category_where_words_tell_them_apart():
    rng = np.random.default_rng(0)
    looks = [random_garment(CATEGORIES[row % 3], rng) for row in range(40)]
    couples = pairs(looks)
    rows = [row for pair in couples for row in pair]
    assert len(set(rows)) == len(rows) >= 37
    for first, second in couples:
        assert looks[first].category == looks[second].category and looks[first].caption != looks[second].caption
    assert pairs(looks[:1]) == [] and pairs([looks[0], replace(looks[0], seed=1)]) == [], "nobody could say which"


def test_what_is_missing_is_drawn_and_what_is_there_is_kept(mini, tmp_path):
    shutil.copytree(mini, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/two_of_a_kind")
    (tmp_path / "cut/mini.json").unlink()
    before = (tmp_path / "cut/test/products.parquet").stat().st_mtime_ns
    assert build_mini(tmp_path / "cut", SMALL, processes=2) and not build_mini(tmp_path / "cut", SMALL)
    assert read(tmp_path / "cut/two_of_a_kind") == read(mini / "two_of_a_kind"), "on any number of processes"
    assert (tmp_path / "cut/test/products.parquet").stat().st_mtime_ns == before


def test_both_things_are_in_sight(monkeypatch):
    drawn = []
    monkeypatch.setattr(build, "scene_picture", lambda places, rng: drawn.append(places) or scene_picture(places, rng))
    rng = np.random.default_rng(0)
    for row, category in enumerate(CATEGORIES):
        targets = random_garment(category, rng), random_garment(category, rng)
        draw_two(MiniSize(image_size=48), (row, targets))
        (behind, before), (first, second) = drawn.pop(), targets
        shown = [behind.shown(first, [before]), before.shown(second)]
        assert min(shown) >= 0.7 or "high boots" in (first.silhouette, second.silhouette), (category, shown)
        assert behind.matrix[0, 2] < before.matrix[0, 2], "one stands at the left, one at the right"


def test_who_stands_in_front_hides_what_is_behind():
    rng = np.random.default_rng(0)
    target = random_garment("Upper Body", rng)
    figure = stage(outfit(target, rng), target, (96, 96), rng, cropped=False)
    away = replace(figure, matrix=figure.matrix + [[0, 0, 500], [0, 0, 0]])
    assert figure.shown(target, [away]) == figure.shown(target) > 0.5
    assert figure.shown(target, [figure]) == 0, "a twin at the same place"
    _, shown = stage_two((target, target), 96, np.random.default_rng(1))
    assert 0 <= shown <= 1
