"""SIGTERM, Ctrl-C, SIGHUP: the first asks a run to end whole, and a second ends it whatever it is doing.

Python runs a signal's handler between two of its own instructions, so never in a run that hangs: in a collective whose
other side has gone, on a dead file server. Here a thread is told by the kernel's side of Python (`set_wakeup_fd`), and
it may end the process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ANSWER_WITHIN = 120.0  # seconds until a signal that the run has not answered ends it (not tuned)
TOGETHER = 0.3  # seconds in which several are one: `timeout` sends one to the process and one to its group
TOGETHER_LAUNCHED = 3.0  # torchrun too gets the terminal's Ctrl-C, and passes it on to who had it already


def name_of(number: int) -> str:
    """A signal as a user knows it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def status_of(number: int) -> int:
    """The exit status of a run that a signal ended, as shells give it."""
    return 128 + number


def end_at_once(says: str) -> None:
    """From here to the end of the process, its imports and its last breath included, SIGTERM, SIGHUP and Ctrl-C end it.

    Without a traceback, and with one line: see `Watch`, which a part of the run may be given on top.
    """
    Watch(says, at_once=True).__enter__()


class Watch:
    """A context manager that notices `SIGNALS`. Where one is ignored (`nohup`, `&` in a script), it stays so.

    Args:
        says: what is said of the first one, after its name; on the main process.
        at_once: the first one ends the process already: for work that is whole on the disk at any moment.

    Attributes:
        asked: the number of the first signal; 0 while there was none.
        answered: to be set when the run has seen `asked` and is about to end: from then on it takes its time.
    """

    def __init__(self, says: str, at_once: bool = False) -> None:
        self.says, self.at_once, self.asked, self._patient = says, at_once, 0, False

    def __enter__(self) -> Self:
        self.asked, self.answered = 0, False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # set_wakeup_fd wants it so: a full pipe must not stop the interpreter
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.write(self._write, bytes(1))  # no signal has the number 0: the thread ends
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Time that a signal may have to wait for: of an evaluation, a save."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _handle(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:  # else the next line that is shown would end the run
            leave_readers(1, 2)
        self.asked = self.asked or number

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        first, since = 0, 0.0
        while True:
            if not poll.poll(1000 if first else None):  # wakes by itself only while a signal waits for its answer
                if not (self.answered or self._patient) and time.monotonic() - since > ANSWER_WITHIN:
                    self._end(first, f"{name_of(first)} was not answered within {ANSWER_WITHIN:g} seconds: ended.")
                continue
            for number in os.read(self._read, 64):
                if number == 0:
                    return
                if number not in self._before:  # the pipe gets all signals that have a handler, others' too
                    continue
                if not first:
                    first, since = number, time.monotonic()
                    self.asked = self.asked or number
                    if number == signal.SIGHUP:
                        leave_readers(1, 2)
                    if self.at_once:
                        self._end(number, f"Ended by {name_of(number)}: {self.says}")
                    say(f"{name_of(number)}: {self.says}")
                elif time.monotonic() - since > _together():
                    self._end(number, f"Ended at once by a second {name_of(number)}.")

    def _end(self, number: int, why: str) -> None:
        say(why)
        os._exit(status_of(number))  # the main thread cannot be asked: it may hang


def leave_readers(*numbers: int) -> list[int]:
    """Those of these descriptors whose terminal has gone, or whose pipe nobody reads: from here on nowhere's."""
    poll = select.poll()
    for number in numbers:
        poll.register(number, select.POLLOUT)
    gone = [number for number, event in poll.poll(0) if event & (select.POLLHUP | select.POLLERR)]
    for number in gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return gone


def _together() -> float:
    return TOGETHER_LAUNCHED if "TORCHELASTIC_RUN_ID" in os.environ else TOGETHER


def say(line: str) -> None:
    """To stderr, on the main process; past Python's buffers, whose locks the main thread may hold.

    A terminal that has gone and a pipe that nobody reads keep no run from its end.
    """
    if os.environ.get("RANK", "0") == "0":
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        with suppress(OSError):
            # A terminal that is held (Ctrl-S) takes nothing: after a second the line is given up, not the process.
            if poll.poll(1000):
                os.write(2, f"\n{line}\n".encode())
