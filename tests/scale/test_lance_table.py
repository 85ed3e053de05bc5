"""A catalog as a Lance table: what changes is written and nothing else, versions stay, a death leaves a whole one."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from vector_shops import VectorShop, queries, table_of_items

from lrvsf.search.build_catalog import compact_catalog, remove_items
from lrvsf.search.catalog import Catalog

lance = pytest.importorskip("lance")

from lrvsf.scale import write_lance as module  # noqa: E402 - it needs Lance
from lrvsf.scale.write_lance import write_lance  # noqa: E402


@pytest.fixture
def shop(tmp_path):
    """A catalog of 300 items, and shop.lance of it."""
    shop = VectorShop(tmp_path / "catalog")
    shop.first = shop.segment("first", table_of_items(range(300)))
    shop.answer(shop.first)
    shop.out, shop.table = tmp_path / "catalog", tmp_path / "shop.lance"
    write_lance(shop.out, shop.table, None)
    return shop


def files_of(table):
    """The data files by name, with the hash of their bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (table / "data").iterdir()}


def hits(catalog, model="old", **asked):
    found = Catalog.open(catalog).nearest(queries(model), **asked)
    assert all(one[0].thumbnail == f"JPEG of {one[0].id[1:]}".encode() for one in found[:3])
    return [[(hit.id, hit.score, hit.metadata) for hit in one] for one in found]


def assert_the_same(table, catalog, model="old"):
    for asked in ({"k": 10}, {"k": 30, "where": "price < 50 and brand = 'a'"}, {"k": 3, "where": "brand is null"}):
        assert hits(table, model, **asked) == hits(catalog, model, **asked), asked


def test_a_table_answers_as_its_catalog_does(shop):
    assert_the_same(shop.table, shop.out)
    one, other = Catalog.open(shop.table), Catalog.open(shop.out)
    assert [hit.id for hit in one.like(7, 5)] == [hit.id for hit in other.like(7, 5)]
    assert one.item("x11").metadata == other.item("x11").metadata and one.item("nothing") is None
    columns = {"id": "string", "price": "int64", "brand": "string"}
    assert one.generation.columns() == other.generation.columns() == columns


def test_nothing_new_is_no_version_more(shop):
    before = lance.dataset(shop.table).version
    assert write_lance(shop.out, shop.table, None)["version"] == before == lance.dataset(shop.table).latest_version


def test_new_items_are_appended(shop):
    before = files_of(shop.table)
    shop.answer(shop.first, shop.segment("more", table_of_items(range(300, 340), stock=list(range(40)))))
    told = write_lance(shop.out, shop.table, None)
    assert (told["appended"], told["deleted"], told["items"]) == (40, 0, 340)
    after = files_of(shop.table)
    assert before.items() < after.items() and len(after) == len(before) + 1
    assert_the_same(shop.table, shop.out)
    assert hits(shop.table, k=5, where="stock > 3") == hits(shop.out, k=5, where="stock > 3")


def test_removed_items_are_deleted_without_a_byte_of_data(shop):
    before = files_of(shop.table)
    remove_items(shop.out, None, "price between 10 and 20")
    told = write_lance(shop.out, shop.table, None)
    assert told["deleted"] == 300 - told["items"] > 0 and told["appended"] == 0
    assert files_of(shop.table) == before
    assert_the_same(shop.table, shop.out)
    compact_catalog(shop.out, False)  # other segments of the same items
    told = write_lance(shop.out, shop.table, None)
    assert (told["appended"], told["deleted"]) == (0, 0) and files_of(shop.table) == before


def test_what_an_item_says_may_change(shop):
    changed = table_of_items(range(300)).to_pydict()
    changed["price"][17], changed["brand"][18] = 1000, "c"
    shop.answer(shop.segment("changed", pa.table(changed)))
    told = write_lance(shop.out, shop.table, None)
    assert (told["appended"], told["deleted"]) == (2, 2)
    assert [hit.id for hit in Catalog.open(shop.table).nearest(queries(), 300, "price = 1000")[0]] == ["x17"]
    assert hits(shop.table, k=30, where="price < 50") == hits(shop.out, k=30, where="price < 50")


def test_rows_that_are_alike_are_counted(tmp_path):
    shop = VectorShop(tmp_path / "catalog")
    twice = shop.segment("twice", table_of_items([1, 2, 2, 3]))
    shop.answer(twice)
    assert write_lance(tmp_path / "catalog", tmp_path / "t.lance", None)["items"] == 4
    shop.answer(twice, shop.segment("again", table_of_items([2, 3])))
    assert write_lance(tmp_path / "catalog", tmp_path / "t.lance", None)["appended"] == 2
    shop.answer(shop.segment("once", table_of_items([3, 2, 1])))
    told = write_lance(tmp_path / "catalog", tmp_path / "t.lance", None)
    assert (told["deleted"], told["items"]) == (3, 3)
    assert {hit.id for hit in Catalog.open(tmp_path / "t.lance").nearest(queries(), 9)[0]} == {"x1", "x2", "x3"}


