"""The model: CLIP's numbers without a condition, learned tokens with one, and every way in which it can be run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import TINY, tiny_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor

Make = Callable[..., CondViTModel]
INDICES = torch.tensor([0, 9, 4])


@pytest.fixture
def whole_clip(tmp_path: Path) -> str:
    """A folder with a whole CLIP, whose vision_config states another projection_dim than CLIP goes by."""
    tiny_clip(vision={"projection_dim": 99, "hidden_act": "gelu"}).save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def embed(model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(*args, **kwargs).image_embeds


# What comes out


def test_outputs(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    output = tiny_model(pixel_values, INDICES, pixel_values[:2], output_hidden_states=True)
    assert output.image_embeds.shape == (3, 16)
    assert output.target_embeds.shape == (2, 16)
    assert output.last_hidden_state.shape == (3, 1 + 16 + 1, 32)
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == [(3, 18, 32)] * 3  # the queries' alone
    assert output.pooler_output is output.image_embeds
    torch.testing.assert_close(output.image_embeds.norm(dim=-1), torch.ones(3))
    assert isinstance(tiny_model(pixel_values, return_dict=False), tuple)


def test_target_is_the_unconditioned_embedding(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    both = tiny_model(pixel_values, INDICES, pixel_values)
    assert torch.equal(both.target_embeds, tiny_model(pixel_values).image_embeds)
    assert not torch.allclose(both.image_embeds, both.target_embeds)
    alone = tiny_model(target_pixel_values=pixel_values)
    assert torch.equal(alone.target_embeds, both.target_embeds)
    assert alone.image_embeds is None


def test_attentions_see_the_condition(make_model: Make, pixel_values: torch.Tensor) -> None:
    model = make_model(num_condition_tokens=2)
    model.set_attn_implementation("eager")
    attentions = model(pixel_values, INDICES, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in attentions] == [(3, 2, 19, 19)] * 2
    assert attentions[0][:, :, 0, -2:].min() > 0


def test_token_order(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    """[CLS], patches, condition; the condition with its own position; all before the pre-LayerNorm."""
    tower = tiny_model.vision_model
    tokens = tiny_model(pixel_values, INDICES, output_hidden_states=True).hidden_states[0]
    condition = tiny_model.condition_embedding[INDICES, 0] + tiny_model.condition_position_embedding[0]
    torch.testing.assert_close(tokens[:, -1], tower.pre_layrnorm(condition))
    torch.testing.assert_close(tokens[:, :-1], tower.pre_layrnorm(tower.embeddings(pixel_values)))


@pytest.mark.parametrize("tokens", [1, 3])
def test_each_row_reads_its_own_category(make_model: Make, pixel_values: torch.Tensor, tokens: int) -> None:
    model = make_model(num_condition_tokens=tokens)
    batch = embed(model, pixel_values, INDICES)
    for row, index in enumerate(INDICES):
        one = embed(model, pixel_values[row : row + 1], index[None])
        torch.testing.assert_close(batch[row : row + 1], one, atol=1e-6, rtol=0)
    assert (batch - embed(model, pixel_values, INDICES.flip(0))).abs().amax(dim=-1)[[0, 2]].min() > 1e-4


def test_only_the_chosen_categories_get_gradients(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    tiny_model(pixel_values, INDICES).image_embeds.sum().backward()
    touched = tiny_model.condition_embedding.grad.abs().sum(dim=(1, 2)) > 0
    assert touched.nonzero().flatten().tolist() == [0, 4, 9]


@pytest.mark.parametrize("like", [None, "Feet"])
def test_added_categories(make_model: Make, pixel_values: torch.Tensor, tmp_path: Path, like: str | None) -> None:
    model = make_model(categories=["Bags", "Feet"], num_condition_tokens=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.add_categories(["Belts", "Rings"], like=like)
    table = before.pop("condition_embedding")
    start = (table[0] + table[1]) / 2 if like is None else table[1]
    assert torch.equal(model.condition_embedding, torch.cat([table, start[None], start[None]]))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert model.config.categories == model.vision_model.config.categories == ["Bags", "Feet", "Belts", "Rings"]

    model.save_pretrained(tmp_path)
    CondViTProcessor(categories=model.config.categories, size=32).save_pretrained(tmp_path)
    again, processor = CondViTModel.from_pretrained(tmp_path), CondViTProcessor.from_pretrained(tmp_path)
    inputs = processor([Image.new("RGB", (9, 9))] * 2, categories=["Rings", "Bags"], return_tensors="pt")
    assert inputs["category_indices"].tolist() == [3, 0]
    assert torch.equal(embed(again, **inputs), embed(model, **inputs))
    model(pixel_values, torch.tensor([2, 2, 3])).image_embeds[:, 0].sum().backward()
    assert model.condition_embedding.grad.abs().sum(dim=(1, 2)).bool().tolist() == [False, False, True, True]


def test_categories_that_cannot_be_added(make_model: Make) -> None:
    model = make_model(categories=["Bags", "Feet"])
    for names, like, message in (
        (["Feet"], None, "more than once"),
        (["Belts", "Belts"], None, "more than once"),
        ([" "], None, "holds a blank"),
        (["Belts"], "Waist", "'Waist' is not one of this model's categories"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_categories(names, like=like)
        assert model.config.categories == ["Bags", "Feet"] and len(model.condition_embedding) == 2
    with pytest.raises(ValueError, match="can learn no category"):
        make_model(condition="none").add_categories(["Belts"])
    model.add_categories("Belts")
    assert model.config.categories == ["Bags", "Feet", "Belts"]


def test_no_condition_means_no_condition_parameters(make_model: Make, pixel_values: torch.Tensor) -> None:
    plain = make_model(condition="none")
    assert not [name for name, _ in plain.named_parameters() if "condition" in name]
    with pytest.raises(ValueError, match="without category_indices"):
        plain(pixel_values, INDICES)


def test_a_training_step_uses_every_parameter(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    """Distributed training hangs or fails otherwise."""
    output = tiny_model.train()(pixel_values, INDICES, pixel_values)
    (tiny_model.logit_scale.exp() * output.image_embeds @ output.target_embeds.T).logsumexp(dim=-1).sum().backward()
    assert not [name for name, parameter in tiny_model.named_parameters() if parameter.grad is None]


def test_input_errors(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="nothing to embed"):
        tiny_model()
    with pytest.raises(ValueError, match=r"shape \(2,\).*\(3,\)"):
        tiny_model(pixel_values, INDICES[:2])
    with pytest.raises(ValueError, match="category_indices"):
        tiny_model(category_indices=INDICES, target_pixel_values=pixel_values)
    with pytest.raises(IndexError, match=r"\[10, -1\].*0 to 9"):
        tiny_model(pixel_values, torch.tensor([10, 3, -1]))
    with pytest.raises(ValueError, match="48"):
        tiny_model(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("name", ["categories", "category_indexes", "labels", "text"])
def test_unknown_arguments_are_refused(tiny_model: CondViTModel, pixel_values: torch.Tensor, name: str) -> None:
    """What is ignored is another embedding than the one asked for; the tower alone is asked by some libraries."""
    for part in (tiny_model, tiny_model.vision_model):
        with pytest.raises(
            TypeError, match=f"Unknown argument '{name}'. Conditions are category_indices or text_embeds"
        ):
            part(pixel_values, **{name: INDICES})
        part(pixel_values, **{name: None}, output_hidden_states=True, output_attentions=False, return_dict=True)
    with pytest.raises(TypeError, match=name):
        tiny_model(target_pixel_values=pixel_values, **{name: INDICES})
    with pytest.raises(TypeError, match="'category_indices'"):
        tiny_model.vision_model(pixel_values, category_indices=INDICES)


# From CLIP


def test_from_a_whole_clip(whole_clip: str, pixel_values: torch.Tensor) -> None:
    clip = CLIPModel.from_pretrained(whole_clip).eval()
    model = CondViTModel.from_clip(whole_clip, categories=["Mugs", "Pots"], num_condition_tokens=2)
    with torch.no_grad():
        expected = normalize(clip.visual_projection(clip.vision_model(pixel_values).pooler_output), dim=-1)
    assert torch.equal(embed(model, pixel_values), expected)
    assert model.config.categories == ["Mugs", "Pots"]
    assert model.config.hidden_act == "gelu"
    assert model.condition_embedding.shape == (2, 2, 32)
    assert not model.training


def test_from_a_vision_tower(tmp_path: Path, pixel_values: torch.Tensor) -> None:
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY)).eval()
    clip.save_pretrained(tmp_path)
    model = CondViTModel.from_clip(str(tmp_path))
    assert torch.equal(embed(model, pixel_values), normalize(embed(clip, pixel_values), dim=-1))
    assert len(model.condition_embedding) == 10


def test_from_a_tower_without_projection(tmp_path: Path, pixel_values: torch.Tensor) -> None:
    clip = CLIPVisionModel(CLIPVisionConfig(**TINY)).eval()
    clip.save_pretrained(tmp_path)
    model = CondViTModel.from_clip(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(model(pixel_values).last_hidden_state, clip(pixel_values).last_hidden_state)
    assert 0 < model.visual_projection.weight.std() < 1


def test_from_clip_draws_the_condition_and_nothing_else(whole_clip: str) -> None:
    """What a checkpoint lacks is made on the meta device first: without an initialiser it would be arbitrary memory."""
    torch.manual_seed(0)
    first = CondViTModel.from_clip(whole_clip)
    torch.manual_seed(0)
    second = CondViTModel.from_clip(whole_clip)
    torch.manual_seed(1)
    third = CondViTModel.from_clip(whole_clip)
    drawn = {"condition_embedding", "condition_position_embedding"}
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert torch.equal(tensor, third.state_dict()[name]) != (name in drawn)
    assert first.condition_embedding.std().item() == pytest.approx(32**-0.5, rel=0.2)


def test_from_clip_sets_the_temperature(whole_clip: str) -> None:
    assert CLIPModel.from_pretrained(whole_clip).logit_scale.item() == pytest.approx(2.6592)
    assert CondViTModel.from_clip(whole_clip).logit_scale.item() == pytest.approx(4.6052)
    assert CondViTModel.from_clip(whole_clip, logit_scale_init_value=3.0).logit_scale.item() == 3.0


def test_from_pretrained_reads_clip_too(whole_clip: str) -> None:
    """The low road: the caller states the configuration, and a whole CLIP's own temperature comes along."""
    config = CondViTConfig(**TINY, hidden_act="gelu")
    model, info = CondViTModel.from_pretrained(whole_clip, config=config, output_loading_info=True)
    assert set(info["missing_keys"]) == {"condition_embedding", "condition_position_embedding"}
    assert all(key.startswith("text_") for key in info["unexpected_keys"])
    assert model.logit_scale.item() == pytest.approx(2.6592)


