import numpy as np
import torch
from made import as_flags, encode, noise
from PIL import Image

from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.pages import picture
from lrvsf.mini.build import MiniSize, build_mini


def test_the_picture_shows_each_condition_s_answers(tmp_path, tiny_model, capsys):
    build_mini(tmp_path / "mini", MiniSize(2, 4, 5, image_size=48), processes=1)
    tiny_model.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": tmp_path / "mini/test", "out": tmp_path / "a.png"}
    picture.main(as_flags(**places, categories=["Bags", "Feet"], count=3))
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (24 + 2 * 128, 8 + 248 + 8 + 104 + 3 * 128, 3)
    assert "asked for Bags, Feet" in capsys.readouterr().out


def test_retrieve_ranks_by_dot_product(tiny_model):
    encoder = Encoder(tiny_model, "category")
    scene = encode(noise(40, 40))
    query = encoder.embed([encoder.pixels(scene)], ["Head"])
    gallery = torch.cat([-query, query, torch.zeros_like(query)])
    assert picture.retrieve(encoder, scene, ["Head"], gallery, 3) == {"Head": [1, 2, 0]}
