import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import configuration_condvit
from lrvsf.data.images import decode_image
from lrvsf.mini import build
from lrvsf.mini.attributes import CATEGORIES, SILHOUETTES, Garment, all_looks, near_miss, random_garment
from lrvsf.mini.build import MiniSize, build_mini, draw_looks
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage, visible_share

SMALL = MiniSize(products=20, test_products=10, distractors=20, image_size=48)


def digest(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*.parquet"))
    }


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_processes(tmp_path):
    assert build_mini(tmp_path / "a", SMALL, processes=1)
    assert build_mini(tmp_path / "b", SMALL, processes=2)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") and len(digest(tmp_path / "a")) == 5
    assert not build_mini(tmp_path / "a", SMALL), "what exists is picked up"
    with pytest.raises(ValueError, match="remove it"):
        build_mini(tmp_path / "a", MiniSize(products=21, test_products=10, distractors=20, image_size=48))


def test_the_categories_are_the_model_s_in_the_model_s_order():
    assert CATEGORIES == configuration_condvit.CATEGORIES


def test_no_two_products_look_alike_and_near_misses_are_near():
    looks = draw_looks(MiniSize(products=3000, test_products=100, distractors=200))
    everything = [garment for garments in looks.values() for garment in garments]
    assert max(Counter(everything).values()) == 1 and len(everything) == 3000 + 200 + 240
    assert all((g.pattern == "plain") == (g.second is None) for g in everything), "no attribute that cannot be seen"
    near = looks["test_distractors"][0]
    query = looks["test"][0]
    assert (near.category, near.color, near.silhouette) == (query.category, query.color, query.silhouette)


def test_every_silhouette_can_be_drawn_alone_and_worn_and_every_look_differs():
    rng = np.random.default_rng(0)
    pictures = {}
    for category in CATEGORIES:
        for silhouette in SILHOUETTES[category]:
            garment = Garment(category, silhouette, "red", "dots", "blue", "star")
            worn = outfit(garment, rng)
            assert garment in worn and 3 <= len({g.category for g in worn}) <= 5
            pictures[garment] = simple_picture(garment, 48, np.random.default_rng(1)).tobytes()
            for cropped in (False, True):
                assert scene_picture([stage(worn, garment, 48, rng, cropped)], rng).size == (48, 48)
    assert len(set(pictures.values())) == len(pictures)


@pytest.mark.parametrize(
    "change", [{"color": "green"}, {"pattern": "checks"}, {"second": "white"}, {"emblem": "heart"}]
)
def test_every_attribute_is_visible(change):
    garment = Garment("Upper Body", "sweater", "red", "dots", "blue", "star")
    other = Garment(**{**garment.__dict__, **change})
    one, two = (np.asarray(simple_picture(g, 96, np.random.default_rng(1)), int) for g in (garment, other))
    assert np.abs(one - two).max(-1).astype(bool).mean() > 0.003


def test_captions_say_what_is_seen():
    assert Garment("Neck", "scarf", "red", "stripes", "white", "none").caption == "a red scarf with white stripes"
    assert Garment("Feet", "boots", "orange", "plain", None, "star").caption == "orange boots with a star"
    assert Garment("Head", "cap", "orange", "color block", "blue", "heart").caption == (
        "an orange cap with a blue lower half and a heart"
    )
    looks = all_looks("Bags")
    assert len({look.caption for look in looks}) == len(looks) == len(set(looks))


def test_short_captions_change_the_words_and_nothing_else(tmp_path):
    build_mini(tmp_path / "a", SMALL, processes=1)
    build_mini(tmp_path / "b", replace(SMALL, short_captions=True), processes=1)
    full, short = (pq.read_table(tmp_path / name / "train/00000.parquet").to_pylist() for name in "ab")
    for one, other in zip(full, short, strict=True):
        for image, twin in zip(one["images"], other["images"], strict=True):
            assert image["image"]["bytes"] == twin["image"]["bytes"]
        (long,), (few,) = one["images"][0]["captions"], other["images"][0]["captions"]
        assert long.startswith(few) and few.endswith(SILHOUETTES[one["images"][0]["category"]])
    with pytest.raises(ValueError, match="remove it"):
        build_mini(tmp_path / "a", replace(SMALL, short_captions=True))


