"""A script of steps: what the command line takes, and what it says."""

from typing import Annotated

import pytest
from typer import Argument, Option

from lrvsf.steps import run_step


def greet(
    name: Annotated[str, Argument(help="whom")],
    how_often: Annotated[int, Option(help="times")] = 1,
    aloud: bool = False,
) -> str | None:
    """Greet somebody by name, as often as it takes, in a sentence that is longer than one line of help has room for.

    More of it.
    """
    return (" ".join([name] * how_often)).upper() if aloud else None


def leave() -> None:
    """Leave."""


def run(*words):
    run_step("A script.", (greet, leave), list(words))


@pytest.mark.parametrize("flag", ["--how_often", "--how-often"])
def test_both_spellings_are_taken_and_the_result_is_printed(capsys, flag):
    run("greet", "Ada", flag, "2", "--aloud")
    assert capsys.readouterr().out == "ADA ADA\n"
    run("greet", "Ada")
    assert capsys.readouterr().out == "", "None is no result to show"


def test_help_shows_underscores_and_whole_sentences_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run()
    steps = capsys.readouterr().out
    run("greet", "--help")
    step = capsys.readouterr().out
    assert " ".join(greet.__doc__.partition("\n")[0].split()) in " ".join(steps.split())
    assert "--how_often " in step and "--aloud / --no_aloud" in step and "More of it." in step
    assert max(map(len, (steps + step).splitlines())) <= 80


@pytest.mark.parametrize(
    "words, says",
    [
        (["greet"], "Missing argument .* --help tells the rest"),
        (["greet", "Ada", "--how_often", "x"], "'--how_often': Input should be a valid int|'x' is not a valid int"),
        (["greet", "Ada", "--nonsense"], "No such option: --nonsense.*--help tells the rest"),
        (["sing"], "No such command 'sing'"),
    ],
)
def test_a_mistake_is_one_line(words, says):
    with pytest.raises(ValueError, match=says) as refused:
        run(*words)
    assert "\n" not in str(refused.value)
