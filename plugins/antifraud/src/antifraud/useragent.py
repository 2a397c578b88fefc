"""What public lists and the parser say about a user agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import crawleruseragents
import ua_parser
from crawlerdetect import CrawlerDetect

from antifraud.lexicon import APP_LIBRARIES

#: Characters that are read; what follows them is padding, and regular expressions should not pay for it.
MAX_LENGTH = 1024
#: Brands by which the parser says "some device", not which.
VAGUE_BRANDS = frozenset({"Spider", "Generic", "Generic_Android", "Generic_Inettv"})

# An Android model's name is the maker's choice ("HTC Butterfly", "CUBOT NOTE"): list patterns and words must not read it.
_ANDROID_MODEL = re.compile(
    r"(Android[ /-]?[\d.]*;(?: ?U;)?(?: ?[a-z]{2}(?:[-_][A-Za-z]{0,3})?;)?) ?"
    r"(?![^;)]*(?:https?:|@|compatible))[^;/)]{1,60}?((?: Build/[^;)]{0,80})?(?:; wv)?\) ?(?:AppleWebKit|Gecko|U2|UCBrowser)|\)$)"
)
_DALVIK_MODEL = re.compile(r"(Dalvik/[\d.]+ \(Linux; U; Android [\w.]+;) [^)]*\)")

_detector = CrawlerDetect()
_libraries = [
    re.compile(entry["pattern"])
    for entry in crawleruseragents.CRAWLER_USER_AGENTS_DATA
    if "http-library" in entry.get("tags", ())
]


@dataclass(frozen=True)
class UserAgent:
    """One user agent with what lists and the parser found. ``text`` has the device's model masked."""

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

    @property
    def is_disputed(self) -> bool:
        """Whether a list knows it as a crawler, while the parser sees a person's device."""
        return self.lists > 0 and not self.is_spider and self.is_device

    @property
    def is_unrecognised(self) -> bool:
        return self.browser is None and self.os is None and self.brand is None and not self.raw.startswith("Mozilla/")


def mask_model(raw: str, brand: str | None, model: str | None) -> str:
    """Replace a device's model by a neutral letter, as current Chrome does itself."""
    text = _DALVIK_MODEL.sub(r"\1 K)", _ANDROID_MODEL.sub(r"\1 K\2", raw))
    if not model or not brand or brand in VAGUE_BRANDS or brand == "Apple":
        return text
    words = [re.escape(word) for word in re.findall(r"[^\W_]+", model)]
    return re.sub(r"[\W_]+".join(words), "K", text, flags=re.IGNORECASE) if len(model) > 3 else text


@lru_cache(maxsize=20_000)
def read(raw: str) -> UserAgent:
    """Everything that is known about ``raw``; kept for the next event, since user agents repeat."""
    raw = raw[:MAX_LENGTH].strip()
    parsed = ua_parser.parse(raw)
    device = parsed.device
    text = mask_model(raw, device.brand, device.model) if device else mask_model(raw, None, None)
    return UserAgent(
        raw=raw,
        text=text,
        lists=crawleruseragents.is_crawler(text) + bool(_detector.is_crawler(text)),
        is_library=any(pattern.search(text) for pattern in _libraries),
        is_app_library=APP_LIBRARIES.search(text) is not None,
        is_spider=device is not None and device.family == "Spider",
        browser=parsed.user_agent.family if parsed.user_agent else None,
        os=parsed.os.family if parsed.os else None,
        brand=device.brand if device else None,
    )
