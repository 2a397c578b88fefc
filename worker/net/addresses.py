"""Where requests that a client asked for may go: to the public internet, and wherever the settings allow.

A URL that comes with a job could point back into the operator's network (a metadata service, a database's
HTTP port). So it is looked at twice. ``parse_url`` and ``resolve`` with ``AddressRules.check`` refuse it as it arrives;
and since a name may mean another address by the time that it is used, ``AddressRules.open_socket`` checks once more the
very address that is about to be connected to. The connecting code follows no redirect (webhooks), or takes each new URL
through the same (``fetch.py``, for files that are named by their URLs).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from worker.errors import AddressRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2048
#: Seconds between two looks for a free thread.
LOOK_S = 0.02
PORTS = {"http": 80, "https": 443}
#: Below it, ports belong to mail, shells, databases, ...: of these, only the web's own are used.
FIRST_FREE_PORT = 1024

#: All IPv6 addresses that are given out for use on the internet.
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
#: IPv6 addresses that hold an IPv4 address in their last 32 bits: mapped, and NAT64.
HOLDS_IPV4 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
#: Networks that older Pythons' ``is_global`` takes for public: protocols' own addresses, tunnels (6to4, Teredo),
#: documentation.
SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be used, as far as that can be decided without its addresses."""

    url: str
    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> str:
        """The identity of its server."""
        return f"{self.scheme}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AddressRules:
    """The addresses that may be used. In an ``allowed`` network: everything. Elsewhere: public addresses, by https."""

    allowed: tuple[Network, ...]
    setting: str  #: the variable to name where something is refused

    def check(self, scheme: str, address: str, port: int, host: str = "") -> None:
        """Raise ``AddressRefused`` unless a connection to this address may be made.

        Args:
            host: the name whose address it is. The error then names no address of the operator's network.
        """
        ip = ipaddress.ip_address(address.partition("%")[0])
        if any(ip in network or unwrap(ip) in network for network in self.allowed):
            return
        hint = f"unless {self.setting} names it, such as {ip}/{ip.max_prefixlen}"
        if not is_public(ip):
            if host and not is_address(host):
                raise refuse_name(host, self.setting)
            raise AddressRefused(f"{ip} is not a public address, so it is refused {hint}")
        if scheme != "https":
            raise AddressRefused(f"expected https; http to {ip} is refused {hint}")
        if port < FIRST_FREE_PORT and port not in PORTS.values():
            raise AddressRefused(f"port {port} of {ip} is refused {hint}; use 443, 80 or one above 1023")

    def open_socket(self, scheme: str, address: Sequence[Any]) -> socket.socket:
        """A socket for this entry of ``getaddrinfo``. Raises ``PermissionError`` where it may not be connected to."""
        family, kind, protocol, _, place = address
        try:
            self.check(scheme, place[0], place[1])
        except AddressRefused as error:
            hidden = f"its address is not a public address, so it is refused unless {self.setting} names its network"
            text = error.message if is_public(ipaddress.ip_address(place[0].partition("%")[0])) else hidden
            raise PermissionError(errno.EACCES, text) from error
        return socket.socket(family, kind, protocol)


def parse_url(text: str, longest: int = MAX_URL) -> Target:
    """Take a URL apart. Raises ``AddressRefused`` for one that is never used, at any address."""
    if len(text) > longest or re.search(r"[^\x21-\x7e]|\\", text):
        raise AddressRefused(f"expected a URL of at most {longest} visible ASCII characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressRefused(f"expected a URL: {error}") from error
    if parts.scheme not in PORTS or not host:
        raise AddressRefused("expected https://<host>/<path>")
    if "@" in parts.netloc:
        raise AddressRefused("expected a URL without user and password")
    if "#" in text:
        raise AddressRefused("expected a URL without a fragment (#)")
    if port == 0:
        raise AddressRefused("expected a port from 1 to 65535")
    return Target(text, parts.scheme, host, port or PORTS[parts.scheme])


class Lookups:
    """Threads that look names up, apart from asyncio's, in which the name of Redis is looked up too.

    A name server that never answers keeps a thread for many seconds after the request was given up.
    """

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._threads = ThreadPoolExecutor(threads, "lookup")
        self._unfinished: set[Future[list[Any]]] = set()

    async def find(self, target: Target) -> list[Any]:
        """The entries of ``getaddrinfo``, once a thread is free."""
        while len(self._unfinished) >= self._most:
            await asyncio.sleep(LOOK_S)
            self._unfinished = {lookup for lookup in self._unfinished if not lookup.done()}
        lookup = self._threads.submit(socket.getaddrinfo, target.host, target.port, type=socket.SOCK_STREAM)
        self._unfinished.add(lookup)
        return await asyncio.wrap_future(lookup)


def refuse_name(host: str, setting: str) -> AddressRefused:
    """The error for a name: the same for an unknown one, so that it tells nothing of the operator's network."""
    must = f"so it is refused unless {setting} names its network"
    return AddressRefused(f"the host {host[:100]!r} is not known, or its address is not a public address, {must}")


def is_address(host: str) -> bool:
    """Whether a URL's host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def resolve(target: Target, timeout_s: float, setting: str, threads: Lookups) -> list[str]:
    """The addresses of a target; none where the resolver fails for now. Raises ``AddressRefused`` for no such name."""
    try:
        records = await asyncio.wait_for(threads.find(target), timeout_s)
    except TimeoutError:
        return []
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return []
        raise refuse_name(target.host, setting) from error
    except (UnicodeError, OSError) as error:  # a label of a name that is empty or too long
        raise AddressRefused(f"the host {target.host[:100]!r} is no name: {error}") from error
    return [str(place[0]) for *_, place in records]


def unwrap(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for; else the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in HOLDS_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether an address belongs to a host on the internet, and to none of this machine, its network or its cloud."""
    plain = unwrap(address)
    if any(plain in network for network in SPECIAL):
        return False
    if isinstance(plain, ipaddress.IPv6Address) and plain not in GLOBAL_UNICAST:
        return False
    return plain.is_global and not plain.is_multicast and not plain.is_reserved


def parse_networks(text: str) -> tuple[Network, ...]:
    """Comma-separated networks, as the settings have them. Raises ``ValueError`` that names the error."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
