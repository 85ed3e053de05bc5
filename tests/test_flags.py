"""The flags that are read from the source are those that HfArgumentParser makes of the classes."""

import re

import pytest
from transformers import HfArgumentParser, TrainingArguments

from lrvsf.evaluation.arguments import EvaluateArguments, PictureArguments
from lrvsf.flags import FlagParser
from lrvsf.mini.train_clip import MiniClipArguments
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments

SCRIPTS = {
    "train_hf.py": (ModelArguments, CondViTTrainingArguments),
    "evaluate_lrvsf.py": (EvaluateArguments, PictureArguments),
    "mini_clip.py": (MiniClipArguments, TrainingArguments),
}


def parser(script):
    return FlagParser("", "", *((one.__module__, one.__name__) for one in SCRIPTS[script]))


def described(parser):
    """Each flag by its first spelling: what it takes, and how often."""
    flags = {}
    for action in parser._actions:
        kind = {int: "int", float: "float"}.get(action.type, "str")
        kind = "bool" if getattr(action.type, "__name__", "") in ("boolean", "string_to_bool") else kind
        flags[action.option_strings[0]] = (kind, action.nargs, action.const, action.required, action.dest)
    return flags


@pytest.mark.parametrize("script", SCRIPTS)
def test_they_are_those_of_the_classes(script):
    light, real = parser(script), HfArgumentParser(SCRIPTS[script])
    spelt = {option.replace("-", "_") for action in real._actions for option in action.option_strings}
    assert spelt == {option.replace("-", "_") for action in light._actions for option in action.option_strings}
    ours, theirs = described(light), described(real)
    assert {name: ours[name] for name in theirs} == theirs
    for action in real._actions:
        flag = light.flags.get(action.dest)
        if flag is None or action.option_strings[0].startswith("--no_"):
            continue
        if flag.choices:
            assert sorted(set(flag.choices)) == sorted(map(str, action.choices)), action.dest
        if flag.default is not None:
            assert flag.default in (action.default, ""), action.dest
        assert flag.help == (action.help or ""), f"the help of {action.dest} is no literal"


@pytest.mark.parametrize(
    "words, says",
    [
        (["--max_stepz", "3"], "there is no flag --max_stepz. Did you mean '--max_steps'?"),
        (["--max-stepz=3"], "there is no flag --max_stepz. Did you mean '--max_steps'?"),
        (["--zzzzzz"], "there is no flag --zzzzzz. --help lists them."),
        (["--seed", "1", "2"], "'2' belongs to no flag. Names begin with two dashes, and --help lists them."),
        (["--seed"], "--seed: expected one argument"),
        (["--seed", "1.5"], "--seed: invalid int value: '1.5'"),
        (["--save_dtype", "fp16"], r"--save_dtype: invalid choice: 'fp16' .*"),
        (["--save_dtype", "float61"], r"--save_dtype: invalid choice: 'float61' .* Did you mean 'float16'\?"),
    ],
)
def test_a_wrong_flag_is_one_line(words, says):
    with pytest.raises(ValueError, match=says) as refused:
        parser("train_hf.py").parse_args(words)
    assert "\n" not in str(refused.value)


def test_both_spellings_and_the_negative_ones_are_taken():
    asked = parser("train_hf.py").parse_args(["--max-steps=3", "--no-dataloader-pin-memory", "--output-dir", "a-b"])
    assert (asked.max_steps, asked.dataloader_pin_memory, asked.output_dir) == (3, False, "a-b")


def test_a_default_that_the_machine_decides_is_not_told_as_false():
    said = " ".join(parser("train_hf.py").format_help().split())
    (bf16,) = re.findall(r"--bf16 \[BOOL\](.*?)--", said)
    assert "by default, unless" in bf16 and "default: False" not in bf16
    assert re.search(r"--fp16 \[BOOL\] .*? \(default: False\)", said)
