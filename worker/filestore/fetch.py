"""Fetch a file of an input by its URL, from the worker.

The address is checked where the connection is made: the host's name is looked up once, and the connection is made to a
checked address, so that a changed DNS answer (DNS rebinding) has no effect.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from worker.errors import AddressRefused, InvalidInput
from worker.files import MAX_URL
from worker.net.addresses import AddressRules, Target, parse_url, refuse_name

#: Redirects that are followed at most; each is checked like the first URL.
MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Longest wait for a step (connecting, or the next bytes), in seconds.
STEP_S = 10.0
PIECE_BYTES = 256 * 1024


def check_url(url: str, rules: AddressRules) -> None:
    """Check a URL without a name lookup, for the API, which may be on another network. Raises ``AddressRefused``."""
    if _parse(url).scheme != "https" and not rules.allowed:
        raise AddressRefused(f"expected https://; http is refused unless {rules.setting} names the host's network")


def too_many_urls(most: int) -> str:
    """The error of an input that names too many files by URLs."""
    return f"expected at most {most} files by URL in one input (SERVICES_MAX_URLS)"


def fetch(url: str, file: BinaryIO, max_bytes: int, timeout_s: float, rules: AddressRules) -> str:
    """Write the content of a URL into a file; returns its content type. Raises ``InvalidInput`` with the reason."""
    deadline = time.monotonic() + timeout_s
    try:
        target = _parse(url)
        for _ in range(MAX_REDIRECTS + 1):
            with _connect(target, deadline, rules) as connection:
                response = _ask(connection, target)
                if response.status not in REDIRECTS:
                    return _read(response, file, max_bytes, deadline)
                target = _next(target, response.headers.get("Location") or "")
    except AddressRefused as error:
        raise InvalidInput(error.message) from error
    except (OSError, HTTPException, ValueError) as error:
        _left(deadline)
        raise InvalidInput(f"the URL cannot be fetched: {type(error).__name__}: {error}") from error
    raise InvalidInput(f"the URL is redirected more than {MAX_REDIRECTS} times")


def find_addresses(target: Target, rules: AddressRules) -> list[str]:
    """The addresses of a target's host. Raises ``AddressRefused`` if any of them is forbidden."""
    try:
        infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise refuse_name(target.host, rules.setting) from error
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in infos))
    for address in addresses:
        rules.check(target.scheme, address, target.port, target.host)
    return addresses


def _parse(url: str) -> Target:
    """Parse a URL without its fragment, which is never sent to a server."""
    return parse_url(url.partition("#")[0], MAX_URL)


@contextmanager
def _connect(target: Target, deadline: float, rules: AddressRules) -> Iterator[HTTPConnection]:
    plain = _first_that_answers(find_addresses(target, rules), target.port, deadline)
    with plain, _cut_off(plain, deadline):
        connection = HTTPConnection(target.host, target.port)
        connection.sock = plain
        if target.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def _cut_off(connected: socket.socket, deadline: float) -> Iterator[None]:
    """Close the connection at the deadline: a socket's timeout starts anew with each byte of a slow server."""
    same = connected.dup()  # TLS takes over the socket; the duplicate stays usable here

    def end() -> None:
        with suppress(OSError):
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        same.close()


def _first_that_answers(addresses: list[str], port: int, deadline: float) -> socket.socket:
    error: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), min(STEP_S, _left(deadline)))
        except OSError as problem:
            error = problem
    raise error or OSError("no address")


def _ask(connection: HTTPConnection, target: Target) -> HTTPResponse:
    parts = urlsplit(target.url)
    place = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "libs-service"}
    connection.request("GET", place, headers=headers)
    return connection.getresponse()


def _read(response: HTTPResponse, file: BinaryIO, max_bytes: int, deadline: float) -> str:
    if response.status != 200:
        raise InvalidInput(f"the URL answered {response.status}")
    if int(response.headers.get("Content-Length") or 0) > max_bytes:
        raise _too_large(max_bytes)
    size = 0
    read: Callable[[int], bytes] = response.read1
    while piece := read(PIECE_BYTES):
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        file.write(piece)
    _left(deadline)  # a connection that was cut at the deadline may look like the response's end
    if response.length:  # read1 raises nothing if the connection was cut
        raise InvalidInput(f"the URL's answer broke off {response.length} bytes before its end")
    return response.headers.get_content_type()


def _next(target: Target, location: str) -> Target:
    try:
        following = _parse(urljoin(target.url, location))
    except AddressRefused as error:
        raise AddressRefused(f"the URL redirects to an invalid URL: {error.message}") from error
    if not location or (target.scheme == "https" and following.scheme != "https"):
        raise InvalidInput("the URL redirects to an address without https://")
    return following


def _too_large(max_bytes: int) -> InvalidInput:
    return InvalidInput(f"the file behind the URL is larger than {max_bytes} bytes")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise InvalidInput("fetching the URL took too long (SERVICES_FETCH_TIMEOUT_S)")
    return left
