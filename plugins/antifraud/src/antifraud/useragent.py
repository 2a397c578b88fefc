"""What public lists and the parser say about a user agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import crawleruseragents
import ua_parser
from crawlerdetect import CrawlerDetect

from antifraud.lexicon import (
    APP_LIBRARIES,
    AUTOMATION_TOOLS,
    AUTOMATION_WORDS,
    COMPATIBLE,
    CONTACT,
    MALFORMED,
    SOURCE_BROWSERS,
)

#: Characters that are read; what follows them is padding, and regular expressions should not pay for it.
MAX_LENGTH = 1024
#: From this length on, an unclosed bracket may come from a log that cuts its columns.
LONG = 200
#: Brands by which the parser says "some device", not which.
VAGUE_BRANDS = frozenset({"Spider", "Generic", "Generic_Android", "Generic_Inettv"})

# An Android model's name is the maker's choice ("HTC Butterfly", "CUBOT NOTE"): list patterns and words must not read it.
_ANDROID_MODEL = re.compile(
    r"(Android[ /-]?[\d.]*;(?: ?U;)?(?: ?[a-z]{2}(?:[-_][A-Za-z]{0,3})?;)?) ?"
    r"(?![^;)]*(?:https?:|@|compatible))[^;/)]{1,60}?((?: Build/[^;)]{0,80})?(?:; wv)?\) ?(?:AppleWebKit|Gecko|U2|UCBrowser)|\)$)"
)
_DALVIK_MODEL = re.compile(r"(Dalvik/[\d.]+ \(Linux; U; Android [\w.]+;) [^)]*\)")

# Where an app shows pages, its own name stands behind the web view's ("… wv) … Mobile Safari/537.36 Viber/21.1"), in
# Electron before Chrome's. Lists know many such names ("Viber", "Slack/") as the makers of link previews.
_APPS_NAME = re.compile(
    r"(?<=; wv\) )(?P<view>.*? Safari/[\d.]+) (?P<after>.+)$"
    r"|(?P<ios>like Mac OS X\).*? Mobile/\w+) (?P<behind>(?!.*Safari/).+)$"
    r"|(?<=\(KHTML, like Gecko\) )(?P<before>.+?) (?=Chrome/[\d.]+ Electron/)"
)
#: Groups of automation's words that no app of people's bears by chance.
_SURE_WORDS = ("bot", "crawl", "script", "headless")
_TV = re.compile(r"\b(?:Roku|tvOS|AppleTV|HbbTV|Vizio)", re.IGNORECASE)

_detector = CrawlerDetect()
_libraries = [
    re.compile(entry["pattern"])
    for entry in crawleruseragents.CRAWLER_USER_AGENTS_DATA
    if "http-library" in entry.get("tags", ())
]


@dataclass(frozen=True)
class UserAgent:
    """One user agent with what lists and the parser found. ``text`` has the device's model masked.

    ``read`` keeps it for the events to come, and so whatever it has found once.
    """

    raw: str
    text: str
    lists: int
    is_library: bool
    is_app_library: bool
    is_spider: bool
    browser: str | None
    os: str | None
    brand: str | None

    @property
    def is_device(self) -> bool:
        """Whether the parser knows a maker's device in it."""
        return self.brand is not None and self.brand not in VAGUE_BRANDS

    @property
    def is_known_crawler(self) -> bool:
        return self.lists > 0 or self.is_spider

    @cached_property
    def is_automation_tool(self) -> bool:
        """Whether it names a tool that drives browsers or runs scripts."""
        return AUTOMATION_TOOLS.search(self.text) is not None

    @cached_property
    def declares_itself(self) -> bool:
        """Whether it says what it is in the form that crawlers use: "compatible; Name", or an address to write to."""
        compatible = COMPATIBLE.search(self.text)
        named = compatible is not None and SOURCE_BROWSERS.match(compatible[1]) is None
        return named or CONTACT.search(self.text) is not None

    @cached_property
    def is_malformed(self) -> bool:
        """Whether it breaks what every browser keeps. Long ones may have been cut by whoever kept them."""
        cut = len(self.raw) < LONG and self.raw.count("(") != self.raw.count(")")
        return cut or MALFORMED.search(self.raw) is not None

    @property
    def is_disputed(self) -> bool:
        """Whether a list knows it as a crawler, while the parser sees a person's device and nothing else speaks for it."""
        is_device = self.lists > 0 and self.is_device and not self.is_spider
        return is_device and not self.declares_itself and not _is_sure(self.text)

    @property
    def is_unrecognised(self) -> bool:
        return self.browser is None and self.os is None and self.brand is None and not self.raw.startswith("Mozilla/")

    @property
    def is_tv(self) -> bool:
        """Whether it names a television or its box, of which the parser knows few."""
        return _TV.search(self.text) is not None


def mask_model(raw: str, brand: str | None, model: str | None) -> str:
    """Replace a device's model by a neutral letter, as current Chrome does itself."""
    text = _DALVIK_MODEL.sub(r"\1 K)", _ANDROID_MODEL.sub(r"\1 K\2", raw))
    if not model or not brand or brand in VAGUE_BRANDS or brand == "Apple":
        return text
    words = [re.escape(word) for word in re.findall(r"[^\W_]+", model)]
    return re.sub(r"[\W_]+".join(words), "K", text, flags=re.IGNORECASE) if len(model) > 3 else text


def _is_sure(text: str) -> bool:
    return any(AUTOMATION_WORDS[name].search(text) for name in _SURE_WORDS)


def hide_app(text: str) -> str:
    """Leave out the name of the app in whose web view a page is shown, unless it is automation's."""
    found = _APPS_NAME.search(text)
    if found is None:
        return text
    app = found["after"] or found["behind"] or found["before"]
    if CONTACT.search(app) or "compatible" in app or _is_sure(app):
        return text
    return text.replace(f" {app}", "", 1)


@lru_cache(maxsize=20_000)
def read(raw: str) -> UserAgent:
    """Everything that is known about ``raw``; kept for the next event, since user agents repeat."""
    raw = raw[:MAX_LENGTH].strip()
    parsed = ua_parser.parse(raw)
    device = parsed.device
    text = mask_model(raw, device.brand, device.model) if device else mask_model(raw, None, None)
    listed = hide_app(text)
    shown = device if listed == text else ua_parser.parse(listed).device
    return UserAgent(
        raw=raw,
        text=text,
        lists=crawleruseragents.is_crawler(listed) + bool(_detector.is_crawler(listed)),
        is_library=any(pattern.search(listed) for pattern in _libraries),
        is_app_library=APP_LIBRARIES.search(text) is not None,
        is_spider=shown is not None and shown.family == "Spider",
        browser=parsed.user_agent.family if parsed.user_agent else None,
        os=parsed.os.family if parsed.os else None,
        brand=device.brand if device else None,
    )
