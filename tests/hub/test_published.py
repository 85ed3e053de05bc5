"""Published checkpoints: the same numbers after conversion, and no key lost in silence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import normalize

from configuration_condvit import CATEGORIES
from lrvsf.hub.published import from_published

Tensors = dict[str, torch.Tensor]


def load(folder: Path, name: str) -> tuple[Tensors, Tensors, int]:
    """The state dict, the inputs and outputs, and the number of heads of a golden file."""
    with safe_open(folder / f"model_{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        heads = json.loads(file.metadata()["config"])["heads"]
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    return state, tensors, heads


@pytest.mark.parametrize("prefix", ["", "model.", "condvit."])
@pytest.mark.parametrize("name", ["category", "plain"])
def test_golden_embeddings(golden: Path, name: str, prefix: str) -> None:
    state, tensors, heads = load(golden, name)
    model = from_published({prefix + key: tensor for key, tensor in state.items()}, num_attention_heads=heads)
    with torch.no_grad():
        unconditional = model(tensors["pixel_values"]).image_embeds
        assert (unconditional - normalize(tensors["embeddings.unconditional"], dim=-1)).abs().max() <= 1e-5
        if name == "category":
            conditional = model(tensors["pixel_values"], tensors["category_indices"]).image_embeds
            assert (conditional - normalize(tensors["embeddings.conditional"], dim=-1)).abs().max() <= 1e-5
            assert model.config.categories == list(CATEGORIES)
    assert model.config.condition == ("category" if name == "category" else "none")
    assert model.logit_scale == state["logit_scale"]
    assert not model.training


def test_projection_as_a_linear_layer(golden: Path) -> None:
    state, _, heads = load(golden, "plain")
    expected = from_published(state, heads).visual_projection.weight
    state["proj.weight"] = state.pop("proj").T
    assert torch.equal(from_published(state, heads).visual_projection.weight, expected)


def test_every_key_is_used_or_named(golden: Path) -> None:
    state, _, heads = load(golden, "category")
    for extra in ("ln_extra.weight", "transformer.resblocks.0.attn.bias_k", "transformer.resblocks.0.gate.weight"):
        with pytest.raises(ValueError, match=extra):
            from_published({**state, extra: torch.zeros(1)}, heads)
    for name in state:
        rest = {key: tensor for key, tensor in state.items() if key != name}
        if name == "logit_scale":
            assert from_published(rest, heads).logit_scale.item() == pytest.approx(4.6052)
        elif name != "c_embedding.weight":
            with pytest.raises(ValueError, match=f"Missing .1.: {name}|No conv1.weight"):
                from_published(rest, heads)


def test_own_categories(golden: Path) -> None:
    state, _, heads = load(golden, "category")
    names = [f"Shelf {number}" for number in range(10)]
    assert from_published(state, heads, categories=names).config.categories == names
    with pytest.raises(ValueError, match="10 categories, but 2"):
        from_published(state, heads, categories=["Mugs", "Pots"])


def test_heads_default_to_width_over_64(golden: Path) -> None:
    state, _, _ = load(golden, "plain")
    with pytest.raises(ValueError, match="width 32.*num_attention_heads"):
        from_published(state)


def test_a_dictionary_around_the_state_dict(golden: Path) -> None:
    state, _, heads = load(golden, "plain")
    with pytest.raises(ValueError, match="No conv1.weight.*state_dict"):
        from_published({"state_dict": state}, heads)
