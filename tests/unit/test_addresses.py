"""Where what a client names may lead to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook

from worker.errors import AddressRefused
from worker.net.addresses import AddressRules, Lookups, is_public, parse_networks, parse_url, resolve
from worker.net.signing import make_secret, parse_secret, sign
from worker.webhooks.sender import backoff_s, parse_retry_after

NONE = AddressRules((), "SETTING")

PUBLIC = ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
# fmt: off
OURS = [
    "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2001:2::1", "2002:7f00:1::1",
    "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
]
# fmt: on


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_taken_by_https_alone(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    NONE.check("https", address, 443)
    NONE.check("https", address, 8443)
    for scheme, port in (("http", 80), ("https", 22), ("https", 25)):
        with pytest.raises(AddressRefused, match="SETTING"):
            NONE.check(scheme, address, port)


@pytest.mark.parametrize("address", OURS)
def test_all_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(AddressRefused, match=r"is not a public address.*SETTING"):
        NONE.check("https", address, 443)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(PermissionError):
        NONE.open_socket("https", (family, socket.SOCK_STREAM, 0, "", (address, 443)))


def test_an_allowed_network_may_be_used_for_all() -> None:
    rules = AddressRules(parse_networks("10.0.0.0/8, ::1/128"), "SETTING")
    for address in ("10.1.2.3", "::1", "::ffff:10.0.0.1"):
        rules.check("http", address, 22)
    with rules.open_socket("http", (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 80))) as opened:
        assert opened.family == socket.AF_INET
    with pytest.raises(AddressRefused):
        rules.check("https", "127.0.0.1", 443)
    with pytest.raises(ValueError, match="does not appear to be"):
        parse_networks("ten")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "017700000001", "0"])
def test_however_it_is_written_its_address_counts(host: str) -> None:
    target = parse_url(f"https://{host}/")
    found = asyncio.run(resolve(target, 5, "SETTING", Lookups(1)))
    assert found
    for address in found:
        with pytest.raises(AddressRefused):
            NONE.check(target.scheme, address, target.port)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "//host/",
        "file:///etc/passwd",
        "gopher://host/",
        "https://user@host/",
        "https://@host/",
        "https://host:0/",
        "https://host:70000/",
        "https://host:x/",
        "https://[::1",
        "https://host/#",
        "https://host/ x",
        "https://host\\@other/",
        "https://hö.st/",
        "https://host/" + "x" * 2048,
    ],
)
def test_an_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        parse_url(url)


def test_a_name_that_is_none_is_refused() -> None:
    for host in ("a" * 64, "a..b"):
        with pytest.raises(AddressRefused, match="is no name"):
            asyncio.run(resolve(parse_url(f"https://{host}/"), 5, "SETTING", Lookups(1)))


def test_signatures_are_the_specifications() -> None:
    secret, other = make_secret(), make_secret()
    body = '{"text": "ünïcode"}'.encode()
    headers = sign([secret, other], "msg_1", 1_700_000_000, body)
    assert len(headers["webhook-signature"].split()) == 2
    for one in (secret, other):
        library = Webhook(one)
        expected = library.sign("msg_1", datetime.fromtimestamp(1_700_000_000, UTC), body.decode())
        assert expected in headers["webhook-signature"].split()
    for wrong in ("", "secret", "whsec_", "whsec_!!", "whsec_c2hvcnQ="):
        with pytest.raises(ValueError, match="expected whsec_"):
            parse_secret(wrong)


def test_retry_after_in_both_of_its_forms() -> None:
    assert parse_retry_after("120") == 120
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert parse_retry_after("Wed, 21 Oct 2043 07:28:00 GMT") > 3e8
    assert parse_retry_after(None) == parse_retry_after("soon") == parse_retry_after("-1") == 0


def test_the_pauses_of_a_receiver_that_fails_double_up_to_an_hour() -> None:
    """So that one which is away for a day is asked some 30 times, and not long after it is back."""
    for attempt in range(1, 40):
        wanted = min(3600, 5 * 2 ** (attempt - 1))
        pauses = [backoff_s(5, attempt) for _ in range(50)]
        assert 0.75 * wanted <= min(pauses) < max(pauses) <= 1.25 * wanted
