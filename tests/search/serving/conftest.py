"""A service over the shop's catalog, in this process."""

from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from lrvsf.search.serving.answering import Answering
from lrvsf.search.serving.limits import Limits
from lrvsf.search.serving.service import make_app
from lrvsf.search.serving.telemetry import Telemetry


@contextmanager
def client_of(folder, token=None, origins=(), **limits):
    """A client of a service; `client.answering` is what answers."""
    answering = Answering(folder, None, "cpu", Limits(**limits), Telemetry())
    with TestClient(make_app(answering, token, origins)) as client:
        client.answering = answering
        yield client


@pytest.fixture
def make_client():
    """`with make_client(folder, token, origins, **limits) as client`."""
    return client_of


@pytest.fixture(scope="module")
def client(_shop):
    """A client of a service whose catalog nobody changes."""
    with client_of(_shop / "catalog") as client:
        yield client


@pytest.fixture(scope="module")
def reading(words_shop):
    """Likewise, of one whose model reads texts."""
    with client_of(words_shop / "catalog") as client:
        yield client


def refusal(answer, status):
    """The one whole sentence of a refusal."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    told = answer.json()["error"]
    assert told[0] == told[0].upper() and told[-1] in ".?" and "\n" not in told
    return told


@pytest.fixture(name="refusal")
def _refusal():
    return refusal
