"""What a catalog may look like, and what of it cannot be used."""

import csv
import hashlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made import COLUMNS, encode, jpeg, noise, write_catalog, write_file, write_rows, write_shop, write_table
from PIL import Image
from shops import same_parquet, shards_of

from lrvsf.data.images import decode_image
from lrvsf.prepare.catalog.listing import read_listing
from lrvsf.prepare.catalog.write_catalog import catalog
from lrvsf.prepare.catalog.write_catalog import fetch as fetch_image


@pytest.fixture
def shop(tmp_path):
    return write_shop(tmp_path / "shop")


def test_rows_that_cannot_be_used_are_counted_with_their_names(shop, tmp_path):
    folder = shop.parent
    (folder / "folder.jpg").mkdir()
    write_file(folder / "cut.jpg", jpeg(7)[:-40])
    write_file(folder / "page.jpg", b"<html>404</html>")
    write_file(folder / "again.jpg", jpeg(0))
    write_file(tmp_path / "outside.jpg", jpeg(301))
    write_file(folder / "inside.jpg", jpeg(300))
    lines = [
        ",images/p0.jpg,product,Bags,",
        "p0,,product,Bags,",
        "p0,images/p0.jpg,model,Bags,",
        "p0,images/p0.jpg,,Bags,",
        "p0,gone.jpg,product,Bags,",
        "p0,folder.jpg,product,Bags,",
        "p0,cut.jpg,scene,,",
        "p0,page.jpg,scene,,",
        "p0,page.jpg,scene,,",
        "p0,page.jpg,scene,,",
        "p0,page.jpg,scene,,",
        "p0,again.jpg,Scene,,",
        "p0,https://shop/p0.jpg,product,,",
        "p0,too,few",
        "p0,too,many,cells,in,it",
        "p1,../outside.jpg,partial_complex,,",
        'p1,images/../inside.jpg,partial_complex,,"one, with ""quotes""\nin two lines"',
        "nocat,images/p2.jpg,product,,",
        "nocat,images/p3.jpg,scene,,",
        "sceneonly,images/p3.jpg,scene,,",
    ]
    with shop.open("a") as file:
        file.write("\n".join(lines) + "\n")
    report = catalog(shop, tmp_path / "out", validation=0, test=0, processes=1)
    roles = "role that is none of product, scene, simple, complex, partial_complex"
    assert report["not used"] == {
        "not an image": 4,
        "row of more or fewer cells than columns": 2,
        roles: 2,
        "no product_id": 1,
        "no image": 1,
        "URL in place of a file; download it first": 1,
        "missing file": 1,
        "no file, but a folder or device": 1,
        "truncated": 1,
        "path out of the folder of images; name that folder with --images": 1,
    }
    # 91 lines stand above: the header, 2 x 40 and 10
    first = report["not used, the first"]
    assert first["no image"] == "line 93 (product p0)" and first[roles] == "line 94 (model); line 95 (None)"
    assert first["not an image"] == "line 99 (page.jpg); line 100 (page.jpg); line 101 (page.jpg)"
    assert report["images, not used"] == {"the same image twice in a product": 1}
    assert report["listed"] == 90 + len(lines) and report["images that can be used"] == 90 + 5
    assert report["products"] == {
        "usable": 52, "complete": 40, "without scene": 10, "without category": 1, "without product image": 1
    }  # fmt: skip
    images = shards_of(tmp_path / "out")["p1"]
    assert images[-1]["type"] == "PARTIAL_COMPLEX" and images[-1]["image"]["bytes"] == jpeg(300)
    assert images[-1]["captions"] == ['one, with "quotes"\nin two lines']
    assert "validation" not in report and "to evaluate" not in report and not (tmp_path / "out/test").exists()


