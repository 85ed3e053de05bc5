"""A catalog that answers: hits, conditions, filters, groups, near duplicates; and what `query` prints."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import encode, noise, squares, tiny_condvit, write_csv, write_file
from pairs import pairs_of
from PIL import Image

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.search import catalog as module
from lrvsf.search.answers import _width, table
from lrvsf.search.catalog import Catalog
from lrvsf.search.filters import FilterError
from lrvsf.search.hits import Answer, Hit
from lrvsf.search.own_model import query_digest
from modeling_condvit import CondViTModel


@pytest.fixture
def catalog(shop):
    return Catalog.open(shop / "catalog")


def ids(hits):
    return [hit.id for hit in hits]


def assert_alike(hits, others):
    """The same hits, but for the last bits of a batch of another size."""
    assert sorted(ids(hits)) == sorted(ids(others))
    np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in others], atol=1e-5)


def test_hits_are_those_of_a_naive_search(catalog):
    """Every score is the cosine of the query with the item's embedding by the model, to float16's precision."""
    items = catalog.embed([squares(number) for number in range(8)])
    for condition in (None, "Bags"):
        (query,) = catalog.embed([squares(90)], [condition])
        scores = items @ query
        hits = catalog.search(squares(90), condition, k=8)
        assert ids(hits) == [f"x{row}" for row in np.argsort(-scores)]
        assert [hit.rank for hit in hits] == list(range(1, 9))
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=2e-3)


def test_a_hit_has_metadata_and_a_thumbnail(catalog):
    hit = catalog.search(squares(3), k=1)[0]
    assert (hit.id, hit.rank, hit.metadata, hit.standing) == ("x3", 1, {"price": 40, "brand": "b"}, None)
    small = decode_shown(hit.thumbnail)
    assert hit.thumbnail.startswith(b"\xff\xd8") and small.size == (36, 30), "smaller pictures are not made larger"
    assert catalog.item("x5").row == 5 and catalog.item("nothing") is None


def test_all_conditions_take_one_forward_pass_and_equal_single_ones(catalog, monkeypatch):
    calls = []
    embed = catalog.encoder.embed
    monkeypatch.setattr(catalog.encoder, "embed", lambda *args: calls.append(len(args[0])) or embed(*args))
    found = catalog.search(squares(1), ["Bags", None, "Feet"], k=3)
    assert calls == [2, 1], "a batch mixes no conditioned pictures with others"
    for name, hits in zip(("Bags", None, "Feet"), found, strict=True):
        assert_alike(hits, catalog.search(squares(1), name, k=3))
    both = catalog.search([squares(1), squares(2)], ["Bags", "Feet"], k=2)
    assert_alike(both[1][1], catalog.search(squares(2), "Feet", k=2))
    assert_alike(catalog.search([squares(1), squares(2)], k=2)[1], catalog.search(squares(2), k=2))
    everything = catalog.search_all(squares(1), k=3)
    assert list(everything) == catalog.conditions
    assert_alike(everything["Feet"].hits, found[2])


def test_pictures_may_be_bytes_paths_or_images(shop, catalog):
    expected = catalog.search(squares(2), k=2)
    path = shop / "2.jpg"
    for picture in (path, str(path), decode_shown(squares(2))):
        assert catalog.search(picture, k=2) == expected


def test_a_photo_is_turned_upright_before_it_is_looked_at(catalog):
    upright = noise(32, 24, 5)
    exif = upright.getexif()
    exif[0x0112] = 6
    sideways = encode(upright.rotate(90, expand=True), "PNG", exif=exif)
    assert ids(catalog.search(sideways, k=8)) == ids(catalog.search(encode(upright), k=8))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"category": "bags"}, "'bags' is not one of the model's: Bags, .*Did you mean 'Bags'"),
        ({"k": 0}, "k=0 must be 1 or more"),
        ({"group": "brand"}, "group='brand' is unknown"),
        ({"near_duplicates": "drop"}, "near_duplicates='drop' is unknown"),
    ],
)
def test_what_cannot_be_asked_is_refused(catalog, asked, message):
    with pytest.raises(ValueError, match=message):
        catalog.search(squares(1), **asked)
    with pytest.raises(ValueError, match="not an image"):
        catalog.search(b"<html>")


def test_a_filter_is_kept_and_may_leave_nothing(catalog):
    hits = catalog.search(squares(3), k=5, where="price < 40 and brand = 'a'")
    assert sorted(ids(hits)) == ["x0", "x2"]
    assert catalog.search(squares(3), where="price > 1000") == []


def test_a_filter_is_evaluated_once_and_some_are_kept(shop, monkeypatch):
    evaluated, rows_where = [], module.rows_where
    monkeypatch.setattr(module, "rows_where", lambda *given: evaluated.append(given[1]) or rows_where(*given))
    catalog = Catalog.open(shop / "catalog")
    first = catalog.search(squares(3), k=5, where="price < 40")
    for _ in range(3):
        assert catalog.search(squares(3), k=5, where="price < 40") == first
    assert evaluated == ["price < 40"] and ids(Catalog.open(shop / "catalog").search(squares(3), k=5)) != ids(first)
    for bound in range(2 * module.FILTERS):
        assert len(catalog.search(squares(3), where=f"price <= {bound}")) == bound // 10
    assert catalog._selection.cache_info().currsize == module.FILTERS
    for _ in range(2):
        with pytest.raises(FilterError, match="no column 'weight'"):
            catalog.search(squares(3), where="weight > 1")


def test_threads_share_kept_filters(catalog):
    asked = [f"price <= {10 * (number % 8)}" for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda where: catalog.nearest(np.eye(1, 16, dtype=np.float32), 9, where)[0], asked))
    assert [len(hits) for hits in found] == [number % 8 for number in range(64)]


def test_photos_of_one_product_are_one_hit(tmp_path, model, step):
    rows = [("p", "0.jpg"), ("p", "1.jpg"), ("q", "2.jpg"), ("p", "3.jpg"), ("r", "4.jpg")]
    for number in range(5):
        write_file(tmp_path / f"{number}.jpg", squares(number))
    step("index", model, write_csv(tmp_path / "shop.csv", rows, ("product_id", "image")), tmp_path / "out")
    catalog = Catalog.open(tmp_path / "out")
    hits = catalog.search(squares(1), k=3)
    assert hits[0].id == "p" and hits[0].row == 1 and hits[0].more == 2, "by its best photo"
    assert sorted(ids(hits)) == ["p", "q", "r"] and [hit.rank for hit in hits] == [1, 2, 3]
    assert sorted(ids(catalog.search(squares(1), k=9, group=None))) == ["p", "p", "p", "q", "r"]
    assert "p" not in ids(catalog.like(hits[0].row, k=2))


def copies(number):
    """A picture, and others of it: recompressed, half the size, trimmed by a pixel on each side."""
    large = decode_shown(squares(number)).resize((216, 180), Image.Resampling.NEAREST)
    small = large.resize((108, 90), Image.Resampling.BICUBIC)
    return [encode(one, "JPEG", quality=30) for one in (large, large, small, large.crop((1, 1, 215, 179)))]


def test_copies_of_one_picture_fold(tmp_path, model, step, monkeypatch):
    """All embeddings of a model of random weights nearly coincide, so here thumbnails decide."""
    for number, data in enumerate([*copies(1), *copies(2), squares(3), encode(Image.new("RGB", (50, 50), "white"))]):
        write_file(tmp_path / f"shop/{number}.jpg", data)
    step("index", model, tmp_path / "shop", tmp_path / "out")
    catalog = Catalog.open(tmp_path / "out")
    hits = catalog.search(copies(1)[0], k=9, near_duplicates="fold")
    assert sorted((hit.row // 4, hit.more) for hit in hits) == [(0, 3), (1, 3), (2, 0), (2, 0)]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4] and hits[0].row in range(4)
    assert len(catalog.search(copies(1)[0], k=9)) == 9
    orthogonal = np.eye(10, dtype=np.float32)
    monkeypatch.setattr(catalog.vectors, "take", lambda rows: orthogonal[rows])
    monkeypatch.setattr(catalog.index, "search", lambda *_: (np.ones((1, 10)), np.arange(10)[None]))
    assert len(catalog.nearest(orthogonal[:1], 10, near_duplicates="fold")[0]) == 10, (
        "what is not alike is not compared"
    )


@pytest.mark.survives("a catalog is asked by another model", "refused with both names and digests, and what differs")
def test_another_model_is_refused_with_both_names(shop, tmp_path):
    torch.manual_seed(1)
    other = tiny_condvit()
    with torch.no_grad():
        other.visual_projection.weight.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made by .*tiny .digest .*other .digest .* in model.weights"):
        Catalog.open(shop / "catalog", model=str(tmp_path / "other")).search(squares(1))


def test_query_prints_json_alone(shop, step, capsys):
    asked = ["query", shop / "catalog", "--image", shop / "3.jpg", "--k", 2, "--category", "Bags", "--category", "Feet"]
    step(*asked, "--json")
    answers = json.loads(capsys.readouterr().out)
    assert [answer["condition"] for answer in answers] == ["Bags", "Feet"]
    assert [list(hit) for hit in answers[0]["hits"]] == [["id", "score", "rank", "standing", "close", "metadata"]] * 2
    assert set(answers[0]["hits"][0]["metadata"]) == {"price", "brand"}


def test_query_prints_a_table_and_writes_a_sheet_that_stands_alone(shop, step, capsys, tmp_path):
    step("query", shop / "catalog", "--image", shop / "3.jpg", "--where", "price < 60", "--html", tmp_path / "x.html")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["score", "id", "price", "brand"]
    assert printed[1].split()[::2] == ["1", "x3", "b"] and printed[-1] == f"Wrote {tmp_path / 'x.html'}."
    page = (tmp_path / "x.html").read_text()
    assert "price &lt; 60" in page and page.count("<img") == 6
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources) and "http" not in page
    assert base64.b64decode(sources[0].partition(",")[2]).startswith(b"\xff\xd8")


def test_a_table_of_anything_fits_80_columns():
    metadata = {"title": "\u795e" * 40, "html": "<b>\x1b[2J</b>", "empty": None, "long": "x" * 100, "price": 1.5}
    hits = [Hit("i" * 200, 0.5, rank, metadata, rank) for rank in (1, 2, 10)]
    lines = table([("Bags", Answer(hits)), (None, Answer([]))]).splitlines()
    assert max(map(_width, lines)) <= 80 and "\x1b" not in "".join(lines) and lines[-1].strip() == "nothing found"
    assert lines[0] == "Bags" and lines[1].split() == ["score", "id", "title"]


def test_queries_that_were_trained_further_ask_the_same_catalog(shop, model, tmp_path):
    """To a catalog, a model with a frozen gallery is the one that made it, and only its queries are others."""
    later = CondViTModel.from_pretrained(model).with_frozen_gallery()
    with torch.no_grad():
        for weight in (later.condition_embedding, later.visual_projection.weight):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    later.save_pretrained(tmp_path / "later")
    before, after = (Catalog.open(shop / "catalog", model=name) for name in (None, str(tmp_path / "later")))
    pictures = [squares(90), squares(91)]
    assert np.array_equal(before.embed(pictures), after.embed(pictures)), "without a condition nothing has changed"
    assert not np.allclose(before.embed(pictures, ["Bags"]), after.embed(pictures, ["Bags"]), atol=1e-2)
    assert sorted(ids(after.search(pictures[0], "Bags", k=8))) == sorted(ids(before.search(pictures[0], "Bags", k=8)))
    later.add_categories(["Belts"], like="Waist")
    later.save_pretrained(tmp_path / "more")
    more = Catalog.open(shop / "catalog", model=str(tmp_path / "more"))
    assert ids(more.search(pictures[0], "Belts", k=8)) == ids(after.search(pictures[0], "Waist", k=8))
    # What was learnt of the first one's scores says nothing of the other's, wherever its file was copied to.
    pairs_of(before, before.embed(pictures, ["Bags"]), before.embed(pictures)).save(tmp_path / "later")
    assert Catalog.open(shop / "catalog", model=str(tmp_path / "later")).known_pairs is None
    own = pairs_of(after, after.embed(pictures, ["Bags"]), after.embed(pictures))
    replace(own, model=query_digest(after.generation, after.encoder)).save(tmp_path / "later")
    assert Catalog.open(shop / "catalog", model=str(tmp_path / "later")).known_pairs is not None
