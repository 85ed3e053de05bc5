"""Product tars: what comes out, and what is counted when they are cut, damaged or odd."""

import io
import json
import logging
import tarfile
import tracemalloc
from collections import Counter

import pytest
from made import tar_of, tar_product

from lrvsf.data import tars
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.tars import open_tar, read_distractors, read_products


def described(kind="SIMPLE", category="Bags", **further):
    return {"URL": "http://x", "TYPE": kind, "CATEGORY": category, "SPLIT": "train", **further}


def read(data, reader=read_products):
    """(rows, counts)"""
    skipped = Counter()
    return list(reader(io.BytesIO(data), skipped)), dict(skipped)


def ids(rows):
    return [row["product_id"] for row in rows]


THREE = [part for name in ("a", "b", "c") for part in tar_product(name)]


def test_a_product_becomes_a_row():
    metadata = {
        "0": described("COMPLEX", float("nan"), blip2_caption1="worn"),
        "1": described(blip2_caption10="ten", blip2_caption2="two", blip2_caption1=" one ", blip2_caption3=None),
        "10": described("PARTIAL_COMPLEX", None),
    }
    tar = tar_of([("7.10.jpg", b"C"), ("7.1.PNG", b"B"), ("7.json", json.dumps(metadata).encode()), ("7.0.jpg", b"A")])
    rows, skipped = read(tar)
    assert skipped == {}
    assert rows == [
        {
            "product_id": "7",
            "images": [
                {
                    "image": {"bytes": data, "path": path},
                    "type": kind,
                    "category": category,
                    "captions": captions,
                }
                for data, path, kind, category, captions in [
                    (b"A", "7.0.jpg", "COMPLEX", None, ["worn"]),
                    (b"B", "7.1.jpg", "SIMPLE", "Bags", ["one", "two", "ten"]),
                    (b"C", "7.10.jpg", "PARTIAL_COMPLEX", None, []),
                ]
            ],
        }
    ]
    PRODUCT_FEATURES.encode_example(rows[0])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_path_url_and_open_file_give_the_same(tmp_path, mode):
    data = tar_of(THREE, mode)
    path = tmp_path / "0.tar"
    path.write_bytes(data)
    expected, _ = read(data)
    for source in (path, str(path), f"file://{path}"):
        skipped = Counter()
        assert list(read_products(source, skipped)) == expected and not skipped
    file = io.BytesIO(data)
    with open_tar(file) as opened:
        assert opened is file
    list(read_products(file, Counter()))
    assert not file.closed
    with pytest.raises(FileNotFoundError):
        list(read_products(tmp_path / "none.tar", Counter()))


@pytest.mark.survives("a tar cut anywhere", "what came before is used")
def test_wherever_a_tar_is_cut_what_came_before_is_used():
    # a header and a block of content each: a.0, a.1, a.json, b.0, ... begin at multiples of 1024
    data = tar_of(THREE)
    whole, _ = read(data)
    for end in range(0, 9 * 1024 + 1, 128):
        rows, skipped = read(data[:end])
        # JSON begins at 2048 and is 512 + 180 or so bytes: two blocks; its product is whole when it is
        assert skipped[tars.DAMAGED] == 1, end
        assert rows == whole[: len(rows)]
        complete = [name for name, last in (("a", 3), ("b", 6), ("c", 9)) if end >= last * 1024]
        assert ids(rows)[: len(complete)] == complete and len(rows) <= len(complete) + 1
        if end in (2048, 2048 + 512, 5 * 1024):  # images are there, their JSON is not
            assert skipped[tars.NO_JSON] == 1
    assert read(data[: 9 * 1024 + 512]) == (whole, {})  # one empty block is an end


def test_after_damaged_blocks_the_next_whole_member_is_found():
    data = bytearray(tar_of(THREE))
    data[3 * 1024 : 3 * 1024 + 512] = b"?" * 512  # the header of b.0.jpg
    rows, skipped = read(bytes(data))
    assert ids(rows) == ["a", "b", "c"] and len(rows[1]["images"]) == 1
    assert skipped == {tars.NOT_IN_TAR: 1, tars.DAMAGED: 1}


