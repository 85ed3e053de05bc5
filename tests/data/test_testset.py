"""Reading the published layout in slices, and refusing what is not that layout."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import write_layout, write_table

from lrvsf.data import testset
from lrvsf.data.testset import ProductTestSet


@pytest.fixture
def root(tmp_path):
    """7 products and 5 + 1 + 4 distractors in row groups of 3, these in files whose further columns differ."""
    products = {
        "PRODUCT_ID": [f"p{i}" for i in range(7)],
        "SIMPLE_IMG": [f"simple {i}".encode() for i in range(7)],
        "COMPLEX_IMG": [None if i == 2 else f"complex {i}".encode() for i in range(7)],
        "CATEGORY": ["Bags", "Feet"] * 3 + ["Neck"],
        "blip2_caption1": [f"caption {i}" for i in range(7)],
    }
    images = [f"jpg {i}".encode() for i in range(10)]
    further = [{"jpg": part, "CATEGORY": ["Bags"] * len(part)} for part in (images[5:6], images[6:])]
    return write_layout(tmp_path, products, {"jpg": images[:5]}, *further, row_group_size=3)


def test_rows(root, monkeypatch):
    monkeypatch.setattr(testset, "BATCH_ROWS", 2)
    test_set = ProductTestSet(root)
    assert (test_set.n_products, test_set.n_distractors) == (7, 10)
    products = list(test_set.products())
    assert [product.row for product in products] == list(range(7))
    assert products[3].target_image == b"simple 3" and products[3].query_image == b"complex 3"
    assert products[3].category == "Feet" and products[3].caption == "caption 3"
    assert products[2].query_image is None
    assert list(test_set.distractors()) == [(i, f"jpg {i}".encode()) for i in range(10)]
    assert test_set.categories() == ["Bags", "Feet"] * 3 + ["Neck"]


@pytest.mark.parametrize("bounds", [(0, 10), (0, 3, 7, 10), (0, 5, 6, 10), (0, 0, 4, 4, 10), tuple(range(11))])
def test_slices_partition_the_rows(root, bounds):
    test_set = ProductTestSet(root)
    read = [item for start, stop in itertools.pairwise(bounds) for item in test_set.distractors(start, stop)]
    assert read == list(test_set.distractors())


def test_images_as_datasets_stores_them(root):
    table = {"jpg": [{"bytes": b"one", "path": "x.jpg"}, {"bytes": None, "path": "/etc/passwd"}]}
    write_table(root / "distractors/9.parquet", table)
    assert [image for _, image in ProductTestSet(root).distractors(10)] == [b"one", None]  # a path is not opened


def test_unknown_category_is_refused_early(root):
    ProductTestSet(root).check_categories(["Feet", "Bags", "Neck"])
    with pytest.raises(
        ValueError, match=r"products.parquet, row 6: category 'Neck' is not one of the model's: Bags, Feet"
    ):
        ProductTestSet(root).check_categories(["Bags", "Feet"])


def test_refuses_what_is_missing(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere.*prepare_lrvsf.py"):
        ProductTestSet(tmp_path / "nowhere")
    for file in (root / "distractors").iterdir():
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"distractors has no .parquet file; .* holds distractors, products.parquet"
    ):
        ProductTestSet(root)
    write_table(root / "distractors/0.parquet", {"png": [b""], "width": [1]})
    with pytest.raises(ValueError, match=r"0.parquet lacks the column\(s\) jpg; it has png, width"):
        ProductTestSet(root)
    (root / "products.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"products.parquet does not exist; .* holds distractors\."):
        ProductTestSet(root)


def test_damaged_files_are_named(root):
    path = root / "distractors" / "2.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"2.parquet is not a readable Parquet file"):
        ProductTestSet(root)
    # A page whose header is overwritten: the footer still opens.
    damaged = bytearray(whole)
    damaged[4:30] = b"\xff" * 26
    path.write_bytes(damaged)
    with pytest.raises(OSError, match=r"(?s)2.parquet is damaged: near row 0: .*Restore this file"):
        list(ProductTestSet(root).distractors())


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a.jpg", "b.jpg"], r"has text in SIMPLE_IMG, where encoded images must be"),
        ([[1.0], [2.0]], r"has list<.*double.*> in SIMPLE_IMG, where encoded images must be"),
        ([{"path": "a.jpg"}] * 2, r"has struct<path: string> in SIMPLE_IMG, where encoded images must be"),
    ],
)
def test_columns_that_hold_something_else_are_refused(tmp_path, column, message):
    with pytest.raises(ValueError, match=message):
        ProductTestSet(write_layout(tmp_path, {"SIMPLE_IMG": column}, {"jpg": [b"x"]}))
    struct = {"SIMPLE_IMG": [{"bytes": b"x", "path": None}] * 2}
    with pytest.raises(ValueError, match="has INT64 .NONE. in CATEGORY, where text must be"):
        ProductTestSet(write_layout(tmp_path, struct | {"CATEGORY": [1, 2]}))
    for kind in (pa.large_binary(), pa.binary_view(), pa.binary(1), pa.dictionary(pa.int8(), pa.binary())):
        write_layout(tmp_path, {"SIMPLE_IMG": pa.array([b"x"] * 2, pa.binary()).cast(kind)})
        assert [p.target_image for p in ProductTestSet(tmp_path).products()] == [b"x"] * 2


def test_no_products_are_refused(root):
    file = root / "products.parquet"
    write_table(file, pq.read_table(file).slice(0, 0))
    with pytest.raises(ValueError, match="products.parquet has no rows: there is nothing to ask for"):
        ProductTestSet(root)


@pytest.mark.parametrize(
    "cells, ids",
    [
        (["nan", " 7 ", None], [None, "7", None]),
        (pa.array([2.0**24, 2.0**24 + 2, 5], pa.float32()), [None, None, "5"]),
        ([12.5, 12, 2.0**53], [None, "12", None]),
        ([b"a", b"\xff", b"\xff"], ["a", None, None]),
    ],
)
def test_what_could_be_several_ids_is_none(tmp_path, cells, ids):
    """Rows of one id are one product, so rounded numbers and words for nothing must not be one."""
    write_layout(tmp_path, {}, {"jpg": [b"x"] * 3, "PRODUCT_ID": cells})
    assert [origin.product_id for origin in ProductTestSet(tmp_path).origins("distractors")] == ids
    with pytest.raises(ValueError, match=r"has list<.*> in CATEGORY, where text must be"):
        ProductTestSet(write_layout(tmp_path, {"CATEGORY": [["a"]]}))
