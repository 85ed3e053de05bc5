"""Folders of shards that are whole or not there."""

import errno
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made import product, rows_of

from lrvsf.data.products import ProductShards
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.testset import ProductTestSet
from lrvsf.prepare import row_writer
from lrvsf.prepare import writers as module
from lrvsf.prepare.writers import ProductShardWriter, TestSetWriter, made_from, read_manifest


def small(name, size=10):
    """A product of two images of this many bytes."""
    return product(name, b"S" * size, b"C" * size, captions=["x"])


def write(folder, names, **options):
    with ProductShardWriter(folder, **options) as shards:
        for name in names:
            shards.add(small(name))


def test_files_and_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(row_writer, "GROUP_ROWS", 2)
    write(tmp_path / "train", "abcdefghi", shard_bytes=100)  # 20 bytes a product
    files = sorted((tmp_path / "train").glob("*.parquet"))
    assert [file.name for file in files] == ["00000.parquet", "00001.parquet"]
    groups = [pq.ParquetFile(file).metadata for file in files]
    assert [[m.row_group(i).num_rows for i in range(m.num_row_groups)] for m in groups] == [[2, 2, 1], [2, 2]]
    assert {groups[0].row_group(0).column(i).compression for i in range(6)} == {"UNCOMPRESSED"}
    assert rows_of(tmp_path / "train") == [small(name) for name in "abcdefghi"]
    assert pq.read_schema(files[0]).metadata == PRODUCT_FEATURES.arrow_schema.metadata  # the images are typed
    assert ProductShards.scan(tmp_path / "train").usable == 9


def test_large_images_make_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(row_writer, "GROUP_BYTES", 50)
    write(tmp_path / "train", "abcde")
    metadata = pq.ParquetFile(tmp_path / "train/00000.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 2]


def test_manifest_names_the_data(tmp_path):
    write(tmp_path / "a", "abc", shard_bytes=40)
    write(tmp_path / "b", "abc", shard_bytes=40)
    manifest = read_manifest(tmp_path / "a")
    assert manifest == read_manifest(tmp_path / "b")
    assert (manifest["products"], manifest["images"], manifest["image_bytes"]) == (3, 6, 60)
    assert [(f["name"], f["rows"], f["image_bytes"]) for f in manifest["files"]] == [
        ("00000.parquet", 2, 40),
        ("00001.parquet", 1, 20),
    ]
    write(tmp_path / "c", "acb", shard_bytes=40)
    assert read_manifest(tmp_path / "c")["digest"] != manifest["digest"]
    assert read_manifest(tmp_path) is None
    (tmp_path / "a/manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(tmp_path / "a")


def test_each_cell_of_a_row_is_in_its_digest():
    def digest(**changes):
        row = small("a")
        row["images"][0] |= changes
        return module.row_digest(row)

    changed = [
        digest(image={"bytes": b"other", "path": None}),
        digest(type="COMPLEX"),
        digest(category=None),
        digest(captions=[]),
        module.row_digest(small("b")),
    ]
    assert len({*changed, digest()}) == 6
    assert digest(image={"bytes": b"S" * 10, "path": "elsewhere"}) == digest()


def test_nothing_appears_of_a_run_that_fails(tmp_path):
    (tmp_path / "train.writing").mkdir()
    (tmp_path / "train.writing/00099.parquet").write_bytes(b"of a killed run")
    with pytest.raises(KeyError), ProductShardWriter(tmp_path / "train", shard_bytes=1) as shards:
        shards.add(small("a"))
        assert not shards.folder.exists()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no product to write"):
        write(tmp_path / "train", "")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    write(tmp_path / "train", "a")  # an empty one is free
    before = (tmp_path / "train/00000.parquet").read_bytes()
    with pytest.raises(ValueError, match="train is in use; remove it"):
        write(tmp_path / "train", "b")
    assert (tmp_path / "train/00000.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (small("a"), "'a' is here twice"),
        (small(""), "'' is empty"),
        (
            {"product_id": "c", "images": [{"image": {"bytes": None, "path": "/etc/passwd"}}]},
            "'c', image 0 has no bytes",
        ),
    ],
)
def test_rows_that_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message), ProductShardWriter(tmp_path / "train") as shards:
        shards.add(small("a"))
        shards.add(row)