def test_tars_that_were_put_behind_one_another_are_read_to_the_end():
    data = tar_of(tar_product("a")) + tar_of(tar_product("b"))
    rows, skipped = read(data)
    assert ids(rows) == ["a", "b"] and skipped == {}


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>" * 100, b"\x1f\x8b\x08" + b"\0" * 50, tar_of(THREE, "w:gz")[:150]]
)
def test_what_is_no_tar_is_counted(data):
    rows, skipped = read(data)
    assert rows == [] and skipped[tars.DAMAGED] == 1


def test_an_empty_tar_is_whole():
    assert read(tar_of([])) == ([], {})


@pytest.mark.survives("a product in a tar without JSON, or JSON without an image's key", "skipped, counted by reason")
def test_faults_of_products_and_images():
    wrong = {
        "0": described(),
        "1": described("SKETCH"),
        "2": described(),
        "3": "text",
        "5": described("COMPLEX"),
        "source": {"TYPE": "SIMPLE"},
    }
    members = [
        ("nojson.0.jpg", b"x"),
        ("broken.0.jpg", b"x"),
        ("broken.json", b'{"0": '),
        ("list.0.jpg", b"x"),
        ("list.json", b"[1]"),
        ("deep.0.jpg", b"x"),
        ("deep.json", b"[" * 100_000),
        *[(f"some.{i}.jpg", b"" if i == 2 else b"x") for i in range(5)],
        ("some.json", json.dumps(wrong).encode()),
        ("alone.json", b"{}"),
    ]
    rows, skipped = read(tar_of(members))
    assert [(row["product_id"], [i["image"]["path"] for i in row["images"]]) for row in rows] == [
        ("some", ["some.0.jpg"])
    ]
    assert skipped == {
        tars.NO_JSON: 1,
        tars.BAD_JSON: 3,
        tars.NO_TYPE: 1,
        tars.EMPTY: 1,
        tars.NOT_IN_JSON: 2,  # 3, which is a text, and 4
        tars.NOT_IN_TAR: 1,  # 5
        tars.NO_IMAGES: 1,
    }


def test_odd_members_are_counted_and_not_read(monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 1000)
    buffer = io.BytesIO(tar_of([*tar_product("a"), ("notes.txt", b"x"), ("._a.0.jpg", b"x"), ("a.7.jpg", b"x" * 1001)]))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("b.0.jpg" if kind == tarfile.SYMTYPE else "folder")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("a.0.jpg")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"other"))
    rows, skipped = read(buffer.getvalue())
    assert rows == read(tar_of(tar_product("a")))[0]  # of two members of one name the first stays
    assert skipped == {tars.ODD: 3, tars.TOO_LARGE: 1, tars.TWICE: 1}


def test_members_may_be_apart_by_fewer_than_spread_products(monkeypatch):
    monkeypatch.setattr(tars, "SPREAD", 2)
    first, second, text = tar_product("a")
    near = [first, *tar_product("b"), second, text, *tar_product("c")]
    rows, skipped = read(tar_of(near))
    assert ids(rows) == ["a", "b", "c"] and len(rows[0]["images"]) == 2 and skipped == {}
    # With c begun, a is finished: what comes of it afterwards is on its own.
    far = [first, text, *tar_product("b"), *tar_product("c"), second]
    rows, skipped = read(tar_of(far))
    assert ids(rows) == ["a", "b", "c"] and len(rows[0]["images"]) == 1
    assert skipped == {tars.NOT_IN_TAR: 1, tars.NO_JSON: 1}


def test_folders_keep_products_apart_and_a_leading_dot_does_not():
    first, second, text = tar_product("a")
    assert len(read(tar_of([(f"./{first[0]}", first[1]), second, text]))[0][0]["images"]) == 2
    rows, _ = read(tar_of([(f"{folder}/{path}", data) for folder in "xy" for path, data in tar_product("a")]))
    assert ids(rows) == ["a", "a"]


