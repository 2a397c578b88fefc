"""luacheck on the ledger's scripts, which are put together from several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import check_lua
from tests.kit.system import ROOT


def test_without_luacheck_the_check_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert check_lua.main() == 0
    out = capsys.readouterr().out
    assert "luacheck is not installed, so the Lua is not checked" in out and "lua-check" in out


@pytest.mark.needs("luacheck")
def test_a_name_that_no_include_defines_is_found_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "keys.lua").write_text("local key, never = KEYS[1], 1\nlocal function half() return key end\n")
    (tmp_path / "one.lua").write_text('--@ include "base/keys"\nreturn half(keyy)\n')
    (tmp_path / "two.lua").write_text('--@ include "base/keys"\nreturn key\n')
    monkeypatch.setattr("worker.ledger.scripts.FOLDER", tmp_path)
    monkeypatch.setattr(check_lua, "LEDGER", tmp_path)
    monkeypatch.setattr(check_lua, "ROOT", tmp_path)
    (tmp_path / ".luacheckrc").write_text((ROOT / ".luacheckrc").read_text())
    assert sorted(check_lua.check_ledger()) == [
        "base/keys.lua:1: (W211) unused variable 'never'",
        "one.lua:2: (W113) accessing undefined variable 'keyy'",
    ]
