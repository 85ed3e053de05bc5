"""The published tar layout into shards and test sets."""

import io
import json
import tarfile

import pandas as pd
import pyarrow.parquet as pq
import pytest

import lrvsf.prepare.convert_tars as step
from lrvsf.data import tars as reader
from lrvsf.data.products import ProductShards
from lrvsf.data.testset import ProductTestSet
from lrvsf.prepare.convert_tars import tars


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def product(name, *images, category="Bags"):
    """Members of a product of (type, bytes) images."""
    members = [(f"{name}.{i}.jpg", data) for i, (_, data) in enumerate(images)]
    metadata = {
        str(i): {"TYPE": kind, "CATEGORY": category if kind == "SIMPLE" else None, "blip2_caption1": f"{name} {kind}"}
        for i, (kind, _) in enumerate(images)
    }
    return [*members, (f"{name}.json", json.dumps(metadata).encode())]


@pytest.fixture
def layout(tmp_path, encoded):
    """TRAIN: a and b whole, c without a readable scene, d without SIMPLE, a again; VALID: v, w; TEST: 1, 2."""
    root = tmp_path / "in"
    a = product("a", ("COMPLEX", encoded(0)), ("SIMPLE", encoded(1)), ("SIMPLE", encoded(1)))
    c = product("c", ("SIMPLE", encoded(2)), ("COMPLEX", b"<html>"))
    write_tar(root / "TRAIN/0.tar", [*a, *c])
    b = product("b", ("SIMPLE", encoded(3)), ("PARTIAL_COMPLEX", encoded(4)), category="Feet")
    write_tar(root / "TRAIN/1.tar", [*b, *product("d", ("COMPLEX", encoded(5))), *a])

    v = product("v", ("PARTIAL_COMPLEX", encoded(6)), ("COMPLEX", encoded(7)), ("SIMPLE", encoded(8)))
    w = product("w", ("SIMPLE", encoded(9)), ("COMPLEX", encoded(10)), category=None)
    write_tar(root / "VALID/prods.tar", [*v, *w])
    distractor = json.dumps({"TYPE": "SIMPLE", "CATEGORY": "Feet", "PRODUCT_ID": 5}).encode()
    write_tar(root / "VALID/dist_0.tar", [("1.jpg", encoded(20)), ("1.json", distractor), ("2.jpg", b"broken")])
    write_tar(root / "VALID/dist_1.tar", [("3.jpg", encoded(21))])

    (root / "TEST").mkdir()
    images = {"u1s": encoded(30), "u1c": encoded(31), "shared": encoded(32), "u2s": encoded(33), "unknown": encoded(34)}
    frame = pd.DataFrame({"jpg": list(images.values())}, index=pd.Index(list(images), name="url"))
    frame.to_parquet(root / "TEST/prods.parquet")
    others = pd.DataFrame({"jpg": [encoded(40), b"", encoded(41)]}, index=pd.Index(["x", "y", "z"], name="url"))
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


def test_every_part_lands_in_its_place(layout, tmp_path, encoded):
    report = tars(layout, tmp_path / "out", processes=1)
    rows = pq.read_table(tmp_path / "out/train/00000.parquet").to_pylist()
    found = {row["product_id"]: [(i["type"], i["image"]["bytes"]) for i in row["images"]] for row in rows}
    assert found == {
        "a": [("SIMPLE", encoded(1)), ("COMPLEX", encoded(0))],
        "b": [("SIMPLE", encoded(3)), ("PARTIAL_COMPLEX", encoded(4))],
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
    assert (query.target_image, query.query_image) == (encoded(8), encoded(7))
    assert (query.category, query.caption) == ("Bags", "v SIMPLE")
    assert [image for _, image in validation.distractors()] == [encoded(20), encoded(21)]
    assert report["validation"]["products"] == {"kept": 1, "without category": 1}
    assert report["validation"]["distractors"] == {"kept": 2, "not an image": 1}

    test = ProductTestSet(tmp_path / "out/test")
    found = {(p.target_image, p.query_image, p.category, p.caption) for p in test.products()}
    assert found == {
        (encoded(30), encoded(31), "Bags", "text"),
        (encoded(33), encoded(32), "Feet", "text"),
    }
    assert [image for _, image in test.distractors()] == [encoded(40), encoded(41)]
    assert report["test"]["products"] == {"kept": 2}
    assert report["test"]["distractors"] == {"kept": 2, "empty": 1}
    assert json.loads((tmp_path / "out/tars.json").read_text()) == report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "validation", "test", "tars.json"}


@pytest.mark.survives(
    "distractors of the published TEST set, some without metadata",
    "keep product, category and caption; what does not join is counted and named",
)
def test_distractors_keep_what_the_metadata_says(layout, tmp_path, encoded):
    report = tars(layout, tmp_path / "out", processes=1)["test"]
    rows = pq.read_table(tmp_path / "out/test/distractors/00000.parquet").to_pylist()
    known = {"PRODUCT_ID": "7", "TYPE": "SIMPLE", "CATEGORY": "Feet", "blip2_caption1": "a shoe", "jpg": encoded(40)}
    unknown = {"PRODUCT_ID": None, "TYPE": "SIMPLE", "CATEGORY": None, "blip2_caption1": None, "jpg": encoded(41)}
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
    rows = pq.read_table(tmp_path / "out/validation/distractors/00000.parquet").to_pylist()
    assert [(row["PRODUCT_ID"], row["CATEGORY"]) for row in rows] == [("5", "Feet"), (None, None)]


def test_products_that_share_a_picture_are_counted(layout, tmp_path, encoded):
    write_tar(layout / "TRAIN/2.tar", product("e", ("SIMPLE", encoded(60)), ("COMPLEX", encoded(4))))
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


def test_a_second_run_changes_nothing_and_another_input_is_refused(layout, tmp_path, encoded):
    report = tars(layout, tmp_path / "out", processes=1)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").rglob("*.parquet")}
    assert tars(layout, tmp_path / "out", processes=1) == report
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").rglob("*.parquet")}
    write_tar(layout / "TRAIN/2.tar", product("e", ("SIMPLE", encoded(50)), ("COMPLEX", encoded(51))))
    with pytest.raises(ValueError, match="made from other input"):
        tars(layout, tmp_path / "out", processes=1)


def test_a_killed_run_ends_with_the_same_result(layout, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    tars(layout, tmp_path / "whole", processes=1)

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(step, "_described", kill)  # in the middle of the last part
        with pytest.raises(Killed):
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
