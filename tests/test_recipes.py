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
FULL = [path for path in RECIPES if path.stem.startswith("lrvsf-")]


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


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_recipes_keep_the_published_schedule_and_mark_their_numbers(path):
    args, training = parse(path)
    assert (training.num_train_epochs, training.phase1_steps, training.weight_decay) == (30, None, 0.01)
    assert training.learning_rate == (5e-6 if path.stem == "lrvsf-h14" else 1e-5)
    assert 360 % training.per_device_train_batch_size == 0
    assert args.condition == ("text" if "text" in path.stem else "category")
    assert training.load_best_model_at_end and training.metric_for_best_model == "R@1"
    comments = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    for topic in ("Cost", "Score"):
        sentence = re.search(rf"{topic}[,:].*?(measured|published|estimated)", comments)
        assert sentence and len(sentence.group()) < 40, f"{topic} must say whether it is measured, published, estimated"
