"""Tables of pictures: ids, metadata with types, what is left out, and what is refused before anything is embedded."""

import datetime

import pyarrow as pa
import pytest
from made import jpeg, write_csv, write_file, write_table

from lrvsf.data.foreign.picture_files import read_file
from lrvsf.data.images import BadImage
from lrvsf.search.sources.kinds import open_source


@pytest.fixture
def pictures(tmp_path):
    """A folder with a.jpg, b.jpg and c.jpg."""
    for number, name in enumerate("abc"):
        write_file(tmp_path / f"{name}.jpg", jpeg(number))
    return tmp_path


def table(folder, columns, *rows):
    return open_source(str(write_csv(folder / "shop.csv", rows, columns)))


def metadata(source):
    return source.items.drop_columns(["id", "__where"]).to_pydict()


def test_a_csv_has_ids_paths_and_columns_with_types(pictures):
    columns = ("id", "image", "price", "stock", "ean", "new", "title", "empty")
    source = table(
        pictures,
        columns,
        ("x1", "a.jpg", "9.50", "3", "0012", "true", " A bag ", ""),
        ("x2", "b.jpg", "7", "n/a", "0013", "False", "", ""),
    )
    assert source.items["id"].to_pylist() == ["x1", "x2"]
    assert source.items["__where"].to_pylist() == ["line 2 (a.jpg)", "line 3 (b.jpg)"]
    assert metadata(source) == {
        "price": [9.5, 7.0],
        "stock": [3, None],
        "ean": ["0012", "0013"],
        "new": [True, False],
        "title": ["A bag", None],
        "empty": [None, None],
    }
    assert list(source.pictures(1, 2)) == [str(pictures / "b.jpg")]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("9,99", "5"), [9.99, 5.0]),
        (("1,000", "5"), ["1,000", "5"]),
        (("1e3", "-5"), [1000.0, -5.0]),
        (("12345678901234567890", "1"), [12345678901234567890.0, 1.0]),
        (("nan", "-"), ["nan", "-"]),
        (("nan", "2"), [None, 2]),
        (("1e999", "2"), ["1e999", "2"]),
        (("1e99", "0x2"), ["1e99", "0x2"]),
    ],
)
def test_what_looks_like_a_number_is_one_only_where_all_do(pictures, cells, expected):
    source = table(pictures, ("image", "price"), ("a.jpg", cells[0]), ("b.jpg", cells[1]))
    assert metadata(source) == {"price": expected}


def test_rows_that_give_no_item_are_counted_and_named(pictures):
    source = table(
        pictures,
        ("id", "image", "role"),
        ("x", "a.jpg", "product"),
        ("y", "b.jpg", "scene"),
        ("z", "https://shop/c.jpg", ""),
        ("", "b.jpg", ""),
        ("w", "", ""),
        ("2.3e+16", "c.jpg", ""),
        ("too", "few"),
    )
    assert source.items["id"].to_pylist() == ["x"]
    first = source.skips.report("not used")["not used, the first"]
    assert first["scene, which asks and is not found"] == "line 3"
    assert first["URL in place of a file; download it first"] == "line 4 (https://shop/c.jpg)"
    assert first["no id"] == "line 5 (b.jpg)" and first["no image"] == "line 6"
    assert first["row of more or fewer cells than columns"] == "line 8"
    assert source.skips.counts.total() == 6


@pytest.mark.survives("a table of a shop that names files outside its folder", "counted; not opened")
def test_the_paths_of_a_table_may_not_leave_its_folder(pictures):
    write_file(pictures / "secret.jpg", jpeg(9))
    source = table(pictures / "shop", ("image",), ("../secret.jpg",))
    (path,) = source.pictures(0, 1)
    with pytest.raises(BadImage, match="path out of the folder"):
        read_file(path, source.folder)
    other = open_source(str(pictures / "shop/shop.csv"), images=pictures / "shop")
    assert list(other.pictures(0, 1)) == [path]


