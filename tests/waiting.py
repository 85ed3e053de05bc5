"""Waiting for what other processes do, whether they live, and runs of this one that die."""

import itertools
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest


def wait_for(condition, seconds=60):
    """What the condition gives as soon as that is true, else what it gives at the end of the time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def is_alive(process):
    """Whether a process runs; a zombie, for which nobody waits, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Killed(BaseException):
    """Ends a run where nothing can be tidied up."""


@contextmanager
def killed_at(owner, name, call=1):
    """What runs within dies at that call of a function of the owner, as by SIGKILL, and must come so far."""
    calls, original = itertools.count(1), getattr(owner, name)

    def dies(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, dies), pytest.raises(Killed):
        yield
