import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import configuration_condvit
from lrvsf.data.images import decode_image
from lrvsf.data.testset import ProductTestSet
from lrvsf.evaluation.columns import copies_in
from lrvsf.mini import build
from lrvsf.mini.attributes import CATEGORIES, SILHOUETTES, Garment, careless_caption, near_miss, random_garment, variant
from lrvsf.mini.build import MiniSize, build_mini, draw_looks
from lrvsf.mini.scenes import outfit, scene_picture, simple_picture, stage, visible_share
from lrvsf.mini.stock import COPY, MIX, NEAR_MISS, VARIANT, companion

SMALL = MiniSize(products=20, test_products=10, distractors=20, image_size=48)


def digest(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*.parquet"))
    }


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_processes(tmp_path):
    assert build_mini(tmp_path / "a", SMALL, processes=1)
    assert build_mini(tmp_path / "b", SMALL, processes=2)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") and len(digest(tmp_path / "a")) == 7
    assert not build_mini(tmp_path / "a", SMALL), "what exists is picked up"
    with pytest.raises(ValueError, match="remove it"):
        build_mini(tmp_path / "a", MiniSize(products=21, test_products=10, distractors=20, image_size=48))


def test_the_categories_are_the_model_s_in_the_model_s_order():
    assert CATEGORIES == configuration_condvit.CATEGORIES


def test_no_two_products_look_alike_but_copies():
    looks = draw_looks(MiniSize(products=3000, test_products=400, distractors=1000))
    assert {name: len(split.looks) for name, split in looks.items()} == {
        **{"test": 400, "validation": 100, "test_distractors": 1000, "validation_distractors": 200, "train": 3000}
    }
    originals = [g for split in looks.values() for row, g in enumerate(split.looks) if row not in split.of_kind(COPY)]
    assert max(Counter(originals).values()) == 1
    assert all((g.pattern == "plain") == (g.second is None) for g in originals), "no attribute that cannot be seen"
    for name, products in (("test_distractors", "test"), ("train", "train")):
        garments, others = looks[name].looks, looks[products].looks
        for row, (kind, origin) in looks[name].kin.items():
            own, other = garments[row], others[origin]
            assert origin < row or name != products
            assert (own == other) == (kind == COPY) and (own.seed == other.seed) == (kind != NEAR_MISS)
            assert (own.caption == other.caption) == (kind != VARIANT) and own.silhouette == other.silhouette
        assert 0.7 < len(looks[name].of_kind(VARIANT)) / MIX.variants / len(garments) < 1.3
    assert not looks["test"].of_kind(COPY), "no other query asks for a query's product"


def test_categories_are_as_frequent_as_in_a_shop():
    counts = Counter(g.category for g in draw_looks(MiniSize(4000, 4, 4))["train"].looks)
    assert sum(MIX.shares.values()) == pytest.approx(1) and set(MIX.shares) == set(CATEGORIES) == set(counts)
    for category, share in MIX.shares.items():
        assert counts[category] / 4000 == pytest.approx(share, abs=0.05)
    assert counts[MIX.ranking[0]] > 3 * counts[MIX.ranking[-1]]


def test_every_silhouette_can_be_drawn_alone_and_worn_and_every_look_differs():
    rng = np.random.default_rng(0)
    pictures = {}
    for category in CATEGORIES:
        for silhouette in SILHOUETTES[category]:
            garment = Garment(category, silhouette, "red", "dots", "blue", 7)
            worn = outfit(garment, rng)
            assert garment in worn and 3 <= len({g.category for g in worn}) <= 5
            pictures[garment] = simple_picture(garment, 48, np.random.default_rng(1)).tobytes()
            for cropped in (False, True):
                assert scene_picture([stage(worn, garment, (40, 48), rng, cropped)], rng).size == (40, 48)
    assert len(set(pictures.values())) == len(pictures)


