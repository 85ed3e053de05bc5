import logging

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import encoded, image, product, write

from lrvsf.data.images import TooManyBadImages
from lrvsf.data.products import ProductShards


def test_products_that_give_no_pair_are_named_before_training(tmp_path, caplog):
    lonely = product("lonely")
    lonely["images"].pop()
    bare = product("bare")
    bare["images"].pop(0)
    rows = [product("a"), product("b"), lonely, bare, product("odd", category="Hovercraft")]
    with caplog.at_level(logging.WARNING):
        shards = ProductShards.scan(write(tmp_path / "t", rows, 2), ["Bags"])
    assert shards.usable == 2 and shards.faulty == {
        "lonely": "no scene image",
        "bare": "no SIMPLE image",
        "odd": "no SIMPLE image of a known category",
    }
    assert "lonely" in caplog.text and "3 of 5" in caplog.text
    assert ProductShards.scan(tmp_path / "t").usable == 3, "without a condition the category does not matter"
    assert shards.rows.tolist() == [0, 3], "in the order of the files: a, lonely, odd, then b, bare"
    assert [row["product_id"] for unit in range(2) for _, row in shards.read(unit)] == [
        "a",
        "lonely",
        "odd",
        "b",
        "bare",
    ]


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no \\*.parquet"):
        ProductShards.scan(tmp_path / "nothing")
    write(tmp_path / "twice", [product("same"), product("same")], 2)
    with pytest.raises(ValueError, match="'same' is in"):
        ProductShards.scan(tmp_path / "twice")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.parquet").write_text("not parquet")
    with pytest.raises(TooManyBadImages, match="1 of 1 shards cannot be read as Parquet.*\n.*x.parquet: "):
        ProductShards.scan(tmp_path / "text")
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "other" / "x.parquet")
    with pytest.raises(ValueError, match=r"lacks product_id, .*it has the columns \['url'\]"):
        ProductShards.scan(tmp_path / "other")


def test_a_large_share_of_faulty_products_is_refused(tmp_path):
    rows = [product(f"p{i:03d}", category="Bags" if i % 2 else "Boats") for i in range(220)]
    folder = write(tmp_path / "t", rows)
    with pytest.raises(TooManyBadImages, match="110 of 220 products.*\n +110  no SIMPLE image of a known.*\n.*0.01"):
        ProductShards.scan(folder, ["Bags"])
    assert ProductShards.scan(folder, ["Bags"], max_bad=0.5).usable == 110


def test_null_and_mixed_categories(tmp_path):
    mixed = product("mixed", category=None)
    mixed["images"].append(image(encoded("red"), "SIMPLE", "Bags"))
    shards = ProductShards.scan(write(tmp_path / "t", [product("none", category=None), mixed], 1), ["Bags"])
    assert shards.faulty == {"none": "no SIMPLE image of a known category"} and shards.rows.tolist() == [1]


@pytest.mark.parametrize("tolerated", [True, False])
def test_a_shard_cut_short(tmp_path, tolerated, caplog):
    folder = write(tmp_path / "t", [product(f"p{i}") for i in range(8)], 4)
    cut = folder / "2.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    if tolerated:
        shards = ProductShards.scan(folder, max_bad=0.3)
        assert shards.usable == 6 and "Skipped the whole of" in caplog.text and "2.parquet" in caplog.text
        assert [row["product_id"] for unit in range(3) for _, row in shards.read(unit)] == [
            "p0",
            "p4",
            "p1",
            "p5",
            "p3",
            "p7",
        ]
    else:
        with pytest.raises(TooManyBadImages, match="1 of 4 shards"):
            ProductShards.scan(folder)


def test_shards_behind_a_url(tmp_path):
    write(tmp_path / "t", [product(f"p{i}") for i in range(10)], 2)
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/t/*.parquet", "/bucket/train/")
    near, far = ProductShards.scan(tmp_path / "t"), ProductShards.scan("memory://bucket/train")
    assert len(far.units) == 4 and far.units[1].startswith("memory://") and far.rows.tolist() == near.rows.tolist()
    assert [list(far.read(unit)) for unit in range(4)] == [list(near.read(unit)) for unit in range(4)]
