"""Connections that begin and end well.

uvicorn bounds how long a connection may be idle after an answer; the first byte of what comes next stops its clock, and
before a first request there is none. So a thousand clients that say half a line and wait would keep all others out.
When it ends, it closes each connection after the answer that is due, and does not say so: a client that keeps its
connection sends the next request into nothing.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection whose clock runs until a request's head is whole, and whose last answer says that it is the last.

    The body's clock is the gate's affair.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # An answer is written in two parts, and by Nagle's rule the second waits for the client to acknowledge the
        # first, which takes it 40 ms. asyncio sees to that only for sockets that it made itself.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._close_at(self.loop.time() + self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        clock = self.timeout_keep_alive_task
        super().data_received(data)  # stops it
        # Half a head has come: the clock goes on as it stood, or a byte now and then would hold it open for ever.
        asked = self.cycle is not None and not self.cycle.response_complete
        if clock is not None and self.timeout_keep_alive_task is None and not asked:
            self._close_at(clock.when())

    def shutdown(self) -> None:
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def _close_at(self, moment: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(moment, self.timeout_keep_alive_handler)
