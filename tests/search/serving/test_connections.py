"""Connections as a server of this process has them: none is kept for nothing, and the last answer says that it is."""

import asyncio
import http.client
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from waiting import wait_for

from lrvsf.search.serving.connections import Connection
from lrvsf.search.serving.gate import Gate
from lrvsf.search.serving.limits import Limits
from lrvsf.search.serving.telemetry import Telemetry

HEAD = b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


class App:
    """Answers b"done" when `go_on` is set."""

    def __init__(self):
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    async def __call__(self, scope, receive, send):
        self.asked.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})


@contextmanager
def served(app):
    """A server behind the gate, and its port; connections may be idle for a second."""
    gate = Gate(app, Limits(), Telemetry(), None, ("/search",))
    config = uvicorn.Config(gate, http=Connection, lifespan="off", log_level="critical", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert wait_for(lambda: server.started)
            yield server, listener.getsockname()[1]
        finally:
            app.go_on.set()
            server.should_exit = True
            thread.join()


def answered(one):
    """Reads an answer from a socket."""
    read = b""
    while not read.endswith(b"done"):
        read += (part := one.recv(1000))
        assert part, read


@pytest.fixture
def app():
    return App()


@pytest.mark.survives(
    "a client that connects to a service and says nothing, half a line, or a byte now and then",
    "is cut off after 75 seconds; one that was answered, too",
)
@pytest.mark.parametrize("before", [b"", HEAD + b"{}"], ids=["new", "answered"])
@pytest.mark.parametrize("said", [[], [b"GET /hea"], [b"G", b"E", b"T", b" "]], ids=["nothing", "half", "slowly"])
def test_half_a_head_is_given_up(app, before, said):
    with served(app) as (_, port), socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        one.sendall(before)
        if before:
            answered(one)
        began = time.monotonic()
        for part in said:
            one.sendall(part)
            time.sleep(0.2)
        assert one.recv(1000) == b"" and time.monotonic() - began > 0.5


def test_a_slow_body_and_a_slow_answer_are_not_cut(app):
    app.go_on.clear()
    with served(app) as (_, port), socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        for part in (HEAD[:9], HEAD[9:], b"{", b"}"):
            one.sendall(part)
            time.sleep(0.45)
        assert app.asked.wait(30)
        time.sleep(1.1)
        app.go_on.set()
        answered(one)


def asked(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/search", b"{}")
    return connection


def test_the_last_answer_says_that_it_is_the_last(app):
    with served(app) as (server, port):
        connection = asked(port)
        answer = connection.getresponse()
        assert (answer.read(), answer.will_close) == (b"done", False)
        app.go_on.clear()
        app.asked.clear()
        connection.request("POST", "/search", b"{}")
        assert app.asked.wait(30)
        server.should_exit = True
        time.sleep(0.3)
        app.go_on.set()
        answer = connection.getresponse()
        assert (answer.read(), answer.will_close) == (b"done", True)


@pytest.mark.survives("a second Ctrl-C while a service finishes what it took", "503 and one sentence; it ends at once")
def test_who_ends_it_at_once_leaves_a_sentence(app):
    app.go_on.clear()
    with served(app) as (server, port):
        connection = asked(port)
        assert app.asked.wait(30)
        server.force_exit = server.should_exit = True
        answer = connection.getresponse()
        assert answer.status == 503 and b"was ended before it could answer" in answer.read()


def test_no_answer_waits_for_an_acknowledgement(app):
    with served(app) as (server, port):
        connection = asked(port)
        assert connection.getresponse().read() == b"done"
        (one,) = server.server_state.connections
        assert one.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