@pytest.mark.parametrize("change", [{"color": "green"}, {"pattern": "checks"}, {"second": "white"}, {"seed": 8}])
def test_every_attribute_is_visible(change):
    garment = Garment("Upper Body", "sweater", "red", "dots", "blue", 7)
    other = replace(garment, **change)
    one, two = (np.asarray(simple_picture(g, 96, np.random.default_rng(1)), int) for g in (garment, other))
    assert (np.abs(one - two).max(-1) > 30).mean() > 0.02


def test_captions_tell_colour_and_kind_and_full_ones_what_words_can():
    scarf = Garment("Neck", "scarf", "red", "stripes", "white", 3)
    assert scarf.caption == "a red scarf" and scarf.full_caption.startswith("a red scarf with white stripes and ")
    assert scarf.full_caption.endswith(f"{scarf.inks[0]} {scarf.print.name}")
    assert Garment("Feet", "boots", "orange", "plain", None, 0).caption == "orange boots"
    cap = Garment("Head", "cap", "orange", "color block", "blue", 0)
    assert cap.full_caption.startswith("an orange cap with a blue lower half and ")
    assert "with an orange lower half and " in replace(cap, color="blue", second="orange").full_caption
    rng = np.random.default_rng(0)
    assert {careless_caption(cap, rng) for _ in range(99)} >= {"a cap", "a red cap"}
    assert "an orange cap" not in {careless_caption(cap, rng) for _ in range(99)}


def test_kin_differ_in_one_thing():
    rng = np.random.default_rng(0)
    for _ in range(200):
        garment = random_garment("Waist", rng)
        other, miss, beside = variant(garment, rng), near_miss(garment, rng), companion(garment, rng)
        assert other.color != garment.color and replace(other, color=garment.color) == garment
        assert miss.seed != garment.seed and replace(miss, seed=garment.seed) == garment
        assert beside.category == garment.category and beside.caption != garment.caption
        assert companion(garment, rng, first=beside) == beside and companion(garment, rng, first=miss) != miss


def test_written_layout(tmp_path):
    build_mini(tmp_path, SMALL, processes=1)
    rows = pq.read_table(tmp_path / "train/00000.parquet").to_pylist()
    assert [image["type"] for image in rows[0]["images"]][0] == "SIMPLE" and len(rows) == 20
    assert all(i["type"] in ("COMPLEX", "PARTIAL_COMPLEX") for i in rows[0]["images"][1:])
    assert rows[0]["images"][0]["category"] in CATEGORIES and rows[0]["images"][0]["captions"][0]
    queries = pq.read_table(tmp_path / "test/products.parquet").to_pylist()
    assert len(queries) == 10 and decode_image(queries[0]["SIMPLE_IMG"]).height == 48
    assert all(decode_image(query["COMPLEX_IMG"]).height == 48 for query in queries)
    distractors = pq.read_table(tmp_path / "test/distractors").to_pylist()
    assert len(distractors) == 20 and decode_image(distractors[0]["jpg"]).height == 48
    assert pq.read_table(tmp_path / "validation/distractors").num_rows == 4
    assert json.loads((tmp_path / "mini.json").read_text())["format"] == build.FORMAT
    note = json.loads((tmp_path / "test/manifest.json").read_text())["note"]
    products, others = {q["PRODUCT_ID"]: q for q in queries}, {d["PRODUCT_ID"]: d for d in distractors}
    assert {"copies", "variants", "near-misses", "worn", "input"} == set(note) and len(note["worn"]) == 10
    for kind in (COPY, VARIANT, NEAR_MISS):
        for distractor, product in note[kind].items():
            assert others[distractor]["CATEGORY"] == products[product]["CATEGORY"]
    for product, worn in note["worn"].items():
        assert all(products[other]["CATEGORY"] == category for category, other in worn.items()) and product not in worn
    (tmp_path / "train/00000.parquet").write_bytes(b"cut")
    with pytest.raises(
        ValueError, match="is not whole: train/00000.parquet is missing or cut; remove .* to draw it again"
    ):
        build_mini(tmp_path, SMALL)


