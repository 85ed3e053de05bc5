"""The examples of README.md and of the shipped models' cards, run as they stand where the models are."""

import re

import pytest
from examples import ROOT, examples, run_each
from made import encode, noise, write_file

from lrvsf.embedding.encoder import load_model
from processing_condvit import CondViTProcessor


def test_a_model_is_used_as_the_pages_say(tmp_path):
    """By the code in the model's folder alone: the process imports nothing of this project."""
    blocks = examples("README.md", "Use a model", 1) + examples("assets/mini-condvit/README.md", "Mini CondViT", 1)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    for number, name in enumerate(("scene", "product")):
        write_file(tmp_path / f"{name}.jpg", encode(noise(40, 30, number), "JPEG"))
    folder = ROOT / "assets/mini-condvit"
    model, processor = load_model(str(folder)), CondViTProcessor.from_pretrained(folder)
    query = model(**processor(tmp_path / "scene.jpg", categories="Bags")).image_embeds
    target = model(**processor(tmp_path / "product.jpg")).image_embeds
    for told, found in run_each(blocks, tmp_path, "query", "target"):
        for name, expected in {"query": query, "target": target}.items():  # the example computes in the file's float16
            assert found[name] == [pytest.approx(row, abs=5e-4) for row in expected.tolist()]
        (cosine,) = re.findall(r"^tensor\(\[\[(.*)\]\]", told)
        assert float(cosine) == pytest.approx((query @ target.T).item(), abs=1e-3)


def test_mini_clip_is_loaded_as_its_card_says(monkeypatch):
    (block,) = examples("assets/mini-clip/README.md", "Mini CLIP", 1)
    monkeypatch.chdir(ROOT)
    names = {}
    exec(block, names)
    words = names["tokenizer"](["a red bag", "a blue shoe"], padding=True, return_tensors="pt")
    assert names["model"].get_text_features(**words).pooler_output.shape == (2, 128)
