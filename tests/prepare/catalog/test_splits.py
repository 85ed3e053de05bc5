"""Who is trained on and who is asked about: shares of each category, and products that share pictures."""

import hashlib

import pytest
from made import write_catalog
from shops import distractors_of, place, queries_of, shards_of

from lrvsf.data.sharing import SharedPictures
from lrvsf.prepare.catalog.listing import ListedImage
from lrvsf.prepare.catalog.splits import Shares, Splits
from lrvsf.prepare.catalog.write_catalog import catalog

SETS = ("validation", "test")


def spooled_images(products):
    """{id: (category, simple pictures, scenes)} as a catalog lists it; pictures are names."""
    return [
        ListedImage(
            f"{name}/{picture}", 0, name, kind, category if kind == "SIMPLE" else None, (), None, (0, 0), digest
        )
        for name, (category, simple, scenes) in products.items()
        for kind, known, pictures in (("SIMPLE", category, simple), ("COMPLEX", None, scenes))
        for picture in pictures
        for digest in [hashlib.sha256(picture.encode()).digest()]
    ]


def splits_of(products, validation=0.1, test=0.1, seed=0):
    return Splits(spooled_images(products), Shares(validation, test, seed))


def plain(category, count, first=0):
    return {f"{category}{i}": (category, [f"{category}{i}s"], [f"{category}{i}c"]) for i in range(first, first + count)}


