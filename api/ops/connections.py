"""Limits of connections, which uvicorn lacks: to the size and the time of a request's head, and to unread answers.

A request reaches the application, and its API key is looked at, only after its head. So these limits lie in uvicorn's
protocol: ``limit_connections`` lets the server that runs this process make ``LimitedHttp`` for each connection.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker.settings import Settings

log = logging.getLogger("services.api")

#: Most bytes of a request's line and headers together.
MAX_HEAD_BYTES = 64 * 1024
#: Open descriptors that the process asks for.
DESCRIPTORS = 65_536
#: Seconds between two looks at all connections: a look costs less than timers for each request.
LOOK_S = 0.5
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"


class LimitedHttp(HttpToolsProtocol):
    """A connection whose request heads are limited in size, and which knows since when it waits for a head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # of the head that arrives, as received
        self.head_since = time.monotonic()  #: when the head that arrives began; 0: none does
        self._is_refused = False
        self.unsent = 0  #: bytes that wait to be sent, at the last look
        self.unsent_since = self.head_since  #: since when they are not fewer

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self.head_since:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.head_since and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        """A head begins."""
        self.head_since = self.head_since or time.monotonic()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole; the answer begins with it."""
        self.head_since = self._head_bytes = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._refuse()
        elif not self.transport.is_closing():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole."""
        if not self._is_refused:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body; that of a refused head belongs to no request."""
        if not self._is_refused:
            super().on_body(body)

    def _refuse(self) -> None:
        self._is_refused = True
        if not self.transport.is_closing():
            log.info("refused a request whose head has over %d bytes", MAX_HEAD_BYTES)
            self.transport.write(TOO_LARGE)
            self.transport.close()


def find_server() -> uvicorn.Server | None:
    """The uvicorn server of this process, by its signal handler; None under another server."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def limit_connections(server: uvicorn.Server | None) -> None:
    """Let the server limit its connections, and let it open as many as the operating system allows, up to a bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError) as error:  # macOS has a further limit of its own
            log.warning("the limit of %d open descriptors stays: %s", soft, error)
    if server is None or not issubclass(server.config.http_protocol_class, HttpToolsProtocol):
        log.warning("the HTTP server is not uvicorn with httptools: request heads and unread answers have no limits")
        return
    server.config.http_protocol_class = LimitedHttp


async def watch_connections(server: uvicorn.Server | None, settings: Settings) -> None:
    """Close the connections whose head, or whose reading of an answer, takes too long; for ever."""
    while server is not None:
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        for connection in list(server.server_state.connections):
            if not isinstance(connection, LimitedHttp) or connection.transport is None:
                continue
            if connection.head_since and now - connection.head_since > settings.header_timeout_s:
                connection.transport.close()
            unsent = connection.transport.get_write_buffer_size()
            if not unsent or unsent < connection.unsent:
                connection.unsent_since = now
            elif now - connection.unsent_since > settings.write_timeout_s:
                log.info("closed a connection that read nothing of its answer for %g s", settings.write_timeout_s)
                connection.transport.abort()
            connection.unsent = unsent
