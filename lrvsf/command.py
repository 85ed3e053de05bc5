"""What every script does around its work: a refusal becomes one line and exit status 2, a fault keeps its traceback.

A refusal is what this project or transformers raises on purpose, and what files and networks say. All else is a fault
of the program.
Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import dis
import errno
import json
import logging
import os
import resource
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn, Self

from lrvsf.data.names import printable
from lrvsf.signals import leave_readers

REFUSED = 2  # the exit status, as argparse's
INTERRUPTED = 130  # 128 + SIGINT
PIPE_CLOSED = 141  # 128 + SIGPIPE
OPEN_FILES = 4096  # asked for where the hard limit allows it; macOS begins with 256
WAIT = 5.0  # seconds that other ranks leave to the first one's message
WIDTH = 80  # columns of what is printed for a person: commands, --help

# Whose deliberate errors are refusals: ours, and those of transformers, which are about flags and model folders.
REFUSING = {
    *("__main__", "prepare_lrvsf", "train_hf", "evaluate_lrvsf", "search_catalog", "publish_lrvsf", "lrvsf"),
    *("configuration_condvit", "modeling_condvit", "processing_condvit", "text_condvit", "transformers"),
}
NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2"}
REACH = "See whether this machine reaches https://huggingface.co, and with which proxy, or name a folder instead."
# Libraries all of whose errors tell of files, or of the network.
OUTER = {"pyarrow", "safetensors_rust", "huggingface_hub", *NETWORK}
REMEDIES = {
    errno.EMFILE: "Raise the limit on open files: `ulimit -n 4096`.",
    errno.ENOSPC: "Free some space on that disk, or name a folder on another one.",
    errno.EDQUOT: "Your quota on that disk is used up: free some space, or name a folder on another one.",
}


class NarrowHelp(argparse.HelpFormatter):
    """--help in 80 columns. Paragraphs of a docstring are filled anew; what is indented, such as a command, stays."""

    def __init__(self, prog: str):
        super().__init__(prog, width=min(WIDTH, shutil.get_terminal_size().columns))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip("\n").split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in parts)


class OneLineParser(argparse.ArgumentParser):
    """argparse's, described by a module's docstring; a mistake is a ValueError of one line instead of usage."""

    def __init__(self, description: str, **kwargs):
        super().__init__(description=description, formatter_class=NarrowHelp, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. --help tells the rest")


def run(main: Callable[[], object], name: str = "") -> None:
    """Runs a script, or its beginning, and ends the process where it refuses, is interrupted or has no reader left.

    A bare `--debug` on the command line brings the traceback of a refusal.

    Args:
        main: reads sys.argv.
        name: what stands before each message; by default the script's name, as the user typed it.
    """
    name = name or script_name()
    given, debug = list(sys.argv), _take_debug(sys.argv)
    _prepare_process()
    try:
        _check_encoding(sys.argv)
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        if debug:
            raise
        _say(f"{name}: interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(PIPE_CLOSED)
        if debug or not is_refusal(error):
            raise
        _refuse(f"{name}: {explain(error)}")
    finally:
        sys.argv[:] = given


def script_name() -> str:
    """`train_hf.py`, or `lrvsf-train` where that is what was called."""
    return Path(sys.argv[0]).name


def called(step: str) -> list[str]:
    """The words that start a script from here: its file, beside the running one or in this folder, or its command.

    >>> called("publish")
    ['python', 'publish_lrvsf.py']
    """
    file = {"train": "train_hf.py", "search": "search_catalog.py"}.get(step, f"{step}_lrvsf.py")
    found = [folder / file for folder in (Path(sys.argv[0]).parent, Path()) if (folder / file).is_file()]
    return ["python", str(found[0])] if found else [f"lrvsf-{step}"]


def is_refusal(error: BaseException) -> bool:
    """Whether an error is a user's matter: raised on purpose by this project, or told by the system.

    An error that Python itself raised, such as that of `int("x")` or `{}["x"]`, is a fault wherever it happened, and so
    is what numpy or torch says of its arguments.
    """
    if isinstance(error, OSError) or _package(type(error).__module__) in OUTER:
        return True
    if type(error).__name__ == "OutOfMemoryError" or "Too many open files" in str(error):  # of torch
        return True
    if not isinstance(error, ValueError | RuntimeError | ImportError):
        return False
    return _raised_by(error) in REFUSING


def explain(error: BaseException) -> str:
    """An error's message, without what a terminal would obey, and the remedy where the system's says too little."""
    told = "\n".join(map(printable, (str(error) or type(error).__name__).split("\n")))
    if _package(type(error).__module__) in OUTER or _raised_by(error) == "transformers":
        told = " ".join(told.split())
    if _package(type(error).__module__) in NETWORK or "couldn't connect to" in told:  # so says transformers
        return f"the Hub was not reached: {' '.join(told.split()).rstrip('.')}. {REACH}"
    number = errno.EMFILE if "Too many open files" in told else getattr(error, "errno", None)
    remedy = REMEDIES.get(number, "")
    if type(error).__name__ == "OutOfMemoryError":
        told = told.partition("\n")[0]
        remedy = "Take a smaller batch; in training --grad_cache_chunk keeps the loss of the whole one."
    return f"{told.rstrip('.')}. {remedy}" if remedy and remedy not in told else told


class Command(str):
    """A command in one line, as reports keep it, which is folded where a screen shows it."""

    def __new__(cls, words: Iterable[object]) -> Self:
        return super().__new__(cls, shlex.join(map(str, words)))

    def folded(self, indent: str) -> str:
        return fold(shlex.split(self), indent)


def fold(words: Iterable[object], indent: str = "") -> str:
    """A command as a user pastes it: quoted where needed, folded before flags so that lines stay within 80 columns.

    >>> print(fold(["python", "prepare_lrvsf.py", "catalog", "my photos"]))
    python prepare_lrvsf.py catalog 'my photos'
    """
    groups: list[list[str]] = []  # a flag and its values stay together where they can
    for word in map(str, words):
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(shlex.quote(word))
    width = WIDTH - len(indent) - 2  # " \" at the end
    lines: list[str] = []
    for group in groups:
        whole = " ".join(group)
        for place, piece in enumerate([whole] if len(whole) + 4 <= width else group):
            if lines and len(lines[-1]) + 1 + len(piece) <= width:
                lines[-1] += f" {piece}"
            else:
                lines.append(f"{'    ' * (bool(lines) + bool(place))}{piece}")
    return " \\\n".join(indent + line for line in lines)


def quiet_libraries() -> None:
    """Silences what a user cannot act on: bars of milliseconds, and warnings of transformers that our checks repeat.

    TRANSFORMERS_VERBOSITY brings the warnings back. Bars of downloads stay.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    wanted = not are_progress_bars_disabled()
    of_transformers.disable_progress_bar()
    if wanted:
        enable_progress_bars()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        of_transformers.set_verbosity_error()
    for library in ("huggingface_hub", "datasets"):  # they print themselves, and a script's own logging did it again
        logging.getLogger(library).propagate = False


