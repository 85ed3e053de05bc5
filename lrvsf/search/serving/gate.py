"""Before the routes: who may ask, how many at once, how large and how slowly.

A question's body is read here, within its bounds, before anything looks at it. So the routes have it in memory, and
what is too large, too slow or one too many costs nothing but its bytes.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Iterable
from typing import Any

from lrvsf.search.serving.limits import Limits, Refused
from lrvsf.search.serving.telemetry import Telemetry

OPEN = ("/health", "/ready")  # what a machine that watches the service asks, without a token
DRAINED = 4  # bodies' worth of a body that is too large which is read all the same, for its sender to hear of it


class Gate:
    """ASGI middleware.

    Args:
        token: what `Authorization: Bearer ...` has to name; None: nobody is asked.
        paths: those that are told apart in the metrics.
    """

    def __init__(self, app: Any, limits: Limits, telemetry: Telemetry, token: str | None, paths: Iterable[str]) -> None:
        self.app, self.limits, self.telemetry, self.paths = app, limits, telemetry, set(paths)
        self._token = None if token is None else token.encode()
        self._taken = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        if scope["method"] == "HEAD":  # as GET, of whose answer the server sends the head
            scope = scope | {"method": "GET"}

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._answer(scope, receive, counted)
        except Refused as error:
            if not status:
                await refuse(counted, error)
        except asyncio.CancelledError:
            # A second Ctrl-C. It ends here, as what the server would make of it is a page of its own code for each
            # request.
            if not status:
                await refuse(counted, Refused(503, "The service was ended before it could answer"))
        finally:
            # One label for all else: clients that make up paths would make up series.
            path = next((path for path in self.paths if _is_at(scope["path"], path)), "other")
            self.telemetry.requests.labels(path, str(status or 500)).inc()
            self.telemetry.seconds.labels(path).observe(time.perf_counter() - started)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self._check_token(scope)
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        # Counted here, before the body is read: bodies are what fills the memory.
        if self._taken >= self.limits.waiting:
            raise Refused(429, "The service has as many questions as it can take; ask again soon", {"retry-after": "1"})
        self._taken += 1
        self.telemetry.taken.set(self._taken)
        reading = True
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._body(scope, receive)
                reading = False
                await self._answer_while_there(scope, body, receive, send)
        except TimeoutError as error:
            if reading:
                raise Refused(408, f"The request did not arrive within {self.limits.seconds:g} seconds") from error
            raise Refused(504, f"There was no answer within {self.limits.seconds:g} seconds") from error
        finally:
            self._taken -= 1
            self.telemetry.taken.set(self._taken)

    async def _answer_while_there(self, scope: Any, body: bytes, receive: Any, send: Any) -> None:
        """The answer. When its client goes, what is left of its work is dropped, and others wait no longer for it."""
        gone = asyncio.create_task(_until_gone(receive))
        answering = asyncio.create_task(self.app(scope, _replay(body, gone), send))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _gone()
            answering.result()
        finally:
            answering.cancel()
            gone.cancel()
            await asyncio.wait((answering, gone))  # its place is free when its work has ended

    def _check_token(self, scope: Any) -> None:
        if self._token is None or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        # In a time that does not tell how much of it is right.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise Refused(
                401, "This service asks for a token: Authorization: Bearer ...", {"www-authenticate": "Bearer"}
            )

    async def _body(self, scope: Any, receive: Any) -> bytes:
        """The whole body. Raises Refused: it is larger than the limit."""
        most = self.limits.body
        refused = Refused(413, f"The request has more than {most:,} bytes, which are the most")
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > DRAINED * most:
            raise refused
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _gone()
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                parts.append(part)
            else:
                # The rest is read and thrown away, as a client that is still sending does not see an answer.
                parts.clear()
            if not message.get("more_body"):
                break
            if size > DRAINED * most:
                raise refused
        if size > most:
            raise refused
        return b"".join(parts)


def _gone() -> Refused:
    """What nobody reads; its status is that which gateways count such requests by."""
    return Refused(499, "The client has gone")


async def _until_gone(receive: Any) -> Any:
    """Returns when the client of a request whose body was read has gone, or has its answer."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _replay(body: bytes, gone: asyncio.Task) -> Any:
    """`receive` of a request whose body is here already."""
    message = {"type": "http.request", "body": body, "more_body": False}

    async def replayed() -> Any:
        nonlocal message
        if message is None:
            return await asyncio.shield(gone)
        given, message = message, None
        return given

    return replayed


def _is_at(path: str, route: str) -> bool:
    return path == route or (route.endswith("/") and path.startswith(route))


async def refuse(send: Any, error: Refused) -> None:
    """Sends a refusal in the form that all have: {"error": one sentence}."""
    body = json.dumps({"error": str(error)}, ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