def test_from_clip_is_float32_unless_told(whole_clip: str) -> None:
    CLIPModel.from_pretrained(whole_clip).half().save_pretrained(whole_clip)
    assert CondViTModel.from_clip(whole_clip).dtype == torch.float32
    assert CondViTModel.from_clip(whole_clip, dtype=torch.bfloat16).dtype == torch.bfloat16
    eager = CondViTModel.from_clip(whole_clip, attn_implementation="eager", condition="none")
    assert eager.config._attn_implementation == "eager"
    assert eager.config.condition == "none"


def test_from_clip_refuses_what_is_not_clip(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**shape, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'vit' model"):
        CondViTModel.from_clip(str(tmp_path))


def test_from_clip_refuses_half_a_tower(whole_clip: str) -> None:
    clip = CLIPModel.from_pretrained(whole_clip)
    kept = {name: tensor for name, tensor in clip.state_dict().items() if "layers.1" not in name}
    clip.save_pretrained(whole_clip, state_dict=kept)
    with pytest.raises(ValueError, match=r"lacks .*layers\.1"):
        CondViTModel.from_clip(whole_clip)


# Ways to run


def test_eager_equals_sdpa(make_model: Make, pixel_values: torch.Tensor) -> None:
    model = make_model()
    assert model.config._attn_implementation == "sdpa"
    expected = embed(model, pixel_values, INDICES)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(embed(model, pixel_values, INDICES), expected, atol=1e-6, rtol=0)


def test_gradient_checkpointing_changes_no_gradient(make_model: Make, pixel_values: torch.Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            # transformers is renaming it; the oldest supported version knows only the old name
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert all(layer.gradient_checkpointing for layer in model.vision_model.encoder.layers)
        model(pixel_values, INDICES).image_embeds[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(make_model: Make, pixel_values: torch.Tensor, autocast: bool) -> None:
    expected = embed(make_model(), pixel_values, INDICES)
    model = make_model() if autocast else make_model().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        embeds = embed(model, pixel_values, INDICES)
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))
    assert (embeds * expected).sum(dim=-1).min() > 0.999


def test_other_resolutions_equal_clips(make_model: Make, pixel_values: torch.Tensor) -> None:
    model = make_model(condition="none")
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY)).eval()
    clip.load_state_dict({key: value for key, value in model.state_dict().items() if key != "logit_scale"})
    wide = torch.randn(2, 3, 48, 64)
    expected = normalize(embed(clip, wide, interpolate_pos_encoding=True), dim=-1)
    assert torch.equal(embed(model, wide, interpolate_pos_encoding=True), expected)
    same = embed(model, pixel_values, interpolate_pos_encoding=True)
    assert torch.equal(same, embed(model, pixel_values))

    both = make_model()(wide, INDICES[:2], wide, interpolate_pos_encoding=True)
    assert both.last_hidden_state.shape == (2, 1 + 6 * 8 + 1, 32)
    assert torch.equal(both.target_embeds, make_model()(wide, interpolate_pos_encoding=True).image_embeds)


