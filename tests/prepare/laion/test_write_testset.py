"""Test sets from downloads, and around the published products.parquet."""

import json
import random
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import download_row, jpeg, write_download

from lrvsf.data.testset import ProductTestSet
from lrvsf.prepare.laion.urls import urls
from lrvsf.prepare.laion.write_testset import testset as make_testset
from lrvsf.prepare.writers import TestSetWriter


@pytest.fixture
def folder(tmp_path):
    """Products a (two SIMPLE images, three scenes), b (dead scene), c (no category), d; 7 distractors, 5 arrived."""

    def row(*args, **cells):
        return download_row(*args, **({"split": "test"} | cells))

    rows = [
        row("a", "SIMPLE", jpeg(1), url="http://2", captions=["second"]),
        row("a", "SIMPLE", jpeg(0), url="http://1", captions=["first", "other"]),
        row("a", "PARTIAL_COMPLEX", jpeg(2), url="http://0"),
        row("a", "COMPLEX", jpeg(3)[:-30], url="http://3"),
        row("a", "COMPLEX", jpeg(4), url="http://4"),
        row("b", "SIMPLE", jpeg(5)),
        row("b", "COMPLEX", None),
        row("c", "SIMPLE", jpeg(6), category=None),
        row("c", "COMPLEX", jpeg(7)),
        row("d", "SIMPLE", jpeg(8), category="Feet", captions=[]),
        row("d", "COMPLEX", jpeg(9)),
        row("x", "SIMPLE", jpeg(90), split="train"),
    ]
    rows += [row(f"n{i}", "SIMPLE", jpeg(10 + i), split="test_distractors") for i in range(4)]
    rows += [row("n4", "SIMPLE", None, split="test_distractors")]
    # A distractor needs neither a product nor a type.
    rows += [row(None, None, jpeg(15), split="test_distractors", url="http://loose")]
    rows += [row("n6", "SIMPLE", b"\x89PNG nothing", split="test_distractors")]
    write_download(tmp_path / "in/0.parquet", rows[::2])
    write_download(tmp_path / "in/1.parquet", rows[1::2])
    return tmp_path / "in"


