"""The sync client is generated: ``make check`` fails while it differs from the asyncio client."""

from __future__ import annotations

import sys

import pytest

from scripts import generate_client


def test_a_stale_file_is_named_with_the_command_that_writes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate_client", "--check"])
    assert generate_client.main() == 0
    monkeypatch.setattr(generate_client, "HEADER", "# another\n")
    assert generate_client.main() == 1
    assert "sync.py is stale" in (text := capsys.readouterr().out)
    assert "Run `make generate`." in text
