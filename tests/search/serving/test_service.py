"""The routes: what they answer is what the catalog and `query --json` say, in whatever form it is asked."""

import base64
import json
import shlex
import threading

import numpy as np
import pytest
from made import encode, noise, squares, write_csv, write_file

from lrvsf.search.catalog import Catalog
from lrvsf.search.verdicts.presence import FILE


def files(*pictures):
    return [("image", ("photo.jpg", picture, "image/jpeg")) for picture in pictures]


def found(answer):
    """[(condition, ids)] of an answer."""
    assert answer.status_code == 200, answer.text
    return [(one["condition"], [hit["id"] for hit in one["hits"]]) for one in answer.json()["results"]]


def test_search_answers_as_query_prints(client, _shop, step, capsys):
    write_file(_shop / "asked.jpg", squares(90))
    words = ("--category", "Bags", "--category", "Feet", "--where", "price < 60", "--k", "3", "--json")
    step("query", _shop / "catalog", "--image", _shop / "asked.jpg", *words)
    printed = json.loads(capsys.readouterr().out)
    asked = {"condition": ["Bags", "Feet"], "where": "price < 60", "k": "3"}
    assert client.post("/search", files=files(squares(90)), data=asked).json() == {"results": printed}


def test_standing_and_what_is_close_are_told(calibrated, own_shop, make_client):
    """Also with a filter, and for questions that share a batch."""
    catalog = calibrated(true=0.1)
    with make_client(own_shop / "catalog") as client:
        assert set(catalog.conditions) <= set(client.answering.catalog._scales), "ready is when all is measured"
        for where in ({}, {"where": "price > 0"}):
            asked = {"condition": ["Bags", "", "Feet"], "k": "3", **where}
            bags, *others = client.post("/search", files=files(squares(90)), data=asked).json()["results"]
            expected = catalog.search(squares(90), "Bags", k=3)
            assert [hit["close"] for hit in bags["hits"]] == [hit.close for hit in expected]
            standing = [hit.standing for hit in expected]
            assert [hit["standing"] for hit in bags["hits"]] == pytest.approx(standing, abs=0.05)
            assert {hit["close"] for one in others for hit in one["hits"]} == {None}


def test_three_forms_of_a_question_are_one(client):
    form = client.post("/search", files=files(squares(3)), data={"condition": ["Bags"], "k": "2"})
    raw = client.post("/search?condition=Bags&k=2", content=squares(3), headers={"content-type": "image/jpeg"})
    coded = base64.b64encode(squares(3)).decode()
    lines = base64.encodebytes(squares(3)).decode()
    as_json = client.post("/search", json={"image": lines, "condition": "Bags", "k": 2})
    url = client.post("/search", json={"image": f"data:image/jpeg;base64,{coded}", "condition": ["Bags"], "k": 2})
    assert found(form)[0][1][0] == "x3"
    assert form.json() == raw.json() == as_json.json() == url.json()


def test_without_a_condition_and_under_all(client, _shop):
    plain = client.post("/search", files=files(squares(3)), data={"k": "1", "condition": ""})  # as empty forms are sent
    assert found(plain) == [(None, ["x3"])]
    everything = client.post("/search", files=files(squares(3)), data={"all": "true", "k": "2"}).json()["results"]
    catalog = Catalog.open(_shop / "catalog")
    assert not (_shop / FILE).exists() and "present" not in everything[0]
    expected = catalog.search_all(squares(3), k=2)
    assert [one["condition"] for one in everything] == catalog.conditions
    for one in everything:
        scores = [hit.score for hit in expected[one["condition"]].hits]
        np.testing.assert_allclose([hit["score"] for hit in one["hits"]], scores, atol=1e-5)


def test_embeddings_are_the_catalogs(client, _shop):
    catalog = Catalog.open(_shop / "catalog")
    pictures, conditions = [squares(1), squares(50)], ["Bags", "Feet"]
    answer = client.post("/embed", files=files(*pictures), data={"condition": conditions}).json()
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", place) for place in range(4)]
    rows = np.array([one["embedding"] for one in answer["data"]], np.float32)
    np.testing.assert_allclose(rows, catalog.embed(pictures, conditions), atol=1e-5)


def test_a_request_of_many_rows_is_no_large_batch(_shop, make_client):
    pictures, conditions = [squares(number) for number in range(5)], ["Bags", "", "Feet"]
    with make_client(_shop / "catalog", batch=4) as client:
        sizes, encoder = [], client.answering.catalog.encoder
        embed = encoder.embed
        encoder.embed = lambda pixels, *names: sizes.append(len(pixels)) or embed(pixels, *names)
        answer = client.post("/embed", files=files(*pictures), data={"condition": conditions}).json()
    assert sum(sizes) == 15 and max(sizes) <= 4
    rows = np.array([one["embedding"] for one in answer["data"]], np.float32)
    catalog = Catalog.open(_shop / "catalog")
    np.testing.assert_allclose(rows, catalog.embed(pictures, ["Bags", None, "Feet"]), atol=1e-5)


