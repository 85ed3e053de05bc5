import json

import pytest
import torch

from configuration_condvit import CondViTConfig
from lrvsf.training.schedule import decayed_names, learning_rate_factor, split_by_layer, trains_in_phase1
from modeling_condvit import CondViTModel


def test_golden_schedule(golden):
    published = json.loads((golden / "schedule.json").read_text())
    phase1 = published["steps_per_epoch"]
    total = phase1 * published["epochs"]
    ours = [1e-5 * learning_rate_factor(step, phase1, total) for step in range(total)]
    assert ours == pytest.approx(published["learning_rate_used_at_step"], rel=1e-12)


def test_without_phase1_it_starts_at_the_peak():
    assert learning_rate_factor(0, 0, 10) == 1
    assert learning_rate_factor(10, 0, 10) == pytest.approx(0.001)


def test_phase1_trains_projection_and_condition_only(make_model):
    names = [name for name, _ in make_model().named_parameters() if trains_in_phase1(name)]
    assert sorted(names) == ["condition_embedding", "condition_position_embedding", "visual_projection.weight"]


def test_every_parameter_decays_or_only_matrices_do():
    """Of B/32; what is spared is listed by hand."""
    with torch.device("meta"):
        shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        model = CondViTModel(CondViTConfig(**shape, patch_size=32, projection_dim=512))
    names = {name for name, _ in model.named_parameters()}
    assert set(decayed_names(model, False)) == names and len(names) == 203
    layer = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    assert set(decayed_names(model, True)) == {
        "vision_model.embeddings.patch_embedding.weight",
        "visual_projection.weight",
        *(f"vision_model.encoder.layers.{i}.{part}.weight" for i in range(12) for part in layer),
    }


def test_each_layer_has_a_share_of_the_next_one_s_rate(make_model):
    """Three layers at 0.5, decay of matrices only; what each parameter trains at is listed by hand."""
    model = make_model(num_hidden_layers=3)
    matrices = decayed_names(model, True)
    both = ([p for name, p in model.named_parameters() if (name in matrices) == wanted] for wanted in (True, False))
    groups = [{"params": one, "weight_decay": decay} for one, decay in zip(both, (0.1, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=8.0)
    split_by_layer(optimizer, model, 0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(found) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)
    below = {"layers.0.": 2.0, "layers.1.": 4.0, ".embeddings.": 1.0, ".pre_layrnorm.": 1.0}
    for name, (rate, decay) in found.items():
        assert rate == next((share for part, share in below.items() if part in name), 8.0), name
        assert decay == (0.1 if name in matrices else 0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == sorted(rates, reverse=True) and rates[0] == 8.0
