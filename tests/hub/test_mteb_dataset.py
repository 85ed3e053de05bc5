"""A test set in mteb's layout: what is in it, what is left out, what is refused."""

import io

import numpy as np
import pytest
from datasets import load_dataset
from made import encode, noise, rows_of, squares, write_layout, write_test_set
from PIL import Image

import publish_lrvsf
from lrvsf.data.testset import ProductTestSet
from lrvsf.hub.mteb_dataset import as_stored, mteb_dataset


def test_queries_corpus_and_answers_are_the_test_sets(tmp_path):
    source = ProductTestSet(write_test_set(tmp_path / "test"))
    report = mteb_dataset(tmp_path / "test", tmp_path / "out")
    assert report == {"wrote": str(tmp_path / "out"), "queries": 12, "corpus": 52, "asked by": "category"}
    products, distractors = list(source.products()), list(source.distractors())
    queries = rows_of(tmp_path / "out/queries")
    assert [(row["id"], row["image"]["bytes"], row["text"]) for row in queries] == [
        (f"q{one.row}", one.query_image, one.category) for one in products
    ]
    corpus = {row["id"]: row["image"]["bytes"] for row in rows_of(tmp_path / "out/corpus")}
    assert corpus == {f"p{one.row}": one.target_image for one in products} | {
        f"d{row}": jpg for row, jpg in distractors
    }
    assert [tuple(row.values()) for row in rows_of(tmp_path / "out/qrels")] == [
        (f"q{row}", f"p{row}", 1) for row in range(12)
    ]


def test_datasets_reads_it_by_the_names_that_mteb_asks_for(tmp_path):
    mteb_dataset(write_test_set(tmp_path / "test"), tmp_path / "out", "text")
    cache = str(tmp_path / "cache")
    of = {name: load_dataset(str(tmp_path / "out"), name, split="test", cache_dir=cache)
          for name in ("default", "queries", "corpus")}  # fmt: skip
    assert [len(of[name]) for name in of] == [12, 12, 52]
    assert of["queries"][3]["text"] == "a bag" and of["queries"][3]["image"].size == (36, 30)


def test_datasets_takes_no_other_folder_of_that_name_from_its_cache(tmp_path):
    test = write_test_set(tmp_path / "test")
    for place, conditioning, asked in [("a", "category", "Bags"), ("b", "text", "a bag")]:
        mteb_dataset(test, tmp_path / place / "same", conditioning)
        queries = load_dataset(
            str(tmp_path / place / "same"), "queries", split="test", cache_dir=str(tmp_path / "cache")
        )
        assert queries[0]["text"] == asked


def test_what_cannot_be_read_is_left_out_and_counted_and_a_product_as_a_whole(tmp_path):
    bad = {"SIMPLE_IMG": {3: b"x"}, "COMPLEX_IMG": {4: None}, "jpg": {5: b"y"}}
    report = mteb_dataset(write_test_set(tmp_path / "test", bad=bad), tmp_path / "out")
    assert (report["queries"], report["corpus"]) == (10, 49)
    assert report["left out"] == {"product, not an image": 1, "product, empty": 1, "distractor, not an image": 1}
    assert report["left out, the first"]["distractor, not an image"] == "row 5"
    assert {row["corpus-id"] for row in rows_of(tmp_path / "out/qrels")} == {f"p{i}" for i in range(12)} - {"p3", "p4"}


def test_a_picture_that_asks_to_be_turned_keeps_its_pixels_for_readers_that_obey():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(noise(20, 10), "JPEG", exif=exif)
    image = Image.open(io.BytesIO(as_stored(turned)))
    assert image.size == (20, 10) and image.getexif().get(0x0112) is None
    assert np.array_equal(image, Image.open(io.BytesIO(turned)).convert("RGB"))
    assert as_stored(squares(1)) == squares(1)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing has no products.parquet: give the folder"):
        mteb_dataset(tmp_path / "nothing", tmp_path / "out")
    test = write_test_set(tmp_path / "test")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*/test\?"):
        mteb_dataset(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="test is there already. Name another folder"):
        mteb_dataset(test, test)
    write_layout(
        tmp_path / "unnamed", {"SIMPLE_IMG": [squares(1)] * 2, "CATEGORY": ["Bags", None]}, {"jpg": [squares(2)]}
    )
    with pytest.raises(ValueError, match="row 1: no category"):
        mteb_dataset(tmp_path / "unnamed", tmp_path / "out")
    write_layout(tmp_path / "bad", {"SIMPLE_IMG": [b"x"]}, {"jpg": [squares(2)]})
    with pytest.raises(ValueError, match="None of the 1 products .* not an image"):
        mteb_dataset(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_step_prints_what_it_wrote(tmp_path, capsys):
    publish_lrvsf.main(["mteb_dataset", str(write_test_set(tmp_path / "test")), str(tmp_path / "out")])
    assert "queries" in capsys.readouterr().out and (tmp_path / "out/README.md").is_file()
