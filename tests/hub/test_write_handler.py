"""handler.py, loaded as the Hub's endpoints load it: by its path, in a process that knows nothing of this project."""

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from made import encode, noise, squares, tiny_condvit, write_tiny_reader

import lrvsf.auto  # noqa: F401 - its classes are those of the folders, without a copy in the cache
import publish_lrvsf
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.hub.card import write_converted_card
from lrvsf.hub.handler import EndpointHandler
from processing_condvit import CondViTProcessor

ENDPOINT = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("handler", sys.argv[1] + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(sys.argv[1])
print(json.dumps([handler(data) for data in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint") / "tiny"
    model = tiny_condvit()
    model.save_pretrained(folder)
    CondViTProcessor(categories=model.config.categories, size=model.config.image_size).save_pretrained(folder)
    write_converted_card(folder, "tiny", "tiny.pt", model, "apache-2.0")
    publish_lrvsf.main(["handler", str(folder)])
    return folder


def coded(data):
    return base64.b64encode(data).decode()


def test_an_endpoint_gives_the_rows_of_the_catalogs_encoder(folder, tmp_path):
    pictures = [squares(1), squares(2)]
    requests = [
        {"inputs": coded(pictures[0])},
        {"inputs": [coded(one) for one in pictures], "parameters": {"condition": "Bags"}},
        {"inputs": [coded(one) for one in pictures], "parameters": {"condition": ["Feet", "Bags"]}},
    ]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ENDPOINT, str(folder)]
    ended = subprocess.run(
        command, input=json.dumps(requests), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    plain, bags, mixed = json.loads(ended.stdout)
    encoder = Encoder(tiny_condvit(), "category")
    pixels = [encoder.pixels(one) for one in pictures]
    for answer, rows, names in (
        (plain, encoder.embed(pixels[:1]), [None]),
        (bags, encoder.embed(pixels, ["Bags", "Bags"]), ["Bags", "Bags"]),
        (mixed, encoder.embed(pixels, ["Feet", "Bags"]), ["Feet", "Bags"]),
    ):
        assert [one["condition"] for one in answer] == names
        np.testing.assert_allclose([one["embedding"] for one in answer], rows, atol=1e-5)


@pytest.fixture(scope="module")
def endpoint(folder):
    return EndpointHandler(str(folder))


def row_of(endpoint, picture):
    return endpoint({"inputs": picture})[0]["embedding"]


def test_a_photo_is_seen_as_a_browser_shows_it(endpoint):
    upright = noise(32, 24, 5)
    exif = upright.getexif()
    exif[0x0112] = 6
    sideways = encode(upright.rotate(90, expand=True), "PNG", exif=exif)
    np.testing.assert_allclose(row_of(endpoint, coded(sideways)), row_of(endpoint, noise(32, 24, 5)), atol=1e-5)
    clear = upright.convert("RGBA")
    clear.putalpha(0)
    white = encode(noise(32, 24, 5).point(lambda _: 255))
    np.testing.assert_allclose(row_of(endpoint, coded(encode(clear))), row_of(endpoint, coded(white)), atol=1e-5)


@pytest.mark.survives("addresses, bombs and other hostile inputs to an endpoint's handler", "refused in one sentence")
@pytest.mark.parametrize(
    "data, told",
    [
        ({}, "must be base64"),
        ({"inputs": []}, "Send 1 to 32"),
        ({"inputs": "http://127.0.0.1/secret.png"}, "addresses are not fetched"),
        ({"inputs": "/etc/passwd"}, "cannot be read|must be base64"),
        ({"inputs": {"url": "file:///etc/passwd"}}, "must be base64"),
        ({"inputs": coded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}, "cannot be read"),
        ({"inputs": coded(encode(noise().resize((9000, 9000))))}, "9000 x 9000 pixels"),
        ({"inputs": coded(squares(1)), "parameters": {"condition": "Bagz"}}, "Did you mean 'Bags'"),
        ({"inputs": [coded(squares(1))] * 2, "parameters": {"condition": ["Bags"]}}, "one for each"),
        ({"inputs": [coded(squares(1))] * 2, "parameters": {"condition": ["Bags", None]}}, "one for each"),
        ({"inputs": coded(squares(1)), "parameters": {"text": "the red bag"}}, "reads no texts. Its conditions are"),
        ({"inputs": coded(squares(1)), "parameters": {"text": "bag", "condition": "Bags"}}, "Give one of them"),
        ({"inputs": coded(squares(1)), "parameters": {"text": "x" * 201}}, "201 letters. 200 are the most"),
    ],
)
def test_what_is_wrong_is_refused(endpoint, data, told):
    with pytest.raises(ValueError, match=told):
        endpoint(data)


def test_a_text_model_is_asked_in_words(tmp_path):
    reader = write_tiny_reader(tmp_path / "reader")
    pictures, words = [squares(1), squares(2)], ["the red bag", "shoe"]
    endpoint, encoder = EndpointHandler(str(reader)), Encoder(load_model(str(reader)), "text")
    answer = endpoint({"inputs": list(map(coded, pictures)), "parameters": {"text": words}})
    assert [one["condition"] for one in answer] == words
    expected = encoder.embed([encoder.pixels(one) for one in pictures], words)
    np.testing.assert_allclose([one["embedding"] for one in answer], expected, atol=1e-5)
    (named,) = endpoint({"inputs": coded(pictures[0]), "parameters": {"condition": "Bags"}})
    (said,) = endpoint({"inputs": coded(pictures[0]), "parameters": {"text": "Bags"}})
    np.testing.assert_allclose(named["embedding"], said["embedding"], atol=1e-5)
    for text in ("", " ", ["bag", "shoe"]):
        with pytest.raises(ValueError, match="says nothing|one for each"):
            endpoint({"inputs": coded(pictures[0]), "parameters": {"text": text}})


def test_a_folder_without_a_model_gets_none(tmp_path):
    with pytest.raises(RuntimeError, match="is no finished model"):
        publish_lrvsf.main(["handler", str(tmp_path)])
    assert not (tmp_path / "handler.py").exists()
