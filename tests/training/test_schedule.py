import json

import pytest

from lrvsf.training.schedule import learning_rate_factor, trains_in_phase1


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
