"""A script of steps: `script.py STEP ...`. A step is a function, and its annotations are its command line (by Typer).

What such scripts share: flags with underscores, help in 80 columns, and a mistake in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import typer

from lrvsf.command import WIDTH, script_name

Step = Callable[..., Any]


def run_step(
    description: str, steps: Iterable[Step], arguments: list[str] | None = None, show: Callable[[Any], str] = str
) -> None:
    """Runs the step that the command line names, and prints what it returns.

    Args:
        description: the script's docstring, for --help.
        steps: each is called as it is named; the first paragraph of its docstring stands in the list of steps.
        arguments: the step and its flags; by default those of sys.argv.
        show: turns what a step returns into text; nothing is printed for None.

    Raises:
        ValueError: what Typer does not take, in one line.
    """
    program = program_of(description, steps)
    try:
        result = program((sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, of which newer versions of Typer have a copy
            raise
        raise ValueError(f"{error.format_message().rstrip('.')}. --help tells the rest") from error
    if isinstance(result, int):  # an exit status, such as that of --help: no step gives a number
        if result:
            sys.exit(result)
    elif result is not None:
        print(show(result))


def program_of(description: str, steps: Iterable[Step]) -> Any:
    """click's program of these steps: its `commands` have each step's parameters by name."""
    # Typer's frames and colours would make of these pages another kind than those of train_hf.py.
    app = typer.Typer(help=description, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(lambda: None)  # without it, Typer would make a lone step the whole program
    for step in steps:
        settings = {"token_normalize_func": _underscored, "max_content_width": WIDTH}
        first = (step.__doc__ or "").partition("\n\n")[0]  # whole: Typer would cut it after 45 letters
        own_help = getattr(step, "reads_flags", False)
        settings["ignore_unknown_options"] = own_help
        app.command(step.__name__, context_settings=settings, short_help=first, add_help_option=not own_help)(step)
    program = typer.main.get_command(app)
    for command in program.commands.values():
        for parameter in command.params:  # Typer makes --test-products of test_products
            parameter.opts = [_underscored(name) for name in parameter.opts]
            parameter.secondary_opts = [_underscored(name) for name in parameter.secondary_opts]
    return program


def reads_flags(step: Step) -> Step:
    """Marks a step that takes its words as they are, `--help` among them, for a FlagParser of its own."""
    step.reads_flags = True
    return step


def step_name() -> str:
    """The script and the step that was asked for: what stands before each message."""
    return " ".join([script_name(), *(word for word in sys.argv[1:2] if not word.startswith("-"))])


def _underscored(name: str) -> str:
    """Both spellings are taken: --test-products is --test_products."""
    dashes = len(name) - len(name.lstrip("-"))
    return name[:dashes] + name[dashes:].replace("-", "_")
