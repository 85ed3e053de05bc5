"""`check` tells what is there and finds each kind of damage, alone and by name, without dying of it."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import edit_rows, jpeg, product, row_image, rows_of, spoil_page, write_products, write_rows, write_table

from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.prepare import row_writer
from lrvsf.prepare.check import check
from lrvsf.prepare.writers import ProductShardWriter, TestSetWriter


def write_train(folder, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_writer, "GROUP_ROWS", 3)
        with ProductShardWriter(folder, shard_bytes=sum(map(len_of, rows)) // 2) as shards:
            for row in rows:
                shards.add(row)


def len_of(row):
    return sum(len(image["image"]["bytes"]) for image in row["images"])


@pytest.fixture
def root(tmp_path):
    """train/ of 20 products in 2 shards of row groups of 3, test/ of 2 queries and 5 distractors."""
    write_train(tmp_path / "data/train", [product(f"p{i}", jpeg(i), jpeg(100 + i)) for i in range(20)])
    with TestSetWriter(tmp_path / "data/test") as writer:
        for i in range(2):
            images = {"SIMPLE_IMG": jpeg(200 + i), "COMPLEX_IMG": jpeg(210 + i)}
            writer.add_query({"PRODUCT_ID": f"q{i}", "TYPE": "COMPLEX", "CATEGORY": "Feet"} | images)
        for i in range(5):
            writer.add_distractor({"PRODUCT_ID": "same", "TYPE": "SIMPLE", "jpg": jpeg(220 + i)})
    return tmp_path / "data"


def because(root, **options):
    """The reasons why a folder is refused, of all its parts: reason -> count."""
    with pytest.raises(ValueError, match="cannot be used"):
        check(root, report=root.parent / "report.json", processes=1, **options)
    report = json.loads((root.parent / "report.json").read_text())
    parts = [part for part in report.values() if isinstance(part, dict)]
    return {reason: found["count"] for part in parts for reason, found in part.get("because", {}).items()}


def test_sound_folder(root):
    report = check(root, processes=1)
    train, test = report["train"], report["test"]
    assert (train["files"], train["rows"]) == ({"products": 2}, {"products": 20})
    assert train["images"] == {"SIMPLE": 20, "COMPLEX": 20} and train["categories"] == {"Bags": 20}
    assert train["image bytes"] == sum(map(len_of, rows_of(root / "train")))
    assert (train["median shorter side"], train["median longer side"]) == (9, 9)  # 8 to 10 wide, 9 high
    assert train["can be trained on"] == test["can be evaluated on"] == "yes"
    assert test["rows"] == {"queries": 2, "distractors": 5}
    assert test["images"] == {"SIMPLE": 7, "COMPLEX": 2}
    quick = check(root, quick=True)
    assert quick["train"]["rows"] == train["rows"] and "median shorter side" not in quick["train"]
    assert check(root / "train", processes=2)["train"] == train  # a part alone, other processes
    assert check(root / "test", processes=1)["test"] == test


def test_images_that_do_not_decode(root, tmp_path):
    rows = [product(f"p{i}", jpeg(i), jpeg(300 + i)) for i in range(100)]
    rows[7]["images"][0]["image"]["bytes"] = jpeg(1)[:-30]
    rows[8]["images"][1]["image"]["bytes"] = b"<html>"
    shutil.rmtree(root / "train")
    write_train(root / "train", rows)
    part = check(root, processes=1)["train"]  # 1 % of 200 images is still fit
    assert part["images that cannot be decoded"] == {
        "truncated": {"count": 1, "such as": "p7"},
        "not an image": {"count": 1, "such as": "p8"},
    }
    shutil.rmtree(root / "train")
    write_train(root / "train", rows[:99])
    assert because(root) == {"images that cannot be decoded, more than 1%": 2}
    assert check(root, max_bad_fraction=0.011, processes=1)["train"]["can be trained on"] == "yes"
    check(root, quick=True)  # reads no images


@pytest.mark.parametrize("quick", [True, False])
def test_damaged_files(root, quick):
    files = sorted((root / "train").glob("*.parquet"))
    files[0].write_bytes(files[0].read_bytes()[:-20])
    spoil_page(files[1], 1)
    write_table(root / "test/distractors/00001.parquet", {"png": [b""]})
    assert because(root, quick=quick) == {
        "files that are not whole Parquet files": 1,
        "row groups that cannot be read to their end": 1,
        "files with more or fewer rows than the manifest says": 2,
        "files that lack a column": 1,
    }


@pytest.mark.parametrize("quick", [True, False])
def test_columns_are_those_that_training_takes(root, quick):
    def with_captions(file, captions):
        rows = rows_of(file)
        for image in (image for row in rows for image in row["images"]):
            image.pop("captions", None)
            image.update(captions)
        write_rows(file, rows)

    with_captions(root / "train/00000.parquet", {})
    (root / "train/manifest.json").unlink()
    check(root, quick=quick)
    with_captions(root / "train/00001.parquet", {"captions": "one text"})
    with_captions(root / "train/00000.parquet", {"captions": "one text"})
    assert because(root, quick=quick)["files whose columns hold something else"] == 2


def test_damage_of_an_image_page_needs_the_full_check(root):
    spoil_page(root / "train/00000.parquet", 0, "images.list.element.image.bytes")
    check(root, quick=True)
    assert because(root)["row groups that cannot be read to their end"] == 1


def test_rows_against_the_manifest(root):
    edit_rows(root / "train/00000.parquet", lambda rows: rows[0]["images"][0].update(category="Feet"))
    assert because(root) == {"files with other rows than the manifest says": 1}
    (root / "train/00001.parquet").rename(root / "train/00002.parquet")
    assert because(root, quick=True) == {
        "files of the manifest that are missing": 1,
        "files that the manifest does not name": 1,
    }
    (root / "train/manifest.json").write_text("{")
    assert because(root) == {"a damaged manifest": 1}
    (root / "train/manifest.json").unlink()
    check(root, processes=1)  # shards that others wrote have none


@pytest.mark.parametrize("quick", [True, False])
def test_path_and_no_bytes(root, quick):
    (root / "train/manifest.json").unlink()
    secret = root.parent / "secret.jpg"
    secret.write_bytes(b"")
    edit_rows(
        root / "train/00000.parquet",
        lambda rows: rows[4]["images"][1].update(image={"bytes": None, "path": str(secret)}),
    )
    found = because(root, quick=quick)
    assert found.pop("images without bytes") == 1 and found == {"images that cannot be decoded, more than 1%": 1}


@pytest.mark.parametrize("quick", [True, False])
def test_products_twice_and_in_two_splits(root, quick):
    (root / "train/manifest.json").unlink()
    edit_rows(
        root / "train/00001.parquet", lambda rows: [rows[0].update(product_id="p1"), rows[1].update(product_id="q1")]
    )
    assert because(root, quick=quick) == {"products that are there twice": 1, "products that are also in train": 1}


def test_test_set_faults(root):
    edit_rows(root / "test/products.parquet", lambda rows: rows[0].update(CATEGORY=None))
    shutil.rmtree(root / "test/distractors")
    assert because(root / "test") == {"queries with no category": 1, "no distractors": 1}
    (root / "test/products.parquet").write_bytes(b"")
    assert because(root) == {"files that are not whole Parquet files": 1, "no queries": 1, "no distractors": 1}


def test_products_that_give_no_pair(root):
    (root / "train/manifest.json").unlink()
    rows = [{"product_id": "a", "images": [row_image(jpeg(1), "SIMPLE", "Bags")]}]
    rows += [{"product_id": None, "images": [row_image(jpeg(2), "COMPLEX")]}]
    for file in sorted((root / "train").glob("*.parquet")):
        write_products(file, rows)
        rows = [{"product_id": "b", "images": []}, {"product_id": "c", "images": None}]
    assert because(root) == {"no product that gives a pair": 1}
    report = json.loads((root.parent / "report.json").read_text())
    assert {why: found["count"] for why, found in report["train"]["rows that cannot be used"].items()} == {
        "no scene image": 1,
        "no product id": 1,
        "no SIMPLE image": 2,
    }


def test_nothing_prepared(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "train.writing").mkdir()
    with pytest.raises(ValueError, match=r"neither product shards nor a test set \(notes.txt, train.writing\)"):
        check(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        check(tmp_path / "nowhere")


@pytest.mark.survives(
    "a picture of the test set that is in train too", "`check` counts and names the products; above 1 % it refuses"
)
def test_pictures_that_are_shared_are_counted_and_named(root):
    def lend(rows):
        rows[3]["images"][1]["image"]["bytes"] = jpeg(0)  # p3 in a scene what p0 shows alone
        rows[4]["images"][0]["image"]["bytes"] = jpeg(210)  # p4 shows q0's scene

    shard = root / "train/00000.parquet"
    edit_rows(shard, lend)
    edit_rows(root / "test/distractors/00000.parquet", lambda rows: rows[2].update(jpg=jpeg(201)))
    (root / "train/manifest.json").unlink()
    title = "products with a picture that is also in train"
    assert because(root) == {f"{title}, more than 1%": 1}
    report = check(root, max_bad_fraction=0.5, processes=1)
    assert report["test"][title] == {"count": 1, "such as": "q0"}
    assert report["train"]["products that share a picture"] == {
        "products": 2, "groups": 1, "in the largest group": 2, "such as": "p0, p3"
    }  # fmt: skip
    same = report["test"]["distractors that are the very image of a target"]
    assert same == {"count": 1, "such as": "row 2"}
    assert title not in check(root, quick=True)["test"]


def test_categories_that_do_not_join_are_counted(root):
    edit_rows(root / "test/distractors/00000.parquet", lambda rows: [row.update(CATEGORY="Shoes") for row in rows[:2]])
    for quick in (False, True):
        report = check(root, quick=quick, processes=1)["test"]
        assert report["categories of queries without a distractor"] == {"Feet": 2}
        assert report["categories of distractors without a query"] == {"Shoes": 2}
        assert report["distractors without a category"] == 3


@pytest.mark.survives(
    "a flipped bit in a footer makes text of a column binary", "the file is counted, the check goes on"
)
@pytest.mark.parametrize("quick", [True, False])
def test_columns_of_another_type(root, quick):
    schema = PRODUCT_FEATURES.arrow_schema
    category = pa.schema([schema.field("product_id"), ("images", pa.list_(pa.struct(
        [pa.field(f.name, pa.binary()) if f.name == "category" else f for f in schema.field("images").type.value_type]
    )))])  # fmt: skip
    rows = rows_of(root / "train/00000.parquet")
    for image in (image for row in rows for image in row["images"]):
        image["category"] = image["category"] and image["category"].encode()
    write_rows(root / "train/00000.parquet", rows, category)
    put(root / "test/products.parquet", COMPLEX_IMG=["x.jpg", "y.jpg"])
    found = because(root, quick=quick)
    assert found.pop("files whose columns hold something else") == 1 and found["no queries"] == 1
    listed = json.loads((root.parent / "report.json").read_text())["train"]["because"]
    assert listed["files whose columns hold something else"]["such as"] == (
        "00000.parquet: has BYTE_ARRAY (NONE) in images.list.element.category, where text must be"
    )


def test_names_that_look_alike_are_found(root):
    shutil.rmtree(root / "train")
    rows = [product(f"p{i}", jpeg(i), jpeg(100 + i)) for i in range(6)]
    rows[1]["images"][0]["category"], rows[2]["images"][0]["category"] = "bags", "feet"
    rows[3]["product_id"], rows[4]["product_id"], rows[5]["product_id"] = "Caf\u00e9", "Cafe\u0301", "NULL"
    write_train(root / "train", rows)
    assert because(root) == {
        "categories that a reader takes for one": 1,
        "product ids that a reader takes for one": 1,
        "categories that a reader takes for one of train": 1,
    }
    report = json.loads((root.parent / "report.json").read_text())
    assert report["train"]["because"]["product ids that a reader takes for one"]["such as"] == (
        "'Cafe\\u0301' and 'Caf\u00e9'"
    )
    assert (
        report["test"]["because"]["categories that a reader takes for one of train"]["such as"] == "'Feet' and 'feet'"
    )
    assert "product id that is a word for nothing" in str(report["train"]["rows that cannot be used"])


def test_companions_of_macos_are_no_shards(root):
    (root / "train/._00000.parquet").write_bytes(b"attributes")
    (root / "test/distractors/._00000.parquet").write_bytes(b"attributes")
    assert check(root, processes=1)["train"]["can be trained on"] == "yes"


def put(path, **columns):
    """Gives a Parquet file other columns."""
    table = pq.read_table(path)
    for name, cells in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(cells))
    write_table(path, table)


@pytest.mark.parametrize("quick", [True, False])
def test_cells_of_a_test_set_are_read_as_the_evaluation_reads_them(root, quick):
    """Padded names join; words for nothing, and lists, are no categories; a query's product is no distractor."""
    distractors = next((root / "test/distractors").glob("*.parquet"))
    ids = ["q1", "other", "nan", None, " q0 "]
    put(distractors, CATEGORY=[" Feet", "Feet ", "nan", "", None], PRODUCT_ID=ids)
    report = check(root / "test", quick=quick, processes=1)["test"]
    assert report["distractors without a category"] == 3 and report["categories"] == {"Feet": 4}
    assert not {"categories of distractors without a query", "categories of queries without a distractor"} & set(report)
    own = report["distractors that are pictures of a query's product"]
    assert own == {"count": 2, "such as": "row 0, row 4"}
    put(distractors, CATEGORY=[["Feet"]] * 5)
    assert because(root / "test", quick=quick) == {"files whose columns hold something else": 1, "no distractors": 1}


@pytest.mark.parametrize(("cell", "why"), [("", "no category"), (" ", "no category"), ("nan", "a word for nothing")])
def test_a_query_has_a_category(root, cell, why):
    put(root / "test/products.parquet", CATEGORY=[cell, "Feet"])
    assert [reason for reason in because(root / "test", quick=True) if why in reason]
