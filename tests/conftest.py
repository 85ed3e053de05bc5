"""What every test may use: models small enough to be made in milliseconds, images drawn on the spot, no downloads."""

import os
import signal

# A suite that a script starts with `&` ignores Ctrl-C, and so would the runs in which tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import made
import pytest
import torch

from lrvsf.durable import locked
from modeling_condvit import CondViTModel


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that the published code gave."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def make_model() -> Callable[..., CondViTModel]:
    """`make_model(**config_overrides)`: `made.tiny_condvit`."""
    return made.tiny_condvit


@pytest.fixture
def tiny_model(make_model: Callable[..., CondViTModel]) -> CondViTModel:
    """A tiny model with the ten categories."""
    return make_model()


@pytest.fixture
def pixel_values() -> torch.Tensor:
    """Three random images for a tiny model."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def locked_elsewhere() -> Callable[[Path], AbstractContextManager[int]]:
    """`with locked_elsewhere(folder) as pid`: meanwhile another process, a fork of this one, works in the folder."""

    @contextmanager
    def elsewhere(folder: Path) -> Iterator[int]:
        (locked_end, is_locked), (wait_end, go_on) = os.pipe(), os.pipe()
        if not (process := os.fork()):
            os.close(go_on)
            with locked(folder, "a rehearsal"):
                os.write(is_locked, b".")
                os.read(wait_end, 1)  # until the other end is closed
            os._exit(0)
        os.close(is_locked)
        os.read(locked_end, 1)
        try:
            yield process
        finally:
            os.close(go_on)
            os.waitpid(process, 0)

    return elsewhere


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FILE", help="write the table of faults that the passing tests survive")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "survives(fault, outcome): a row of docs/reliability.md")


SURVIVED: dict[tuple[str, str], str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    report = yield
    if mark := item.get_closest_marker("survives"):
        if report.failed:
            SURVIVED[mark.args] = ""
        elif report.passed and report.when == "call":
            SURVIVED.setdefault(mark.args, item.nodeid.partition("[")[0])
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Rows of what passed; one that failed, in any of its variants, is left out."""
    if path := session.config.getoption("--reliability"):
        text = Path(path).read_text()
        head = text[: text.index("| fault |")]
        rows = [f"| {fault} | {outcome} | `{test}` |" for (fault, outcome), test in SURVIVED.items() if test]
        Path(path).write_text(
            head + "\n".join(["| fault | what happens | shown by |", "| --- | --- | --- |", *rows]) + "\n"
        )


@pytest.fixture
def make_test_set(tmp_path):
    """`made.write_test_set` into tmp_path/test."""
    return partial(made.write_test_set, tmp_path / "test")


@pytest.fixture
def make_store(tmp_path):
    """`make_store(encoder, test_set, batch_size, max_bad)`: an empty store, each time in a folder of its own."""
    from lrvsf.data.images import Tolerance
    from lrvsf.evaluation.embedded import StoredTestSet

    numbers = count()

    def make(encoder, test_set, batch_size: int = 256, max_bad: float = 0.01):
        limits = {"batch_size": batch_size, "tolerance": Tolerance(max_bad)}
        return StoredTestSet(tmp_path / f"embeds-{next(numbers)}", encoder, test_set, **limits)

    return make
