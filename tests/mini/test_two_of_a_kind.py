import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from lrvsf.mini import build
from lrvsf.mini.attributes import CATEGORIES, random_garment
from lrvsf.mini.build import MiniSize, build_mini, draw_two
from lrvsf.mini.scenes import outfit, scene_picture, stage
from lrvsf.mini.two_of_a_kind import pairs, stage_two

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
    assert len(rows) == 20 and distractors == others
    products = {row["PRODUCT_ID"]: row for row in tested}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["CATEGORY"] == second["CATEGORY"] and first["blip2_caption1"] != second["blip2_caption1"]
        assert first["COMPLEX_IMG"] == second["COMPLEX_IMG"] and first["SIMPLE_IMG"] != second["SIMPLE_IMG"]
    for row in rows:
        known = products.pop(row["PRODUCT_ID"])  # each product once
        assert row["COMPLEX_IMG"] != known["COMPLEX_IMG"]
        assert row == known | {"COMPLEX_IMG": row["COMPLEX_IMG"], "TYPE": "COMPLEX"}


def test_products_are_paired_within_their_category():
    assert pairs(10) == [] and pairs(12) == [(0, 10), (1, 11)]
    rows = [row for pair in pairs(500) for row in pair]
    assert sorted(rows) == list(range(500)) and all((b - a) == len(CATEGORIES) for a, b in pairs(500))


def test_an_older_folder_gets_what_it_lacks_and_keeps_what_it_has(mini, tmp_path):
    shutil.copytree(mini, tmp_path / "old")
    shutil.rmtree(tmp_path / "old/two_of_a_kind")
    about = json.loads((mini / "mini.json").read_text())
    about["files"] = {name: size for name, size in about["files"].items() if "two_of_a_kind" not in name}
    (tmp_path / "old/mini.json").write_text(json.dumps(about))
    before = (tmp_path / "old/test/products.parquet").stat().st_mtime_ns
    assert build_mini(tmp_path / "old", SMALL, processes=2) and not build_mini(tmp_path / "old", SMALL)
    assert read(tmp_path / "old/two_of_a_kind") == read(mini / "two_of_a_kind"), "on any number of processes"
    assert (tmp_path / "old/test/products.parquet").stat().st_mtime_ns == before


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
    figure = stage(outfit(target, rng), target, 96, rng, cropped=False)
    away = replace(figure, matrix=figure.matrix + [[0, 0, 500], [0, 0, 0]])
    assert figure.shown(target, [away]) == figure.shown(target) > 0.5
    assert figure.shown(target, [figure]) == 0, "a twin at the same place"
    _, shown = stage_two((target, target), 96, np.random.default_rng(1))
    assert 0 <= shown <= 1
