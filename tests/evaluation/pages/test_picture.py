import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made import as_flags, encode, noise, tiny_clip, tiny_tokenizer
from PIL import Image

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.pages import picture
from lrvsf.mini.build import MiniSize, build_mini
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor


def test_the_picture_shows_each_condition_s_answers(tmp_path, tiny_model, capsys):
    build_mini(tmp_path / "mini", MiniSize(2, 4, 5, image_size=48), processes=1)
    tiny_model.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": tmp_path / "mini/test", "out": tmp_path / "a.png"}
    picture.main(as_flags(**places, categories=["Bags", "Feet"], count=3))
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (24 + 2 * 128, 8 + 248 + 8 + 106 + 3 * 128, 3)
    assert "asked for Bags, Feet" in capsys.readouterr().out


def test_retrieve_ranks_by_dot_product(tiny_model):
    encoder = Encoder(tiny_model, "category")
    scene = encode(noise(40, 40))
    query = encoder.embed([encoder.pixels(scene)], ["Head"])
    gallery = torch.cat([-query, query, torch.zeros_like(query)])
    assert picture.retrieve(encoder, scene, ["Head"], gallery, 3) == {"Head": [1, 2, 0]}


def test_words_ask_too_and_what_the_scene_is_known_to_show_is_framed(tmp_path, capsys):
    build_mini(tmp_path / "mini", MiniSize(2, 11, 5, image_size=48), processes=1)
    clip = str(tmp_path / "clip")
    tiny_clip().save_pretrained(clip)
    tiny_tokenizer().save_pretrained(clip)
    CondViTModel.from_clip(clip, text_encoder=clip, text_encoder_in_checkpoint=True).save_pretrained(tmp_path / "model")
    CondViTProcessor(size=32, tokenizer=tiny_tokenizer()).save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": tmp_path / "mini/two_of_a_kind", "out": tmp_path / "a.png"}
    count = pq.read_metadata(tmp_path / "mini/two_of_a_kind/products.parquet").num_rows + 5
    picture.main(as_flags(**places, texts=["the red bag", "a blue bag with many stripes"], count=count))
    assert "asked for the red bag, a blue bag with many stripes" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (24 + 2 * 128, 8 + 248 + 8 + (8 + 7 * 20) + count * 128, 3)
    # All items are found: in each row the frames of both products, whose scene it is.
    framed = (sheet == picture.FRAME).all(-1)
    assert framed.sum() == 4 * (120**2 - 114**2)


@pytest.fixture
def mini_test(tmp_path):
    build_mini(tmp_path, MiniSize(1, 12, 1, image_size=32), processes=1)
    return ProductTestSet(tmp_path / "test")


def test_what_a_manifest_says_is_worn_is_known_to_be_shown(mini_test):
    ids = [origin.product_id for origin in mini_test.origins("products")]
    manifest = mini_test.root / "manifest.json"
    worn = json.loads(manifest.read_text())["note"]["worn"]
    assert any(worn.values())
    known = picture.known_products(mini_test)
    assert [{ids[row] for row in rows} for rows in known] == [{one, *worn[one].values()} for one in ids]
    manifest.unlink()
    assert picture.known_products(mini_test) == [[row] for row in range(12)]


@pytest.mark.parametrize("things", [["0"], {"Bags": "no product"}, {"Bags": ["0"]}, {"Bags": None}])
def test_what_is_worn_must_be_products(mini_test, things):
    manifest = mini_test.root / "manifest.json"
    told = json.loads(manifest.read_text())
    asked = next(iter(told["note"]["worn"]))
    told["note"]["worn"][asked] = things
    manifest.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=f"is worn in the scene of {asked}, where a mapping to PRODUCT_IDs"):
        picture.known_products(mini_test)
