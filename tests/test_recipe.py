"""A recipe's values are text; what is wrong with one is said with file and line."""

import pytest

from lrvsf.flags import FlagParser
from lrvsf.recipe import parse_classes, read_arguments
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments

CLASSES = (ModelArguments, CondViTTrainingArguments)
PARSER = FlagParser("", "", *((one.__module__, one.__name__) for one in CLASSES))


@pytest.fixture
def recipe(tmp_path):
    """recipe(text, *flags): the flags and values that a recipe of this text and these flags give."""

    def read(text, *flags):
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_arguments(PARSER, [str(path), *flags])

    return read


def test_flags_override_the_recipe_and_the_recipe_the_defaults(recipe, tmp_path):
    text = f"data: a\nmatryoshka_dims: [8, 16]\nseed: 7\noutput_dir: {tmp_path}\nmax_steps: null\nfp16: false\n"
    flags, asked = recipe(text, "--data", "b")
    own, training = parse_classes(CLASSES, flags, asked, machine=True)
    assert (own.data, training.matryoshka_dims, training.seed, training.max_steps) == ("b", [8, 16], 7, -1)


def test_values_mean_what_they_say(recipe):
    """By YAML 1.1 these are False, 8, a date, 90 minutes, True and 1000."""
    _, asked = recipe(
        "categories: [Bags, No, 010, 2024-01-01, '1:30', on]\neval_strategy: no\nseed: 010\nmax_steps: 1_000\n"
        "run_name: yes\nlearning_rate: 1e-4\nbf16: yes\nmodel: -x\n"
    )
    assert asked.categories == ["Bags", "No", "010", "2024-01-01", "1:30", "on"]
    assert (asked.eval_strategy, asked.seed, asked.max_steps, asked.run_name) == ("no", 10, 1000, "yes")
    assert (asked.learning_rate, asked.bf16, asked.model) == (1e-4, True, "-x")


def test_options_of_a_flag_keep_their_types(recipe):
    flags, _ = recipe("gradient_checkpointing_kwargs: {use_reentrant: false, n: 2}\n")
    assert flags == ['--gradient_checkpointing_kwargs={"use_reentrant": false, "n": 2}']


NESTED = "a: &a [x, x]\nb: &b [*a, *a]\n"


@pytest.mark.parametrize(
    "text, says",
    [
        ("seed: 1\nlearning_rte: 1\n", "line 2: there is no flag 'learning_rte'. Did you mean 'learning_rate'?"),
        ("- 1\n", "line 1: a list, not `name: value` lines"),
        ("seed\n", "line 1: a text, not"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("seed: null\n", "names no flag"),
        ("seed: 1\nmax_steps 3\nbf16: no\n", "line 2: no colon after the name: 'max_steps 3'"),
        ("seed: 1\n\tmax_steps: 3\n", "line 2: a tab, which YAML does not take there: write blanks"),
        ("seed: 1: 2\n", "line 1: a second colon"),
        ("seed: 1\nbf16: no\nseed: 2\n", "line 3: 'seed' stands in line 1 too"),
        ("max-steps: 1\nmax_steps: 2\n", "line 2: 'max_steps' stands in line 1 too"),
        ("bf16: no\nmax_steps: sixty\n", "line 2: --max_steps: invalid int value: 'sixty'"),
        ("eval_strategy: epochs\n", r"line 1: --eval_strategy: invalid choice: 'epochs' .* Did you mean 'epoch'\?"),
        ("condition: no\n", r"line 1: --condition: invalid choice: 'no' .* Did you mean 'none'\?"),
        ("bf16: maybe\n", "line 1: --bf16: 'maybe' is neither true nor false"),
        ("categories: []\n", "line 1: 'categories' is an empty list"),
        ("categories: [a, [b]]\n", "line 1: 'categories' has a list within its list"),
        ("categories: [a, --push_to_hub]\n", "line 1: '--push_to_hub' among the values of 'categories' looks like a f"),
        ("? [a, b]\n: 1\n", "line 1: a name is expected before the colon"),
        (NESTED, r"line 2: an alias \(\*a\)"),
        ("data: *a\n", r"line 1: an alias|line 1: found undefined alias"),
        ("<<: {seed: 1}\n", "line 1: there is no flag '<<'"),
        ("seed: !!python/object:os.system x\n", "line 1: a tag"),
        ("seed: 1\ndata: " + "[" * 100_000, "line 2: 5 levels of lists"),
        ("seed: 1\n--- \nseed: 2\n", "line 2: but found another document"),
        ("seed: [1\nbf16: no\n", "line 2: "),
        ('data: "x\n', "line 2: found unexpected end of stream"),
        ("seed: 1\ndata: caf\xe9\n".encode("latin-1"), r"line 2 is not UTF-8 \(byte 0xe9\). Save it as UTF-8"),
        ("seed: 1\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("seed: 1\ndata: a\x00b\n", r"line 2: the character '\\x00' has no place in YAML"),
        ("x" * (1 << 21), "has 2,097,152 bytes"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_with_its_line(recipe, text, says):
    with pytest.raises(ValueError, match=says) as refused:
        recipe(text)
    assert "r.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_a_byte_order_mark_is_passed_over(recipe):
    assert recipe(b"\xef\xbb\xbfseed: 3\n")[1].seed == 3


def test_a_recipe_that_is_not_there_is_not_taken_for_another(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mini.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mini.yaml", "recipes/minni.yaml", "recipes/mini.yml"):
        with pytest.raises(FileNotFoundError, match=f"no recipe {name}. Did you mean 'recipes/mini.yaml'?"):
            read_arguments(PARSER, [name])
    with pytest.raises(IsADirectoryError, match="recipes is a folder, not a recipe; there are: recipes/mini.yaml"):
        read_arguments(PARSER, ["recipes"])
    with pytest.raises(ValueError, match="'recipes/mini.yaml' belongs to no flag. A recipe comes first"):
        read_arguments(PARSER, ["--seed", "1", "recipes/mini.yaml"])
