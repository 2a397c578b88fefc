"""Antifraud on the texts of makers, apps and forgers: build ids, list words, addresses, device fields, broken forms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from antifraud import lists
from antifraud.agents import AgentsError
from antifraud.features import Behaviour, matrix
from antifraud.ranges import unwrapped
from antifraud.rules import check_user_agent
from antifraud.schema import Input
from antifraud.service import ALLOWED_AGENTS, BLOCKED_AGENTS, HOSTING_RANGES, Antifraud
from antifraud.useragent import MAX_LENGTH, read

from worker.errors import ServicesError
from worker.testing import run_inline

TIME = "2026-08-22T10:15:07Z"
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
)
PHONE = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1"
)
MAC = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Safari/605.1.15"
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
ANDROID_15 = (
    "Mozilla/5.0 (Linux; Android 15; {model} Build/{build}; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 "
    "Chrome/141.0.7390.122 Mobile Safari/537.36"
)
HOSTING = "198.51.101.0/24\n2600:1f00::/24\n"


@pytest.fixture(scope="module")
def plain() -> Antifraud:
    service = Antifraud()
    service.load()
    return service


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Antifraud:
    """The service with hosting ranges, an allow-list and a block-list of the operator's."""
    folder = tmp_path_factory.mktemp("operator")
    files = {
        HOSTING_RANGES: HOSTING,
        ALLOWED_AGENTS: "# ours\nAcmeMonitor/2\nviber\n",
        BLOCKED_AGENTS: "Zentra\nAcmeMonitor/2 beta\n",
    }
    with pytest.MonkeyPatch.context() as patch:
        for variable, text in files.items():
            (folder / variable).write_text(text)
            patch.setenv(variable, str(folder / variable))
        service = Antifraud()
        service.load()
    return service


def run(service: Antifraud, *devices: dict[str, Any]) -> list[dict[str, Any]]:
    outputs = run_inline(service, [{"kind": "click", "time": TIME, "device": device} for device in devices])
    assert not any(isinstance(one, ServicesError) for one in outputs), outputs
    return outputs


def verdicts(service: Antifraud, texts: list[str]) -> dict[str, str]:
    return {
        text: output["verdict"]
        for text, output in zip(texts, run(service, *({"ua": text} for text in texts)), strict=True)
    }


def codes(output: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in output["reasons"]} - {"hosting_check_off"}


# --- list words ----------------------------------------------------------------------------------------------------


def test_a_build_id_and_a_model_are_no_list_words(plain: Antifraud) -> None:
    models = ("PJX110", "ViewSonic-ViewPad7e", "VS008/1.0", "Sonic", "HTC Butterfly", "Robot 5", "moto g power (2022)")
    texts = [ANDROID_15.format(model=model, build="AP3A.240617.008") for model in models]
    texts += [text.replace("; wv)", ")").replace(" Version/4.0", "") for text in texts]
    texts += [
        "Dalvik/2.1.0 (Linux; U; Android 15; PJX110 Build/AP3A.240617.008)",
        f"{ANDROID_15.format(model='K', build='AP3A.240617.008')} Instagram 334.0.0.42.95 Android (35/15; 450dpi; "
        "1080x2177; OPPO; PJX110; Sonic; qcom; de_DE; 606263434)",
        "Mozilla/5.0 (Linux; U; Android 2.3;en-us; ViewSonic-ViewPad7e build/ERE27) AppleWebKit/533.1 (KHTML, like "
        "Gecko) Version/4.0 Mobile Safari/533.1",
    ]
    assert set(verdicts(plain, texts).values()) == {"valid"}


def test_a_lists_word_counts_alone_and_not_in_another() -> None:
    for text in ("ViewSonic/1.0", "Sonicwall/1", "1008/2", "Banca Caboto", "amigavoyager"):
        assert lists.count(text) == 0, text
    for text in ("Sonic/1.0", "008/0.83", "Googlebot/2.1", "SiteCrawlers/1", "findlinks/2.6", "PingdomTMS/0.8"):
        assert lists.count(text) > 0, text


def test_what_the_lists_found_before_they_mostly_find_still() -> None:
    """The bounded search keeps nearly all of the bots that both lists' own patterns find without bounds."""
    folder = Path(__file__).resolve().parent
    bots = [line for name in ("handmade", "second") for line in (folder / f"{name}_bots.txt").read_text().splitlines()]
    assert sum(lists.count(bot) > 0 for bot in bots) >= 224


