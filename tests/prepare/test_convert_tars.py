"""The published tar layout into shards and test sets."""

import json

import pandas as pd
import pytest
from made import jpeg, rows_of, tar_of, tar_product, write_file
from waiting import killed_at

import lrvsf.prepare.convert_tars as step
from lrvsf.data import tars as reader
from lrvsf.data.products import ProductShards
from lrvsf.data.testset import ProductTestSet
from lrvsf.prepare.convert_tars import tars


@pytest.fixture
def layout(tmp_path):
    """TRAIN: a and b whole, c without a readable scene, d without SIMPLE, a again; VALID: v, w; TEST: 1, 2."""
    root = tmp_path / "in"
    a = tar_product("a", ("COMPLEX", jpeg(0)), ("SIMPLE", jpeg(1)), ("SIMPLE", jpeg(1)))
    c = tar_product("c", ("SIMPLE", jpeg(2)), ("COMPLEX", b"<html>"))
    write_file(root / "TRAIN/0.tar", tar_of([*a, *c]))
    b = tar_product("b", ("SIMPLE", jpeg(3)), ("PARTIAL_COMPLEX", jpeg(4)), category="Feet")
    write_file(root / "TRAIN/1.tar", tar_of([*b, *tar_product("d", ("COMPLEX", jpeg(5))), *a]))

    v = tar_product("v", ("PARTIAL_COMPLEX", jpeg(6)), ("COMPLEX", jpeg(7)), ("SIMPLE", jpeg(8)))
    w = tar_product("w", ("SIMPLE", jpeg(9)), ("COMPLEX", jpeg(10)), category=None)
    write_file(root / "VALID/prods.tar", tar_of([*v, *w]))
    distractor = json.dumps({"TYPE": "SIMPLE", "CATEGORY": "Feet", "PRODUCT_ID": 5}).encode()
    write_file(root / "VALID/dist_0.tar", tar_of([("1.jpg", jpeg(20)), ("1.json", distractor), ("2.jpg", b"broken")]))
    write_file(root / "VALID/dist_1.tar", tar_of([("3.jpg", jpeg(21))]))

    (root / "TEST").mkdir()
    images = {"u1s": jpeg(30), "u1c": jpeg(31), "shared": jpeg(32), "u2s": jpeg(33), "unknown": jpeg(34)}
    frame = pd.DataFrame({"jpg": list(images.values())}, index=pd.Index(list(images), name="url"))
    frame.to_parquet(root / "TEST/prods.parquet")
    others = pd.DataFrame({"jpg": [jpeg(40), b"", jpeg(41)]}, index=pd.Index(["x", "y", "z"], name="url"))
    others.to_parquet(root / "TEST/dist_0.parquet")
    # As the published files do it, SPLIT says which is the query; the training image of a URL must not count.
    simple = [("u1s", 1, "test_gallery", "Bags"), ("u2s", 2, "test_gallery", "Feet")]
    frame = pd.DataFrame(simple, columns=["URL", "PRODUCT_ID", "SPLIT", "CATEGORY"])
    frame.assign(blip2_caption1="text").to_parquet(root / "products_simple_metadata.parquet")
    # One scene shows two products.
    scenes = [("u1c", 1.0, "test_query", "COMPLEX"), ("shared", 2.0, "test_query", "COMPLEX")]
    others = [("elsewhere", None, "test_query", "COMPLEX"), ("u2s", 9.0, "train", "SIMPLE")]
    frame = pd.DataFrame([*scenes, *others])
    frame.columns = ["URL", "PRODUCT_ID", "SPLIT", "TYPE"]
    frame.to_parquet(root / "products_complex_metadata.parquet")
    # A URL of two splits: what the test set's row says counts. Nothing is said of z, and nothing is there of "gone".
    rows = [("x", 6.0, "train", "Bags"), ("x", 7.0, "test_distractors", "Feet"), ("y", 8.0, "test_distractors", None)]
    frame = pd.DataFrame([*rows, ("gone", 9.0, "test_distractors", "Feet"), ("far", 9.0, "train", "Feet")])
    frame.columns = ["URL", "PRODUCT_ID", "SPLIT", "CATEGORY"]
    frame.assign(blip2_caption1=["no", "a shoe", None, None, None]).to_parquet(root / "distractor_metadata.parquet")
    return root


def test_every_part_lands_in_its_place(layout, tmp_path):
    report = tars(layout, tmp_path / "out", processes=1)
    rows = rows_of(tmp_path / "out/train")
    found = {row["product_id"]: [(i["type"], i["image"]["bytes"]) for i in row["images"]] for row in rows}
    assert found == {
        "a": [("SIMPLE", jpeg(1)), ("COMPLEX", jpeg(0))],
        "b": [("SIMPLE", jpeg(3)), ("PARTIAL_COMPLEX", jpeg(4))],
    }
    assert rows[0]["images"][0]["captions"] == ["a SIMPLE"] and rows[1]["images"][0]["category"] == "Feet"
    assert ProductShards.scan(str(tmp_path / "out/train"), ["Bags", "Feet"]).usable == 2
    assert report["train"] == {
        "files": 2,
        "products": {"kept": 2, "without scene image": 1, "without SIMPLE image": 1, "there twice": 1},
        "images not kept": {"the same image twice in a product": 2, "not an image": 1},
    }

    validation = ProductTestSet(tmp_path / "out/validation")
    (query,) = validation.products()
    assert (query.target_image, query.query_image) == (jpeg(8), jpeg(7))
    assert (query.category, query.caption) == ("Bags", "v SIMPLE")
    assert [image for _, image in validation.distractors()] == [jpeg(20), jpeg(21)]
    assert report["validation"]["products"] == {"kept": 1, "without category": 1}
    assert report["validation"]["distractors"] == {"kept": 2, "not an image": 1}

    test = ProductTestSet(tmp_path / "out/test")
    found = {(p.target_image, p.query_image, p.category, p.caption) for p in test.products()}
    assert found == {
        (jpeg(30), jpeg(31), "Bags", "text"),
        (jpeg(33), jpeg(32), "Feet", "text"),
    }
    assert [image for _, image in test.distractors()] == [jpeg(40), jpeg(41)]
    assert report["test"]["products"] == {"kept": 2}
    assert report["test"]["distractors"] == {"kept": 2, "empty": 1}
    assert json.loads((tmp_path / "out/tars.json").read_text()) == report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "validation", "test", "tars.json"}


