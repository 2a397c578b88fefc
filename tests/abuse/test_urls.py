"""URLs of callers: names of the operator's network, silent name servers, types that no answer can bear, odd paths."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import httpx
import pytest

from tests.kit.http import body
from tests.kit.system import System, poll
from worker.errors import AddressRefused
from worker.filestore.fetch import find_addresses
from worker.filestore.storage import find_type
from worker.net.addresses import AddressRules, Lookups, parse_url, resolve


def test_an_internal_name_is_refused_as_an_unknown_one_is(serving: System) -> None:
    details = []
    with serving.client() as client:
        for host in ("localhost", "no-such-host.invalid"):
            answer = client.post("/jobs", content=body(webhook=f"https://{host}/"))
            assert answer.status_code == 422
            details.append(answer.json()["detail"].replace(host, "HOST"))
    assert details[0] == details[1] and "127.0.0.1" not in details[0], details

    rules, texts = AddressRules((), "SETTING"), []
    for host in ("localhost", "no-such-host.invalid"):
        with pytest.raises(AddressRefused) as refused:
            find_addresses(parse_url(f"https://{host}/"), rules)
        texts.append(refused.value.message.replace(host, "HOST"))
    assert texts[0] == texts[1] and "127.0.0.1" not in texts[0]


def test_silent_name_servers_keep_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []

    def silent(*arguments: Any, **_: Any) -> list[Any]:
        looked_up.append(arguments)
        time.sleep(1.5)
        return []

    async def attack() -> float:
        lookups = Lookups(2)
        targets = [parse_url(f"https://n{number}.slow.example/") for number in range(20)]
        given = await asyncio.gather(*(resolve(target, 0.2, "SETTING", lookups) for target in targets))
        assert given == [[]] * 20
        began = time.monotonic()
        await asyncio.to_thread(time.sleep, 0)  # asyncio's own threads, which look up Redis
        return time.monotonic() - began

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert asyncio.run(attack()) < 0.5
    assert len(looked_up) == 2


@pytest.mark.parametrize("declared", ["x\r\ny: z/html", "ä/b", "text", "a/b" * 100, "text/plain; charset=x"])
def test_a_declared_type_that_no_answer_can_bear_counts_as_none(declared: str) -> None:
    assert find_type(declared, b"\x89PNG\r\n\x1a\n" + b"\0" * 64) == "image/png"
    assert find_type(declared, b"hello") == "application/octet-stream"


def test_control_characters_of_a_path_are_escaped_in_the_log(system: System) -> None:
    api = system.start_api()
    with socket.create_connection(("127.0.0.1", system.port)) as connection:
        head = b"POST /jobs/%1b[31mred%0d%0afake/retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head)
    poll(lambda: "client left before its answer" in api.output, what="it is logged")
    assert "\x1b" not in api.output and "\\x1b[31mred" in api.output
    with httpx.Client() as client:
        assert client.get(f"{system.url}/healthz").status_code == 200