def test_photos_of_one_product_share_its_id_and_other_ids_may_not_repeat(pictures):
    rows = [("p", "a.jpg"), ("p", "b.jpg"), ("q", "c.jpg")]
    assert table(pictures, ("product_id", "image"), *rows).items["id"].to_pylist() == ["p", "p", "q"]
    with pytest.raises(ValueError, match=r"'p' twice, at line 2 \(a.jpg\) and at line 3 \(b.jpg\); .* product_id"):
        table(pictures, ("id", "image"), *rows)
    with pytest.raises(ValueError, match="'a.jpg' twice, at line 2"):
        table(pictures, ("image", "title"), ("a.jpg", "1"), ("a.jpg", "2"))
    both = table(pictures, ("id", "product_id", "image"), ("1", "p", "a.jpg"), ("2", "p", "b.jpg"))
    assert both.items["id"].to_pylist() == ["1", "2"] and both.items["product_id"].to_pylist() == ["p", "p"]


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        (("id", "Image"), ("x", "a.jpg"), "'Image'; write its name as image"),
        (("id", "picture"), ("x", "a.jpg"), r"lacks the column\(s\) image"),
        (("image", "Price", "price"), ("a.jpg", "1", "2"), "'Price' and 'price', which a filter takes for one"),
        (("image", "price", "price"), ("a.jpg", "1", "2"), "'price' and 'price'"),
        (("image", "__row"), ("a.jpg", "1"), "does not begin with __"),
        (("image", "image"), ("a.jpg", "b.jpg"), "column image twice"),
        (("image",), ("http://x/a.jpg",), "gives no item: 1 x URL"),
    ],
)
def test_a_head_that_would_lose_something_is_refused(pictures, columns, cells, message):
    with pytest.raises(ValueError, match=message):
        table(pictures, columns, cells)


def test_ids_that_look_alike_are_refused_and_paths_are_not(pictures):
    with pytest.raises(ValueError, match="1 ids in several ways"):
        table(pictures, ("id", "image"), ("Caf\u00e9", "a.jpg"), ("Cafe\u0301", "b.jpg"))
    write_file(pictures / "Caf\u00e9.jpg", jpeg(5))
    write_file(pictures / "Cafe\u0301.jpg", jpeg(6))
    assert len(open_source(str(pictures))) == 5


def test_a_quote_that_never_closes_swallows_no_row(pictures):
    write_file(pictures / "shop.csv", b'id,image,title\nx,a.jpg,"5 inch\ny,b.jpg,"\nz,c.jpg,fine\n')
    with pytest.raises(ValueError, match="up to line 3: a quoted cell holds further rows"):
        open_source(str(pictures / "shop.csv"))


def test_a_parquet_table_keeps_its_types_and_gives_bytes_from_any_row(tmp_path):
    day = datetime.date(2026, 11, 27)
    columns = {
        "id": pa.array([1.0, 2.0, None, 4.0]),
        "image": [jpeg(0), {"bytes": b""} and jpeg(1), jpeg(2), jpeg(3)],
        "price": pa.array([1.5, float("nan"), 3.0, None]),
        "stock": pa.array([1, 2, 3, 4], pa.uint16()),
        "brand": pa.array(["a", "b", "a", None]).dictionary_encode(),
        "since": pa.array([day] * 4),
        "tags": pa.array([["x"]] * 4),
        "blob": pa.array([b"x"] * 4),
    }
    write_table(tmp_path / "shop.parquet", columns, row_group_size=2)
    source = open_source(str(tmp_path / "shop.parquet"))
    assert source.items["id"].to_pylist() == ["1", "2", "4"] and source.numbers.tolist() == [0, 1, 3]
    assert metadata(source) == {
        "price": [1.5, None, None],
        "stock": [1, 2, 4],
        "brand": ["a", "b", None],
        "since": [day] * 3,
    }
    assert source.unused == ["tags", "blob"] and source.skips.counts == {"no id": 1}
    assert list(source.pictures(0, 3)) == [jpeg(0), jpeg(1), jpeg(3)] and list(source.pictures(2, 3)) == [jpeg(3)]
    assert list(source.only([0, 2]).pictures(1, 2)) == [jpeg(3)]


def test_parquet_files_of_a_folder_are_one_table(tmp_path):
    write_table(tmp_path / "a.parquet", {"image": [jpeg(0)], "price": [1]})
    write_table(tmp_path / "b.parquet", {"image": [jpeg(1)], "price": [2.5], "title": ["t"]})
    assert open_source(str(tmp_path)).items["id"].to_pylist() == ["0", "1"]
    write_table(tmp_path / "a.parquet", {"id": ["x"], "image": [jpeg(0)], "price": [1]})
    write_table(tmp_path / "b.parquet", {"id": ["y"], "image": [jpeg(1)], "price": [2.5], "title": ["t"]})
    source = open_source(str(tmp_path))
    assert metadata(source) == {"price": [1.0, 2.5], "title": [None, "t"]}
    assert list(source.pictures(0, 2)) == [jpeg(0), jpeg(1)]


def test_the_fingerprint_tells_other_data(pictures):
    columns, rows = ("id", "image", "title"), [("x", "a.jpg", "A"), ("y", "b.jpg", "B")]
    first = table(pictures, columns, *rows).fingerprint
    assert table(pictures, columns, *rows).fingerprint == first
    assert table(pictures, columns, rows[0], ("y", "b.jpg", "C")).fingerprint != first
    write_file(pictures / "b.jpg", jpeg(7) + b" ")
    assert table(pictures, columns, *rows).fingerprint != first