def test_layout_and_choice(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lrvsf.prepare.laion.write_testset.TestSetWriter", partial(TestSetWriter, shard_rows=2))
    report = make_testset(folder, tmp_path / "out", processes=1)
    found = ProductTestSet(tmp_path / "out/test")
    products = {p.category: p for p in found.products()}
    assert products.keys() == {"Bags", "Feet"}
    # a: of the SIMPLE images the first by URL; of the scenes a readable COMPLEX one before a PARTIAL_COMPLEX
    assert products["Bags"].target_image == jpeg(0) and products["Bags"].query_image == jpeg(4)
    assert (products["Bags"].caption, products["Feet"].caption) == ("first", None)
    assert {image for _, image in found.distractors()} == {jpeg(i) for i in (10, 11, 12, 13, 15)}
    assert [len(pq.read_table(f)) for f in sorted((tmp_path / "out/test/distractors").iterdir())] == [2, 2, 1]
    further = pq.read_table(tmp_path / "out/test/products.parquet").to_pylist()
    assert {(row["PRODUCT_ID"], row["TYPE"]) for row in further} == {("a", "COMPLEX"), ("d", "COMPLEX")}

    assert report["products"] == {"listed": 4, "complete": 2, "without scene image": 1, "without category": 1}
    gallery = report["distractors"]
    assert (gallery["listed"], gallery["kept"], gallery["published"]) == (7, 5, 2_000_014)
    assert gallery["% of the published"] == pytest.approx(100 * 5 / 2_000_014)
    assert report["images not kept"] == {
        "test": {"truncated": 1, "failed_to_download": 1},
        "test_distractors": {"failed_to_download": 1, "not an image": 1},
    }
    assert report["categories of queries without a distractor"] == {"Feet": 1}
    assert report["distractors without a category"] == 1
    assert report["other splits"] == {"train": 1}
    assert "on these 5 distractors compare only with" in report["note"]
    assert json.loads((tmp_path / "out/testset-test.json").read_text()) == report
    assert make_testset(folder, tmp_path / "out") == report  # it is done


def test_validation_has_no_published_number(folder, tmp_path):
    rows = [download_row("v", kind, jpeg(i), split="validation") for i, kind in enumerate(("SIMPLE", "COMPLEX"))]
    rows.append(download_row("w", "SIMPLE", jpeg(3), split="validation_distractors"))
    write_download(folder / "2.parquet", rows)
    report = make_testset(folder, tmp_path / "out", split="validation", processes=1)
    assert report["distractors"] == {"listed": 1, "kept": 1}
    assert ProductTestSet(tmp_path / "out/validation").n_products == 1


@pytest.mark.parametrize("as_struct", [False, True])
def test_published_products(folder, tmp_path, as_struct):
    images = [jpeg(i) for i in range(8)]
    images[5] = b"no image"
    if as_struct:
        images = [{"bytes": image, "path": None} for image in images]
    table = pa.table(
        {
            "SIMPLE_IMG": images[:4],
            "COMPLEX_IMG": images[4:],
            "CATEGORY": ["Bags", "Feet", "Neck", None],
            "blip2_caption1": ["a", "b", None, "d"],
            "__index_level_0__": [7, 8, 9, 10],
        }
    )
    pq.write_table(table, tmp_path / "products.parquet")
    report = make_testset(folder, tmp_path / "out", products=tmp_path / "products.parquet", processes=1)
    found = list(ProductTestSet(tmp_path / "out/test").products())
    assert [(p.category, p.caption) for p in found] == [("Bags", "a"), ("Neck", None)]
    assert (found[1].target_image, found[1].query_image) == (jpeg(2), jpeg(6))
    assert report["products"] == {
        "listed": 4,
        "complete": 2,
        "with a COMPLEX_IMG that is not an image": 1,
        "without category": 1,
    }
    assert report["distractors"]["kept"] == 5 and "test" in report["other splits"]


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no query of the split 'validation'(.|\n)*test_distractors +7"):
        make_testset(folder, tmp_path / "out", split="validation", processes=1)
    pq.write_table(pa.table({"SIMPLE_IMG": [b""]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p.parquet lacks the column\(s\) COMPLEX_IMG, CATEGORY, blip2_caption1"):
        make_testset(folder, tmp_path / "out", products=tmp_path / "p.parquet", processes=1)
    cells = {"SIMPLE_IMG": [{"path": "x"}], "COMPLEX_IMG": [b""], "CATEGORY": ["Bags"], "blip2_caption1": ["x"]}
    pq.write_table(pa.table(cells), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="in SIMPLE_IMG, where encoded images must be; give the published file"):
        make_testset(folder, tmp_path / "out", products=tmp_path / "p.parquet", processes=1)
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(OSError, match=r"p.parquet is not a readable Parquet file: .*Fetch the published file again"):
        make_testset(folder, tmp_path / "out", products=tmp_path / "p.parquet", processes=1)


@pytest.mark.parametrize("processes", [1, 3])
def test_rows_stand_in_the_order_of_the_metadata(tmp_path, processes):
    """Three files of metadata; images that arrive shuffled, in two rounds, one in five never."""
    for number in range(3):
        cells = [
            {"URL": f"http://{number}/{i}", "PRODUCT_ID": f"d{i % 4}", "TYPE": "SIMPLE", "SPLIT": "test_gallery"}
            for i in range(10)
        ]
        cells.insert(number, {"URL": "no url", "PRODUCT_ID": "d0", "TYPE": "SIMPLE", "SPLIT": "test_gallery"})
        (tmp_path / "meta").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(cells), tmp_path / f"meta/distractors{number}.parquet")
    names = ["q3", "q1", "q2"]
    pairs = [
        {"URL": f"http://{name}/{kind}", "PRODUCT_ID": name, "TYPE": kind, "SPLIT": "test", "CATEGORY": "Bags"}
        for kind in ("COMPLEX", "SIMPLE")
        for name in names
    ]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "meta/products.parquet")
    urls(str(tmp_path / "meta"), tmp_path / "lists")
    listed = pq.read_table(tmp_path / "lists/urls").to_pylist()
    random.Random(0).shuffle(listed)
    images = {}
    for image, row in enumerate(listed):
        dead = row["split"] != "test" and image % 5 == 0
        images[row["url"]] = None if dead else jpeg(image)
        row |= {"jpg": images[row["url"]], "status": "failed_to_download" if dead else "success", "sha256": None}
    write_download(tmp_path / "in/1.parquet", listed[::2])
    write_download(tmp_path / "in/2.parquet", listed[1::2])

    report = make_testset(tmp_path / "in", tmp_path / "out", processes=processes)
    naive = [images[f"http://{number}/{i}"] for number in range(3) for i in range(10)]
    assert [image for _, image in ProductTestSet(tmp_path / "out/test").distractors()] == [i for i in naive if i]
    assert None in naive
    found = pq.read_table(tmp_path / "out/test/products.parquet")
    assert found["PRODUCT_ID"].to_pylist() == names
    assert not any("without a place" in title for title in report)


def test_rows_without_a_place_come_last_and_are_counted(tmp_path):
    rows = [download_row("a", kind, jpeg(i), split="test") for i, kind in enumerate(("SIMPLE", "COMPLEX"))]
    places = {"old1": None, "new9": 9, "old2": None, "new2": 2}
    rows += [
        download_row(name, "SIMPLE", jpeg(10 + i), split="test_distractors", metadata_row=place)
        for i, (name, place) in enumerate(places.items())
    ]
    write_download(tmp_path / "in/0.parquet", rows)
    report = make_testset(tmp_path / "in", tmp_path / "out", processes=1)
    found = pq.read_table(tmp_path / "out/test/distractors")["PRODUCT_ID"].to_pylist()
    assert found[:2] == ["new2", "new9"] and sorted(found[2:]) == ["old1", "old2"]
    assert report["distractors without a place in the metadata (last, in a seeded order)"] == 2
    assert report["products without a place in the metadata (last, in a seeded order)"] == 1