@pytest.mark.survives("names in a tar that are not UTF-8, or stand for nothing", "skipped, counted; never joined")
def test_names_that_lose_something_are_counted():
    metadata = {"0": described(category="Ba\ud800gs"), "1": described(category=7.0), "2": described(category=[1])}
    fine = [("p.json", json.dumps(metadata).encode()), *((f"p.{i}.jpg", b"x") for i in range(3))]
    names = ("caf\udce9", "caf\udce8", "nan", "p\x1b[2J")
    bad = [(f"{name}.{end}", json.dumps({"0": described()}).encode()) for name in names for end in ("json", "0.jpg")]
    rows, lost = read(tar_of([*fine, *bad]))
    assert [(row["product_id"], [image["category"] for image in row["images"]]) for row in rows] == [("p", ["7"])]
    assert {reason.partition(";")[0]: count for reason, count in lost.items()} == {
        "images whose CATEGORY is a name that is not UTF-8": 1,
        "images whose CATEGORY is a list in place of a text": 1,
        "products whose name is a name that is not UTF-8": 2,
        "products whose name is a word for nothing (nan, None, NULL)": 1,
        "products whose name is a text with a control character": 1,
    }


def test_no_more_than_held_bytes_wait_for_their_products(monkeypatch):
    monkeypatch.setattr(tars, "HELD_BYTES", 1000)
    monkeypatch.setattr(tars, "MEMBER_OVERHEAD", 0)
    first, second, text = tar_product("a")
    between = ("b.0.jpg", b"x" * 990)
    rows, skipped = read(tar_of([first, text, between, second]))
    assert ids(rows) == ["a"] and len(rows[0]["images"]) == 1
    assert skipped == {tars.NOT_IN_TAR: 1, tars.NO_JSON: 2}  # b, and a's second image


@pytest.mark.parametrize("products, size, limit", [(400, 20_000, 16 * 40_000 + 1_000_000), (2000, 1, 1_000_000)])
def test_memory_does_not_grow_with_the_tar(tmp_path, products, size, limit):
    path = tmp_path / "large.tar"
    images = (("SIMPLE", b"x" * size), ("COMPLEX", b"y" * size))
    path.write_bytes(tar_of(member for number in range(products) for member in tar_product(str(number), *images)))
    tracemalloc.start()
    found = sum(1 for _ in read_products(path, Counter()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == products and peak < limit  # SPREAD products and buffers; not the 16 MB, nor 6,000 headers


def test_distractors():
    members = [
        ("1.jpg", b"one"),
        ("1.json", json.dumps(described(blip2_caption1="a bag") | {"PRODUCT_ID": 12.0}).encode()),
        ("2.jpg", b"two"),
        ("3.json", b"{}"),
        ("4.jpg", b"four"),
        ("4.json", b"{"),
        ("5.jpg", b""),
        ("6.0.jpg", b"six"),
    ]
    unknown = {"PRODUCT_ID": None, "TYPE": None, "CATEGORY": None, "blip2_caption1": None}
    rows, skipped = read(tar_of(members), read_distractors)
    assert rows == [
        {"PRODUCT_ID": "12", "TYPE": "SIMPLE", "CATEGORY": "Bags", "blip2_caption1": "a bag", "jpg": b"one"},
        unknown | {"jpg": b"two"},
        unknown | {"jpg": b"four"},
    ]
    assert skipped == {tars.NO_IMAGES: 2, tars.BAD_JSON: 1, tars.EMPTY: 1, tars.ODD: 1}


def test_the_log_names_the_first_tenth_and_hundredth(caplog):
    with caplog.at_level(logging.WARNING):
        read(tar_of([(f"p{i}.0.jpg", b"x") for i in range(120)]))
    named = [record.getMessage().split(":")[0] for record in caplog.records]
    assert named == ["Skipped p0", "Skipped p9", "Skipped p99"]


def test_a_product_of_very_many_images(monkeypatch):
    monkeypatch.setattr(tars, "MAX_IMAGES", 3)
    rows, skipped = read(tar_of(tar_product("a") + tar_product("b", *[("SIMPLE", b"x")] * 4) + tar_product("c")))
    assert ids(rows) == ["a", "c"] and skipped == {tars.TOO_MANY: 1}
