"""A model that tells pictures apart: at a tiny model's usual weights, scores differ in their last bits only."""

import pytest
import torch
from made import tiny_condvit


@pytest.fixture(scope="session")
def telling_model(tmp_path_factory):
    """Its folder."""
    model = tiny_condvit()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(20)
    folder = tmp_path_factory.mktemp("telling") / "tiny"
    model.save_pretrained(folder)
    return folder
