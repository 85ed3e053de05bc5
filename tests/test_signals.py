"""The first signal asks, the second ends; what a run is told and leaves behind."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest
from waiting import wait_for

from lrvsf import signals
from lrvsf.signals import Watch


@pytest.fixture
def ended(monkeypatch):
    """What a process would have ended with: a list that the watching thread fills."""
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


@pytest.fixture(autouse=True)
def hears_hangups():
    """Also where the tests run under `nohup`, which has that signal ignored: a run then goes on, as it should."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "number, name", [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]
)
def test_the_first_is_noted_and_said_once(number, name, ended, capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Watch("after this step.") as watch:
        assert watch.asked == 0
        send(number)
        send(number)  # together with the first: of `timeout`, of a launcher
        assert watch.asked == number
        assert wait_for(lambda: capfd.readouterr().err == f"\n{name}: after this step.\n")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before and not ended
    with watch:
        assert watch.asked == 0


@pytest.mark.survives("the terminal of a training goes away", "a checkpoint is saved, exit status 129")
def test_a_terminal_that_goes_ends_a_run_whole():
    """The kernel sends SIGHUP, and refuses what is written from then on."""
    run, terminal = os.forkpty()
    if run == 0:
        with Watch("after this step.") as watch:
            os.write(1, b"ready")
            asked = wait_for(lambda: watch.asked == signal.SIGHUP)
            with suppress(OSError):
                os.write(1, b"step 7")
                os.write(2, b"saved")
                os._exit(signals.status_of(watch.asked) if asked else 1)
        os._exit(2)
    while not os.read(terminal, 5).endswith(b"y"):
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 129


@pytest.mark.parametrize("second, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_later_one_ends_the_process(second, status, ended, monkeypatch):
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    with Watch("") as watch:
        send(signal.SIGINT)
        time.sleep(0.01)
        send(second)
        assert wait_for(lambda: ended == [status])
        assert watch.asked == signal.SIGINT


def test_torchrun_passes_on_what_all_had_already(ended, monkeypatch):
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with Watch(""):
        send(signal.SIGINT)
        time.sleep(0.05)
        send(signal.SIGINT)
        time.sleep(0.05)
        assert not ended


def test_work_that_is_always_whole_ends_at_the_first(ended, capfd):
    with Watch("what is there stays.", at_once=True):
        send(signal.SIGTERM)
        assert wait_for(lambda: ended)
    assert ended[0] == 143 and "Ended by SIGTERM: what is there stays." in capfd.readouterr().err


@pytest.mark.parametrize("answer", ["none", "answered", "patience"])
def test_one_that_is_not_answered_ends_the_process(answer, ended, monkeypatch):
    monkeypatch.setattr(signals, "ANSWER_WITHIN", 0.0)
    with Watch("") as watch, watch.patience() if answer == "patience" else threading.Lock():
        send(signal.SIGTERM)
        watch.answered = answer == "answered"
        time.sleep(1.3)
        assert (143 in ended) is (answer == "none")


def test_nobody_who_listens_keeps_no_run_from_its_end():
    """A stderr whose reader has gone, and one that is full, in processes of their own."""
    for broken in (True, False):
        reader, writer = os.pipe()
        if not (process := os.fork()):
            try:
                os.set_blocking(writer, False)
                with suppress(BlockingIOError):
                    while not broken:
                        os.write(writer, bytes(4096))
                os.set_blocking(writer, True)
                os.dup2(writer, 2)
                if broken:
                    os.close(reader)
                with Watch("", at_once=True):
                    send(signal.SIGTERM)
                    time.sleep(60)
            finally:
                os._exit(1)
        os.close(writer)
        if broken:
            os.close(reader)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
        if not broken:
            os.close(reader)


def test_what_is_ignored_stays_so(ended):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Watch("") as watch:
            send(signal.SIGINT)
            assert watch.asked == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_only_the_main_process_speaks_and_any_thread_may_watch(ended, capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Watch("after this step.") as watch:
        send(signal.SIGINT)
        assert watch.asked == signal.SIGINT
    assert capfd.readouterr().err == ""

    def elsewhere():
        with Watch("") as inert:
            asked.append(inert.asked)

    asked = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert asked == [0]
