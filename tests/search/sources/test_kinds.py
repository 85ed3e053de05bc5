"""What IMAGES may be besides a table: a folder of pictures, prepared shards, test sets, tars, data sets."""

import os

import datasets
import pytest
from made import (
    jpeg,
    plain,
    product,
    row_image,
    squares,
    tar_of,
    tar_product,
    write_file,
    write_products,
    write_test_set,
)

from lrvsf.search.sources.kinds import open_source


def ids(source):
    return source.items["id"].to_pylist()


def test_a_folder_lists_every_picture_and_names_the_rest(tmp_path):
    root = tmp_path / "pictures [new]"
    for number, name in enumerate(["b.jpg", "a/1.png", "a/2.JPG"]):
        write_file(root / name, jpeg(number))
    write_file(root / "a/notes.txt", b"")
    write_file(root / "._b.jpg", b"")
    (root / "loop").symlink_to(root)
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    source = open_source(str(root))
    assert ids(source) == ["a/1.png", "a/2.JPG", "b.jpg"]
    assert list(source.pictures(1, 3)) == [str(root / "a/2.JPG"), str(root / "b.jpg")]
    assert source.skips.report("not used")["not used, the first"] == {
        "file of no image format": "a/notes.txt",
        "companion file of macOS, without content": "._b.jpg",
        "link to a folder that it is in": "loop",
        "link that leads nowhere": "gone.jpg",
    }


def test_product_shards_give_their_simple_pictures(tmp_path):
    rows = [product(f"p{number}", jpeg(number), captions=["a bag"]) for number in range(5)]
    rows[1]["images"].insert(1, row_image(jpeg(11), "SIMPLE", "Feet"))
    rows[2]["images"] = [row_image(jpeg(12), "COMPLEX")]
    write_products(tmp_path / "0.parquet", rows[:3], row_group_size=2)
    write_products(tmp_path / "1.parquet", rows[3:])
    source = open_source(str(tmp_path))
    assert ids(source) == ["p0", "p1", "p1", "p3", "p4"]
    assert source.items["category"].to_pylist() == ["Bags", "Bags", "Feet", "Bags", "Bags"]
    assert source.items["caption"].to_pylist() == ["a bag", "a bag", None, "a bag", "a bag"]
    assert list(source.pictures(2, 5)) == [jpeg(11), jpeg(3), jpeg(4)]
    assert source.skips.counts == {"product without a SIMPLE picture": 1}
    write_products(tmp_path / "2.parquet", rows[:1])
    with pytest.raises(ValueError, match="'p0' twice, at 0.parquet, row 0 and at 2.parquet, row 0"):
        open_source(str(tmp_path))


def test_a_test_set_gives_targets_and_distractors(tmp_path):
    root = write_test_set(tmp_path / "test", products=6, distractors=9)
    source = open_source(str(root))
    assert ids(source) == [*(f"p{number}" for number in range(6)), *(f"d{number}" for number in range(9))]
    assert list(source.pictures(5, 8)) == [squares(n, quality=95) for n in (5, 2000, 2001)]
    assert source.items["category"].to_pylist()[:3] == ["Bags", "Feet", "Neck"]


def test_tars_of_products_and_of_distractors(tmp_path):
    members = [
        member
        for name in ("p", "q")
        for member in tar_product(name, ("SIMPLE", jpeg(1)), ("COMPLEX", jpeg(2)), ("SIMPLE", jpeg(3)))
    ]
    write_file(tmp_path / "products/0.tar", tar_of(members))
    source = open_source(str(tmp_path / "products"))
    assert ids(source) == ["p", "p", "q", "q"] and list(source.pictures(1, 3)) == [jpeg(3), jpeg(1)]
    write_file(
        tmp_path / "d.tar", tar_of([("x.jpg", jpeg(5)), ("x.json", b'{"PRODUCT_ID": "d9"}'), ("y.jpg", jpeg(6))])
    )
    source = open_source(str(tmp_path / "d.tar"))
    assert ids(source) == ["d9", "d, picture 1"] and list(source.pictures(0, 2)) == [jpeg(5), jpeg(6)]


