"""Numbers that mean nothing are refused from the parsed flags alone, and their names are those of flags."""

import pytest

from lrvsf.bounds import BOUNDS, check_numbers
from lrvsf.flags import FlagParser


@pytest.fixture(scope="module")
def parser():
    names = ("ModelArguments", "CondViTTrainingArguments")
    return FlagParser("", "", *(("lrvsf.training.arguments", name) for name in names))


def test_bounds_are_of_flags(parser):
    assert not set(BOUNDS) - set(parser.flags)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--learning_rate 0 --weight_decay 0 --max_grad_norm 0 --adam_beta1 0 --max_bad_fraction 1 --seed 4294967295",
        "--max_steps 4 --phase1_steps 4",
        "--num_train_epochs 0.5 --phase1_steps 4 --logit_scale_init_value -1",
        "--load_best_model_at_end True --eval_strategy steps --save_strategy steps --eval_steps 3 --save_steps 3",
        "--load_best_model_at_end True --eval_strategy steps --save_strategy steps --logging_steps 3 --save_steps 3",
        "--load_best_model_at_end True --eval_strategy epoch --save_strategy epoch --eval_steps 3 --save_steps 4",
    ],
)
def test_what_means_something_is_taken(parser, words):
    check_numbers(parser.parse_args(words.split()))


@pytest.mark.survives("a negative learning rate, or other numbers out of range", "refused before anything is loaded")
@pytest.mark.parametrize(
    "words, says",
    [
        ("--learning_rate -1", "learning_rate=-1.0 must be 0 or more"),
        ("--learning_rate nan", "learning_rate=nan must be 0 or more"),
        ("--learning_rate inf", "learning_rate=inf must be 0 or more"),
        ("--layer_decay 0", "layer_decay=0.0 must be above 0 and at most 1"),
        ("--layer_decay 1.5", "layer_decay=1.5 must be above 0 and at most 1"),
        ("--weight_decay -0.1", "weight_decay=-0.1 must be 0 or more"),
        ("--adam_beta2 1", "adam_beta2=1.0 must be 0 or more and below 1"),
        ("--max_bad_fraction 2", r"max_bad_fraction=2.0 must be in 0\.\.1"),
        ("--seed -1", r"seed=-1 must be in 0\.\.4294967295"),
        ("--num_train_epochs 0", "num_train_epochs=0.0 must be above 0"),
        ("--logit_scale_init_value nan", "logit_scale_init_value=nan must be a finite number"),
        ("--max_steps 0", "max_steps=0 must be 1 or more; leave it out to train num_train_epochs"),
        ("--max_steps 4 --phase1_steps 5", "phase1_steps=5 are more than max_steps=4, the whole run"),
        (
            "--load_best_model_at_end True --eval_strategy steps --save_strategy steps --save_steps 30 --eval_steps 7",
            "save_steps=30 and eval_steps=7: the best model may be one that is not saved; set both to the same",
        ),
    ],
)
def test_what_means_nothing_is_refused(parser, words, says):
    with pytest.raises(ValueError, match=says):
        check_numbers(parser.parse_args(words.split()))
