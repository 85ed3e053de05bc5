"""A catalog that changes: add, replace, remove, compact, another model, switch and rollback, readers meanwhile."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made import squares, tiny_condvit, write_csv, write_file

from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import Generations


@pytest.fixture
def more(tmp_path):
    """A table of two further pictures, n0 and n1."""
    for number in range(2):
        write_file(tmp_path / f"more/{number}.jpg", squares(100 + number))
    rows = [("n0", "0.jpg", "90.5"), ("n1", "1.jpg", "95")]
    return write_csv(tmp_path / "more/more.csv", rows, ("id", "image", "price"))


def best(folder, picture, **asked):
    return Catalog.open(folder).search(picture, k=1, **asked)[0]


def all_ids(folder):
    catalog = Catalog.open(folder)
    return sorted(hit.id for hit in catalog.search(squares(0), k=100))


def test_add_embeds_only_what_is_new(shop, more, step, embedded, capsys):
    folder = shop / "catalog"
    step("add", more, folder)
    assert sum(embedded) == 2 and Generations(folder).answering().name == "g-000002"
    hit = best(folder, squares(101))
    assert hit.id == "n1" and hit.metadata == {"price": 95.0, "brand": None}
    assert best(folder, squares(3)).metadata == {"price": 40.0, "brand": "b"}
    assert best(folder, squares(3), where="price > 90").id in ("n0", "n1")
    step("info", folder)
    assert "10" in capsys.readouterr().out


def test_an_id_that_is_there_is_refused_or_replaced(shop, tmp_path, step):
    folder = shop / "catalog"
    write_file(tmp_path / "new.jpg", squares(55))
    table = write_csv(tmp_path / "new.csv", [("x3", "new.jpg", 1)], ("id", "image", "price"))
    with pytest.raises(ValueError, match="1 items of .* have an id that .*new.csv has too, such as 'x3'; .* --replace"):
        step("add", table, folder)
    step("add", table, folder, "--replace")
    assert all_ids(folder) == [f"x{number}" for number in range(8)]
    assert best(folder, squares(55)).metadata["price"] == 1 and best(folder, squares(3)).row != 3


def test_a_column_of_another_type_is_refused_before_anything_is_embedded(shop, tmp_path, step, embedded):
    write_file(tmp_path / "a.jpg", squares(1))
    table = write_csv(tmp_path / "new.csv", [("y", "a.jpg", "cheap")], ("id", "image", "price"))
    with pytest.raises(ValueError, match="string in the column 'price', and the catalog has int64"):
        step("add", table, shop / "catalog")
    assert not embedded


def test_remove_by_id_or_condition_and_compact(shop, more, step, capsys):
    folder = shop / "catalog"
    step("add", more, folder)
    step("remove", folder, "x1", "n0")
    step("remove", folder, "--where", "price >= 70 and brand is not null")
    left = ["n1", "x0", "x2", "x3", "x4", "x5"]
    assert all_ids(folder) == left
    scores = {hit.id: hit.score for hit in Catalog.open(folder).search(squares(9), k=9)}
    thumbnails = {hit.id: hit.thumbnail for hit in Catalog.open(folder).search(squares(9), k=9)}
    step("compact", folder, "--drop_previous")
    catalog = Catalog.open(folder)
    assert all_ids(folder) == left and len(catalog.generation.segments) == 1 and not len(catalog.generation.removed)
    found = catalog.search(squares(9), k=9)
    assert {hit.id: hit.score for hit in found} == scores, "the same bits"
    assert {hit.id: hit.thumbnail for hit in found} == thumbnails
    assert Generations(folder).names() == ["g-000005"] and len(list((folder / "segments").iterdir())) == 1
    assert best(folder, squares(5)).metadata == {"price": 60.0, "brand": "b"}
    counts = Generations(folder).answering().sources()
    assert {Path(name).name: count for name, count in counts.items()} == {"shop.csv": 5, "more.csv": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zz", "x1"], "has no item 'zz'; nothing was removed"),
        (["--where", "price > 1000"], "has no item where price > 1000; nothing was removed"),
        (["--where", "price > 0"], "nothing of .* would be left to answer; remove its folder instead"),
        ([], "by their ids, or by --where"),
        (["x1", "--where", "price > 0"], "by their ids, or by --where"),
    ],
)
def test_what_cannot_be_removed_is_refused(shop, step, words, message):
    with pytest.raises(ValueError, match=message):
        step("remove", shop / "catalog", *words)
    assert Generations(shop / "catalog").names() == ["g-000001"]


@pytest.fixture
def other(tmp_path):
    """Another model."""
    torch.manual_seed(1)
    model = tiny_condvit()
    with torch.no_grad():
        model.visual_projection.weight.add_(torch.randn_like(model.visual_projection.weight))
    model.save_pretrained(tmp_path / "better")
    return tmp_path / "better"


def test_a_new_model_is_built_beside_the_one_that_answers(shop, more, other, step, embedded, capsys):
    folder = shop / "catalog"
    step("add", more, folder)
    step("remove", folder, "x1")
    embedded.clear()
    step("index", other, folder)
    assert sum(embedded) == 9, "each picture that is left, once"
    assert "search_catalog.py switch" in capsys.readouterr().out.replace("lrvsf-search", "search_catalog.py")
    old = Catalog.open(folder)
    assert old.generation.name == "g-000003" and old.search(squares(4), k=1)[0].id == "x4"
    step("switch", folder, "g-000004")
    new = Catalog.open(folder)
    assert new.generation.manifest["model"]["name"] == str(other) and len(new) == 9
    assert new.search(squares(4), k=1)[0].metadata == {"price": 50.0, "brand": "a"}
    assert old.search(squares(4), k=1)[0].id == "x4", "what is open answers as it did"
    step("rollback", folder)
    assert Catalog.open(folder).generation.name == "g-000003"
    step("rollback", folder)
    assert Catalog.open(folder).generation.name == "g-000004"


def test_a_new_model_reads_a_source_that_has_changed_by_ids(shop, model, other, step, capsys):
    step("index", model, shop / "shop.csv", shop / "again")
    lines = (shop / "shop.csv").read_text().splitlines()
    (shop / "shop.csv").write_text("\n".join([*lines[:5], "new,0.jpg,1,c", *lines[6:]]) + "\n")
    step("index", other, shop / "again", "--switch")
    assert all_ids(shop / "again") == ["x0", "x1", "x2", "x3", "x5", "x6", "x7"]
    assert "item that its source no longer has" in capsys.readouterr().out


@pytest.mark.survives("a catalog is compacted while others have it open", "they go on as it was when they opened it")
def test_readers_keep_what_compact_removes(shop, more, step):
    folder = shop / "catalog"
    reader = Catalog.open(folder)
    step("remove", folder, "x0")
    step("compact", folder, "--drop_previous")
    assert not reader.generation.folder.exists()
    hit = reader.search(squares(0), k=1, where="price = 10")[0]
    assert hit.id == "x0" and hit.thumbnail.startswith(b"\xff\xd8")


def test_compact_keeps_the_generation_before_and_those_that_wait(shop, more, other, step):
    folder = shop / "catalog"
    step("remove", folder, "x0")
    step("index", other, folder)
    step("remove", folder, "x1")
    step("compact", folder)
    assert Generations(folder).names() == ["g-000004", "g-000005"], "what never answered and is older goes"
    step("rollback", folder)
    assert "x1" not in all_ids(folder)


@pytest.mark.survives(
    "two builds of a catalog at once", "the second is refused with the first one's process and command"
)
def test_two_builds_at_once_are_refused(shop, more, step, locked_elsewhere):
    with locked_elsewhere(shop / "catalog") as process:
        for words in (["add", more], ["remove", "x1"], ["compact"], ["switch", "g-000001"]):
            words = [words[0], shop / "catalog", *words[1:]] if words[0] != "add" else [*words, shop / "catalog"]
            with pytest.raises(ValueError, match=f"in use by .*process {process}"):
                step(*words)
    assert best(shop / "catalog", squares(1)).id == "x1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "nothing"], "nothing is no catalog; make one with"),
        (["query", "nothing", "--image", "shop/1.jpg"], "nothing is no catalog"),
        (["query", "shop/catalog", "--image", "no.jpg"], "there is no picture no.jpg"),
        (["query", "shop/catalog", "--image", "shop/1.jpg", "--all", "--category", "Bags"], "give one of them"),
        (["query", "shop/catalog", "--image", "shop/1.jpg", "--html", "shop"], "html=shop is a folder; name a file"),
        (["switch", "shop/catalog", "g-000009"], "has no generation 'g-000009'; it has g-000001"),
        (["switch", "shop/catalog", ""], "has no generation ''; it has g-000001"),
        (["rollback", "shop/catalog"], "no generation that answered before"),
        (["index", "nowhere", "shop/shop.csv", "out"], "there is no folder nowhere"),
        (["index", "{model}", "shop/shop.csv", "shop/catalog", "--dims", "99"], "dims=99 must be above 0"),
        (["index", "{model}", "shop/shop.csv", "shop/catalog", "--storage", "int4"], "storage=int4 is unknown"),
        (["index", "{model}", "shop", "shop/out"], "is inside shop"),
        (["index", "{model}", "shop/shop.csv", "other"], "is no catalog and holds notes.txt"),
        (["index", "{model}", "shop/shop.csv", "out", "--batch_size", "0"], "batch_size=0"),
        (["index", "{model}", "shop/shop.csv", "out", "--device", "tpu"], "device=tpu is not here"),
        (["index", "{model}", "other"], "name the catalog's folder after other, which is no catalog"),
        (["query", "shop/catalog", "--image", "shop/shop.csv"], "shop.csv cannot be asked with: not an image"),
    ],
)
def test_refusals_come_with_a_remedy(shop, model, tmp_path, step, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "other/notes.txt", b"")
    with pytest.raises((ValueError, OSError), match=message):
        step(*(str(word).format(model=model) for word in words))
    assert Generations("shop/catalog").names() == ["g-000001"]


def test_a_catalog_that_may_not_be_written_answers_and_is_not_changed(shop, model, step, monkeypatch):
    # Told, not made so: root, who may run the tests, may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    catalog = shop / "catalog"
    step("query", catalog, "--image", shop / "1.jpg")
    step("info", catalog)
    changes = [["add", shop, catalog], ["remove", catalog, "x1"], ["compact", catalog], ["rollback", catalog]]
    for words in [*changes, ["switch", catalog, "g-000001"], ["index", model, catalog]]:
        with pytest.raises(PermissionError, match="cannot be written to"):
            step(*words)


def test_matryoshka_dimensions_and_a_moved_model(shop, model, tmp_path, step, capsys):
    step("index", model, shop / "shop.csv", tmp_path / "small", "--dims", 8)
    catalog = Catalog.open(tmp_path / "small")
    assert catalog.vectors.take(np.array([0])).shape == (1, 8) and catalog.search(squares(6), k=1)[0].id == "x6"
    manifest = next((tmp_path / "small/generations").glob("*/manifest.json"))
    told = json.loads(manifest.read_text())
    told["model"]["name"] = str(tmp_path / "gone")
    manifest.write_text(json.dumps(told))
    for asked in (lambda: best(tmp_path / "small", squares(1)), lambda: step("add", shop, tmp_path / "small")):
        with pytest.raises(FileNotFoundError, match="gone, the model of g-000001, is gone; name its folder .* --model"):
            asked()
    assert Catalog.open(tmp_path / "small", model=str(model)).search(squares(6), k=1)[0].id == "x6"


def test_the_same_index_again_makes_nothing(shop, model, step, embedded):
    step("index", model, shop / "shop.csv", shop / "catalog")
    names = Generations(shop / "catalog").names()
    embedded.clear()
    step("index", model, shop / "shop.csv", shop / "catalog")
    assert Generations(shop / "catalog").names() == names and not embedded