def test_an_operators_words_go_before_the_public_lists(guarded: Antifraud) -> None:
    allowed, blocked, both, part, web_view = run(
        guarded,
        {"ua": "AcmeMonitor/2 (+https://acme.example) python-requests/2.31"},
        {"ua": f"{CHROME} ZENTRA/4"},
        {"ua": "AcmeMonitor/2 beta"},
        {"ua": f"{CHROME.replace('Chrome/142.0.0.0', 'Chrome/142.0.0.0 Zentral/1')}"},
        {"ua": "Viber/20.3 preview"},
    )
    assert (allowed["verdict"], codes(allowed)) == ("valid", {"ua_allowed"})
    assert (blocked["verdict"], blocked["category"]) == ("invalid", "GIVT") and "ua_blocked" in codes(blocked)
    assert both["verdict"] == "invalid" and "ua_blocked" in codes(both)
    assert "ua_blocked" not in codes(part)
    assert web_view["verdict"] == "valid"


def test_an_allowed_user_agent_excuses_no_address(guarded: Antifraud) -> None:
    (output,) = run(guarded, {"ua": "AcmeMonitor/2", "ip": "198.51.101.7"})
    assert output["verdict"] == "invalid" and codes(output) == {"ua_allowed", "ip_hosting"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nothing\n", "holds no word; expected a word or phrase of a user agent a line"),
        ("Good\n\n a/ \n", "line 3: 'a/' has under 3 letters or digits; expected"),
        (None, "cannot read the words"),
    ],
)
def test_a_bad_file_of_words_names_file_line_and_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str
) -> None:
    path = tmp_path / "words.txt"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(BLOCKED_AGENTS, str(path))
    with pytest.raises(AgentsError, match=re.escape(words)) as raised:
        Antifraud().load()
    assert str(path) in str(raised.value)


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"ip": "10.0.0.1", "ipv6": "2600:1f00::1"}, {"ip_not_public", "ip_hosting", "ipv6_hosting"}),
        ({"ip": "1.1.1.1", "ipv6": "2600:1f00::1"}, {"ip_hosting", "ipv6_hosting"}),
        ({"ip": "198.51.101.7", "ipv6": "2a00:1450::1"}, {"ip_hosting"}),
        ({"ip": "198.51.101.7", "ipv6": "2600:1f00::1"}, {"ip_hosting"}),
        ({"ipv6": "2600:1f00::1"}, {"ip_hosting"}),
        ({"ip": "", "ipv6": "2600:1f00::1"}, {"ip_hosting"}),
        ({"ip": "1.1.1.1", "ipv6": "fe80::1"}, {"ip_not_public"}),
        ({"ip": "1.1.1.1", "ipv6": "2a00:1450::1"}, set()),
        ({"ip": "1.1.1.1", "ipv6": "64:ff9b::198.51.101.7"}, {"ip_hosting", "ipv6_hosting"}),
        ({"ip": "64:ff9b::c633:6507"}, {"ip_hosting"}),
        ({"ip": "2002:c633:6507::1"}, {"ip_hosting"}),
        ({"ip": "::ffff:198.51.101.7"}, {"ip_hosting"}),
        ({"ip": "2001:0:4136:e378:8000:63bf:39cc:9af8"}, {"ip_hosting"}),
    ],
)
def test_both_addresses_are_looked_at_and_unwrapped(
    guarded: Antifraud, device: dict[str, Any], expected: set[str]
) -> None:
    (output,) = run(guarded, {"ua": PHONE} | device)
    assert codes(output) == expected
    assert output["verdict"] == ("invalid" if "ip_hosting" in expected else "valid")


def test_an_address_that_wraps_none_stays() -> None:
    for text in ("::", "::1", "2001:db8::1", "2600:1f00::1", "64:ff9b:1::1"):
        address = Input.model_validate({"kind": "click", "time": TIME, "device": {"ip": text}}).device
        assert address is not None and address.ip is not None
        assert str(unwrapped(address.ip)) == text


# --- form ----------------------------------------------------------------------------------------------------------

FACEBOOK = (
    "[FBAN/FB4A;FBAV/26.0.0.22.16;FBBV/6590638;FBDM/{density=1.5,width=791,height=480};FBLC/en_US;FBCR/3 (HK);"
    "FBMF/Sony;FBBD/Sony;FBPN/com.facebook.katana;FBDV/Sonic 008/;FBSV/4.1.2;FBOP/19;FBCA/armeabi-v7a:armeabi;]"
)


