"""Address ranges from an operator's file, as merged and sorted integers."""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RangesError(ValueError):
    """A file of ranges cannot be used; the text names the file, the line and the expectation."""


class Ranges:
    """A set of networks. Looking one address up is one bisection in the merged ranges of its IP version."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        known = list(networks)
        for merged4 in ipaddress.collapse_addresses(n for n in known if isinstance(n, ipaddress.IPv4Network)):
            self._add(merged4)
        for merged6 in ipaddress.collapse_addresses(n for n in known if isinstance(n, ipaddress.IPv6Network)):
            self._add(merged6)

    def _add(self, network: Network) -> None:
        self._starts[network.version].append(int(network.network_address))
        self._ends[network.version].append(int(network.broadcast_address))

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        index = bisect_right(self._starts[address.version], number) - 1
        return index >= 0 and number <= self._ends[address.version][index]

    def __len__(self) -> int:
        return len(self._starts[4]) + len(self._starts[6])


def read_ranges(path: Path) -> Ranges:
    """Read one CIDR a line; ``#`` starts a comment, empty lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RangesError(f"{path}: cannot read the ranges ({error}); expected a text file, one CIDR a line") from error
    numbered = ((number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1))
    networks = [_parse(path, number, text) for number, text in numbered if text]
    if not networks:
        raise RangesError(f"{path}: holds no range; expected one CIDR a line, such as 192.0.2.0/24")
    return Ranges(networks)


def _parse(path: Path, number: int, text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        expected = "expected one CIDR, such as 192.0.2.0/24 or 2001:db8::/32"
        raise RangesError(f"{path}, line {number}: {text!r} is no range ({error}); {expected}") from error


#: IPv6 prefixes of 96 bits behind which a whole IPv4 address stands: mapped, translated (SIIT), NAT64, compatible.
_WRAPPINGS = tuple(int(ipaddress.IPv6Address(text)) >> 32 for text in ("::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "::"))


def unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, so that either spelling meets the same ranges.

    Mapped (``::ffff:a.b.c.d``), translated, NAT64 (``64:ff9b::/96``), 6to4 (``2002::/16``), Teredo (``2001::/32``).
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address
    number = int(address)
    # "::" and "::1" lie in the range of the compatible addresses, and are none.
    if number >> 32 in _WRAPPINGS and number > 1:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else address
