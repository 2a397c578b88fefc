"""Antifraud on real data, run as a worker runs it: its stages over a batch, no mocks."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from antifraud.ranges import RangesError
from antifraud.reasons import RULES
from antifraud.schema import CLICK, CRAWLER
from antifraud.service import HOSTING_RANGES, PROXY_RANGES, Antifraud

from worker.errors import ServicesError
from worker.testing import run_inline

PLUGIN = Path(__file__).resolve().parent.parent
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
PHONE = (
    "Mozilla/5.0 (Linux; Android 6.0; Nexus 5 Build/MRA58N) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/50.0.4944.1981 Mobile Safari/537.36"
)
WEB_VIEW = (
    "Mozilla/5.0 (Linux; Android 13; SM-A536B; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 "
    "Chrome/125.0.6422.165 Mobile Safari/537.36"
)
TIME = "2026-08-22T10:15:07Z"


def data_folder() -> Path:
    """The data folder; skips where it is absent, and fails there in CI."""
    folder = Path(os.environ.get("SERVICES_TEST_DATA") or PLUGIN.parents[2] / "shared" / "data")
    if not folder.is_dir():
        message = f"no data in {folder}; set SERVICES_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="module")
def plain() -> Antifraud:
    """The service without an operator's files."""
    service = Antifraud()
    service.load()
    service.warmup()
    return service


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Antifraud:
    """The service with hosting ranges and relay ranges made of the data folder's."""
    data, folder = data_folder() / "datacenter_cidr", tmp_path_factory.mktemp("ranges")
    files = {
        HOSTING_RANGES: ("amazon", "google", "digitalocean", "cloudflare"),
        PROXY_RANGES: ("apple-proxy", "protonvpn"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for variable, providers in files.items():
            texts = [path.read_text() for name in providers for path in sorted(data.glob(f"{name}.*.txt"))]
            (folder / variable).write_text("# made by a test\n" + "\n".join(texts))
            patch.setenv(variable, str(folder / variable))
        service = Antifraud()
        service.load()
    return service


def run(service: Antifraud, *events: dict[str, Any]) -> list[dict[str, Any]]:
    outputs = run_inline(service, events)
    assert not any(isinstance(one, ServicesError) for one in outputs), outputs
    return outputs


def of(service: Antifraud, **fields: Any) -> dict[str, Any]:
    return run(service, {"kind": "click", "time": TIME} | fields)[0]


def by_user_agent(service: Antifraud, texts: list[str]) -> list[dict[str, Any]]:
    return run(service, *({"kind": "impression", "time": TIME, "device": {"ua": text}} for text in texts))


def codes(output: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in output["reasons"]}


def test_no_browser_of_the_list_is_flagged(plain: Antifraud) -> None:
    texts = json.loads((data_folder() / "browser_ua" / "top-user-agents.json").read_text())
    outputs = by_user_agent(plain, texts)
    assert len(texts) == 100
    assert [text for text, output in zip(texts, outputs, strict=True) if output["verdict"] != "valid"] == []


def test_phones_with_names_like_crawlers_are_not_flagged(plain: Antifraud) -> None:
    lines = (PLUGIN / "tests" / "handmade_peoples.txt").read_text().splitlines()
    phones = [line for line in lines if re.search(r"Butterfly|CUBOT|Robot 5", line)]
    assert len(phones) >= 6
    assert {output["verdict"] for output in by_user_agent(plain, phones)} == {"valid"}


def test_declared_crawlers_are_found(plain: Antifraud) -> None:
    entries = json.loads((data_folder() / "crawler_ua" / "crawler-user-agents.json").read_text())
    texts = [text for entry in entries for text in entry["instances"] if len(text) < 8192]
    outputs = by_user_agent(plain, texts)
    found = [output["verdict"] != "valid" for output in outputs]
    assert sum(found) / len(found) > 0.98
    assert {output["category"] for output in outputs if output["verdict"] == "invalid"} == {"GIVT"}


def test_other_sources_user_agents(plain: Antifraud) -> None:
    sets = {}
    for name in ("peoples", "bots"):
        lines = (PLUGIN / "tests" / f"handmade_{name}.txt").read_text().splitlines()
        sets[name] = [output["verdict"] != "valid" for output in by_user_agent(plain, lines)]
    assert sum(sets["bots"]) / len(sets["bots"]) >= 0.95
    assert sum(sets["peoples"]) / len(sets["peoples"]) <= 0.04


def test_a_second_set_of_other_sources_user_agents(plain: Antifraud) -> None:
    shares = {}
    for name in ("peoples", "bots"):
        lines = (PLUGIN / "tests" / f"second_{name}.txt").read_text().splitlines()
        shares[name] = sum(output["verdict"] != "valid" for output in by_user_agent(plain, lines)) / len(lines)
    assert shares["bots"] >= 0.98
    assert shares["peoples"] <= 0.02


@pytest.mark.parametrize(
    ("text", "code", "verdict"),
    [
        (
            "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.1682",
            "ua_automation_tool",
            "invalid",
        ),
        (f"{BROWSER} Selenium/4.15", "ua_automation_tool", "invalid"),
        (f"{BROWSER} DatadogSynthetics", "ua_automation_tool", "invalid"),
        (f"{BROWSER} (compatible; AdVerifier/2.0)", "ua_declares_itself", "suspicious"),
        (f"{BROWSER} +https://metrics.example/about", "ua_declares_itself", "suspicious"),
        ("Mozilla/5.0", "ua_malformed", "suspicious"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64", "ua_malformed", "suspicious"),
        (BROWSER.replace("Chrome/142.0.0.0", "Chrome/{version}"), "ua_malformed", "suspicious"),
        # The parser knows the phone, a list knows the crawler, and its own words leave no doubt.
        (f"{PHONE}; Bytespider", "ua_known_crawler", "invalid"),
        (f"{PHONE} Chrome-Lighthouse", "ua_automation_tool", "invalid"),
    ],
)
def test_user_agents_that_give_themselves_away(plain: Antifraud, text: str, code: str, verdict: str) -> None:
    (output,) = by_user_agent(plain, [text])
    assert code in codes(output) and output["verdict"] == verdict


@pytest.mark.parametrize(
    "text",
    [
        f"{WEB_VIEW} Viber/21.1.0.0",
        f"{WEB_VIEW} Feedly/88.0",
        "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Viber/9",
        BROWSER.replace("Chrome/142.0.0.0", "Slack/4.36.140 Chrome/120.0.6099.276 Electron/28.2.3"),
        BROWSER.replace("Chrome/142.0.0.0", "WhatsApp/2.2412 Chrome/114.0 Electron/25.0"),
        "Roku4640X/DVP-7.70 (297.70E04154A)",
    ],
)
def test_apps_that_show_pages_are_not_the_makers_of_their_previews(plain: Antifraud, text: str) -> None:
    assert by_user_agent(plain, [text])[0]["verdict"] == "valid"


def test_a_crawler_in_a_web_view_is_one_all_the_same(plain: Antifraud) -> None:
    for name in ("Googlebot/2.1", "AcmeCrawler/1.0 (+https://acme.example)", "HeadlessChrome/120"):
        assert by_user_agent(plain, [f"{WEB_VIEW} {name}"])[0]["verdict"] == "invalid", name


def test_the_examples(plain: Antifraud) -> None:
    click, crawler, bare = run(plain, CLICK, CRAWLER, {"kind": "impression", "time": TIME})
    assert (click["verdict"], click["category"]) == ("valid", "none")
    assert (crawler["verdict"], crawler["category"]) == ("invalid", "GIVT") and "ua_known_crawler" in codes(crawler)
    assert bare["verdict"] == "suspicious" and codes(bare) == {"ua_missing", "hosting_check_off"}
    for output in (click, crawler, bare):
        assert 0 <= output["score"] <= 1 and output["model_version"]
        assert all(set(reason) == {"code", "text", "effect"} for reason in output["reasons"])


def test_hosting_relays_and_private_addresses(guarded: Antifraud) -> None:
    data = data_folder() / "datacenter_cidr"
    first = {
        name: (data / f"{name}.txt").read_text().split()[0].split("/")[0]
        for name in ("amazon.ipv4", "amazon.ipv6", "apple-proxy.ipv4", "apple-proxy.ipv6", "protonvpn.ipv4")
    }
    browser = CLICK["device"]["ua"]
    for name, address in first.items():
        output = of(guarded, device={"ip": address, "ua": browser})
        expected = "ip_hosting" if name.startswith("amazon") else "ip_relay_or_vpn"
        assert codes(output) == {expected}, name
        assert output["verdict"] == ("invalid" if expected == "ip_hosting" else "valid"), name
    mapped = of(guarded, device={"ip": f"::ffff:{first['amazon.ipv4']}", "ua": browser})
    assert codes(mapped) == {"ip_hosting"}
    assert codes(of(guarded, device={"ip": "10.0.0.1", "ua": browser})) == {"ip_not_public"}


def test_without_a_file_the_check_is_off_and_the_answer_says_so(plain: Antifraud) -> None:
    output = of(plain, device={"ip": "3.5.140.2", "ua": CLICK["device"]["ua"]})
    assert codes(output) == {"hosting_check_off"} and output["verdict"] == "valid"


@pytest.mark.parametrize(
    ("fields", "code", "verdict"),
    [
        ({"imp_time": "2026-08-22T10:16:00Z"}, "time_before_impression", "invalid"),
        ({"time": "2099-01-01T00:00:00Z"}, "time_in_future", "invalid"),
        ({"time": "1990-01-01T00:00:00Z"}, "time_impossible", "invalid"),
        ({"imp_time": "2026-08-22T10:15:06.990Z"}, "time_click_too_fast", "suspicious"),
        ({"imp_time": "2026-08-20T10:15:07Z"}, "time_click_too_late", "suspicious"),
        ({"activity": {"clicks_1h": 5000}}, "activity_excessive", "invalid"),
        ({"activity": {"clicks_1h": 30}}, "activity_high", "suspicious"),
        ({"activity": {"duplicates_24h": 60}}, "activity_duplicates", "suspicious"),
        ({"activity": {"events_1h": 5, "events_24h": 2}}, "activity_contradicts", "suspicious"),
        ({"site": {}, "app": {}}, "placement_site_and_app", "suspicious"),
    ],
)
def test_parameter_checks(plain: Antifraud, fields: dict[str, Any], code: str, verdict: str) -> None:
    output = of(plain, **({"device": CLICK["device"]} | fields))
    assert code in codes(output) and output["verdict"] == verdict
    assert output["category"] == RULES[code].category


def test_an_answer_does_not_depend_on_its_batch(plain: Antifraud) -> None:
    lines = (PLUGIN / "tests" / "handmade_peoples.txt").read_text().splitlines()[:50]
    lines += (PLUGIN / "tests" / "handmade_bots.txt").read_text().splitlines()[:50]
    assert by_user_agent(plain, lines) == [by_user_agent(plain, [line])[0] for line in lines]


def test_the_model_is_called_once_a_batch(plain: Antifraud, monkeypatch: pytest.MonkeyPatch) -> None:
    booster, calls = plain.booster, []

    class Counting:
        def predict(self, rows: Any, **options: Any) -> Any:
            calls.append(len(rows))
            return booster.predict(rows, **options)

    monkeypatch.setattr(plain, "booster", Counting())
    run(plain, *[CLICK] * 64)
    assert calls == [128], "two rows an event, one call"


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "view", "time": TIME},
        {"kind": "click", "time": "2026-08-22T10:15:07"},
        {"kind": "click", "time": TIME, "device": {"ip": "home"}},
        {"kind": "click", "time": TIME, "device": {"ip": 7}},
        {"kind": "click", "time": TIME, "activity": {"clicks_1h": -1}},
        {"kind": "click", "time": TIME, "colour": "red"},
        {"time": TIME},
    ],
)
def test_bad_events_are_refused(plain: Antifraud, event: dict[str, Any]) -> None:
    (error,) = run_inline(plain, [event])
    assert isinstance(error, ServicesError) and error.code == "invalid_input"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.2.3.0/24\n1.2.3.4/24\n", "line 2: '1.2.3.4/24' is no range"),
        ("# only a comment\n", "holds no range; expected one CIDR a line"),
        ("home\n", "line 1: 'home' is no range"),
    ],
)
def test_a_bad_file_of_ranges_names_file_line_and_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (tmp_path / "ranges.txt").write_text(text)
    monkeypatch.setenv(HOSTING_RANGES, str(tmp_path / "ranges.txt"))
    with pytest.raises(RangesError, match=re.escape(words)) as raised:
        Antifraud().load()
    assert str(tmp_path / "ranges.txt") in str(raised.value)


def test_a_missing_file_of_ranges_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTING_RANGES, "/no/such/file")
    with pytest.raises(RangesError, match="/no/such/file: cannot read the ranges"):
        Antifraud().load()


def test_every_reason_is_documented(plain: Antifraud) -> None:
    readme = (PLUGIN / "README.md").read_text()
    for code, rule in RULES.items():
        assert f"| `{code}` | {rule.text} | {rule.effect} | {rule.category} |" in readme
    assert plain.version in (PLUGIN / "MODEL_CARD.md").read_text()


def test_no_address_of_the_log_is_in_the_model_or_the_card() -> None:
    lines = (data_folder() / "apache_access_log" / "apache_logs").read_text().splitlines()
    addresses = {line.split()[0] for line in lines}
    written = (PLUGIN / "MODEL_CARD.md").read_text() + (PLUGIN / "src/antifraud/model/model.txt").read_text()
    assert not [address for address in addresses if address in written]