@pytest.fixture
def data_set(tmp_path):
    """The folder of a data set with a split of five rows, as `datasets` writes one."""
    features = {
        "image": datasets.Image(),
        "title": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["a", "b"]),
    }
    rows = {
        "image": [{"bytes": jpeg(number), "path": None} for number in range(5)],
        "title": [f"t{number}" for number in range(5)],
        "kind": [0, 1, 0, 1, None],
    }
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    (tmp_path / "set/data").mkdir(parents=True)
    made.to_parquet(tmp_path / "set/data/train-00000-of-00001.parquet")
    return tmp_path / "set"


@pytest.mark.survives("a build that streams a data set is killed", "reads on where it was")
def test_a_data_set_is_streamed_once_and_a_killed_stream_goes_on(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr("lrvsf.search.sources.streams.SPOOL_ROWS", 2)
    source = open_source(str(data_set), spool=tmp_path / "spool")
    assert ids(source) == ["0", "1", "2", "3", "4"]
    assert source.items["kind"].to_pylist() == ["a", "b", "a", "b", None]
    assert list(source.pictures(1, 4)) == [jpeg(1), jpeg(2), jpeg(3)]
    (spool,) = (tmp_path / "spool").iterdir()
    stayed = (spool / "pictures-000000.parquet").stat().st_mtime_ns
    for name in ("whole.json", "pictures-000002.parquet"):
        (spool / name).unlink()
    again = open_source(str(data_set), spool=tmp_path / "spool")
    assert again.fingerprint == source.fingerprint and list(again.pictures(4, 5)) == [jpeg(4)]
    assert (spool / "pictures-000000.parquet").stat().st_mtime_ns == stayed


def test_a_folder_with_a_table_of_metadata_is_a_data_set(tmp_path):
    for number in range(3):
        write_file(tmp_path / f"set/{number}.jpg", jpeg(number))
    write_file(tmp_path / "set/metadata.csv", b"file_name,price\n0.jpg,1.5\n1.jpg,2.5\n2.jpg,3.5\n")
    source = open_source(str(tmp_path / "set"), spool=tmp_path / "spool")
    assert source.items["price"].to_pylist() == [1.5, 2.5, 3.5] and list(source.pictures(2, 3)) == [jpeg(2)]


@pytest.mark.parametrize(
    ("made", "name", "message"),
    [
        ({}, "nowhere", "there is no .*nowhere; IMAGES is a folder"),
        ({"picturs/a.jpg": b""}, "pictures", "did you mean .*picturs"),
        ({"list.txt": b"a.jpg"}, "list.txt", "is a file that gives no list of pictures"),
        ({"empty/x.txt": b""}, "empty", "gives no item: 1 x file of no image format"),
        ({"data/train/manifest.json": b"{}"}, "data", "a data folder of several parts; give one, as .*train"),
        ({"saved/state.json": b"", "saved/dataset_info.json": b""}, "saved", "written by save_to_disk"),
        ({"d/0.parquet": b"no"}, "d", "not a readable Parquet file"),
    ],
)
def test_what_is_no_source_is_refused_with_a_remedy(tmp_path, made, name, message):
    for path, data in made.items():
        write_file(tmp_path / path, data)
    with pytest.raises((ValueError, OSError), match=message):
        open_source(str(tmp_path / name))


def test_options_that_do_not_fit_are_refused(tmp_path, data_set):
    write_file(tmp_path / "p/a.jpg", plain())
    with pytest.raises(ValueError, match="--images_folder goes with a table only"):
        open_source(str(tmp_path / "p"), images=tmp_path)
    with pytest.raises(ValueError, match="--split goes with a data set only"):
        open_source(str(tmp_path / "p"), split="train")
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        open_source(str(data_set), split="test", spool=tmp_path)


def test_a_picture_that_has_gone_is_noticed(tmp_path):
    write_products(tmp_path / "0.parquet", [product("p"), product("q")])
    source = open_source(str(tmp_path))
    write_products(tmp_path / "0.parquet", [product("p")])
    os.sync()
    with pytest.raises(OSError, match="fewer pictures than when it was listed"):
        list(source.pictures(0, 2))