def test_a_parquet_table_gives_what_a_csv_gives(shop, tmp_path):
    catalog(shop, tmp_path / "csv", processes=1)
    with shop.open() as file:
        rows = list(csv.DictReader(file))
    write_rows(shop.parent / "paths.parquet", rows, row_group_size=7)
    catalog(shop.parent / "paths.parquet", tmp_path / "paths", processes=1)
    assert same_parquet(tmp_path / "csv", tmp_path / "paths")

    for row in rows:
        row["image"] = (shop.parent / row["image"]).read_bytes()
        row["text"] = [row["text"]] if row["text"] else None
    write_rows(shop.parent / "bytes.parquet", rows, row_group_size=7)
    catalog(shop.parent / "bytes.parquet", tmp_path / "bytes", processes=2)
    assert same_parquet(tmp_path / "csv", tmp_path / "bytes")

    for row in rows:
        row["image"] = {"bytes": row["image"], "path": None}
        row["role"] = {"product": "SIMPLE", "scene": "COMPLEX"}[row["role"]]
    rows[0]["image"] = {"bytes": None, "path": "images/p0.jpg"}
    rows.insert(3, rows[3] | {"image": {"bytes": None, "path": None}})
    write_rows(shop.parent / "struct.parquet", rows)
    report = catalog(shop.parent / "struct.parquet", tmp_path / "struct", processes=1)
    assert same_parquet(tmp_path / "csv", tmp_path / "struct")
    assert report["not used"] == {"empty": 1} and report["not used, the first"] == {"empty": "row 3"}


def test_a_parquet_table_of_one_row_group_is_not_read_at_once(tmp_path):
    images = [bytes([i % 256]) * 100_000 for i in range(400)]
    columns = {"product_id": [str(i) for i in range(400)], "image": images, "role": ["product"] * 400}
    small_pages = {"use_dictionary": False, "write_batch_size": 8}  # a page is read as a whole, whoever reads
    write_table(tmp_path / "t.parquet", columns, compression="none", **small_pages)
    del columns
    listing = read_listing(tmp_path / "t.parquet", "")
    before, most = pa.total_allocated_bytes(), 0
    for image, expected in zip(listing.images(), images, strict=True):
        assert image == expected
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 2 * 64 * 100_000 + 2**22  # two batches and buffers, of 40 MB


def test_numbers_as_ids_stay_themselves(tmp_path):
    ids, roles = ("007", "007", "7", "7"), ("product", "scene") * 2
    cells = [(name, f"{i}.jpg", role) for i, (name, role) in enumerate(zip(ids, roles, strict=True))]
    table = write_catalog(tmp_path / "t.csv", cells, COLUMNS[:3])
    catalog(table, tmp_path / "out", validation=0, test=0, processes=1)
    assert shards_of(tmp_path / "out").keys() == {"007", "7"}
    columns = {
        "product_id": [12.0, 12.0, None],
        "image": ["0.jpg", "1.jpg", "2.jpg"],
        "role": ["product", "scene", "scene"],
    }
    write_table(tmp_path / "t.parquet", columns)
    report = catalog(tmp_path / "t.parquet", tmp_path / "floats", validation=0, test=0, processes=1)
    assert shards_of(tmp_path / "floats").keys() == {"12"} and report["not used"] == {"no product_id": 1}


def test_a_folder(tmp_path):
    root = tmp_path / "shop"
    for number, name in enumerate(
        ["Bags/1/front.jpg", "Bags/1/Scene 1.PNG", "Shoes/1/a.webp", "Shoes/1/on_scene.jpeg", "Shoes/2/a.jpg"]
    ):
        write_file(root / name, jpeg(number))
    for name in ("Bags/1/.DS_Store", "readme.txt", "Bags/loose.jpg", "Bags/1/more/deep.jpg"):
        write_file(root / name, jpeg(9))
    report = catalog(root, tmp_path / "out", validation=0, test=0, processes=1)
    found = {name: [(i["type"], i["category"]) for i in images] for name, images in shards_of(tmp_path / "out").items()}
    assert found == {f"{c}/1": [("SIMPLE", c), ("COMPLEX", None)] for c in ("Bags", "Shoes")}
    assert report["not used"] == {"file of no image format": 2, "not in a folder CATEGORY/PRODUCT": 2}
    assert report["listed"] == 9 and report["products"]["without scene"] == 1

    report = catalog(root, tmp_path / "named", scene_pattern="a.*", validation=0, test=0, processes=1)
    assert list(report["categories"]) == ["Shoes"]
    with pytest.raises(ValueError, match="is inside"):
        catalog(root, root / "out")


