"""The service as a process: its port, its token, its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from lrvsf.search.serving.answering import Answering
from lrvsf.search.serving.connections import Connection
from lrvsf.search.serving.limits import Limits
from lrvsf.search.serving.service import make_app
from lrvsf.search.serving.telemetry import Telemetry

TOKEN = "LRVSF_TOKEN"  # the environment's variable: a command line is read by everybody on the machine
CONNECTIONS = 1000  # open at once; below the files that a process may have open
IDLE = 75  # seconds that a connection may be idle: longer than the 60 of the usual gateways, which reuse theirs


def serve_catalog(
    folder: Path,
    host: str,
    port: int,
    limits: Limits,
    model: str | None = None,
    device: str | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
) -> None:
    """Answers until SIGTERM or Ctrl-C, and then finishes what it took.

    Raises:
        OSError: the port is taken.
        ValueError, FileNotFoundError: as `Answering` does.
    """
    # First: a port that is taken is known at once, a model takes seconds. What connects meanwhile waits.
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        answering = Answering(folder, model, device, limits, Telemetry())
        app = make_app(answering, token, origins)
        config = uvicorn.Config(
            app,
            http=Connection,
            log_level="warning",
            access_log=False,  # /metrics counts; addresses of pictures and filters are the clients' own
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=int(limits.seconds) + 5,  # longer than any answer may take
        )
        bound = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        catalog = answering.catalog
        print(
            f"{folder}: {len(catalog):,} items of {catalog.generation.name} at http://{shown}:{bound}/docs", flush=True
        )
        # Said, not refused: behind a gateway that asks for passwords this is as it should be.
        if token is None and not _is_local(host):
            print(f"Anybody who reaches {host} may ask; a token in {TOKEN} changes that.", flush=True)
        server = uvicorn.Server(config)

        def stop(*_: object) -> None:
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn handles them in a moment, and when all is done it raises them once more, for whoever handled them
            # before: by default the end would be a failure's.
            signal.signal(number, stop)
        server.run(sockets=[listener])


def read_token(file: Path | None) -> str | None:
    """The token, from a file or the environment; None where there is none. Raises ValueError: it is empty."""
    text = file.read_text("utf-8") if file else os.environ.get(TOKEN)
    if text is None:
        return None
    if not (token := text.strip()):
        raise ValueError(f"{file or TOKEN} is empty; write the token into it, or leave it out")
    return token


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