def test_compiled_whole(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    """`fullgraph` fails at the first line that cannot be traced. The backend does not need a C++ compiler."""
    compiled = torch.compile(tiny_model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        output, expected = (model(pixel_values, INDICES, pixel_values) for model in (compiled, tiny_model))
    torch.testing.assert_close(output.image_embeds, expected.image_embeds)
    torch.testing.assert_close(output.target_embeds, expected.target_embeds)


def test_exported_with_any_batch_size(tiny_model: CondViTModel, pixel_values: torch.Tensor) -> None:
    batch = torch.export.Dim("batch", max=64)
    inputs = {"pixel_values": pixel_values, "category_indices": INDICES}
    exported = torch.export.export(tiny_model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    more = torch.randn(5, 3, 32, 32), torch.tensor([9, 0, 1, 2, 3])
    output = exported.module()(pixel_values=more[0], category_indices=more[1])
    torch.testing.assert_close(output.image_embeds, embed(tiny_model, *more))


# A gallery that stays as it is


def test_a_frozen_gallery_embeds_what_has_no_condition(
    tiny_model: CondViTModel, pixel_values: torch.Tensor, tmp_path: Path
) -> None:
    before = tiny_model(pixel_values, INDICES, pixel_values)
    model = tiny_model.with_frozen_gallery().eval()
    assert torch.equal(embed(model, pixel_values, INDICES), before.image_embeds), "queries start where they were"
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == {
        f"gallery.{name}" for name, _ in tiny_model.named_parameters()
    }
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    model.save_pretrained(tmp_path)
    for one in (model, CondViTModel.from_pretrained(tmp_path).eval()):
        after = one(pixel_values, INDICES, pixel_values)
        assert torch.equal(after.target_embeds, before.target_embeds)
        assert torch.equal(embed(one, pixel_values), before.target_embeds)
        assert not torch.allclose(after.image_embeds, before.image_embeds, atol=1e-3)
        assert one.with_frozen_gallery() is one
        assert not any(weight.requires_grad for weight in one.gallery.parameters())


def test_a_gallery_is_loaded_as_the_rest_is(
    tiny_model: CondViTModel, pixel_values: torch.Tensor, tmp_path: Path
) -> None:
    tiny_model.with_frozen_gallery().save_pretrained(tmp_path)
    model = CondViTModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert len(model(pixel_values, output_attentions=True).attentions) == tiny_model.config.num_hidden_layers
    weights = load_file(tmp_path / "model.safetensors")
    lost = {name: weight for name, weight in weights.items() if not name.startswith("gallery.vision_model")}
    save_file(lost, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks its gallery's weights"):
        CondViTModel.from_pretrained(tmp_path)


def test_a_gallery_of_another_shape_is_refused(tiny_model: CondViTModel) -> None:
    inner = tiny_model.config.to_diff_dict()
    with pytest.raises(Exception, match="no single model of the same projection_dim"):
        CondViTConfig(**{**inner, "gallery": inner | {"projection_dim": 8}})
    with pytest.raises(Exception, match="gallery sees 64 pixels, queries 32"):
        CondViTConfig(**{**inner, "gallery": inner | {"image_size": 64}})
