"""Every recipe is understood by the script that it is for, and says where its numbers come from."""

import re
from pathlib import Path

import pytest
from transformers import TrainingArguments

from lrvsf.flags import FlagParser
from lrvsf.mini.train_clip import MiniClipArguments
from lrvsf.recipe import parse_classes, read_arguments
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
BEST = next(path for path in RECIPES if path.stem == "lrvsf-b16-best")
FULL = [path for path in RECIPES if path.stem.startswith("lrvsf-") and path != BEST]


def parse(path):
    clip = path.name == "mini-clip.yaml"
    types = (MiniClipArguments, TrainingArguments) if clip else (ModelArguments, CondViTTrainingArguments)
    parser = FlagParser("", "", *((one.__module__, one.__name__) for one in types))
    machine = ["--use_cpu", "True", *([] if clip else ["--fp16", "False"])]  # which a CPU refuses to train in
    flags, asked = read_arguments(parser, [str(path), *machine])
    return parse_classes(types, flags, asked, machine=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_script_s_parser_takes_it(path):
    args, training = parse(path)
    assert training.output_dir.startswith("runs/") and args.data.startswith("data/")
    assert training.optim == "adamw_torch_fused"


def comments_of(path):
    return " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_recipes_keep_the_published_schedule_and_mark_their_numbers(path):
    args, training = parse(path)
    assert (training.num_train_epochs, training.phase1_steps, training.weight_decay) == (30, None, 0.01)
    assert training.learning_rate == (5e-6 if path.stem == "lrvsf-h14" else 1e-5)
    assert 360 % training.per_device_train_batch_size == 0
    assert args.condition == ("text" if "text" in path.stem else "category")
    assert training.load_best_model_at_end and training.metric_for_best_model == "R@1"
    says_where_its_numbers_come_from(path)


def says_where_its_numbers_come_from(path):
    comments = comments_of(path)
    for topic in ("Cost", "Score"):
        sentence = re.search(rf"{topic}[,:].*?(measured|published|estimated)", comments)
        assert sentence and len(sentence.group()) < 40, f"{topic} must say whether it is measured, published, estimated"


def test_the_two_stages_pass_as_many_pictures_as_the_published_recipe():
    """Scene and target in the first; in the second all targets once, then scenes. Its head has the first's command."""
    args, second = parse(BEST)
    _, published = parse(BEST.with_stem("lrvsf-b16"))
    flags = r"--num_train_epochs (\d+) --layer_decay (\S+) --learning_rate (\S+) \\ --output_dir (\S+)"
    ((epochs, decay, rate, first),) = re.findall(rf"train_hf.py recipes/lrvsf-b16.yaml {flags}", comments_of(BEST))
    assert 2 * int(epochs) + 1 + second.num_train_epochs == 2 * published.num_train_epochs
    assert args.model == first != second.output_dir and args.freeze_gallery and second.phase1_steps == 0
    assert second.learning_rate == float(rate) / 2 == published.learning_rate
    assert second.layer_decay == float(decay) < published.layer_decay
    for name in ("per_device_train_batch_size", "weight_decay", "metric_for_best_model", "load_best_model_at_end"):
        assert getattr(second, name) == getattr(published, name), name
    says_where_its_numbers_come_from(BEST)
    assert f"train_hf.py recipes/{BEST.name}" in comments_of(BEST)
