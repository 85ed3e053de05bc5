"""A model that was pushed opens by its name in sentence-transformers, from a Hub on loopback, and embeds as it did."""

import json
import os
import subprocess
import sys

import pytest
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants
from made import encode, noise, write_file, write_teller

from lrvsf.embedding.encoder import load_model
from lrvsf.hub.push_model import push_model
from processing_condvit import CondViTProcessor

pytest.importorskip("sentence_transformers")

OPENED = """
import json
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("me/bags", trust_remote_code=True)
queries = model.encode_query([{"image": "a.png", "text": "Bags"}, {"image": "b.png", "text": "Head"}])
print(json.dumps([queries.tolist(), model.encode_document(["a.png", "b.png"]).tolist()]))
"""


@pytest.mark.parametrize("condition, word", [("category", "categories"), ("text", "texts")])
def test_it_opens_by_name_and_embeds_as_before(tmp_path, monkeypatch, condition, word):
    folder = write_teller(tmp_path / "model", condition)
    write_file(folder / "README.md", b"# bags\n")
    for number, name in enumerate("ab"):
        write_file(tmp_path / f"{name}.png", encode(noise(40, 30 + number, number)))
    hub = FakeHub()
    try:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        push_model(folder, "me/bags", private=True, token=TOKEN)
        names = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        names |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
        opened = subprocess.run(
            [sys.executable, "-c", OPENED],
            cwd=tmp_path, env={**os.environ, **names}, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
    finally:
        hub.close()
    assert opened.returncode == 0, opened.stderr
    model, processor = load_model(str(folder)), CondViTProcessor.from_pretrained(folder)
    pictures = [str(tmp_path / f"{name}.png") for name in "ab"]
    for found, asked in zip(json.loads(opened.stdout), ({word: ["Bags", "Head"]}, {}), strict=True):
        expected = model(**processor(pictures, **asked)).image_embeds.tolist()
        assert found == [pytest.approx(row, abs=1e-5) for row in expected]
