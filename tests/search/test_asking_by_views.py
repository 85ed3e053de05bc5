"""A catalog that is asked by several views of a picture, against views that are cut by hand and embedded one by one."""

import json

import numpy as np
import pytest
from made import noise, squares
from PIL import Image, ImageOps

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.search.catalog import Catalog

VIEWS = "whole,center0.8,flip"


@pytest.fixture
def catalog(shop):
    return Catalog.open(shop / "catalog")


def seen_by_hand(catalog, picture, condition, **words):
    """The naive twin: 36 x 30 pixels, of which the middle is 29 x 24, each look embedded alone."""
    image = decode_shown(picture)
    assert image.size == (36, 30)
    middle = Image.fromarray(np.asarray(image)[3:27, 3:32].copy())
    looks = [image, middle, ImageOps.mirror(image)]
    total = sum(catalog.embed_pixels([catalog.encoder.pixels_of(look)], [condition], **words)[0] for look in looks)
    return total / np.linalg.norm(total)


def test_conditions_and_views_of_several_pictures_are_one_batch(catalog, embedded):
    pictures, conditions = [squares(1), squares(90)], ["Bags", None, "Feet"]
    rows = catalog.embed(pictures, conditions, VIEWS)
    assert embedded == [2 * 2 * 3, 2 * 1 * 3], "with a condition, and without"
    naive = [seen_by_hand(catalog, picture, condition) for picture in pictures for condition in conditions]
    np.testing.assert_allclose(rows, naive, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_words_are_asked_by_views_too(words_shop):
    catalog = Catalog.open(words_shop / "catalog")
    texts = ["the red bag", "a blue shoe"]
    naive = [seen_by_hand(catalog, squares(90), text, in_words=True) for text in texts]
    np.testing.assert_allclose(catalog.embed_texts([squares(90)], texts, VIEWS), naive, atol=1e-5)


def test_the_whole_picture_alone_is_what_it_was(catalog):
    for name in (None, "Bags"):
        plain = catalog.embed([squares(1), squares(2)], [name])
        np.testing.assert_array_equal(catalog.embed([squares(1), squares(2)], [name], "whole"), plain)
        assert catalog.search(squares(1), name, query_views="whole") == catalog.search(squares(1), name)


def test_hits_are_those_of_the_averaged_embedding(catalog):
    hits = catalog.search(squares(90), "Bags", k=8, query_views=VIEWS)
    (query,) = catalog.embed([squares(90)], ["Bags"], VIEWS)
    assert hits == catalog.nearest(query[None], 8)[0]
    both = catalog.search([squares(1), squares(90)], ["Feet", "Bags"], k=8, query_views=VIEWS)
    np.testing.assert_allclose([hit.score for hit in both[1][1]], [hit.score for hit in hits], atol=1e-5)
    filtered = catalog.search(squares(90), "Bags", k=8, where="price < 40", query_views=VIEWS)
    assert {hit.id for hit in filtered} == {"x0", "x1", "x2"}


def test_what_was_learnt_from_whole_pictures_is_not_told_of_views(calibrated):
    catalog = calibrated(0.9)
    plain = catalog.search(squares(90), "Bags", k=2)
    seen = catalog.search(squares(90), "Bags", k=2, query_views=VIEWS)
    assert None not in {hit.standing for hit in plain}
    assert {(hit.standing, hit.close) for hit in seen} == {(None, None)}
    everything = catalog.search_all(squares(90), k=2, query_views=VIEWS)
    assert list(everything) == catalog.conditions
    assert {(answer.present, answer.presence, answer.close) for answer in everything.values()} == {(None, None, None)}
    scores = [hit.score for hit in everything["Bags"].hits]
    np.testing.assert_allclose(scores, [hit.score for hit in seen], atol=1e-5)
    assert None not in {hit.standing for hit in catalog.search_all(squares(90), k=2)["Bags"].hits}


@pytest.mark.parametrize("views, told", [("flop", "no view 'flop'"), ("", "lacks a view"), ("flip,flip", "twice")])
def test_what_is_no_view_is_refused(shop, catalog, step, views, told):
    for ask in (catalog.search, catalog.search_all, lambda picture, **views: catalog.embed([picture], **views)):
        with pytest.raises(ValueError, match=told):
            ask(squares(1), query_views=views)
    with pytest.raises(ValueError, match=told):
        step("query", shop / "catalog", "--image", shop / "3.jpg", "--query_views", views)


def test_a_picture_of_one_pixel_has_all_views(catalog):
    rows = catalog.embed([noise(1, 1)], query_views="whole,center0.1,flip")
    np.testing.assert_allclose(rows, catalog.embed([noise(1, 1)]), atol=1e-5)


def test_query_asks_by_views(shop, catalog, step, capsys):
    asked = ["query", shop / "catalog", "--image", shop / "3.jpg", "--category", "Bags", "--k", 3, "--query_views"]
    step(*asked, "flip, whole", "--json")
    (answer,) = json.loads(capsys.readouterr().out)
    hits = catalog.search(shop / "3.jpg", "Bags", k=3, query_views="whole,flip")
    assert [(hit["id"], hit["score"]) for hit in answer["hits"]] == [(hit.id, round(hit.score, 6)) for hit in hits]
    step(*asked, "whole")
    once = capsys.readouterr().out
    step(*asked[:-1])
    assert capsys.readouterr().out == once
