"""Waiting for what other processes do, and whether they live."""

import time
from pathlib import Path


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
