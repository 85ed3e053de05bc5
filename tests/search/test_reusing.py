"""A picture is embedded once by a model, whatever its table says of it later; and what is reused is what was made."""

import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from made import squares, tiny_condvit, write_csv, write_file

from lrvsf.embedding import store
from lrvsf.search import segments
from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import Generations
from lrvsf.search.segments import DIGEST

COLUMNS = ("id", "image", "price")


@pytest.fixture
def feed(tmp_path, monkeypatch):
    """`feed({id: (picture, price), ...})`: writes a table and its pictures, bitmaps of one size; shards have 8 rows."""
    monkeypatch.setattr(store, "ROWS", 8)
    monkeypatch.setattr(segments, "ROWS", 8)

    def write(items):
        for name, (picture, _) in items.items():
            write_file(tmp_path / f"shop/{name}.bmp", picture)
        rows = [(name, f"{name}.bmp", price) for name, (_, price) in items.items()]
        return write_csv(tmp_path / "shop/shop.csv", rows, COLUMNS)

    return write


def bitmaps(numbers):
    return {f"x{number}": (squares(number, "BMP"), 10 * number) for number in numbers}


def everything(folder):
    """id -> (the stored bits, thumbnail, metadata) of what is left of a catalog."""
    catalog = Catalog.open(folder)
    rows = np.setdiff1d(np.arange(catalog.generation.total), catalog.generation.removed)
    known = catalog.metadata.take(rows).to_pylist()
    bits = catalog.vectors.stored(rows).numpy()
    return {one.pop("id"): (bits[place], catalog.thumbnail(rows[place]), one) for place, one in enumerate(known)}


def assert_equal(catalog, fresh, atol=0.0):
    """Ids, thumbnails and metadata are the same, and so are vectors: bit for bit, where batches had the same size."""
    there, expected = everything(catalog), everything(fresh)
    assert list(there) == list(expected)
    for name, (bits, small, known) in expected.items():
        np.testing.assert_allclose(there[name][0], bits, atol=atol, rtol=0)
        assert there[name][1:] == (small, known)


def test_a_changed_price_embeds_nothing(feed, model, tmp_path, step, embedded, capsys):
    items = bitmaps(range(20))
    table, folder = feed(items), tmp_path / "catalog"
    step("index", model, table, folder)
    assert sum(embedded) == 20
    capsys.readouterr()
    embedded.clear()
    items["x3"] = (items["x3"][0], 5)
    step("index", model, feed(items), folder, "--switch")
    assert not embedded and Catalog.open(folder).generation.name == "g-000002"
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["embedded", "0"] in told and ["embeddings", "reused", "20"] in told
    assert Catalog.open(folder).search(items["x3"][0], k=1)[0].metadata == {"price": 5}
    step("index", model, table, tmp_path / "fresh")
    assert_equal(folder, tmp_path / "fresh")


def test_bytes_decide_not_names_sizes_and_times(feed, model, tmp_path, step, embedded):
    items = bitmaps(range(9))
    step("index", model, feed(items), tmp_path / "catalog")
    times = {path: path.stat() for path in (tmp_path / "shop").glob("*.bmp")}
    items["x4"], items["x5"] = (squares(40, "BMP"), 40), (items["x6"][0], 50)  # a new picture, and one of another item
    table = feed(items)
    for path, before in times.items():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    items["x0"] = (items["x0"][0], 99)
    write_csv(table, [(name, f"{name}.bmp", price) for name, (_, price) in items.items()], COLUMNS)
    embedded.clear()
    step("index", model, table, tmp_path / "catalog", "--switch")
    assert embedded == [1], "the new one; the other one is known, by whatever name"
    step("index", model, table, tmp_path / "fresh")
    assert_equal(tmp_path / "catalog", tmp_path / "fresh", atol=2e-3)  # x4's batch had another size


