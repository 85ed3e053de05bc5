"""The examples of README.md and docs/search.md that ask a catalog in Python, run as they stand beside one."""

import pytest
from examples import examples
from made import squares, write_csv, write_file, write_teller

import search_catalog
from lrvsf.search.catalog import Catalog


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, with photo.jpg and `catalog`: eight pictures with titles, by a model that reads texts."""
    rows = [(f"x{number}", f"shop/{number}.jpg", f"bag {number}", 10 + 10 * number) for number in range(8)]
    for number, (_, picture, *_) in enumerate(rows):
        write_file(tmp_path / picture, squares(number))
    write_csv(tmp_path / "shop.csv", rows, ("id", "image", "title", "price"))
    reader = write_teller(tmp_path / "reader", "text")
    search_catalog.main(["index", str(reader), str(tmp_path / "shop.csv"), str(tmp_path / "catalog")])
    write_file(tmp_path / "photo.jpg", squares(103))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_told(told, place, hits, shown):
    """That an example printed these hits, a line each, and wrote the picture of each."""
    lines = [f"{hit.rank} {hit.score:.3f} {hit.id} {shown(hit)}" for hit in hits]
    assert told.splitlines() == lines
    pictures = {f"{hit.rank}.jpg": hit.thumbnail for hit in hits}
    assert {path.name: path.read_bytes() for path in place.glob("?.jpg")} == pictures


def scores(hits):
    return {hit.id: pytest.approx(hit.score, abs=1e-5) for hit in hits}


def test_the_readme(place, capsys):
    (block,) = examples("README.md", "Search", 1)
    capsys.readouterr()
    exec(block, {})
    hits = Catalog.open("catalog").search("photo.jpg", category="Bags")
    assert len(hits) == 8
    check_told(capsys.readouterr().out, place, hits, lambda hit: hit.metadata)


def test_the_page_on_search(place, capsys):
    (block,) = examples("docs/search.md", "From a shop's table to a page and a service", 1)
    capsys.readouterr()
    names = {}
    exec(block, names)
    catalog = Catalog.open("catalog")
    hits = catalog.search("photo.jpg", category="Bags", where="price < 50")
    assert len(hits) == 4
    check_told(capsys.readouterr().out, place, hits, lambda hit: hit.metadata["title"])
    assert list(names["everything"]) == catalog.conditions
    for name, asked in {
        "bags": {"category": "Bags"},
        "shoes": {"category": "Feet"},
        "red": {"text": "the red bag"},
    }.items():
        found = {hit.id: hit.score for hit in names[name]}
        assert len(found) == 8 and found == scores(catalog.search("photo.jpg", **asked))
    assert scores(names["everything"]["Feet"].hits) == {hit.id: hit.score for hit in names["shoes"]}
