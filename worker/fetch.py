"""Fetch a file of an input by its URL, from the worker.

The address is checked where the connection is made: the host's name is looked up once, and what was found is checked
and connected to, so that a name which changes its mind (DNS rebinding) leads nowhere else.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from worker.errors import InvalidInput

PORTS = {"http": 80, "https": 443}
#: Redirects that are followed; each is checked as the first URL was.
MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Longest wait for one step: connecting, or the next bytes.
STEP_S = 10.0
PIECE_BYTES = 256 * 1024


def check_address(host: str, allow_private: bool) -> list[str]:
    """The addresses of a host to connect to. Raises ``InvalidInput`` where one of them is not public."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"the host {host} is not known") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not allow_private and not _is_public(address):
            must = "private, loopback and link-local addresses are refused (SERVICES_ALLOW_PRIVATE_ADDRESSES)"
            raise InvalidInput(f"the host {host} has the address {address}; {must}")
    return addresses


def _is_public(text: str) -> bool:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind NAT64
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inside or address
    return address.is_global and not address.is_multicast


def fetch(url: str, file: BinaryIO, max_bytes: int, timeout_s: float, allow_private: bool) -> str:
    """Write what is at a URL into a file, and give its content type. Raises ``InvalidInput`` that says why not."""
    deadline = time.monotonic() + timeout_s
    try:
        for _ in range(MAX_REDIRECTS + 1):
            connection = _connect(urlsplit(url), deadline, allow_private)
            try:
                response = _ask(connection, urlsplit(url))
                if response.status not in REDIRECTS:
                    return _read(response, file, max_bytes, deadline)
                url = _next(url, response.headers.get("Location") or "")
            finally:
                connection.close()
    except (OSError, HTTPException, ValueError) as error:
        raise InvalidInput(f"the URL cannot be fetched: {type(error).__name__}: {error}") from error
    raise InvalidInput(f"the URL is redirected more than {MAX_REDIRECTS} times")


def check_scheme(url: str, allow_private: bool) -> None:
    """Refuse plain HTTP, except where what it is for, a server nearby, is allowed."""
    if urlsplit(url).scheme.lower() != "https" and not allow_private:
        raise InvalidInput("expected an https:// URL")


def _connect(parts: SplitResult, deadline: float, allow_private: bool) -> HTTPConnection:
    check_scheme(parts.geturl(), allow_private)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme.lower()]
    plain = _first_that_answers(check_address(host, allow_private), port, deadline)
    connection = HTTPConnection(host, port)
    connection.sock = plain
    if parts.scheme.lower() == "https":
        try:
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
    return connection


def _first_that_answers(addresses: list[str], port: int, deadline: float) -> socket.socket:
    error: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), min(STEP_S, _left(deadline)))
        except OSError as problem:
            error = problem
    raise error or OSError("no address")


def _ask(connection: HTTPConnection, parts: SplitResult) -> HTTPResponse:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "libs-service"}
    connection.request("GET", target, headers=headers)
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
        _left(deadline)
    if response.length:  # read1 does not say that the connection was cut
        raise InvalidInput(f"the URL's answer broke off {response.length} bytes before its end")
    return response.headers.get_content_type()


def _next(url: str, location: str) -> str:
    following = urljoin(url, location)
    if not location or (url.lower().startswith("https:") and not following.lower().startswith("https:")):
        raise InvalidInput("the URL is redirected to what is not https://")
    return following


def _too_large(max_bytes: int) -> InvalidInput:
    return InvalidInput(f"the file behind the URL is larger than {max_bytes} bytes")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise InvalidInput("fetching the URL took too long (SERVICES_FETCH_TIMEOUT_S)")
    return left