def test_openais_clients_are_understood(client):
    """Theirs send `input`, a model's name and an encoding, and read float32 from base64."""
    coded = [base64.b64encode(squares(1)).decode()]
    sent = {"input": coded, "model": "any", "encoding_format": "base64", "user": "x", "dimensions": None}
    (one,) = client.post("/embed", json=sent).json()["data"]
    row = np.frombuffer(base64.b64decode(one["embedding"]), np.float32)
    floats = client.post("/embed", json={"input": coded[0]}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(row, floats, atol=1e-6)


def test_items(client, refusal):
    answer = client.get("/items/x5").json()
    assert (answer["id"], answer["metadata"]) == ("x5", {"price": 60, "brand": "b"})
    jpeg = client.get("/thumbnails/x5")
    assert jpeg.headers["content-type"] == "image/jpeg" and jpeg.content.startswith(b"\xff\xd8")
    assert base64.b64decode(answer["thumbnail"].partition(",")[2]) == jpeg.content
    for path in ("/items/nothing", "/thumbnails/nothing"):
        assert refusal(client.get(path), 404) == "There is no item 'nothing'."


def test_ids_may_be_paths(tmp_path, model, step, make_client):
    for name in ("a b/1.png", "a b/thumbnail", "ä#?.png"):
        write_file(tmp_path / "pictures" / name, encode(noise(20, 20, len(name))))
    write_csv(tmp_path / "t.csv", [(n, n) for n in ("a b/1.png", "ä#?.png")], ("id", "image"))
    step("index", model, tmp_path / "t.csv", tmp_path / "out", "--images_folder", tmp_path / "pictures")
    with make_client(tmp_path / "out") as client:
        assert client.get("/items/a b/1.png").json()["id"] == "a b/1.png"
        assert client.get("/items/%C3%A4%23%3F.png").json()["id"] == "ä#?.png"


def test_health_readiness_and_metrics(client):
    client.post("/search", files=files(squares(1)))
    client.get("/items/x1")
    assert client.get("/health").json() == {"status": "ok"}
    ready = {"status": "ready", "generation": "g-000001", "items": 8, "model": "tiny", "reads_texts": False}
    assert client.get("/ready").json() == ready
    assert client.head("/ready").status_code == client.head("/items/x1").status_code == 200  # as balancers ask
    text = client.get("/metrics").text
    assert 'lrvsf_requests_total{path="/search",status="200"}' in text
    assert 'lrvsf_requests_total{path="/items/",status="200"}' in text, "an id is no label"
    assert 'lrvsf_items{generation="g-000001"} 8.0' in text and "process_resident_memory_bytes" in text
    for stage in ("decode", "embed", "search"):
        assert f'lrvsf_stage_seconds_count{{stage="{stage}"}}' in text


def test_the_examples_of_the_page_work(client):
    """What /docs sends at a click, and the lines that it shows, as they stand."""
    document = client.get("/openapi.json").json()
    assert "swagger" in client.get("/docs").text
    example = document["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert [len(ids) for _, ids in found(client.post("/search", json=example))] == [3]
    example = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert len(client.post("/embed", json=example).json()["data"]) == 1
    name = document["paths"]["/items/{name}"]["get"]["parameters"][0]["example"]
    assert client.get(f"/items/{name}").status_code == 200
    first, second = document["paths"]["/search"]["post"]["description"].split("```")[1].strip().split("\n")
    picture = client.get(shlex.split(first)[1].removeprefix("ADDRESS")).content
    words = shlex.split(second)
    fields = [words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-F"]
    data = {key: value for key, value in fields if not value.startswith("@")}
    assert found(client.post(words[1].removeprefix("ADDRESS"), files=files(picture), data=data))[0][1][0] == name


def test_the_examples_are_of_items_that_are_there(shop, step, make_client):
    step("remove", shop / "catalog", "x0", "x1")
    with make_client(shop / "catalog") as client:
        assert "ADDRESS/thumbnails/x2 " in client.get("/openapi.json").text


@pytest.mark.parametrize("where", [None, "price > 0"])
def test_many_at_once_get_what_each_gets_alone(client, where):
    asked = [(number, condition, k) for number in range(8) for condition in ("Bags", "") for k in (1, 4)]
    answers = {}

    def ask(one):
        number, condition, k = one
        data = {"condition": condition, "k": str(k)} | ({"where": where} if where else {})
        answers.setdefault(one, []).append(found(client.post("/search", files=files(squares(number)), data=data)))

    threads = [threading.Thread(target=ask, args=(one,)) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in asked:
        ask(one)
    for (number, condition, k), (together, alone) in answers.items():
        assert together[0][0] == (condition or None) and together[0][1][0] == f"x{number}"
        assert set(together[0][1]) == set(alone[0][1]) and len(alone[0][1]) == k