def test_facebooks_form_is_well_formed(plain: Antifraud) -> None:
    view = ANDROID_15.format(model="SM-A536B", build="AP3A.240617.008")
    texts = [
        FACEBOOK,
        FACEBOOK[:-1],
        FACEBOOK[:90],
        FACEBOOK.strip("[]"),
        f"{view} {FACEBOOK}",
        f"{view} [FB_IAB/FB4A;FBAV/466.0.0.54.109;IABMV/1;]",
        f"Dalvik/1.6.0 (Linux; U; Android 4.4.2; GT-I9505 Build/KOT49H) {FACEBOOK}",
        f"{PHONE} [FBAN/EMA;FBLC/es_LA;FBAV/330.0.0.10.108;FBDM/DisplayMetrics{{density=2.0, width=720}};]",
        "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1; SV1; SIMBAR={81EF9ABE-357A-484a-A97A-37904552D43B})",
    ]
    assert [text for text in texts if "ua_malformed" in codes(run(plain, {"ua": text})[0])] == []


EXPLORERS = (
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0; SLCC2; .NET CLR 2.0.50727)",
    "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; rv:11.0) like Gecko",
)


@pytest.mark.parametrize("browser", [CHROME, PHONE, IPHONE, MAC, FIREFOX, f"{CHROME} Edg/142.0.0.0", *EXPLORERS])
def test_forms_that_no_browser_writes_are_not_valid(plain: Antifraud, browser: str) -> None:
    encoded = browser.replace("/", "%2F").replace(" ", "%20").replace(";", "%3B")
    texts = [
        f"{browser} Zentra/1.0",
        f"{browser} Zentra",
        f"{browser} x1234",
        f'"{browser}"',
        f"'{browser}'",
        f"\u201c{browser}\u201d",
        f'\\"{browser}\\"',
        f"&quot;{browser}&quot;",
        f'["{browser}"]',
        f"User-Agent: {browser}",
        f"user-agent:{browser}",
        f"User-Agent={browser}",
        f"HTTP_USER_AGENT: {browser}",
        encoded,
        encoded.replace("%", "%25"),
        browser.replace(" ", "+"),
        browser.replace(" ", "%20"),
        f"{browser} {browser}",
        f"{browser}{browser}",
        f"{browser}, {browser}",
    ]
    assert [text for text, verdict in verdicts(plain, texts).items() if verdict == "valid"] == []


@pytest.mark.parametrize("name", ["Morningscore/1.0", "HeadOnly", "Laravel Reaver", "en-US", "platform; x", "abc@d"])
def test_a_short_user_agent_of_a_name_alone_is_not_valid(plain: Antifraud, name: str) -> None:
    texts = [f"Mozilla/5.0 ({name})", f"Mozilla/5.0 {name.split(';')[0]}"]
    assert "valid" not in verdicts(plain, texts).values()


@pytest.mark.parametrize("part", ["; Google-Assess", "; compatible", "; Zentra/1.0", ", Zentra"])
def test_a_second_part_in_the_gecko_comment_is_not_valid(plain: Antifraud, part: str) -> None:
    texts = [text.replace("like Gecko)", f"like Gecko{part})") for text in (CHROME, PHONE, IPHONE)]
    assert "valid" not in verdicts(plain, texts).values()


def test_what_people_have_behind_their_browser_is_valid(plain: Antifraud) -> None:
    texts = [
        f"{CHROME} OPR/127.0.0.0",
        f"{CHROME} Edg/142.0.0.0",
        f"{CHROME} Vivaldi/7.6",
        f"{CHROME} Arc/1.74",
        f"{CHROME} Avast/142.0.0.0",
        f"{CHROME} Edg/142.0.0.0 wails.io",
        f"{FIREFOX} LibreWolf/128.0",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64)",
        f"{IPHONE} [Pinterest/iOS]",
        f"{ANDROID_15.format(model='K', build='AP3A.240617.008')} Zentra/1.0",
        IPHONE.replace("Version/17.5 ", "").replace("Safari/604.1", "Zentra/1.0"),
        "Microsoft Office Word/16.43.1108 (Mac OS/11.0.1; Desktop; es-MX; NonAppStore; Apple/MacBookPro16,1)",
    ]
    assert [text for text, verdict in verdicts(plain, texts).items() if verdict != "valid"] == []