def test_near_misses_keep_category_and_colours():
    rng = np.random.default_rng(0)
    for _ in range(200):
        garment = random_garment("Waist", rng)
        miss = near_miss(garment, rng)
        assert miss != garment and (miss.color, miss.silhouette, miss.second) == (
            garment.color,
            garment.silhouette,
            garment.second,
        )


def test_written_layout(tmp_path):
    build_mini(tmp_path, SMALL, processes=1)
    rows = pq.read_table(tmp_path / "train/00000.parquet").to_pylist()
    assert [image["type"] for image in rows[0]["images"]][0] == "SIMPLE" and len(rows) == 20
    assert all(i["type"] in ("COMPLEX", "PARTIAL_COMPLEX") for i in rows[0]["images"][1:])
    assert rows[0]["images"][0]["category"] in CATEGORIES and rows[0]["images"][0]["captions"][0]
    queries = pq.read_table(tmp_path / "test/products.parquet").to_pylist()
    assert len(queries) == 10 and decode_image(queries[0]["SIMPLE_IMG"]).height == 48
    assert decode_image(queries[0]["COMPLEX_IMG"]).size == (48, 48)
    distractors = pq.read_table(tmp_path / "test/distractors").to_pylist()
    assert len(distractors) == 20 and decode_image(distractors[0]["jpg"]).height == 48
    assert pq.read_table(tmp_path / "validation/distractors").num_rows == 4
    assert json.loads((tmp_path / "mini.json").read_text())["seed"] == 0
    (tmp_path / "train/00000.parquet").write_bytes(b"cut")
    with pytest.raises(
        ValueError, match="is not whole: train/00000.parquet is missing or cut; remove .* to draw it again"
    ):
        build_mini(tmp_path, SMALL)


@pytest.mark.parametrize(
    "wrong, message",
    [({"products": 0}, "at least one"), ({"image_size": 8}, "too small"), ({"products": 90_000}, "no two may look")],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MiniSize(**wrong)


def test_the_visible_share_is_counted_by_hand():
    square = [np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)]
    unit = np.array([[1.0, 0, 5], [0, 1.0, 5]])
    assert visible_share(square, [], unit, 40) == 1
    half = [np.array([(-1, -1), (4.5, -1), (4.5, 11), (-1, 11)], float)]
    assert visible_share(square, half, unit, 40) == pytest.approx(0.5, abs=0.06)
    assert visible_share(square, square, unit, 40) == 0
    assert visible_share(square, [], unit + [[0, 0, -10], [0, 0, 0]], 40) == pytest.approx(0.5, abs=0.06), "cut off"


def test_queries_show_what_they_ask_for_and_training_scenes_may_not(monkeypatch):
    drawn = []
    monkeypatch.setattr(build, "scene_picture", lambda places, rng: drawn.extend(places) or scene_picture(places, rng))
    rng = np.random.default_rng(0)
    garments = [random_garment(category, rng) for category in CATEGORIES for _ in range(6)]
    size = MiniSize(image_size=48)
    for row, garment in enumerate(garments):
        build.draw_query(size, 4, (row, garment))
        assert drawn[-1].shown(garment) >= 0.75 or garment.silhouette == "high boots"
    drawn.clear()
    for row, garment in enumerate(garments):
        build.draw_product(size, (row, garment))
    shown = [place.shown(garment) for place, garment in zip(drawn, np.repeat(garments, 2), strict=True)]
    assert min(shown) < 0.25 and 0.05 < np.mean(np.array(shown) < 0.5) < 0.3


def test_an_interrupted_drawing_goes_on_and_what_lies_there_is_kept(tmp_path, monkeypatch):
    build_mini(tmp_path / "whole", SMALL, processes=1)

    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "draw_query", dies)
        with pytest.raises(KeyboardInterrupt):
            build_mini(tmp_path / "cut", SMALL, processes=1)
    assert [path.name for path in sorted((tmp_path / "cut").iterdir())] == ["train"]
    first = (tmp_path / "cut/train/00000.parquet").stat().st_mtime_ns
    assert build_mini(tmp_path / "cut", SMALL, processes=1) and digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert (tmp_path / "cut/train/00000.parquet").stat().st_mtime_ns == first, "a whole folder is not drawn again"
    (tmp_path / "other/test").mkdir(parents=True)
    (tmp_path / "other/test/mine.parquet").write_bytes(b"data")
    with pytest.raises(ValueError, match="other/test holds something made from other input"):
        build_mini(tmp_path / "other", SMALL, processes=1)
    assert not (tmp_path / "other/train").exists()
