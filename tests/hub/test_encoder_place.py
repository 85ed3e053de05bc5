"""A text model is published only if other machines find its text encoder."""

import shutil

import pytest
import torch
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants
from made import noise, tiny_clip, tiny_sentence_encoder, tiny_tokenizer
from safetensors.torch import load_file
from torch.testing import assert_close

import publish_lrvsf
from lrvsf.hub.encoder_place import check_found_anywhere
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub()
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


@pytest.mark.parametrize(
    "name, found",
    [
        ("openai/clip-vit-base-patch32", True),
        ("gtr", True),
        ("/data/encoders/t5", False),
        ("./t5", False),
        ("../models/t5", False),
        ("~/t5", False),
        ("data/encoders/t5", False),
    ],
)
def test_a_name_is_found_anywhere_a_folder_is_not(name, found):
    config = {"text_encoder": {"name": name}}
    check_found_anywhere(config | {"text_encoder_in_checkpoint": True}, "")
    if found:
        check_found_anywhere(config, "")
    else:
        with pytest.raises(ValueError, match=f"fetched from {name}, a folder that other machines lack: do this."):
            check_found_anywhere(config, "do this")


def test_a_folder_that_looks_like_a_name_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/t5").mkdir(parents=True)
    with pytest.raises(ValueError, match="fetched from models/t5"):
        check_found_anywhere({"text_encoder": {"name": "models/t5"}}, "")
    for config in ({}, {"text_encoder": None}, {"condition": "category"}):
        check_found_anywhere(config, "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_push_takes_the_encoder_along_where_it_is_asked_to(tmp_path, hub, dtype):
    pytest.importorskip("sentence_transformers")
    tiny_clip().save_pretrained(tmp_path / "clip")
    _, encoder = tiny_sentence_encoder(tmp_path, "t5", "mean", (32, torch.nn.Identity))
    folder, processor = tmp_path / "model", CondViTProcessor(size=32, tokenizer=tiny_tokenizer())
    model = CondViTModel.from_clip(str(tmp_path / "clip"), text_encoder=str(encoder))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    inputs = processor([noise()], texts=["the red bag"])
    expected = CondViTModel.from_pretrained(folder, dtype="float32")(**inputs).image_embeds
    hub.asked.clear()  # transformers asks of a tokenizer whose it is
    trained = load_file(folder / "model.safetensors")
    with pytest.raises(
        ValueError, match="a folder that other machines lack: put it into the model's own by --with_text"
    ):
        publish_lrvsf.main(["push", str(folder), "bags"])
    assert not hub.asked
    publish_lrvsf.main(["push", str(folder), "bags", "--with_text_encoder"])
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name, content in hub.commits[0].items():
        (pushed / name).write_bytes(content)
    shutil.rmtree(encoder)
    assert str(tmp_path) not in (pushed / "config.json").read_text()
    assert not [path.name for path in folder.iterdir() if path.is_dir()], "nothing is left of what was written aside"
    again = CondViTModel.from_pretrained(pushed, dtype="float32")
    assert_close(again(**inputs).image_embeds, expected, atol=1e-6, rtol=0)
    for name, tensor in load_file(pushed / "model.safetensors").items():
        assert name.startswith("text_encoder.") or (tensor == trained[name]).all(), name
    publish_lrvsf.main(["push", str(folder), "bags", "--with_text_encoder"])
    assert len(hub.commits) == 2 and len({commit["model.safetensors"] for commit in hub.commits}) == 1