# --- contradictions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        CHROME.replace("Win64; x64", "Android 13"),
        IPHONE.replace("(iPhone;", "(iPhone; Android 13;"),
        "Mozilla/5.0 (X11; Windows x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/123.0.0.0 Safari/537.36",
        IPHONE.replace("Version/17.5", "Chrome/120.0.0.0"),
        PHONE.replace("Chrome/142", "CriOS/142"),
        MAC.replace("Macintosh; Intel Mac OS X 10_15_7", "Windows NT 10.0; Win64; x64"),
        CHROME.replace("AppleWebKit/537.36", "AppleWebKit/605.1.15"),
        CHROME.replace("Safari/537.36", "Safari/605.1.15"),
        CHROME.replace("Chrome/142", "Chrome/999"),
        CHROME.replace("NT 10.0", "NT 11.0"),
        f"{CHROME} Edg/91.0.0.0",
        PHONE.replace("Android 10", "Android 4.4.2"),
        CHROME.replace("NT 10.0; Win64; x64", "NT 5.1"),
        FIREFOX.replace("Firefox/128", "Firefox/140"),
        FIREFOX.replace("Gecko/20100101", "AppleWebKit/537.36 (KHTML, like Gecko)"),
        IPHONE.replace("Version/17.5", "Version/12.1"),
        IPHONE.replace("iPhone; CPU iPhone OS 17_5 like Mac OS X", "Linux; Android 13; K"),
        "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.1; Trident/4.0)",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7; Trident/7.0; rv:11.0) like Gecko",
    ],
)
def test_a_user_agent_that_contradicts_itself_is_suspicious(plain: Antifraud, text: str) -> None:
    (output,) = run(plain, {"ua": text})
    assert output["verdict"] == "suspicious" and "ua_contradicts" in codes(output)
    assert output["category"] == "SIVT"


@pytest.mark.parametrize(
    "text",
    [
        IPHONE.replace("OS 17_5", "OS 18_7").replace("Version/17.5", "Version/26.0"),
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:109.0) Gecko/20100101 Firefox/115.0",
        "Mozilla/5.0 (compatible; MSIE 7.0; Windows NT 6.1; Trident/7.0)",
        "Mozilla/5.0 (Linux; Android 5.1.1; KFDOWI) AppleWebKit/537.36 (KHTML, like Gecko) Silk/108.16.2 like "
        "Chrome/108.0.5359.220 Safari/537.36",
        "Mozilla/5.0 (Windows Phone 10.0; Android 6.0.1; Microsoft; Lumia 950) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/52.0.2743.116 Mobile Safari/537.36 Edge/15.15063",
        "Mozilla/5.0 (Mobile; Windows Phone 8.1; Android 4.0; ARM; Trident/7.0; Touch; rv:11.0; IEMobile/11.0; NOKIA; "
        "Lumia 635) like iPhone OS 7_0_3 Mac OS X AppleWebKit/537 (KHTML, like Gecko) Mobile Safari/537",
        "Mozilla/5.0 (Windows; U; Windows NT 6.1; en-US) AppleWebKit/533.20.25 (KHTML, like Gecko) Version/5.0.4 "
        "Safari/533.20.27",
    ],
)
def test_what_vendors_froze_or_pretend_is_no_contradiction(plain: Antifraud, text: str) -> None:
    assert verdicts(plain, [text]) == {text: "valid"}


def hints(platform: str, chromium: str = "142", mobile: int = 0, **fields: Any) -> dict[str, Any]:
    browsers = [{"brand": "Chromium", "version": [chromium, "0"]}, {"brand": "Not_A Brand", "version": ["99"]}]
    return {"browsers": browsers, "platform": {"brand": platform}, "mobile": mobile, "source": 2} | fields


