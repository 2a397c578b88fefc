"""Made-up user agents after the grammar that real ones follow, for the kinds that the data folder lacks.

The data's people are browsers of 2015 and of today. Old phones, televisions, consoles, apps and mail programs write
differently, and a model that never saw their grammar takes them for tools. The templates lie in ``peoples.txt`` and
``bots.txt``, one a line: ``#`` is a digit, ``@`` a letter, ``{name}`` a choice among a slot's words below.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

Slots = dict[str, tuple[str, ...]]

PEOPLES_SLOTS: Slots = {
    "maker": ("SAMSUNG", "LG", "HTC", "HUAWEI", "ZTE", "Lenovo", "ALCATEL", "Micromax", "Karbonn", "CUBOT", "DOOGEE",
              "BLU", "Spice", "TECNO", "itel", "Infinix", "OPPO", "vivo", "Redmi", "XT", "SM", "GT", "Lumia", "Fly",
              "QMobile", "Symphony", "Walton", "Wiko", "bq", "Archos", "Acer", "ASUS", "Panasonic", "Sharp", "Coolpad"),
    "word": ("Butterfly", "One", "Note", "Robot", "Spider", "Max", "Neo", "Power", "Hunter", "Link", "Scout", "Droid",
             "Pixel", "Nova", "Prime", "Fetch", "Crawl", "Ping", "View", "Check", "Agent", "Feed", "Monitor"),
    "locale": ("en-us", "de-de", "zh-cn", "ru-ru", "pt-br", "es-es", "fr-fr", "ja-jp", "id-id", "ar-ae", "hi-in", "en"),
    "windows": ("Windows NT 5.1", "Windows NT 6.0", "Windows NT 6.1; WOW64", "Windows NT 10.0; Win64; x64", "Windows 98",
                "Windows NT 5.0", "Windows NT 6.3; ARM", "Windows NT 6.2; Win64; x64", "Windows NT 5.2", "Windows 95"),
    "net": ("; .NET CLR 1.1.4322", "; .NET CLR 2.0.50727", "; .NET4.0C", "; InfoPath.2", "; SV1", "; GTB7.4", "; MALC",
            "; SLCC2", "; Media Center PC 6.0", "; Tablet PC 2.0", "; AOL 9.5", "; MRA 5.5", "; Maxthon", "; FunWebProducts",
            "; Tencent Traveler", "; TheWorld", "; 360SE", "; Alexa Toolbar", "; BTRS", "; Zune 4.7", "; MS-RTC LM 8", ""),
    "unix": ("Linux x86_64", "Linux i686", "FreeBSD amd64", "OpenBSD amd64", "SunOS sun4u", "NetBSD i386", "CrOS x86_64 #"),
    "app": ("Shopper", "ChatBox", "NewsNow", "MyBank", "Fitly", "RideGo", "PhotoLab", "Gamezone", "Weatherly", "Tunes",
            "Recipes", "TravelMate", "SportLive", "KidsPlay", "Notes", "Dating", "com.example.app", "Radio", "Marketplace"),
    "tv": ("SMART-TV; Linux; Tizen 2.4.0", "Web0S; Linux/SmartTV", "Linux; Tizen 6.0", "SmartHub; SMART-TV; U; Linux/SmartTV",
           "DTV; U; Linux/SmartTV", "Linux; NetCast; U", "Linux armv7l", "SMART-TV; X11; Linux armv7l", "QtEmbedded; U; Linux; C"),
}  # fmt: skip

BOT_SLOTS: Slots = {
    "stem": ("Acme", "Zeta", "Data", "Site", "Web", "Rank", "Deep", "Open", "Net", "Blue", "Pixel", "Meta", "Quick", "Lex",
             "Trend", "Market", "Brand", "Price", "Job", "News", "Media", "Domain", "Cyber", "Sem", "Hub", "Owl", "Orb"),
    "role": ("Bot", "bot", "Crawler", "Spider", "Fetcher", "Scanner", "Monitor", "Checker", "Indexer", "Agent", "Validator",
             "Preview", "Reader", "Archiver", "Scraper", "Probe", "", "Client", "Search", "Ads", "Verify", "Harvester"),
    "contact": ("+http://www.{stem}.com/bot.html", "http://{stem}.io", "+https://{stem}.ai/robots", "bots@{stem}.org",
                "https://help.{stem}.net/crawler", "+http://{stem}.co.uk/about"),
    "library": ("python-requests", "Java", "Go-http-client", "axios", "libwww-perl", "Apache-HttpClient", "node-fetch",
                "Ruby", "PycURL", "RestSharp", "reqwest", "http.rb", "GuzzleHttp", "Symfony", "Typhoeus", "got", "undici",
                "lua-resty-http", "Dart", "Swift", "hackney", "unirest-java", "HTTPie", "aria2", "fasthttp", "WinHttp"),
    "system": ("Windows NT 10.0; Win64; x64", "X11; Linux x86_64", "Macintosh; Intel Mac OS X 10_15_7", "Windows NT 6.1"),
}  # fmt: skip


def peoples(count: int, seed: int) -> list[str]:
    """``count`` user agents of people's devices and programs, each kind equally often."""
    return _make("peoples.txt", PEOPLES_SLOTS, count, seed)


def bots(count: int, seed: int) -> list[str]:
    """``count`` user agents of automation, each kind equally often."""
    return _make("bots.txt", BOT_SLOTS, count, seed)


def _make(file: str, slots: Slots, count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    templates = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return [_fill(templates[index % len(templates)], slots, dice) for index in range(count)]


def _fill(template: str, slots: Slots, dice: random.Random) -> str:
    choose: Callable[[re.Match[str]], str] = lambda match: dice.choice(slots[match[1]])  # noqa: E731
    while "{" in template:
        template = re.sub(r"\{(\w+)\}", choose, template)
    template = re.sub("#", lambda _: dice.choice("123456789"), template)
    return re.sub("@", lambda _: dice.choice("ABCDEFGHJKLMNPRSTUVWXYZ"), template)