def test_a_second_model_is_a_column_more(shop):
    before = files_of(shop.table)
    items = table_of_items(range(299, -1, -1))  # in another order
    shop.answer(shop.segment("first", items, "new"), model="new")
    told = write_lance(shop.out, shop.table, None)
    assert (told["appended"], told["deleted"]) == (0, 0)
    after = files_of(shop.table)
    assert before.items() < after.items(), "images are where they were"
    assert len(after) == len(before) + 1 and max(len(one) for one in hits(shop.table, "new", k=10)) == 10
    assert_the_same(shop.table, shop.out, "new")
    assert Catalog.open(f"{shop.table}@g-000001").vectors.shape == (300, 64), "the first model's are there"


def test_items_that_came_under_another_model_get_their_vectors(shop):
    shop.answer(shop.segment("first", table_of_items(range(310)), "new"), model="new")
    write_lance(shop.out, shop.table, None)
    shop.answer(shop.first, shop.segment("more", table_of_items(range(300, 320))))
    told = write_lance(shop.out, shop.table, None)
    assert (told["appended"], told["deleted"]) == (10, 0)
    assert_the_same(shop.table, shop.out)


def test_columns_come_and_go(shop):
    items = table_of_items(range(300), stock=pa.nulls(300, pa.int64()))
    shop.answer(shop.segment("other", items.drop_columns(["brand"])))
    told = write_lance(shop.out, shop.table, None)
    assert (told["appended"], told["deleted"]) == (0, 0), "an empty cell is what a missing one is"
    assert Catalog.open(shop.table).metadata.column_names == ["id", "price", "stock"]
    shop.answer(shop.segment("typed", table_of_items(range(300), stock=["many"] * 300)))
    with pytest.raises(ValueError, match="has int64 in the column 'stock', and the catalog string; write another"):
        write_lance(shop.out, shop.table, None)


def test_versions_stay(shop):
    asked = {"k": 10, "where": "price < 50"}
    then = hits(shop.out, **asked)
    open_then = Catalog.open(shop.table)
    remove_items(shop.out, None, "price < 40")
    write_lance(shop.out, shop.table, None)
    assert hits(shop.table, **asked) == hits(shop.out, **asked) != then
    assert hits(f"{shop.table}@g-000001", **asked) == hits(f"{shop.table}@1", **asked) == then
    assert [hit.id for hit in open_then.nearest(queries()[:1], 10)[0]] == [
        hit.id for hit in Catalog.open(f"{shop.table}@1").nearest(queries()[:1], 10)[0]
    ], "what is open goes on as it was"
    with pytest.raises(FileNotFoundError, match="has no version 'g-000009'; it has g-000001, g-000002, and numbers up"):
        Catalog.open(f"{shop.table}@g-000009")


class Death(BaseException):
    """SIGKILL, as far as the disk sees it: what Lance commits is on the disk before it returns."""


COMMITS = ["add_columns", "delete", "write_dataset", "drop_columns", "update_schema_metadata", "create_index"]


@pytest.mark.survives("`search_catalog.py lance` is killed", "the table is as before or as after, and a rerun goes on")
@pytest.mark.parametrize("commit", [*COMMITS, "tag"])
@pytest.mark.parametrize("after", [False, True])
def test_a_death_leaves_the_version_that_answered(shop, commit, after, monkeypatch):
    """The next model's vectors come, some items go, others are new, and so is a column."""
    monkeypatch.setattr("lrvsf.scale.lance_index.FLAT_ITEMS", 100)
    before = hits(shop.table, k=10)
    items = table_of_items(range(20, 350), stock=[3] * 330).drop_columns(["brand"])
    shop.answer(shop.segment("next", items, "new"), model="new")

    def dying(call):
        def died(*args, **kwargs):
            if after:
                call(*args, **kwargs)
            raise Death

        return died

    owner = {"write_dataset": module.lance, "tag": module}.get(commit, lance.LanceDataset)
    name = {"tag": "_tagged"}.get(commit, commit)
    monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    with pytest.raises(Death):
        write_lance(shop.out, shop.table, None)
    assert hits(shop.table, k=10) == before
    monkeypatch.undo()
    monkeypatch.setattr("lrvsf.scale.lance_index.FLAT_ITEMS", 100)
    assert write_lance(shop.out, shop.table, None)["items"] == 330
    found = Catalog.open(shop.table)
    assert found.index.factory == "Lance IVF_SQ" and found.metadata.column_names == ["id", "price", "stock"]
    rows = np.arange(330)
    there, wanted = found.vectors.take(rows), Catalog.open(shop.out).vectors.take(rows)
    np.testing.assert_array_equal(np.sort(there, 0), np.sort(wanted, 0))
    assert found.nearest(queries("new"), 10, "price < 20") and hits(f"{shop.table}@g-000001", k=10) == before


def test_a_first_write_that_dies_leaves_nothing(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(Death))
    with pytest.raises(Death):
        write_lance(shop.out, tmp_path / "other.lance", None)
    assert not (tmp_path / "other.lance").exists()
    monkeypatch.undo()
    write_lance(shop.out, tmp_path / "other.lance", None)
    assert_the_same(tmp_path / "other.lance", shop.out)