OPENRTB: dict[str, Any] = {
    "ua": PHONE,
    "sua": hints("Android", mobile=1, model="SM-S918B", architecture="arm", bitness="64", ext={"a": 1}),
    "geo": {"lat": 52.5, "lon": 13.4, "type": 2, "country": "DEU", "zip": 10115, "utcoffset": 60, "accuracy": 20},
    "dnt": 0,
    "lmt": 0,
    "ip": "1.1.1.1",
    "devicetype": 4,
    "make": "Samsung",
    "model": "SM-S918B",
    "os": "Android",
    "osv": 14,
    "hwv": "S23",
    "h": 2340,
    "w": 1080,
    "ppi": 440,
    "pxratio": 2.75,
    "js": True,
    "geofetch": 0,
    "flashver": "",
    "language": "de",
    "langb": "de-DE",
    "carrier": "Telekom",
    "mccmnc": "262-01",
    "connectiontype": 6,
    "ifa": "6d92078a-8246-4ba4-ae5b-76104861e7dc",
    "didsha1": "a",
    "didmd5": "b",
    "dpidsha1": "c",
    "dpidmd5": "d",
    "macsha1": "e",
    "macmd5": "f",
    "ext": {"any": ["thing", 1]},
}


def test_an_ordinary_openrtb_device_is_taken_by_the_command_line(tmp_path: Path) -> None:
    """Every field of OpenRTB 2.6's ``device``, as a bidder sends it, through ``services predict``."""
    (tmp_path / "event.json").write_text(json.dumps({"kind": "click", "time": TIME, "device": OPENRTB}))
    services = Path(sys.executable).with_name("services")
    done = subprocess.run(
        [services, "predict", "antifraud", tmp_path / "event.json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["verdict"] == "valid" and codes(output) == set()


@pytest.mark.parametrize("field", ["colour", "uA", "user_agent"])
def test_a_field_that_openrtb_does_not_have_is_refused(plain: Antifraud, field: str) -> None:
    (error,) = run_inline(plain, [{"kind": "click", "time": TIME, "device": {field: "x"}}])
    assert isinstance(error, ServicesError) and error.code == "invalid_input"


def test_an_address_as_a_number_is_refused_in_either_field(plain: Antifraud) -> None:
    for field in ("ip", "ipv6"):
        (error,) = run_inline(plain, [{"kind": "click", "time": TIME, "device": {field: 7}}])
        assert isinstance(error, ServicesError) and error.code == "invalid_input", field


@pytest.mark.parametrize(
    ("device", "code"),
    [
        ({"ua": CHROME, "os": "iOS"}, "device_contradicts"),
        ({"ua": PHONE, "os": "Windows"}, "device_contradicts"),
        ({"ua": PHONE, "make": "Apple"}, "device_contradicts"),
        ({"ua": PHONE, "model": "iPhone15,3"}, "device_contradicts"),
        ({"ua": IPHONE, "make": "Samsung", "model": "SM-S918B"}, "device_contradicts"),
        ({"ua": IPHONE, "os": "ios", "osv": "12.4"}, "device_contradicts"),
        ({"ua": PHONE.replace("10; K", "13; SM-A536B"), "os": "android", "osv": "8.1"}, "device_contradicts"),
        ({"ua": PHONE.replace("10; K", "13; SM-A536B"), "model": "SM-S918B"}, "device_contradicts"),
        ({"ua": CHROME, "devicetype": 4}, "device_contradicts"),
        ({"ua": IPHONE, "devicetype": 3}, "device_contradicts"),
        ({"ua": PHONE, "geo": {"lat": 120, "lon": 0}}, "device_contradicts"),
        ({"ua": "", "os": "Android", "make": "Apple"}, "device_contradicts"),
        ({"ua": CHROME, "sua": hints("Android", mobile=1)}, "hints_contradict"),
        ({"ua": CHROME, "sua": hints("Linux")}, "hints_contradict"),
        ({"ua": CHROME, "sua": hints("Windows", chromium="98")}, "hints_contradict"),
        ({"ua": CHROME, "sua": hints("Windows", mobile=1)}, "hints_contradict"),
        ({"ua": PHONE, "sua": hints("Android", mobile=0)}, "hints_contradict"),
        ({"ua": FIREFOX, "sua": hints("Linux")}, "hints_contradict"),
        ({"ua": IPHONE, "sua": hints("iOS")}, "hints_contradict"),
        ({"ua": PHONE, "os": "android", "sua": hints("Android", mobile=1, model="iPhone")}, "hints_contradict"),
    ],
)
def test_device_fields_and_hints_that_contradict_are_suspicious(
    plain: Antifraud, device: dict[str, Any], code: str
) -> None:
    (output,) = run(plain, device)
    assert output["verdict"] == "suspicious" and code in codes(output)


@pytest.mark.parametrize(
    "device",
    [
        {"ua": CHROME, "os": "Windows", "osv": "11", "make": "Microsoft", "devicetype": 2, "sua": hints("Windows")},
        {"ua": MAC, "os": "iPadOS", "osv": "18.5", "make": "Apple", "model": "iPad14,3", "devicetype": 5},
        {"ua": PHONE, "os": "android", "osv": "15", "make": "Google", "model": "Pixel 9"},
        {"ua": PHONE.replace("10; K", "13; SM-A536B"), "os": "Android", "osv": "33", "model": "SM-A536E"},
        {"ua": PHONE, "os": "Fire OS", "make": "Amazon", "model": "KFTT"},
        {"ua": IPHONE, "os": "iOS", "osv": "17.5.1", "make": "Apple", "model": "iPhone", "lmt": 1, "ifa": ""},
        {"ua": IPHONE.replace("17_5", "18_7").replace("17.5", "26.0"), "os": "iOS", "osv": "26.1"},
        {"ua": FIREFOX, "os": "Linux", "sua": {"platform": {"brand": "Linux"}, "source": 3}},
        {"ua": "Roku/DVP-14.5 (14.5.4.5934-C7)", "os": "Roku OS", "make": "Roku", "devicetype": 7},
    ],
)
def test_what_fits_or_says_nothing_is_valid(plain: Antifraud, device: dict[str, Any]) -> None:
    (output,) = run(plain, device)
    assert (output["verdict"], codes(output)) == ("valid", set())


def test_hints_that_name_a_driven_browser_are_invalid(plain: Antifraud) -> None:
    sua = hints("Windows") | {"browsers": [{"brand": "HeadlessChrome", "version": ["142"]}]}
    (output,) = run(plain, {"ua": CHROME, "sua": sua})
    assert output["verdict"] == "invalid" and "ua_automation_tool" in codes(output)


# --- time ----------------------------------------------------------------------------------------------------------

PIECES = (
    "aaaaaaaa-", "aaaa-", "a-", "a_", "a.", "a@", "a!", "a/", "a ", "(a", "a)", "((", "; wv) ", "Android;", "(Android ",
    "like Mac OS X) Mobile/a ", " Safari/1 ", "Electron/1 ", "Java ", "bot", "Mozilla/5.0 (", "%20", "+a@", "[FBAN/",
    "FBDM/{", "www.", "(KHTML, like Gecko) Safari/1", "CPU iPhone OS 1_", "Android; a Build/b ", "NewsBlur ",
)  # fmt: skip


def cost(text: str) -> float:
    """Seconds of the processor that one user agent takes, uncached: the least of three like it."""
    spent = []
    for number in range(3):
        varied = f"{text[:-2]}{number}{text[-1]}"
        before = time.process_time()
        ua = read(varied)
        check_user_agent(ua)
        matrix([ua], [Behaviour()])
        spent.append(time.process_time() - before)
    return min(spent)


def test_no_text_makes_the_time_grow_with_the_square_of_its_length() -> None:
    """Twice the text takes about twice as long; where the square counts, four times."""
    read(CHROME)
    once, twice = MAX_LENGTH // 2, MAX_LENGTH
    growth = {}
    for piece in PIECES:
        for end in (")", "\u2026)"):
            short, long = ((piece * size)[: size - 3] + end for size in (once, twice))
            growth[piece, end] = min(cost(long) / cost(short) for _ in range(2))
    worst = max(growth, key=lambda key: growth[key])
    assert growth[worst] < 3, (worst, growth[worst])


# --- the measurements ---------------------------------------------------------------------------------------------


def test_the_card_has_the_last_measured_table_and_no_kind_of_device_is_flagged_more(plain: Antifraud) -> None:
    """``training/by_kind.json`` is the result of ``python -m training.by_kind``, beside commit cfb42b4."""
    folder = Path(__file__).resolve().parent.parent
    found = json.loads((folder / "training" / "by_kind.json").read_text())
    card = (folder / "MODEL_CARD.md").read_text()
    assert found["model"] == plain.version
    for row in found["people"]:
        assert f"| {row['kind']} | {row['texts']} | {row['flagged_before']} | {row['flagged_now']} |" in card
        if not row["kind"].startswith("no device writes this"):
            assert row["flagged_now"] <= row["flagged_before"], row
        assert row["invalid_now"] <= row["invalid_before"], row
    for row in found["bots"]:
        for figure in ("flagged", "service_at_1", "model_at_1"):
            assert row[f"{figure}_now"] >= row[f"{figure}_before"], row
