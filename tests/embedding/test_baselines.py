"""Other families' checkpoints, made on the spot, against transformers' own forward."""

import json

import numpy as np
import pytest
import torch
from made import as_flags
from transformers import (
    BertConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import evaluate_lrvsf
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.baselines import IMAGENET, Baseline
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.fingerprint import differences, fingerprint
from lrvsf.embedding.parts import Distractors

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"image_size": 24, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}


def siglip():
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TOWER)), lambda model: model.vision_model


MADE = {
    "siglip": siglip,
    "siglip_vision_model": lambda: (SiglipVisionModel(SiglipVisionConfig(**TOWER)), lambda model: model),
    "dinov2": lambda: (Dinov2Model(Dinov2Config(**TOWER)), lambda model: model),
    "dinov2_with_registers": lambda: (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TOWER)), lambda model: model
    ),
    "dinov3_vit": lambda: (DINOv3ViTModel(DINOv3ViTConfig(**TOWER)), lambda model: model),
}  # fmt: skip


@pytest.mark.parametrize("family", MADE)
def test_embeddings_are_the_familys_own(family, tmp_path):
    torch.manual_seed(0)
    model, tower_of = MADE[family]()
    model.eval().save_pretrained(tmp_path)
    encoder = Encoder(load_model(str(tmp_path)), "none")
    assert isinstance(encoder.model, Baseline) and (encoder.image_size, encoder.dim) == (24, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 24), dtype=np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    with torch.inference_mode():
        own = tower_of(model)(pixel_values=(torch.from_numpy(pixels) / 255 - mean) / std).pooler_output
    torch.testing.assert_close(encoder.embed(list(pixels)), own / own.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MADE)
def test_attention_of_a_config_is_not_obeyed(family, tmp_path):
    MADE[family]()[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_attn_implementation": "stranger/kernel"}))
    assert load_model(str(tmp_path)).tower.config._attn_implementation == "sdpa"


def test_the_checkpoint_says_size_and_normalisation(tmp_path):
    model, _ = MADE["dinov2"]()
    model.save_pretrained(tmp_path)
    assert (load_model(str(tmp_path)).mean, load_model(str(tmp_path)).std) == IMAGENET
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_center_crop": True}
    said |= {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    baseline = load_model(str(tmp_path))
    assert (baseline.mean, baseline.std, baseline.config.image_size) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 16)
    assert Encoder(baseline, "none").embed([np.zeros((3, 16, 16), np.uint8)]).shape == (1, 16)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 24}}))
    with pytest.raises(ValueError, match="only squares"):
        load_model(str(tmp_path))


def test_older_forms_of_size_and_a_wrong_one(tmp_path):
    model, _ = MADE["siglip_vision_model"]()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 24}))
    assert load_model(str(tmp_path)).config.image_size == 24
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 48}))
    with pytest.raises(ValueError, match="is for 24 pixels, its preprocessor_config.json gives .48."):
        load_model(str(tmp_path))


def test_another_family_is_refused_by_name(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type .bert., which cannot be evaluated. Known are condvit, .*dinov3"):
        load_model(str(tmp_path))
    model, _ = MADE["dinov2"]()
    model.save_pretrained(tmp_path / "dino")
    with pytest.raises(ValueError, match="was asked of a model with condition='none'"):
        Encoder(load_model(str(tmp_path / "dino")), "category")


def test_half_a_checkpoint_is_refused(tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False)).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="vision_use_head=False, so it pools no embedding"):
        load_model(str(tmp_path / "headless"))
    state = SiglipVisionModel(SiglipVisionConfig(**TOWER))
    weights = {name: value for name, value in state.state_dict().items() if "head" not in name}
    state.save_pretrained(tmp_path / "half", state_dict=weights)
    with pytest.raises(ValueError, match="lacks .*head.*Give a checkpoint with its whole vision tower"):
        load_model(str(tmp_path / "half"))


def test_a_store_tells_baselines_apart(tmp_path, make_test_set):
    parts, model = [Distractors(ProductTestSet(make_test_set()))], MADE["dinov2"]()[0]
    model.save_pretrained(tmp_path)
    then = fingerprint(Encoder(load_model(str(tmp_path)), "none"), parts)
    assert json.loads(json.dumps(then)) and not differences(
        then, fingerprint(Encoder(load_model(str(tmp_path)), "none"), parts)
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    assert len(differences(then, fingerprint(Encoder(load_model(str(tmp_path)), "none"), parts))) == 1


def test_evaluated_with_the_published_filter(tmp_path, make_test_set, capsys):
    model, _ = MADE["siglip_vision_model"]()
    model.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": make_test_set(), "output_dir": tmp_path / "out"}
    flags = as_flags(**places, gallery_sizes=10, folds=2, restrict_to_category=True)
    evaluate_lrvsf.main(flags)
    printed = capsys.readouterr().out
    assert "none, 16 dimensions" in printed and "only items of the target's category" in printed
    with pytest.raises(ValueError, match="this model runs with conditioning=.none."):
        evaluate_lrvsf.main([*flags, "--attention", "0"])