@pytest.mark.survives("a catalog with rare categories", "has each of them in every split, in its share")
def test_every_category_has_its_share():
    sizes = {"sofas": 200, "lamps": 34, "rugs": 7, "poufs": 4}
    products = {name: product for category, count in sizes.items() for name, product in plain(category, count).items()}
    for seed in range(5):
        counts = splits_of(products, seed=seed).categories()
        assert counts == {
            "lamps": {"train": 28, "validation": 3, "test": 3},
            "poufs": {"train": 4, "validation": 0, "test": 0},
            "rugs": {"train": 5, "validation": 1, "test": 1},
            "sofas": {"train": 160, "validation": 20, "test": 20},
        }
    chosen = [set(splits_of(products, seed=seed).complete["test"]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_more_products_move_those_alone_that_stand_where_the_shares_end():
    before = splits_of({**plain("rugs", 50), **plain("sofas", 50)}).complete
    after = splits_of({**plain("rugs", 50), **plain("sofas", 60), **plain("lamps", 30)}).complete
    for name in ("train", *SETS):
        assert {p for p in before[name] if p[0] == "r"} == {p for p in after[name] if p[0] == "r"}
    # 5 and 5 of 50, 6 and 6 of 60, in the order of their places
    line = sorted((f"sofas{i}" for i in range(60)), key=place)
    assert {p for p in after["test"] if p[0] == "s"} == set(line[:6])
    assert {p for p in after["validation"] if p[0] == "s"} == set(line[6:12])


def test_products_that_share_a_picture_are_in_one_split():
    """Thirty things in three sizes each, one photo; pairs that share a scene only; and a chain of three."""
    products = {f"shoe{i}-{size}": ("shoes", [f"shoe{i}"], [f"shoe{i}w{size}"]) for i in range(30) for size in "SML"}
    products |= {f"bag{i}-{c}": ("bags", [f"bag{i}{c}"], [f"bag{i}w"]) for i in range(30) for c in "rb"}
    products |= {"x": ("hats", ["x"], ["xy"]), "y": ("hats", ["y"], ["xy", "yz"]), "z": ("hats", ["z"], ["yz"])}
    products |= plain("hats", 9)
    for seed in range(5):
        splits = splits_of(products, 0.2, 0.2, seed)
        where = {name: part for part, found in splits.complete.items() for name in found}
        held = {part: {name.partition("-")[0] for name in where if where[name] == part} for part in ("train", *SETS)}
        assert not held["train"] & held["test"] and not held["train"] & held["validation"]
        assert not held["validation"] & held["test"]
        # 6 of 30 groups; of the sizes one stays, and so it does of bags of two colours in one picture.
        for part in SETS:
            assert len([p for p in splits.complete[part] if p[0] == "s"]) == 6
            assert len([p for p in splits.complete[part] if p[0] == "b"]) == 6
        assert len({where[name] for name in "xyz" if name in where}) == 1
    shared = splits.report()["products that share a picture"]
    assert (shared["products"], shared["groups"], shared["in the largest group"]) == (153, 61, 3)
    assert splits.skips.counts["product of a test set that shows the same as another one there"] >= 36


def test_things_under_several_ids_each_have_their_share_too():
    """Eight lamps in three sizes: one in each test set, though a tenth of 24 ids is fewer than three."""
    products = {f"lamp{i}-{size}": ("lamps", [f"lamp{i}"], [f"lamp{i}w"]) for i in range(8) for size in "SML"}
    for seed in range(5):
        splits = splits_of(products, seed=seed)
        assert [len(splits.complete[part]) for part in ("train", *SETS)] == [18, 1, 1]


def test_a_scene_of_two_categories_asks_two_questions():
    """A room with a sofa and a lamp: one split, two queries. Two sofas of one room: one of them is a query."""
    products = {f"sofa{i}": ("sofas", [f"sofa{i}"], [f"room{i}"]) for i in range(10)}
    products |= {f"lamp{i}": ("lamps", [f"lamp{i}"], [f"room{i}"]) for i in range(10)}
    splits = splits_of(products, 0, 0.2)
    held = splits.complete["test"]
    assert {name[4:] for name in held if name[0] == "s"} == {name[4:] for name in held if name[0] == "l"}
    assert len(held) > 1 and not splits.skips.counts


def test_the_photo_of_a_query_is_no_distractor():
    """A room is the scene of a chair; as the picture of a rug it is no answer, and no fair distractor either."""
    products = plain("chairs", 40) | {f"room{i}": ("rugs", [f"chairs{i}c"], []) for i in range(40)}
    products |= {f"rug{i}": ("rugs", [f"rug{i}s"], []) for i in range(40)}
    splits = splits_of(products)
    for name in SETS:
        asked = {image.digest for images in splits.complete[name].values() for image in images}
        assert len(asked) == 8 and not asked & {image.digest for image in splits.distractors[name]}
    assert splits.skips.counts["distractor that is the photo of a query"] == 8


def test_a_picture_of_no_picture_fills_no_test_set():
    """Half of the products show one placeholder: they hang together, and are trained on."""
    products = plain("rugs", 40) | {f"none{i}": ("rugs", ["soon"], [f"none{i}"]) for i in range(40)}
    for seed in range(5):
        splits = splits_of(products, seed=seed)
        assert not any(name.startswith("none") for part in SETS for name in splits.complete[part])
        assert [len(splits.complete[part]) for part in SETS] == [4, 4]


def test_a_lonely_product_goes_where_its_picture_is():
    products = plain("rugs", 30)
    products |= {f"lonely{i}": ("rugs", [f"rugs{i}s"], []) for i in range(30)}
    products |= {f"far{i}": ("rugs", [f"far{i}"], []) for i in range(30)}
    splits = splits_of(products)
    found = {image.product_id for part in SETS for image in splits.distractors[part]}
    assert found == {f"far{i}" for i in range(30)}
    assert splits.skips.counts == {
        "distractor that shares a picture with a product to train on": 24,
        "distractor that shows the product of a query": 6,
    }


def test_distractors_that_do_not_join_by_category_are_counted():
    """Enough distractors, none of which is a lamp: lamps of the other test set are taken; poufs are only in one."""
    products = {**plain("rugs", 50), **plain("lamps", 50)}
    products |= {f"lonely{i}": (None if i < 9 else "rugs", [f"lonely{i}"], []) for i in range(90)}
    splits = splits_of(products, 0.2, 0.2)
    report = splits.report()
    assert report["test"]["of them products of the other test set"] == 20
    assert "categories of queries without a distractor" not in report["test"]
    nameless = [report[part].get("distractors without a category", 0) for part in SETS]
    assert sum(nameless) == 9
    alone = splits_of(products, 0, 0.2).report()["test"]
    assert alone["categories of queries without a distractor"] == {"lamps": 10}
    assert alone["distractors without a category"] == 9


def test_several_categories_of_one_product_are_said(tmp_path):
    """On two pictures, on the scene, and on the same picture listed twice."""
    rows = [("a", "a0", "rugs"), ("a", "a1", "sofas"), ("a", "aw", ""), ("b", "b0", "rugs"), ("b", "bw", "lamps")]
    rows += [("c", "c0", "poufs"), ("c", "c0", "rugs"), ("c", "cw", ""), ("d", "d0", "rugs"), ("d", "dw", "rugs")]
    cells = [(product, f"{name}.jpg", "scene" if name[1] == "w" else "product", c) for product, name, c in rows]
    table = write_catalog(tmp_path / "t.csv", cells, ("product_id", "image", "role", "category"))
    report = catalog(table, tmp_path / "out", validation=0, test=0, processes=1)
    assert report["products whose rows name"] == {"several categories": 3}
    said = report["products whose rows name, the first"]["several categories"].split("; ")
    assert set(said) == {
        "a (rugs, sofas: counted as rugs)",
        "b (rugs, lamps: counted as rugs)",
        "c (poufs, rugs: counted as poufs)",
    }
    images = shards_of(tmp_path / "out")
    assert [image["category"] for image in images["a"]] == ["rugs", "sofas", None]
    assert [image["category"] for image in images["c"]] == ["poufs", None]


def test_sizes_of_one_photo_in_a_catalog_from_end_to_end(tmp_path):
    """Ten things under three ids each: nothing that is asked about was trained on, under whatever id."""
    rows = []
    for i in range(10):
        for size in "SML":
            rows += [(f"{i}{size}", f"{i}.jpg", "product", "Bags", ""), (f"{i}{size}", f"{i}w.jpg", "scene", "", "")]
    report = catalog(write_catalog(tmp_path / "t.csv", rows), tmp_path / "out", validation=0.2, test=0.3, processes=1)
    trained = {image["image"]["bytes"] for images in shards_of(tmp_path / "out").values() for image in images}
    for name, queries in (("validation", 2), ("test", 3)):
        held = queries_of(tmp_path / "out", name)
        assert len(held) == report[name]["queries"] == queries
        targets = {row["SIMPLE_IMG"] for row in held.values()}
        assert not (targets | {row["COMPLEX_IMG"] for row in held.values()}) & trained
        assert not targets & {row["jpg"] for row in distractors_of(tmp_path / "out", name)}
    assert report["train"]["products"] == 15
    assert report["products that share a picture"] == {
        "products": 30, "groups": 10, "in the largest group": 3, "such as": "; ".join(
            ", ".join(group) for group in sorted(
                (sorted((f"{i}{size}" for size in "SML"), key=place) for i in range(10)), key=lambda g: place(g[0])
            )[:3]
        ),
    }  # fmt: skip
    assert report["images, not used"] == {"product of a test set that shows the same as another one there": 10}


def test_groups_by_hand():
    shared = SharedPictures()
    for name, numbers in {"a": [1, 2], "b": [3], "c": [4, 2], "d": [5, 6], "e": [4], "f": [7, 6], "g": []}.items():
        shared.add(name, numbers)
    assert shared.groups() == [["a", "c", "e"], ["d", "f"]]
    assert shared.report() == {
        "products that share a picture": {
            "products": 5, "groups": 2, "in the largest group": 3, "such as": "a, c, e; d, f"
        }
    }  # fmt: skip
    assert SharedPictures().report() == {}
    many = SharedPictures()
    for i in range(1000):
        many.add(str(i), [i, i + 1])
    assert many.groups() == [[str(i) for i in range(1000)]]
