import json

import pytest
import torch

from configuration_condvit import CondViTConfig
from lrvsf.training.schedule import decayed_names, learning_rate_factor, trains_in_phase1
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
