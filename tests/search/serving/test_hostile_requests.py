"""What a service refuses, and that it goes on: too large, too many, too slow, malformed, hostile, from strangers."""

import asyncio
import base64
import json
import threading
import zlib
from contextlib import contextmanager

import pytest
from made import encode, plain, squares
from PIL import Image
from starlette.testclient import TestClient
from waiting import wait_for

from lrvsf.search.serving.gate import OPEN

HEADER = {"content-type": "application/json"}


def files(*pictures):
    return [("image", ("photo.jpg", picture, "image/jpeg")) for picture in pictures]


def png_bomb():
    """A PNG of a few kilobytes that unfolds into 60,000 x 60,000 pixels."""
    head = plain(size=(1, 1))
    ihdr = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + head[24:29]
    return head[:8] + (13).to_bytes(4, "big") + ihdr + zlib.crc32(ihdr).to_bytes(4, "big") + head[33:]


def asgi(app, parts, headers=(), goes=None):
    """The status that a POST gets whose body comes in parts. Then nothing comes, or the client goes when it is true."""

    async def ask():
        sent, arriving = [], list(parts)

        async def receive():
            if arriving:
                return {"type": "http.request", "body": arriving.pop(0), "more_body": bool(arriving) or goes is None}
            while goes is None or not goes():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/search", "headers": list(headers), "query_string": b""}
        await app(scope | {"app": app, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]

    return asyncio.run(ask())


@pytest.mark.survives("bombs, torn files and what is no picture, sent to a service", "400 and one sentence")
@pytest.mark.parametrize(
    "picture, told",
    [
        (b"<html>", "not an image"),
        (squares(1)[:200], "The picture cannot be read"),
        (png_bomb(), "too large"),
        (encode(Image.new("L", (8000, 7000))), "56,000,000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_bad_pictures_are_refused(client, refusal, picture, told):
    assert told in refusal(client.post("/search", files=files(picture)), 400)
    assert told in refusal(client.post("/embed", files=files(squares(1), picture)), 400)
    assert client.post("/search", files=files(squares(1))).status_code == 200


@pytest.mark.survives("filters that read files or run statements, sent to a service", "400 and one sentence")
@pytest.mark.parametrize(
    "where",
    [
        "price < (select count(*) from read_csv('/etc/passwd'))",
        "true) from items; copy items to '/tmp/stolen.csv'; select (true",
        "read_text('/etc/passwd') is not null",
        "getenv('HOME') = 'x'",
        "__thumbnail is not null",
        "price <",
        "colour = 'red'",
        "(" * 1500 + "true" + ")" * 400,
        "x" * 3000,
    ],
)
def test_hostile_filters_are_refused(client, refusal, where):
    refusal(client.post("/search", files=files(squares(1)), data={"where": where}), 400)


@pytest.mark.survives("an address where a service expects a picture", "400; nothing is fetched")
@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.jpg", "file:///etc/passwd", "https://169.254.169.254/"])
def test_no_address_is_fetched(client, refusal, address):
    told = "A picture must be in the request; the service fetches no address."
    assert refusal(client.post("/search", json={"image": address}), 400) == told
    assert refusal(client.post("/embed", json={"input": [address]}), 400) == told
    assert refusal(client.post("/search", data={"image": address}, files=files()), 400)
    assert "not an image" in refusal(client.post("/search", content=address.encode()), 400)


@pytest.mark.survives("fields that are wrong, unknown, too many, too long or out of range", "400 and one sentence")
@pytest.mark.parametrize(
    "sent, told",
    [
        ({"data": {"k": "0"}}, "The field k is a whole number from 1 to 200, and '0' is not."),
        ({"data": {"k": "201"}}, "from 1 to 200"),
        ({"data": {"k": "٣"}}, "from 1 to 200"),
        ({"data": {"k": ["1", "2"]}}, "The field k was given 2 times; give it once."),
        ({"data": {"condition": "Bagz"}}, "Did you mean 'Bags'?"),
        ({"data": {"condition": "Bags\x00\u202e"}}, "Condition 'Bags\\x00\\u202e' is not one of"),
        ({"data": {"condition": "x" * 300}}, "at most 200 letters"),
        ({"data": {"condition": ["Bags"] * 33}}, "33 conditions; 32 are the most"),
        ({"data": {"all": "yes"}}, "is true or false"),
        ({"data": {"all": "true", "condition": "Bags"}}, "leave condition out"),
        ({"data": {"conditon": "Bags"}}, "Did you mean 'condition'?"),
        ({"data": {"where": "x" * 9000}}, "Part exceeded maximum size"),
        ({"files": files(squares(1), squares(2))}, "2 pictures, and one is needed"),
        ({"files": []}, "0 pictures, and one is needed"),
        ({"files": None, "json": [1]}, "must be an object"),
        ({"files": None, "json": {"image": 3}}, "is base64 in JSON"),
        ({"files": None, "json": {"image": "%%%"}}, "neither"),
        ({"files": None, "json": {"image": "", "k": {"a": 1}}}, "is a whole number"),
        ({"files": None, "json": {"image": "", "where": 3}}, "The field where is a text"),
        ({"files": None, "json": {"image": "", "condition": [["Bags"]]}}, "A condition is a string"),
        ({"files": None, "content": b"{", "headers": HEADER}, "is no JSON"),
        ({"files": None, "content": b"[" * 100_000, "headers": HEADER}, "is no JSON"),
        ({"files": None, "content": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"files": None, "content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, ""),
    ],
)
def test_malformed_questions_are_refused(client, refusal, sent, told):
    assert told in refusal(client.post("/search", **{"files": files(squares(1)), **sent}), 400)


def test_malformed_requests_for_embeddings_are_refused(client, refusal):
    one = {"input": base64.b64encode(squares(1)).decode()}
    assert "17 pictures" in refusal(client.post("/embed", json={"input": [one["input"]] * 17}), 400)
    assert "encoding_format" in refusal(client.post("/embed", json=one | {"encoding_format": "hex"}), 400)
    assert "have 16 dimensions" in refusal(client.post("/embed", json=one | {"dimensions": 8}), 400)
    assert "no field 'k'" in refusal(client.post("/embed", json=one | {"k": 8}), 400)


def test_other_paths_and_methods(client, refusal):
    assert "There is no '/x' here" in refusal(client.get("/x"), 404)
    assert refusal(client.get("/search"), 405) == "'/search' does not take 'GET'."
    assert "items" in refusal(client.delete("/items/x1"), 405)
    for path in ("/search/", "/items"):  # a redirection would lead to whatever host the client said
        refusal(client.post(path, headers={"host": "evil.example"}, follow_redirects=False), 404)


@pytest.mark.survives("paths to other files, where a service expects an item's id", "404; no file is opened for an id")
@pytest.mark.parametrize(
    "name",
    ["../CURRENT", "..%2F..%2Fetc%2Fpasswd", "/etc/passwd", "%2e%2e/", "x1%00", "x1/", "", "%ff", "~", "x" * 5000],
)
def test_an_id_is_no_path(client, refusal, name, monkeypatch):
    monkeypatch.setattr("builtins.open", None)
    for route in ("/items/", "/thumbnails/"):
        assert len(refusal(client.get(route + name), 404)) < 300


@pytest.mark.survives("a request of gigabytes to a service", "413 before it is read")
def test_bodies_are_bounded(_shop, make_client, refusal):
    with make_client(_shop / "catalog", body=5000) as client:
        told = "The request has more than 5,000 bytes, which are the most."
        assert refusal(client.post("/search", content=b"x" * 5001), 413) == told
        assert refusal(client.post("/search", content=b"x" * 19_000), 413) == told
        assert client.post("/search", content=squares(1)).status_code == 200
        said = [(b"content-length", b"99999999999")]
        assert asgi(client.app, [], said) == (413, told), "none of it is read"
        assert asgi(client.app, [b"x" * 4000] * 6) == (413, told), "it lied, or did not say, how long it is"


@pytest.mark.survives("a client that sends a byte now and then", "408 after the longest time to an answer")
def test_slow_bodies_are_given_up(_shop, make_client):
    with make_client(_shop / "catalog", seconds=0.2) as client:
        assert asgi(client.app, [b"x", b"y"]) == (408, "The request did not arrive within 0.2 seconds.")


@pytest.fixture
def held(_shop, make_client):
    """`with held(**limits) as (client, release)`: a service whose model is at work until `release` is set."""

    @contextmanager
    def hold(**limits):
        with make_client(_shop / "catalog", **limits) as client:
            release, encoder = threading.Event(), client.answering.catalog.encoder
            embed = encoder.embed
            encoder.embed = lambda *given: release.wait(60) and embed(*given)
            try:
                yield client, release
            finally:
                release.set()

    return hold


@pytest.mark.survives("more requests than a service takes", "429 with Retry-After; those that it took are answered")
def test_what_is_too_many_is_sent_away(held, refusal):
    with held(waiting=2) as (client, release):
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/search", files=files(squares(1)))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert wait_for(lambda: "lrvsf_requests_taken 2.0" in client.get("/metrics").text)
        sent_away = client.post("/search", files=files(squares(1)))
        assert "ask again soon" in refusal(sent_away, 429) and sent_away.headers["retry-after"] == "1"
        assert client.get("/ready").status_code == client.get("/items/x1").status_code == 200
        release.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert client.post("/search", files=files(squares(1))).status_code == 200


@pytest.mark.survives("a client that goes before its answer", "its place is free at once, and its work is dropped")
def test_who_has_gone_is_not_worked_for(held):
    with held() as (client, release):
        embedding, embedded = client.answering._embedding, []
        run = embedding._run
        embedding._run = lambda jobs: embedded.extend(jobs) or run(jobs)
        thread = threading.Thread(target=client.post, args=("/search",), kwargs={"content": squares(1)})
        thread.start()
        assert wait_for(lambda: len(embedded) == 1), "it is at work"
        gone = asgi(client.app, [squares(2)], goes=lambda: len(embedding._waiting) == 1)
        assert gone == (499, "The client has gone.")
        assert asgi(client.app, [b"x", b"y"], goes=lambda: True)[0] == 499
        assert "lrvsf_requests_taken 1.0" in client.get("/metrics").text
        release.set()
        thread.join()
        assert client.post("/search", content=squares(3)).status_code == 200
        assert len(embedded) == 2, "the first and the last"


@pytest.mark.survives("an answer that takes too long", "504; what waited for it is dropped, and the next are answered")
def test_what_takes_too_long_is_given_up(held, refusal):
    with held(seconds=0.3) as (client, release):
        for _ in range(3):
            told = refusal(client.post("/search", files=files(squares(1))), 504)
            assert told == "There was no answer within 0.3 seconds."
        release.set()
        assert wait_for(lambda: client.post("/search", files=files(squares(1))).status_code == 200)


@pytest.mark.survives(
    "a fault of the program in one request", "500 and one sentence, the rest in the log; the next are answered"
)
def test_a_fault_of_the_program_is_told_as_one(_shop, make_client, refusal):
    with make_client(_shop / "catalog") as client:
        client.answering.catalog.verdicts = lambda rows: 1 / 0
        calm = TestClient(client.app, raise_server_exceptions=False)
        told = "The service failed on this request; its log says why."
        assert refusal(calm.post("/search", files=files(squares(1)), data={"all": "true"}), 500) == told
        assert client.post("/search", files=files(squares(1))).status_code == 200
        assert 'status="500"' in client.get("/metrics").text


@pytest.mark.survives("requests to a service without its token, or with another", "401, on all paths but two")
def test_a_token_is_asked_for(_shop, make_client, refusal):
    with make_client(_shop / "catalog", token="sésame 1") as client:
        good = "Bearer sésame 1".encode()
        for given in (None, b"Bearer", b"Bearer sesame", b"Basic s\xc3\xa9same 1", b"s\xc3\xa9same 1", b"\xff"):
            headers = {} if given is None else {"authorization": given}
            for path in ("/items/x1", "/metrics", "/docs", "/openapi.json", "/nope"):
                answer = client.get(path, headers=headers)
                assert "asks for a token" in refusal(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            refusal(client.post("/search", files=files(squares(1)), headers=headers), 401)
        for path in OPEN:
            assert client.get(path).status_code == 200
        assert client.get("/items/x1", headers={"authorization": good}).status_code == 200
        assert client.post("/search", files=files(squares(1)), headers={"authorization": good}).status_code == 200


def test_pages_of_other_origins_may_ask_only_where_they_are_named(_shop, client, make_client):
    asks = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.get("/health", headers=asks).headers
    assert client.options("/search", headers=asks).status_code == 405
    with make_client(_shop / "catalog", token="t", origins=["https://shop.example"]) as open_client:
        allowed = open_client.options("/search", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        refused = open_client.get("/metrics", headers=asks)
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers
        other = open_client.options("/search", headers=asks | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