def test_items_come_and_go_and_change_places(feed, model, tmp_path, step, embedded):
    folder = tmp_path / "catalog"
    step("index", model, feed(bitmaps(range(20))), folder)
    embedded.clear()
    items = bitmaps([25, *range(19, 3, -1), 24]) | {"bad": (b"<html>", 1)}
    step("index", model, feed(items), folder, "--switch", "--max_bad_fraction", "0.2")
    assert sum(embedded) == 2
    step("index", model, tmp_path / "shop/shop.csv", tmp_path / "fresh", "--max_bad_fraction", "0.2")
    assert len(Catalog.open(folder)) == 18
    assert_equal(folder, tmp_path / "fresh", atol=2e-3)
    embedded.clear()
    step("index", model, feed(bitmaps(range(20))), folder, "--switch")
    assert not embedded, "what is gone is known as long as a generation has it"


def test_another_model_reuses_nothing_but_its_own(feed, model, tmp_path, step, embedded):
    folder, other = tmp_path / "catalog", tiny_condvit()
    other.visual_projection.weight.data.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    step("index", model, feed(bitmaps(range(5))), folder)
    embedded.clear()
    step("index", tmp_path / "other", folder)
    assert sum(embedded) == 5
    step("index", model, tmp_path / "shop/shop.csv", folder, "--dims", "8")
    assert sum(embedded) == 10, "other dimensions are another model's"
    table = feed({name: (picture, 1) for name, (picture, _) in bitmaps(range(5)).items()})
    step("index", tmp_path / "other", table, folder)
    assert sum(embedded) == 10, "its own, though it never answered"


def test_a_replaced_item_whose_picture_stayed_gets_new_metadata(feed, model, tmp_path, step, embedded):
    folder, items = tmp_path / "catalog", bitmaps(range(10))
    step("index", model, feed(items), folder)
    before = everything(folder)
    embedded.clear()
    table = feed({"x2": (items["x2"][0], 1), "x3": (squares(33, "BMP"), 2), "new": (squares(44, "BMP"), 3)})
    step("add", table, folder, "--replace")
    assert embedded == [2]
    after = everything(folder)
    assert np.array_equal(after["x2"][0], before["x2"][0]) and after["x2"][1:] == (before["x2"][1], {"price": 1})
    assert not np.array_equal(after["x3"][0], before["x3"][0]) and after["x3"][1] != before["x3"][1]
    step("compact", folder, "--drop_previous")
    embedded.clear()
    assert everything(folder).keys() == after.keys()
    step("index", model, feed(items), folder, "--switch")
    assert embedded == [1], "x3, whose first picture is gone with the generation that had it"


def test_a_catalog_without_digests_is_embedded_anew_once(feed, model, tmp_path, step, embedded):
    folder = tmp_path / "catalog"
    table = feed(bitmaps(range(9)))
    step("index", model, table, folder)
    (items,) = folder.glob("segments/*/items.parquet")
    pq.write_table(pq.read_table(items).drop_columns([DIGEST]), items)
    before = everything(folder)
    step("add", feed({"new": (squares(50, "BMP"), 1)}), folder)
    step("compact", folder, "--drop_previous")
    for name, (bits, small, known) in before.items():
        there = everything(folder)[name]
        assert np.array_equal(there[0], bits) and there[1:] == (small, known)
    for count in (9, 0):  # the tenth was added with its digest
        embedded.clear()
        table = feed({name: (picture, count) for name, (picture, _) in bitmaps([*range(9), 50]).items()})
        step("index", model, table, folder, "--switch")
        assert sum(embedded) == count


def test_pictures_are_not_decoded_again(feed, model, tmp_path, step, monkeypatch):
    table = feed(bitmaps(range(5)))
    step("index", model, table, tmp_path / "catalog")
    shutil.copy(table, tmp_path / "shop/again.csv")
    monkeypatch.setattr(segments, "decode_shown", None)
    step("index", model, tmp_path / "shop/again.csv", tmp_path / "catalog", "--switch")
    assert len(Generations(tmp_path / "catalog").answering()) == 5


def test_damaged_digests_are_named_with_a_remedy(feed, model, tmp_path, step, embedded):
    step("index", model, feed(bitmaps(range(5))), tmp_path / "catalog")
    (items,) = (tmp_path / "catalog").glob("segments/*/items.parquet")
    items.write_bytes(items.read_bytes()[:-100])
    embedded.clear()
    table = feed(bitmaps(range(6)))
    with pytest.raises(ValueError, match="items.parquet is damaged .* or index into another folder"):
        step("index", model, table, tmp_path / "catalog")
    assert not embedded