@pytest.mark.parametrize(
    "wrong, message",
    [({"products": 0}, "at least one"), ({"image_size": 8}, "too small")],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MiniSize(**wrong)


def test_the_visible_share_is_counted_by_hand():
    square = [np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)]
    unit = np.array([[1.0, 0, 5], [0, 1.0, 5]])
    assert visible_share(square, [], unit, (40, 40)) == 1
    half = [np.array([(-1, -1), (4.5, -1), (4.5, 11), (-1, 11)], float)]
    assert visible_share(square, half, unit, (40, 40)) == pytest.approx(0.5, abs=0.06)
    assert visible_share(square, square, unit, (40, 40)) == 0
    assert visible_share(square, [], unit + [[0, 0, -10], [0, 0, 0]], (40, 40)) == pytest.approx(0.5, abs=0.06), (
        "cut off"
    )


def test_queries_show_what_they_ask_for_and_training_scenes_may_not():
    rng = np.random.default_rng(0)
    garments = [random_garment(category, rng) for category in CATEGORIES for _ in range(6)]
    size = MiniSize(image_size=48)

    def shown(garment, tries):
        figures = build.staged(garment, size, rng, {}, tries)
        place = next(place for place, figure in enumerate(figures) if garment in figure.worn)
        return figures[place].shown(garment, figures[place + 1 :]), len(figures)

    for garment in garments:
        assert shown(garment, build.QUERY_TRIES)[0] >= 0.7 or garment.silhouette == "high boots"
    seen, figures = zip(*(shown(garment, 1) for garment in garments for _ in range(3)), strict=True)
    assert min(seen) < 0.25 and 0.05 < np.mean(np.array(seen) < 0.5) < 0.35
    assert 0.05 < np.mean(np.array(figures) == 2) < 0.3, "some stand beside another one with a thing of their kind"


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


def test_one_folder_may_be_drawn_first(tmp_path):
    build_mini(tmp_path / "whole", SMALL, processes=1)
    with pytest.raises(ValueError, match="products of test, which is not drawn"):
        build_mini(tmp_path / "parts", SMALL, processes=1, only="two_of_a_kind")
    with pytest.raises(ValueError, match="10 test products has no 'tests', but train, validation, test, two_of_a_kind"):
        build_mini(tmp_path / "parts", SMALL, processes=1, only="tests")
    assert build_mini(tmp_path / "parts", SMALL, processes=1, only="test")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["test"], "nothing says that all is there"
    assert not build_mini(tmp_path / "parts", SMALL, processes=1, only="test")
    assert build_mini(tmp_path / "parts", SMALL, processes=1)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_what_is_known_of_copies_joins_in_both_test_sets(tmp_path):
    """Of products without a partner, too, which two_of_a_kind leaves out."""
    build_mini(tmp_path, MiniSize(1, 23, 60, image_size=32, seed=1), processes=1)
    known = {}
    for name in ("test", "two_of_a_kind"):
        test_set = ProductTestSet(tmp_path / name)
        assert copies_in(test_set) is not None
        known[name] = json.loads((tmp_path / name / "manifest.json").read_text())["note"]["copies"]
    assert known["two_of_a_kind"].items() < known["test"].items()


@pytest.mark.parametrize("text", ["[]", "{", "7"])
def test_a_damaged_list_of_files_is_named(tmp_path, text):
    (tmp_path / "mini.json").write_text(text)
    with pytest.raises(ValueError, match=r"mini\.json is damaged .*remove .* to draw it again"):
        build_mini(tmp_path, SMALL, processes=1)


def test_what_is_out_of_sight_is_not_listed_as_worn():
    rng = np.random.default_rng(0)
    size = MiniSize(image_size=48)
    looks = [random_garment(category, rng) for category in CATEGORIES]
    wardrobe = {garment.category: garment for garment in looks}
    hidden = 0
    for row in range(40):
        _, shown = build.draw_query(size, 4, (row, looks[row % len(looks)], wardrobe))
        figures = build.staged(looks[row % len(looks)], size, np.random.default_rng([0, 4, row]), wardrobe, 20)
        for place, figure in enumerate(figures):
            for garment in figure.worn:
                share = figure.shown(garment, figures[place + 1 :])
                assert (garment in shown) == (share >= 0.25)
                hidden += share < 0.25
    assert hidden, "the frame or another thing hides some"
