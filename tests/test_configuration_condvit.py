"""The configuration: what it accepts, refuses and saves."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from configuration_condvit import CATEGORIES, CondViTConfig


def test_defaults_are_the_published_model() -> None:
    config = CondViTConfig()
    assert config.categories == [
        *("Bags", "Feet", "Hands", "Head", "Lower Body", "Neck", "Outwear", "Upper Body", "Waist", "Whole Body")
    ]
    assert (config.condition, config.num_condition_tokens) == ("category", 1)
    assert config.logit_scale_init_value == pytest.approx(4.6052)


def test_categories_are_not_shared_between_configurations() -> None:
    CondViTConfig().categories.append("Shoes")
    assert CondViTConfig().categories == list(CATEGORIES)


def test_saved_and_loaded(tmp_path: Path) -> None:
    config = CondViTConfig(categories=["Mugs", "Pots"], num_condition_tokens=2, image_size=64, patch_size=16)
    config.save_pretrained(tmp_path)
    assert CondViTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_defaults_are_saved_too(tmp_path: Path) -> None:
    """So that a checkpoint keeps its meaning when a default changes."""
    CondViTConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["categories"] == list(CATEGORIES)
    assert saved["condition"] == "category"
    assert saved["projection_dim"] == 512


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"condition": "colour"}, "'colour' is not supported. Use category, text or none"),
        ({"num_condition_tokens": 0}, "num_condition_tokens=0"),
        ({"num_condition_tokens": 10**6}, "num_condition_tokens=1000000 is not from 1 to 1000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000 is not from 1 to 1000"),
        ({"categories": [str(i) for i in range(10**5)]}, "above 10,000"),
        ({"categories": []}, "categories=.. is empty"),
        ({"categories": ["Bags", " "]}, "blank"),
        ({"categories": ["Bags", "Feet", "Bags"]}, "'Bags'. more than once"),
        ({"categories": [1, 2]}, "categories"),
        ({"image_size": 100, "patch_size": 16}, "image_size=100 is not a multiple of patch_size=16"),
        ({"image_size": 8, "patch_size": 16}, "image_size=8"),
        ({"image_size": [224, 224]}, "square"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "100"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        CondViTConfig(**fields)
