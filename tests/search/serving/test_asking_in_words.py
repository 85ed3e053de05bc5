"""A service whose model reads texts is asked in words; one whose model reads none says so."""

import base64
import json
import shlex

import numpy as np
import pytest
from made import squares, tiny_clip, tiny_tokenizer, write_file

from lrvsf.search.catalog import Catalog
from modeling_condvit import CondViTModel

SENTENCE = "the red bag of the photo, and a blue shoe"


def files(*pictures):
    return [("image", ("photo.jpg", picture, "image/jpeg")) for picture in pictures]


def coded(picture):
    return base64.b64encode(picture).decode()


@pytest.mark.parametrize("where", [None, "price < 60"])
def test_words_are_answered_as_query_prints(reading, words_shop, step, capsys, where):
    write_file(words_shop / "asked.jpg", squares(90))
    words = ["--text", SENTENCE, "--text", "shoe", "--k", "3", *(["--where", where] if where else [])]
    step("query", words_shop / "catalog", "--image", words_shop / "asked.jpg", *words, "--json")
    printed = json.loads(capsys.readouterr().out)
    asked = {"text": [SENTENCE, "shoe"], "k": "3", **({"where": where} if where else {})}
    told = reading.post("/search", files=files(squares(90)), data=asked).json()
    assert told == {"results": printed}
    assert [one["condition"] for one in printed] == [SENTENCE, "shoe"]
    assert {(hit["standing"], hit["close"]) for one in printed for hit in one["hits"]} == {(None, None)}


def test_a_name_has_a_standing_and_its_words_have_none(reading):
    """Also of words that are a name, and in one batch: it was measured for neither."""
    by_name = reading.post("/search", files=files(squares(90)), data={"condition": "Bags"}).json()["results"][0]
    in_words = reading.post("/search", files=files(squares(90)), data={"text": "Bags"}).json()["results"][0]
    assert [hit["id"] for hit in by_name["hits"]] == [hit["id"] for hit in in_words["hits"]]
    assert None not in {hit["standing"] for hit in by_name["hits"]}
    assert {hit["standing"] for hit in in_words["hits"]} == {None}


def test_forms_of_a_question_in_words_are_one(reading):
    form = reading.post("/search", files=files(squares(3)), data={"text": "the red bag", "condition": ""})
    params, header = {"text": "the red bag"}, {"content-type": "image/jpeg"}
    raw = reading.post("/search", params=params, content=squares(3), headers=header)
    as_json = reading.post("/search", json={"image": coded(squares(3)), "text": "the red bag"})
    assert form.status_code == 200 and form.json() == raw.json() == as_json.json()


def test_embeddings_are_the_catalogs(reading, words_shop):
    pictures, texts = [squares(1), squares(50)], ["the red bag", "Bags", SENTENCE]
    answer = reading.post("/embed", files=files(*pictures), data={"text": texts}).json()
    rows = np.array([one["embedding"] for one in answer["data"]], np.float32)
    catalog = Catalog.open(words_shop / "catalog")
    np.testing.assert_allclose(rows, catalog.embed_texts(pictures, texts), atol=1e-5)
    assert len(rows) == 6 and not np.allclose(rows[0], rows[1], atol=1e-3)


@pytest.mark.survives("words that say nothing, are too long, or no Unicode, sent to a service", "400 and one sentence")
@pytest.mark.parametrize(
    "sent, told",
    [
        ({"text": ""}, "Text '' says nothing; for no condition, leave it out."),
        ({"text": ["a bag", " \t"]}, "says nothing"),
        ({"text": "bag", "condition": "Bags"}, "condition and text each say what is meant; give one"),
        ({"text": "bag " * 51}, "A text is a string of at most 200 letters"),
        ({"text": 3}, "A text is a string"),
        ({"text": {"a": 1}}, "A text is a string"),
        ({"text": ["bag"] * 33}, "33 texts; 32 are the most"),
        ({"text": "bag \ud800"}, "Text 'bag \\ud800' is no Unicode"),
        ({"texts": "bag"}, "Did you mean 'text'?"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(reading, refusal, sent, told):
    body = json.dumps({"image": coded(squares(1)), **sent})
    for path in ("/search", "/embed"):
        assert told in refusal(reading.post(path, content=body, headers={"content-type": "application/json"}), 400)
    assert reading.post("/search", files=files(squares(1)), data={"text": "bag"}).status_code == 200


def test_all_and_words_are_refused(reading, refusal):
    told = refusal(reading.post("/search", files=files(squares(1)), data={"all": "true", "text": "bag"}), 400)
    assert told == "The field all asks under every condition; leave text out."


def test_a_model_that_reads_none_names_its_conditions(client, refusal):
    for path in ("/search", "/embed"):
        told = refusal(client.post(path, files=files(squares(1)), data={"text": "the red bag"}), 400)
        assert "reads no words; its conditions are: Bags, Feet," in told


def test_who_asks_can_see_whether_texts_are_read(reading, client):
    assert reading.get("/ready").json()["reads_texts"] is True
    assert client.get("/ready").json()["reads_texts"] is False
    for path, name in (("/search", "image"), ("/embed", "input")):
        for one, meant in ((reading, "text"), (client, "condition")):
            post = one.get("/openapi.json").json()["paths"][path]["post"]
            body = post["requestBody"]["content"]["application/json"]
            assert "in words" in body["schema"]["properties"]["text"]["description"]
            assert set(body["example"]) - {name, "k"} == {meant}
            assert one.post(path, json=body["example"]).status_code == 200


def test_the_line_that_the_page_shows_works(reading):
    shown = reading.get("/openapi.json").json()["paths"]["/search"]["post"]["description"]
    words = shlex.split(shown.split("```")[1].strip().split("\n")[1])
    fields = [words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-F"]
    data = {name: value for name, value in fields if not value.startswith("@")}
    answer = reading.post(words[1].removeprefix("ADDRESS"), files=files(squares(1)), data=data)
    assert "text" in data and answer.json()["results"][0]["condition"] == data["text"]


def test_an_encoder_that_cannot_be_had_is_told_at_the_start(make_client, step, tmp_path):
    """And not at the first question in words, which others would wait for."""
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    clip = str(tmp_path / "clip")
    CondViTModel.from_clip(clip, text_encoder=clip).save_pretrained(tmp_path / "reader")
    write_file(tmp_path / "pictures/1.jpg", squares(1))
    step("index", tmp_path / "reader", tmp_path / "pictures", tmp_path / "catalog")
    (tmp_path / "clip").rename(tmp_path / "gone")
    with (
        pytest.raises(OSError, match="reader reads texts by .*clip, which cannot be loaded .*; put it there again"),
        make_client(tmp_path / "catalog"),
    ):
        pass
