from dataclasses import dataclass, field

import pytest
from transformers import HfArgumentParser, TrainingArguments

from lrvsf.training.recipe import parse_recipe


@dataclass
class Own:
    data: str = field(default="x")
    sizes: list[int] = field(default_factory=list)


def parse(*arguments):
    return parse_recipe(HfArgumentParser((Own, TrainingArguments)), list(arguments))


def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: a\nsizes: [1, 2]\nseed: 7\noutput_dir: {tmp_path}\nmax_steps: null\n")
    own, training = parse(str(recipe), "--data", "b")
    assert (own.data, own.sizes, training.seed, training.max_steps) == ("b", [1, 2], 7, -1)


def test_mistakes_are_named(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(str(recipe))
    recipe.write_text("- 1\n")
    with pytest.raises(SystemExit, match="holds a list"):
        parse(str(recipe))
