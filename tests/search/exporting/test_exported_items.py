"""What leaves a catalog: the items that are left, in batches, with keys of their own."""

import uuid

import numpy as np
import pytest

from lrvsf.search.exporting import exported_items
from lrvsf.search.exporting.exported_items import ExportedItems, key_of
from lrvsf.search.generations import Generations
from lrvsf.search.opening.opened import read_metadata
from lrvsf.search.vectors import Vectors


@pytest.fixture
def generation(odd_shop):
    return Generations(odd_shop).answering()


@pytest.mark.parametrize("size", [1, 333, 1024, 5000])
def test_batches_are_what_is_left_in_order(generation, monkeypatch, size):
    monkeypatch.setattr(exported_items, "BATCH", size)
    items = ExportedItems(generation)
    batches = list(items.batches())
    left = np.setdiff1d(np.arange(generation.total), generation.removed)
    assert len(items) == sum(map(len, batches)) == len(left) == 1497 and max(map(len, batches)) <= size
    vectors = Vectors.open([segment.folder for segment in generation.segments])
    np.testing.assert_array_equal(np.concatenate([batch.vectors for batch in batches]), vectors.take(left))
    twin = read_metadata(generation).take(left)
    cells = [row for batch in batches for row in batch.cells.to_pylist()]
    assert cells == twin.select(items.columns.names).to_pylist()


def test_stored_rows_are_the_catalogs_bits(generation):
    items = ExportedItems(generation, stored=True)
    rows = np.concatenate([batch.vectors for batch in items.batches()])
    assert rows.dtype == np.float16
    stored = items.vectors.stored(np.setdiff1d(np.arange(generation.total), generation.removed)).numpy()
    np.testing.assert_array_equal(rows.view(np.uint16), stored.view(np.uint16))


def test_keys_are_of_the_id_and_of_the_photos_number(generation):
    keys, met = [], {}
    for batch in ExportedItems(generation).batches():
        for key, name in zip(batch.keys, batch.cells["id"].to_pylist(), strict=True):
            met[name] = met.get(name, -1) + 1
            text = f"{name}\0{met[name]}" if met[name] else name  # the naive twin: everything is counted
            assert key == uuid.uuid5(uuid.NAMESPACE_URL, text) == key_of(name, met[name])
            keys.append(key)
    assert len(set(keys)) == len(keys) == 1497 and met["x1010"] == 2


def test_a_batch_is_read_when_it_is_wanted(generation, monkeypatch):
    monkeypatch.setattr(exported_items, "BATCH", 100)
    items, read = ExportedItems(generation), []
    take = items.vectors.take
    monkeypatch.setattr(items.vectors, "take", lambda rows: read.append(len(rows)) or take(rows))
    batches = items.batches()
    next(batches), next(batches)
    assert read == [99, 100]


def test_a_damaged_file_is_named(generation, tmp_path):
    from lrvsf.search.generations import Segment

    folder = tmp_path / "segment"
    folder.mkdir()
    (folder / "items.parquet").write_bytes(b"PAR1 this is none")
    (folder / "item-00000.safetensors").write_bytes(
        (generation.segments[0].folder / "item-00000.safetensors").read_bytes()
    )
    broken = type(generation)("g-1", folder, {}, (Segment(folder, {"items": 1000}),), np.array([], np.int64))
    with pytest.raises(ValueError, match="items.parquet is damaged"):
        ExportedItems(broken)