def rank() -> int:
    """Which process of a launch this is, before torch can be asked."""
    return int(os.environ.get("RANK", "0"))


def several_machines() -> bool:
    """Whether processes of this launch may run on other machines, before torch can be asked."""
    world = os.environ.get("WORLD_SIZE", "1")
    return world != "1" and os.environ.get("LOCAL_WORLD_SIZE") != world


def _raised_by(error: BaseException) -> str:
    """The package whose `raise` statement an error comes from; "" where Python or compiled code raised it."""
    place = error.__traceback__
    if place is None:
        return ""
    while place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code.co_code
    if not 0 <= place.tb_lasti < len(code) or dis.opname[code[place.tb_lasti]] != "RAISE_VARARGS":  # Cython has no code
        return ""
    return _package(place.tb_frame.f_globals.get("__name__", ""))


def _package(module: str) -> str:
    return module.partition(".")[0]


def _take_debug(arguments: list[str]) -> bool:
    """Removes `--debug` where no value follows: with one it is a flag of transformers' Trainer."""
    for place, word in enumerate(arguments):
        if word == "--debug" and (place + 1 == len(arguments) or arguments[place + 1].startswith("-")):
            del arguments[place]
            return True
    return False


def _prepare_process() -> None:
    """Streams that take any text and exist, and as many open files as the system grants."""
    for number in range(3):  # a closed one's number would be given to the next file that is opened, and printed to
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII only
    allow_open_files(OPEN_FILES)


def allow_open_files(wanted: int) -> int:
    """How many files may be open at once, at most `wanted`, after the process's limit was raised where it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _check_encoding(arguments: list[str]) -> None:
    for word in arguments:
        if not word.isascii() and any("\udc80" <= character <= "\udcff" for character in word):
            encoding = sys.getfilesystemencoding()
            raise ValueError(f"{word!r} is beyond this locale's encoding, {encoding}. Set PYTHONUTF8=1")


def _nobody_reads() -> bool:
    """Whether stdout is what nobody reads, and not some other pipe; the interpreter then ends without a complaint."""
    try:
        return bool(leave_readers(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # not a file: a test's
        return False


def _refuse(message: str) -> None:
    """One message for all processes: the others wait for the launcher to end them when the first one has ended."""
    if rank():
        time.sleep(WAIT)
    _say(message)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun repeats it in its summary, the last thing printed
        with open(path, "w", encoding="utf-8") as file:
            about = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
            json.dump({"message": about}, file)
    sys.exit(REFUSED)


def _say(message: str) -> None:
    if sys.stderr is not None:
        print(message, file=sys.stderr, flush=True)
