"""What the flags of the recipe change of a run, and what they leave alone."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from made import edit_rows
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel

from lrvsf.data.pairs import PairMaker
from lrvsf.mini.build import MiniSize, build_mini, draw_looks, draw_product
from lrvsf.training.objective.loss import info_nce
from modeling_condvit import CondViTModel

MINI_CLIP = Path(__file__).parents[2] / "assets/mini-clip"


def test_phase1_is_one_epoch_unless_told_otherwise(train, clip, tmp_path):
    train(tmp_path, max_steps=-1, num_train_epochs=2, without=["phase1_steps"], save_strategy="epoch")
    tower = [AutoModel.from_pretrained(p, trust_remote_code=True) for p in (tmp_path / "checkpoint-3", tmp_path)]
    start = CLIPModel.from_pretrained(clip).vision_model.post_layernorm.weight
    weights = [model.vision_model.post_layernorm.weight for model in tower]
    assert torch.equal(weights[0], start) and not torch.equal(weights[1], start)


def test_phase1_leaves_the_tower_alone(train, clip, tmp_path):
    train(tmp_path, max_steps=2, phase1_steps=2, save_steps=2)
    before, after = CLIPModel.from_pretrained(clip), AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    tower = before.vision_model.state_dict()
    assert all(torch.equal(tower[name], value) for name, value in after.vision_model.state_dict().items())
    assert not torch.equal(before.visual_projection.weight, after.visual_projection.weight)


def test_a_trial_of_two_steps_has_both_phases_and_others_may_read_its_weights(train, clip, tmp_path, capsys):
    """An epoch has three steps. Half of two are phase 1; then the tower moves."""
    umask = os.umask(0o027)
    try:
        train(tmp_path, max_steps=2, save_steps=1, without=["phase1_steps"])
    finally:
        os.umask(umask)
    said = capsys.readouterr().out
    assert "the run's 2 steps are less than an epoch's 3: phase 1 has 1 of them" in said
    assert re.search(r"^2 steps of 7 pairs, in float32 on cpu$", said, re.MULTILINE)
    before = CLIPModel.from_pretrained(clip).vision_model.state_dict()
    for checkpoint, same in (("checkpoint-1", True), ("checkpoint-2", False)):
        after = load_file(tmp_path / checkpoint / "model.safetensors")
        equal = [torch.equal(value, after[f"vision_model.{name}"]) for name, value in before.items()]
        assert all(equal) is same
    weights = [tmp_path / "model.safetensors", *tmp_path.glob("checkpoint-*/model.safetensors")]
    assert [path.stat().st_mode & 0o777 for path in weights] == [0o640] * 3
    train(tmp_path, max_steps=3, phase1_steps=1, resume_from_checkpoint=True)
    assert f"going on from {tmp_path / 'checkpoint-2'}, step 2 of 3" in capsys.readouterr().out


def test_chunks_change_nothing_but_the_memory(train, trained, tmp_path):
    """Batches of 7 in chunks of 3, 3 and 1."""
    _, losses = trained
    assert train(tmp_path, save_steps=6, grad_cache_chunk=3) == pytest.approx(losses, rel=1e-4)


def test_more_condition_tokens_and_nested_dimensions(train, trained, tmp_path):
    folder, losses = trained
    once = {"max_steps": 1, "phase1_steps": 0, "save_steps": 1}
    assert train(tmp_path / "tokens", num_condition_tokens=3, **once) != losses[:1]
    assert json.loads((tmp_path / "tokens/config.json").read_text())["num_condition_tokens"] == 3
    assert train(tmp_path / "nested", matryoshka_dims=4, **once) != losses[:1]
    with pytest.raises(ValueError, match=r"matryoshka_dims=\[16\] must be above 0 and below the embedding's 16"):
        train(tmp_path / "whole", matryoshka_dims=16)
    with pytest.raises(ValueError, match="num_condition_tokens=1, the run asks for 3"):
        train(tmp_path / "on", model=folder, num_condition_tokens=3)
    with pytest.raises(ValueError, match="num_condition_tokens=2 with condition='none'"):
        train(tmp_path / "none", condition="none", num_condition_tokens=2)


def test_the_unconditioned_baseline_trains_by_the_same_recipe(train, tmp_path):
    losses = train(tmp_path, condition="none", save_steps=6, max_steps=6)
    assert len(losses) == 6
    assert json.loads((tmp_path / "config.json").read_text())["condition"] == "none"


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.survives("several products with one photo", "are never each other's negatives, and are in one split")
def test_products_of_one_photo_have_nothing_to_learn_from_each_other(train, tmp_path, chunk):
    """A batch of seven ids with one photo: no negatives, so the loss is log 1."""
    build_mini(tmp_path / "data", MiniSize(products=7, test_products=1, distractors=1, image_size=48), processes=1)

    def lend(rows):
        for row in rows:
            row["images"][0]["image"] = rows[0]["images"][0]["image"]

    edit_rows(tmp_path / "data/train/00000.parquet", lend)
    flags = {} if chunk is None else {"grad_cache_chunk": chunk}
    assert train(tmp_path / "run", data=tmp_path / "data", max_steps=1, phase1_steps=0, save_steps=1, **flags) == [0.0]


def test_bf16_loss_is_close_to_float32():
    """Mini CLIP on a full batch of 128 drawn pairs: of five random conditions, the relative difference is 5e-4 at most.
    The temperature is one at which an untrained model's loss is near that of chance, and not four times as large."""
    size = MiniSize(products=128, test_products=1, distractors=1, image_size=96)
    rows = [draw_product(size, job) for job in enumerate(draw_looks(size)["train"].looks)]
    torch.manual_seed(0)
    model = CondViTModel.from_clip(str(MINI_CLIP), attn_implementation="eager", logit_scale_init_value=3.4)
    batch = PairMaker(96, model.config.categories, seed=0).batch(0, rows, [])
    pixels, targets = (batch[key] / 127.5 - 1 for key in ("pixel_values", "target_pixel_values"))
    losses = []
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(pixels, batch["category_indices"], targets)
            losses.append(info_nce(output.image_embeds, output.target_embeds, model.logit_scale).item())
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 1e-3
