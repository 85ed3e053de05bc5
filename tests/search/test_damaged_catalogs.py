"""What a disk, a copy that was cut short and pictures that are none do to a catalog."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from made import encode, noise, squares, write_file

from lrvsf.command import explain, is_refusal
from lrvsf.data.images import TooMuchDamage
from lrvsf.embedding import store
from lrvsf.search import segments
from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import Generations

FILES = ["CURRENT", "generations/*/index.json", "generations/*/manifest.json", "generations/*/removed.npy",
         "segments/*/item-*.safetensors", "segments/*/items.parquet", "segments/*/manifest.json"]  # fmt: skip
DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "other": lambda data: bytes(byte ^ 90 for byte in data),
    "gone": None,
}


@pytest.mark.survives("a file of a catalog that is cut short, empty, of other bytes or gone", "named in one line")
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(shop, step, file, damage):
    (path,) = (shop / "catalog").glob(file)
    data = path.read_bytes()
    path.write_bytes(DAMAGE[damage](data)) if DAMAGE[damage] else path.unlink()
    with pytest.raises(Exception) as told:  # noqa: PT011 - of which kind is looked at below
        step("query", shop / "catalog", "--image", shop / "1.jpg")
    assert is_refusal(told.value) and "\n" not in (line := explain(told.value))
    if (file, damage) != ("generations/*/manifest.json", "gone"):  # then there is no such generation
        assert str(path.parent) in line, line
    path.write_bytes(data)
    assert Catalog.open(shop / "catalog").search(squares(1), k=1)[0].id == "x1"


def test_a_name_that_is_damaged_is_mended_by_switch(shop, step):
    (shop / "catalog/CURRENT").write_text("g-0000")
    with pytest.raises(FileNotFoundError, match="CURRENT names 'g-0000', and there is g-000001; let one answer with"):
        step("info", shop / "catalog")
    step("switch", shop / "catalog", "g-000001")
    assert Catalog.open(shop / "catalog").search(squares(1), k=1)[0].id == "x1"


@pytest.mark.survives("a catalog's index is damaged or gone", "`compact`, or the same `index`, makes it anew")
@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["index.json", "index.faiss"])
def test_a_damaged_index_is_made_anew(shop, model, step, tmp_path, file, damage, grown, embedded):
    index = ["index", model, shop / "shop.csv", tmp_path / "out", "--factory", "HNSW8"]
    step(*index)
    if grown:
        write_file(tmp_path / "more/new.jpg", squares(100))
        step("add", tmp_path / "more", tmp_path / "out")
    wanted = [hit.id for hit in Catalog.open(tmp_path / "out").search(squares(1))]
    embedded.clear()
    path = Catalog.open(tmp_path / "out").generation.folder / file
    data = path.read_bytes()
    path.unlink()  # never changed in place, as the generations before and after may share it
    if DAMAGE[damage]:
        path.write_bytes(DAMAGE[damage](data))
    with pytest.raises((FileNotFoundError, ValueError), match=f"{file} is .*; search_catalog.py compact makes it anew"):
        Catalog.open(tmp_path / "out")
    step(*(["compact", tmp_path / "out"] if grown else [*index, "--switch"]))
    mended = Catalog.open(tmp_path / "out")
    assert sum(embedded) == 0
    assert [hit.id for hit in mended.search(squares(1))] == wanted
    step("compact", tmp_path / "out")  # and what is whole stays
    assert Generations(tmp_path / "out").current_name() == mended.generation.name


def test_compact_mends_the_index_of_one_segment_and_drops_the_damaged_one(shop, step):
    path = shop / "catalog/generations/g-000001/index.json"
    path.write_text("{")
    step("compact", shop / "catalog")
    assert Generations(shop / "catalog").names() == ["g-000002"]
    assert Catalog.open(shop / "catalog").search(squares(1), k=1)[0].id == "x1"


@pytest.mark.survives("a catalog is copied while it grows", "the copy answers, or names what `switch` lets answer")
def test_a_copy_of_a_catalog_that_grows(shop, step, tmp_path, monkeypatch):
    catalog, copies, replace = shop / "catalog", [], os.replace
    write_file(tmp_path / "more/new.jpg", squares(100))

    def copied(part, path):
        replace(part, path)
        copies.append(shutil.copytree(catalog, tmp_path / f"copy {len(copies)}"))

    monkeypatch.setattr(os, "replace", copied)
    step("add", tmp_path / "more", catalog)
    monkeypatch.undo()
    assert len(copies) > 3
    for copy in copies:
        best = Catalog.open(copy).search(squares(100), k=1)[0].id
        assert (best == "new.jpg") == (Generations(copy).current_name() == "g-000002")
    late = copies[0]  # its folders were copied before the new generation was there, CURRENT afterwards
    shutil.copy(catalog / "CURRENT", late / "CURRENT")
    with pytest.raises(FileNotFoundError, match="names 'g-000002', and there is g-000001; let one answer with"):
        Catalog.open(late)
    step("switch", late, "g-000001")
    assert Catalog.open(late).search(squares(1), k=1)[0].id == "x1"


@pytest.mark.survives(
    "the disk is full while a catalog is made or grows", "what answered answers; it goes on from there"
)
@pytest.mark.parametrize("where", ["write_whole", "write_items"])
def test_a_full_disk(shop, model, step, tmp_path, monkeypatch, where):
    write_file(tmp_path / "more/new.jpg", squares(100))
    owner = store if where == "write_whole" else segments
    plain = getattr(owner, where)

    def full(path, *given):
        if Path(path).suffix != ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(path, *given)

    monkeypatch.setattr(owner, where, full)
    for words in (["add", tmp_path / "more", shop / "catalog"], ["index", model, shop / "shop.csv", tmp_path / "out"]):
        with pytest.raises(OSError, match="No space left on device"):
            step(*words)
    assert Catalog.open(shop / "catalog").generation.name == "g-000001"
    assert Generations(tmp_path / "out").current() is None
    monkeypatch.setattr(owner, where, plain)
    step("add", tmp_path / "more", shop / "catalog")
    step("index", model, shop / "shop.csv", tmp_path / "out")
    assert Catalog.open(shop / "catalog").search(squares(100), k=1)[0].id == "new.jpg"
    assert len(Catalog.open(tmp_path / "out")) == 8


@pytest.mark.survives("bombs, torn files and what is no picture, among those of a catalog", "left out, counted, named")
def test_bad_pictures_of_a_catalog_are_left_out(tmp_path, model, step, capsys):
    write_file(tmp_path / "in/good.jpg", squares(1))
    write_file(tmp_path / "in/torn.jpg", squares(2)[:200])
    write_file(tmp_path / "in/none.jpg", b"<html>")
    write_file(tmp_path / "in/empty.png", b"")
    write_file(
        tmp_path / "in/bomb.gif", b"GIF89a" + (65_000).to_bytes(2, "little") * 2 + encode(noise(1, 1, 1), "GIF")[10:]
    )
    index = ["index", model, tmp_path / "in", tmp_path / "out"]
    with pytest.raises(TooMuchDamage, match="2 in a row"):
        step(*index, "--max_bad_in_a_row", 2)
    assert Generations(tmp_path / "out").current() is None
    step(*index)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("torn.jpg", "none.jpg", "empty.png", "bomb.gif")), printed
    assert [hit.id for hit in Catalog.open(tmp_path / "out").search(squares(1))] == ["good.jpg"]