def test_images_are_made_smaller_only_if_they_are_larger():
    image = noise(4, 40).resize((300, 600))
    fetch = partial(fetch_image, folder=Path("."))
    data = encode(image, "PNG")
    small, digest, changes = fetch(data, 256)
    assert Image.open(io.BytesIO(small)).format == "JPEG" and decode_image(small).size == (256, 512)
    difference = np.asarray(decode_image(small), float) - np.asarray(image.resize((256, 512)), float)
    assert np.abs(difference).mean() < 3 and digest == hashlib.sha256(data).digest() and changes == []
    assert fetch(data, 0)[0] == fetch(data, 300)[0] == fetch(data, 400)[0] == data
    assert decode_image(fetch(encode(Image.new("L", (257, 999)), "PNG"), 256)[0]).size == (256, 995)
    assert fetch(None, 256) == "empty" and fetch("\0", 256) in ("missing file", "file that cannot be opened")


@pytest.mark.parametrize(
    "content, message",
    [
        ("id;image;role\n", "lacks the column.s. product_id; it has 'id', 'image', 'role'"),
        ("product_id,image,role,category\np,x.jpg,product,Bags\n", r"no product to train on(.|\n)*missing file"),
        ("product_id,image,role\n\xff,x.jpg,product\n", "not UTF-8"),
        ("product_id,image,role\na,b," + "x" * 200_000, "field larger"),
    ],
)
def test_tables_that_give_nothing_are_refused_with_the_remedy(tmp_path, content, message):
    table = tmp_path / "t.csv"
    table.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        catalog(table, tmp_path / "out", processes=1)
    assert not list((tmp_path / "out").glob("*"))


def test_requests_that_make_no_sense_are_refused(shop, tmp_path):
    with pytest.raises(FileNotFoundError, match="give a .csv, .tsv or .parquet table"):
        catalog(tmp_path / "none.csv", tmp_path / "out")
    with pytest.raises(ValueError, match="leave some of 1"):
        catalog(shop, tmp_path / "out", validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="image_size=-1"):
        catalog(shop, tmp_path / "out", image_size=-1)
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match="save the table as one"):
        catalog(tmp_path / "t.xlsx", tmp_path / "out")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(OSError, match="not a readable Parquet file"):
        catalog(tmp_path / "t.parquet", tmp_path / "out")
    write_table(tmp_path / "t.parquet", {"product_id": ["a"], "image": [1], "role": ["product"]})
    with pytest.raises(ValueError, match="image is int64; it must hold paths"):
        catalog(tmp_path / "t.parquet", tmp_path / "out")


def test_a_category_in_one_row_is_the_product_s(tmp_path):
    rows = [
        ("p", "0.jpg", "scene", "Bags", ""),
        ("p", "1.jpg", "product", "", ""),
        ("p", "2.jpg", "product", "Neck", ""),
    ]
    report = catalog(write_catalog(tmp_path / "t.csv", rows), tmp_path / "out", validation=0, test=0, processes=1)
    # an image's own category, else the first of a SIMPLE image, else of a scene
    assert [image["category"] for image in shards_of(tmp_path / "out")["p"]] == ["Neck", "Neck", None]
    assert report["categories"] == {"Neck": {"train": 1, "validation": 0, "test": 0}}


def test_further_columns_and_a_byte_order_mark(shop, tmp_path):
    lines = shop.read_text().splitlines()
    text = "\n".join([lines[0] + ",price", *(line + ",1" for line in lines[1:])])
    shop.write_text("\ufeff" + text)
    assert catalog(shop, tmp_path / "out", processes=1)["columns not used"] == "price"
