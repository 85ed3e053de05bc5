"""A catalog that answers: hits, conditions, groups, filters."""

import json

import pytest
from made import squares, tiny_condvit, write_file

import search_catalog
from lrvsf.search.catalog import Catalog


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_condvit().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory, model):
    """A folder of twelve pictures, and a catalog of it."""
    folder = tmp_path_factory.mktemp("shop")
    for number in range(12):
        write_file(folder / f"pictures/{number}.jpg", squares(number))
    search_catalog.main(["index", str(model), str(folder / "pictures"), str(folder / "catalog")])
    return folder


def test_a_picture_finds_itself(shop):
    catalog = Catalog.open(shop / "catalog")
    for number in (0, 7):
        hits = catalog.search(squares(number), k=3)
        assert [hit.rank for hit in hits] == [1, 2, 3] and hits[0].id == f"{number}.jpg"
        assert hits[0].score == pytest.approx(1, abs=1e-3) and hits[0].score >= hits[1].score >= hits[2].score
        assert hits[0].thumbnail.startswith(b"\xff\xd8")


def test_query_prints_json_alone(shop, capsys):
    asked = ["query", str(shop / "catalog"), "--image", str(shop / "pictures/3.jpg"), "--k", "2"]
    search_catalog.main([*asked, "--json", "--category", "Bags", "--category", "Feet"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["condition"] for answer in answers] == ["Bags", "Feet"]
    assert all(len(answer["hits"]) == 2 for answer in answers)
    search_catalog.main(asked)
    assert "3.jpg" in capsys.readouterr().out
