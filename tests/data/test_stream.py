import io
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lrvsf.data.images import BadImage
from lrvsf.data.pairs import PairMaker, augment, draws_of
from lrvsf.data.products import ProductShards
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.stream import PairLoader, ProductBatches


def encoded(color, size=(20, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def image(data, kind, category=None):
    return {"image": {"bytes": data, "path": None}, "type": kind, "category": category, "captions": []}


def product(name, simple="white", scene="black", category="Bags"):
    scene = scene if isinstance(scene, bytes) else encoded(scene)
    return {"product_id": name, "images": [image(encoded(simple), "SIMPLE", category), image(scene, "COMPLEX")]}


def write(folder, rows, files=3):
    folder.mkdir(exist_ok=True, parents=True)
    for index in range(files):
        table = pa.Table.from_pylist(rows[index::files], schema=PRODUCT_FEATURES.arrow_schema)
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=4)
    return folder


def ids(batches):
    return [[row["product_id"] for row in rows] for _, rows, _ in batches]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "train", [product(f"p{i:02d}") for i in range(26)])


def test_every_product_once_an_epoch_in_an_order_of_seed_and_epoch(folder):
    shards = ProductShards.scan(folder)
    batches = ProductBatches(shards, 4, seed=3)
    first, again = ids(batches), ids(batches)
    flat = [name for batch in first for name in batch]
    assert first == again and len(batches) == len(first) == 6 and len(set(flat)) == 24
    batches.set_epoch(1)
    assert ids(batches) != first
    assert ids(ProductBatches(shards, 4, seed=4)) != first


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_global_batch_of_the_single_process(folder, world):
    shards = ProductShards.scan(folder)
    together = ids(ProductBatches(shards, 6, seed=0))
    parts = [ids(ProductBatches(shards, 6 // world, seed=0, rank=rank, world_size=world)) for rank in range(world)]
    assert [sum(slices, []) for slices in zip(*parts, strict=True)] == together


def test_spares_are_not_in_the_global_batch(folder):
    shards = ProductShards.scan(folder)
    for rank in range(2):
        mine = list(ProductBatches(shards, 4, seed=0, rank=rank, world_size=2))
        whole = ids(ProductBatches(shards, 8, seed=0))
        for (_, _, spares), batch in zip(mine, whole, strict=True):
            assert spares and not {row["product_id"] for row in spares} & set(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(folder, workers):
    maker = PairMaker(16, ["Bags"], seed=0)
    loader = PairLoader(ProductBatches(ProductShards.scan(folder), 4, seed=0), maker, workers)
    naive = [maker.batch(*item) for item in ProductBatches(ProductShards.scan(folder), 4, seed=0)]
    got = list(loader)
    assert len(got) == len(naive) == len(loader)
    for batch, expected in zip(got, naive, strict=True):
        assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["pixel_values"].dtype == torch.uint8
        assert all(torch.equal(batch[key], expected[key]) for key in expected if key != "skipped")


def test_a_pair_depends_on_seed_epoch_and_product_alone(folder):
    row, other = product("a", scene="red"), product("b", scene="red")
    batch = PairMaker(16, None, 0).batch(0, [row, other], [])
    alone = PairMaker(16, None, 0).batch(0, [other], [])
    assert torch.equal(batch["pixel_values"][1], alone["pixel_values"][0])
    assert draws_of(0, 0, "a").random() != draws_of(0, 1, "a").random() != draws_of(1, 0, "a").random()
    assert "category_indices" not in batch


def test_augment_keeps_most_of_the_image_and_mirrors_half():
    picture = Image.new("RGB", (40, 40), "black")
    picture.paste("white", (20, 0, 40, 40))
    views = [np.asarray(augment(picture, 32, np.random.default_rng(i)))[:, :, 0] / 255 for i in range(60)]
    right = sum(view[:, 24:].mean() > 0.9 for view in views)
    left = sum(view[:, :8].mean() > 0.9 for view in views)
    assert right + left == 60 and 15 < right < 45
    wide = np.asarray(augment(Image.new("RGB", (40, 10)), 32, np.random.default_rng(0)))
    assert wide[0].min() == 255 and wide[16].max() == 0, "padded to a white square"


def test_a_bad_image_is_skipped_counted_and_replaced(caplog):
    maker = PairMaker(16, ["Bags"], seed=0)
    broken = product("broken", scene=b"<html>gone</html>")
    half = product("half")
    half["images"].insert(0, image(b"", "COMPLEX"))
    batch = maker.batch(0, [broken, half, product("good")], [product("spare")])
    assert batch["pixel_values"].shape[0] == 3
    assert ("broken", "not an image") in batch["skipped"]
    assert set(batch["skipped"]) <= {("broken", "not an image"), ("half", "empty")}
    with pytest.raises(BadImage, match="1 bad images, 0 spare"):
        maker.batch(0, [broken], [])


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
    (batch,) = ids(ProductBatches(shards, 2, seed=0))
    assert sorted(batch) == ["a", "b"]


def test_unusable_folders_are_refused(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no \\*.parquet"):
        ProductShards.scan(tmp_path / "nothing")
    with pytest.raises(ValueError, match="do not fill one global batch of 2 x 16"):
        ProductBatches(ProductShards.scan(folder), 16, seed=0, world_size=2)
    write(tmp_path / "twice", [product("same"), product("same")], 2)
    with pytest.raises(ValueError, match="'same' is in"):
        ProductShards.scan(tmp_path / "twice")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        ProductShards.scan(tmp_path / "text")
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "other" / "x.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['url'\]"):
        ProductShards.scan(tmp_path / "other")


def of_four_categories(count):
    return [product(f"p{i:03d}", category=("Bags", "Head", "Neck", "Bags", "Feet")[i % 5]) for i in range(count)]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_batches_of_few_categories(tmp_path, parts):
    shards = ProductShards.scan(write(tmp_path / "t", of_four_categories(118)))
    batches = ProductBatches(shards, 8, seed=0, categories_per_batch=parts)
    category = {row["product_id"]: row["images"][0]["category"] for row in of_four_categories(118)}
    epoch = ids(batches)
    assert len(epoch) == len(batches)
    for batch in epoch:
        groups = [{category[name] for name in batch[i : i + 8 // parts]} for i in range(0, 8, 8 // parts)]
        assert len(batch) == 8 and all(len(group) == 1 for group in groups)
    flat = [name for batch in epoch for name in batch]
    assert len(set(flat)) == len(flat) > 118 - 4 * (8 // parts) - 8, "only the last of each category are left out"
    assert epoch == ids(batches) and epoch != ids(ProductBatches(shards, 8, seed=1, categories_per_batch=parts))
    ranks = [ids(ProductBatches(shards, 4, seed=0, rank=r, world_size=2, categories_per_batch=parts)) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == epoch


def test_impossible_categories_per_batch_are_refused(folder):
    shards = ProductShards.scan(folder)
    for parts in (0, 3, 16):
        with pytest.raises(ValueError, match=f"categories_per_batch={parts} must divide the global batch of 2 x 4"):
            ProductBatches(shards, 4, seed=0, world_size=2, categories_per_batch=parts)
    few = ProductShards.scan(write(folder.parent / "few", of_four_categories(12)))
    with pytest.raises(ValueError, match="12 usable products do not fill one global batch of 1 x 8 from 1 cat"):
        ProductBatches(few, 8, seed=0, categories_per_batch=1)
