"""A service that is asked by several views of a picture: what `query --json` prints, and bounds."""

import base64
import json

import numpy as np
import pytest
from made import squares, write_file

from lrvsf.search.catalog import Catalog

VIEWS = "whole,center0.8,flip"


def files(*pictures):
    return [("image", ("photo.jpg", picture, "image/jpeg")) for picture in pictures]


def coded(picture):
    return base64.b64encode(picture).decode()


@pytest.mark.parametrize("asked", [{"condition": ["Bags", "Feet"]}, {"all": "true"}, {}])
@pytest.mark.parametrize("where", [None, "price < 60"])
def test_views_are_answered_as_query_prints(client, _shop, tmp_path, step, capsys, asked, where):
    write_file(tmp_path / "asked.jpg", squares(90))
    words = [word for name in asked.get("condition", []) for word in ("--category", name)]
    words += ["--all"] * ("all" in asked) + (["--where", where] if where else [])
    step("query", _shop / "catalog", "--image", tmp_path / "asked.jpg", *words, "--query_views", VIEWS, "--json")
    printed = json.loads(capsys.readouterr().out)
    data = {**asked, **({"where": where} if where else {}), "query_views": VIEWS}
    told = client.post("/search", files=files(squares(90)), data=data).json()["results"]
    assert [one["condition"] for one in told] == [one["condition"] for one in printed]
    for one, other in zip(told, printed, strict=True):
        scores = [[hit["score"] for hit in answer["hits"]] for answer in (one, other)]
        np.testing.assert_allclose(*scores, atol=1e-5)  # parts of a request are other batches
        assert "presence" not in one and {hit["standing"] for hit in one["hits"]} == {None}


def test_embeddings_are_the_catalogs(client, reading, _shop, words_shop):
    """More rows than one batch has."""
    pictures = [squares(1), squares(50)]
    data = {"condition": ["Bags", "", "Feet"], "query_views": VIEWS}
    answer = client.post("/embed", files=files(*pictures), data=data).json()
    rows = np.array([one["embedding"] for one in answer["data"]], np.float32)
    expected = Catalog.open(_shop / "catalog").embed(pictures, ["Bags", None, "Feet"], VIEWS)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    body = {
        "input": coded(pictures[0]),
        "text": "the red bag",
        "query_views": "flip,whole",
        "encoding_format": "base64",
    }
    (row,) = reading.post("/embed", json=body).json()["data"]
    found = np.frombuffer(base64.b64decode(row["embedding"]), np.float32)
    (expected,) = Catalog.open(words_shop / "catalog").embed_texts(pictures[:1], ["the red bag"], "whole,flip")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_forms_of_a_question_are_one_and_whole_is_the_default(client):
    header = {"content-type": "image/jpeg"}
    form = client.post("/search", files=files(squares(3)), data={"query_views": VIEWS})
    raw = client.post("/search", params={"query_views": VIEWS}, content=squares(3), headers=header)
    as_json = client.post("/search", json={"image": coded(squares(3)), "query_views": VIEWS})
    assert form.status_code == 200 and form.json() == raw.json() == as_json.json()
    plain = client.post("/search", files=files(squares(3))).json()
    for same in ("", "whole", "center1"):
        assert client.post("/search", files=files(squares(3)), data={"query_views": same}).json() == plain


@pytest.mark.survives("views that there are not, or too many, sent to a service", "400 and one sentence")
@pytest.mark.parametrize(
    "sent, told",
    [
        ({"query_views": "flop"}, "there is no view 'flop'; there are whole, center0.8"),
        ({"query_views": "whole,,flip"}, "lacks a view"),
        ({"query_views": "flip,flip"}, "has a view twice"),
        ({"query_views": "center0"}, "names no share of each side"),
        ({"query_views": "whole,flip,center0.9,center0.8,center0.7"}, "has 5 views; 4 are the most"),
        ({"query_views": "w" * 201}, "query_views is names with commas between"),
        ({"query_views": 3}, "query_views is names with commas between, and '3' is not"),
        ({"query_views": ["whole", "flip"]}, "The field query_views was given 2 times; give it once"),
        ({"query_view": "whole"}, "Did you mean 'query_views'?"),
    ],
)
def test_what_is_no_view_is_refused(client, refusal, sent, told):
    for path in ("/search", "/embed"):
        assert told in refusal(client.post(path, json={"image": coded(squares(1)), **sent}), 400)
    assert client.post("/search", files=files(squares(1)), data={"query_views": "flip"}).status_code == 200


def test_the_page_describes_them(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/search", "/embed"):
        body = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]
        assert "whole,center0.8,flip" in body["schema"]["properties"]["query_views"]["description"]