def test_test_set(tmp_path):
    with TestSetWriter(tmp_path / "test", shard_rows=2) as writer:
        for i in range(4):
            writer.add_distractor({"jpg": b"%d" % i})
        writer.add_query({"CATEGORY": "Bags", "SIMPLE_IMG": b"target", "COMPLEX_IMG": b"query"})
    found = ProductTestSet(tmp_path / "test")
    assert [(p.target_image, p.query_image, p.category) for p in found.products()] == [(b"target", b"query", "Bags")]
    assert [jpg for _, jpg in found.distractors()] == [b"0", b"1", b"2", b"3"]
    assert [len(pq.read_table(file)) for file in sorted((tmp_path / "test/distractors").iterdir())] == [2, 2]
    manifest = json.loads((tmp_path / "test/manifest.json").read_text())
    assert manifest | {"files": 0} == {"queries": 1, "distractors": 4, "note": {}, "files": 0}
    assert {entry["name"]: entry["size"] for entry in manifest["files"]} == {
        str(file.relative_to(tmp_path / "test")): file.stat().st_size for file in (tmp_path / "test").rglob("*.parquet")
    }


def test_test_set_refusals(tmp_path):
    for row in (
        {"SIMPLE_IMG": b"", "COMPLEX_IMG": b"q", "CATEGORY": "Bags"},
        {"SIMPLE_IMG": b"t", "COMPLEX_IMG": b"q"},
    ):
        with pytest.raises(ValueError, match="has no"), TestSetWriter(tmp_path / "test") as writer:
            writer.add_query(row)
    with pytest.raises(ValueError, match="has no jpg"), TestSetWriter(tmp_path / "test") as writer:
        writer.add_distractor({"jpg": None})
    with pytest.raises(ValueError, match="no query"), TestSetWriter(tmp_path / "test") as writer:
        writer.add_distractor({"jpg": b"x"})
    assert not list(tmp_path.iterdir())


def test_made_from(tmp_path):
    assert not made_from(tmp_path / "train", "x")
    with ProductShardWriter(tmp_path / "train") as shards:
        shards.add(small("a"))
        shards.note = {"input": "x"}
    assert made_from(tmp_path / "train", "x")
    with pytest.raises(ValueError, match="made from other input"):
        made_from(tmp_path / "train", "y")


@pytest.mark.survives("a finished data folder has lost a file, or the end of one", "refused when the step runs again")
def test_a_manifest_is_not_believed_alone(tmp_path):
    with ProductShardWriter(tmp_path / "train", shard_bytes=1) as shards:
        for name in "ab":
            shards.add(small(name))
        shards.note = {"input": "x"}
    file = tmp_path / "train/00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=f"00001.parquet has {len(whole) - 1:,} bytes in place of {len(whole):,}; remove"
    ):
        made_from(tmp_path / "train", "x")
    file.unlink()
    with pytest.raises(ValueError, match="is not whole: 00001.parquet is missing; remove the folder to make it again"):
        made_from(tmp_path / "train", "x")
    file.write_bytes(whole)
    assert made_from(tmp_path / "train", "x")


@pytest.mark.survives("a folder to write is a link to another disk", "followed: written there")
def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").symlink_to(tmp_path / "disk/real")
    (tmp_path / "out/test").symlink_to(tmp_path / "disk/new")  # of nothing yet
    for name in ("train", "test"):
        write(tmp_path / "out" / name, "ab")
        assert (tmp_path / "out" / name).is_symlink() and ProductShards.scan(tmp_path / "out" / name).usable == 2
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new", "real"]


@pytest.mark.survives("a folder to write is a mount point", "refused before any work")
def test_a_folder_that_cannot_be_replaced_is_refused_at_once(tmp_path, monkeypatch):
    def busy(folder):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))

    (tmp_path / "train").mkdir()
    monkeypatch.setattr(Path, "rmdir", busy)  # as the kernel says of a mount point
    with pytest.raises(ValueError, match=r"cannot be replaced.*\(Device or resource busy\), as a mount point cannot"):
        write(tmp_path / "train", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.survives("a finished data folder cannot be renamed", "kept under its unfinished name, which is said")
def test_work_is_kept_if_only_the_rename_fails(tmp_path, monkeypatch):
    replace = os.replace

    def fails(old, new):
        if Path(new).name == "train":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="train.writing is whole, but cannot be renamed to .*train .*rename it"):
            write(tmp_path / "train", "ab")
    (tmp_path / "train.writing").rename(tmp_path / "train")
    assert ProductShards.scan(tmp_path / "train").usable == 2 and read_manifest(tmp_path / "train")["products"] == 2


@pytest.mark.survives("the disk is full while data are prepared", "says so; nothing half is left")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_what_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(row_writer, "GROUP_ROWS", 1)
    with pytest.raises(OSError) as error, ProductShardWriter(tmp_path / "train") as shards:
        (tmp_path / "train.writing/00000.parquet").symlink_to("/dev/full")
        shards.add(small("a", size=2**22))
        shards.add(small("b", size=2**22))
    assert error.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