@pytest.mark.survives(
    "distractors of the published TEST set, some without metadata",
    "keep product, category and caption; what does not join is counted and named",
)
def test_distractors_keep_what_the_metadata_says(layout, tmp_path):
    report = tars(layout, tmp_path / "out", processes=1)["test"]
    rows = rows_of(tmp_path / "out/test/distractors")
    known = {"PRODUCT_ID": "7", "TYPE": "SIMPLE", "CATEGORY": "Feet", "blip2_caption1": "a shoe", "jpg": jpeg(40)}
    unknown = {"PRODUCT_ID": None, "TYPE": "SIMPLE", "CATEGORY": None, "blip2_caption1": None, "jpg": jpeg(41)}
    assert rows == [known, unknown]
    assert report["does not join"] == {
        "metadata rows of the test set without an image": 2,
        "images of products that no metadata describes": 1,
        "distractors that no metadata describes": 1,
    }
    assert report["does not join, the first"] == {
        "metadata rows of the test set without an image": "gone; elsewhere",
        "images of products that no metadata describes": "unknown",
        "distractors that no metadata describes": "z",
    }
    assert report["categories of queries without a distractor"] == {"Bags": 1}
    assert report["distractors without a category"] == 1
    rows = rows_of(tmp_path / "out/validation/distractors")
    assert [(row["PRODUCT_ID"], row["CATEGORY"]) for row in rows] == [("5", "Feet"), (None, None)]


def test_products_that_share_a_picture_are_counted(layout, tmp_path):
    write_file(layout / "TRAIN/2.tar", tar_of(tar_product("e", ("SIMPLE", jpeg(60)), ("COMPLEX", jpeg(4)))))
    report = tars(layout, tmp_path / "out", processes=1)
    assert report["train"]["products that share a picture"] == {
        "products": 2, "groups": 1, "in the largest group": 2, "such as": "b, e"
    }  # fmt: skip
    assert "products that share a picture" not in report["test"]


def test_faults_of_tars_are_in_the_report(layout, tmp_path):
    path = layout / "TRAIN/1.tar"
    path.write_bytes(path.read_bytes()[: 5 * 1024 + 100])  # b is whole: two images of 1.5 kB or less, and its JSON
    report = tars(layout, tmp_path / "out", processes=1)
    assert report["train"]["lost"][reader.DAMAGED] == 1
    assert report["train"]["products"]["kept"] == 2


def test_a_second_run_changes_nothing_and_another_input_is_refused(layout, tmp_path):
    report = tars(layout, tmp_path / "out", processes=1)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").rglob("*.parquet")}
    assert tars(layout, tmp_path / "out", processes=1) == report
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").rglob("*.parquet")}
    write_file(layout / "TRAIN/2.tar", tar_of(tar_product("e", ("SIMPLE", jpeg(50)), ("COMPLEX", jpeg(51)))))
    with pytest.raises(ValueError, match="made from other input"):
        tars(layout, tmp_path / "out", processes=1)


def test_a_killed_run_ends_with_the_same_result(layout, tmp_path):
    tars(layout, tmp_path / "whole", processes=1)
    with killed_at(step, "_described_products"):  # in the middle of the last part
        tars(layout, tmp_path / "out", processes=1)
    assert (tmp_path / "out/validation").is_dir() and not (tmp_path / "out/test").exists()
    tars(layout, tmp_path / "out", processes=1)
    for path in (tmp_path / "whole").rglob("*.parquet"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_what_is_missing_is_said(layout, tmp_path):
    for path in layout.glob("*metadata*"):
        path.unlink()
    for path in (layout / "VALID").iterdir():
        path.unlink()
    report = tars(layout, tmp_path / "out", processes=1)
    assert report["train"]["products"]["kept"] == 2
    assert "no VALID/prods*.tar" in report["validation"] and "--metadata" in report["test"]
    with pytest.raises(FileNotFoundError, match="no TRAIN/"):
        tars(tmp_path / "nothing", tmp_path / "other", processes=1)


def test_a_parquet_file_of_another_layout_is_refused(layout, tmp_path):
    pd.DataFrame({"image": [b"x"]}).to_parquet(layout / "TEST/dist_0.parquet")
    with pytest.raises(ValueError, match="lacks the column.s. url, jpg; it has image"):
        tars(layout, tmp_path / "out", processes=1)
    assert not (tmp_path / "out/test").exists() and not list((tmp_path / "out").glob("*.writing"))
    pd.DataFrame({"url": ["u"], "jpg": ["x.jpg"]}).to_parquet(layout / "TEST/dist_0.parquet")
    with pytest.raises(ValueError, match="has text in jpg, where encoded images must be"):
        tars(layout, tmp_path / "out", processes=1)


def test_nothing_usable_is_refused_with_the_counts(layout, tmp_path):
    for path in (layout / "TRAIN").iterdir():
        path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match=r"gives no product(.|\n)*damaged or cut tars"):
        tars(layout, tmp_path / "out", processes=1)
