"""The model's inputs. Training and serving both come through here, so that they cannot drift apart.

An event is shown to the model twice, as two rows of one matrix: its user agent alone, and its behaviour alone. The
other half of each row is missing (NaN). So a browser's user agent cannot excuse a crawler's behaviour, and the model
is still called once for a batch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from antifraud.form import is_peoples
from antifraud.lexicon import AUTOMATION_WORDS, COMPATIBLE, PEOPLES_PRODUCTS, SEARCH_HOSTS, SOURCE_BROWSERS
from antifraud.useragent import UserAgent

Matrix = NDArray[np.float64]

# Every repetition that may fail is bounded, so that the time grows with the text's length, not with its square.
_PRODUCT = re.compile(r"([A-Za-z][\w.!()&'+-]{0,60})[/ ]v?\d[\w.]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z.]+")
_URL = re.compile(r"https?:|www\.|ftp:")
_DOMAIN = re.compile(
    r"(?<![\w@])[a-z0-9-]{1,63}\.(?:com|net|org|io|ai|co|de|fr|ru|uk|eu|info|dev|app|me|jp|cn|cz|nl|pl|it|us)\b", re.I
)
_EMAIL = re.compile(r"(?<![\w.-])[\w.-]{1,64}(?:@|\(at\)| at )[\w-]{1,63}\.")
_COMMENT = re.compile(r"\(([^()]*)\)")
_PLATFORMS: dict[str, re.Pattern[str]] = {
    name: re.compile(words)
    for name, words in {
        "windows": r"Windows|Win(?:9[58x]|NT|32|64)",
        "apple_desktop": r"Macintosh|Mac_PowerPC|Mac OS X \d",
        "apple_mobile": r"iPhone|iPad|iPod|AppleTV|Darwin",
        "android": r"Android",
        "x11": r"X11|Linux",
        "feature_phone": r"MIDP|CLDC|Symbian|Series ?[346]0|SymbOS|J2ME|BREW|MAUI|MTK|Profile/|UP\.(?:Browser|Link)|BlackBerry|BB10",
        "console_or_tv": r"PlayStation|Nintendo|Xbox|[Tt][Vv]\b|TV\d|Web0S|webOS|Tizen|Roku|CrKey|AFT[A-Z]|BRAVIA|Viera",
    }.items()
}
_ENGINES: dict[str, re.Pattern[str]] = {
    name: re.compile(words)
    for name, words in {
        "webkit": r"AppleWebKit|WebKit|KHTML",
        "gecko": r"Gecko/|Goanna/",
        "trident": r"MSIE|Trident",
        "presto": r"Opera|Presto",
    }.items()
}
# A product that cannot stand without the other: a browser always sends both, a forger forgets.
_PAIRS = (
    (re.compile(r"Chrome/"), re.compile(r"AppleWebKit/")),
    (re.compile(r"Chrome/"), re.compile(r"Safari/|Mobile/")),
    (re.compile(r"Firefox/"), re.compile(r"rv:")),
    (re.compile(r"AppleWebKit/"), re.compile(r"KHTML, like Gecko")),
    (re.compile(r"^Mozilla/5\.0"), re.compile(r"^Mozilla/5\.0 \(")),
    (re.compile(r"Version/\d"), re.compile(r"Safari|Presto|AppleWebKit")),
)


def _user_agent_row(ua: UserAgent) -> dict[str, float]:
    text = ua.text
    row = _shape(text) | _products(text) | _contacts(text) | _knowledge(ua)
    row |= {f"word_{name}": len(pattern.findall(text)) for name, pattern in AUTOMATION_WORDS.items()}
    row["word_groups"] = sum(row[f"word_{name}"] > 0 for name in AUTOMATION_WORDS)
    row |= {f"platform_{name}": pattern.search(text) is not None for name, pattern in _PLATFORMS.items()}
    row["platforms"] = sum(row[f"platform_{name}"] for name in _PLATFORMS)
    row |= {f"engine_{name}": pattern.search(text) is not None for name, pattern in _ENGINES.items()}
    row["engines"] = sum(row[f"engine_{name}"] for name in _ENGINES)
    row["broken_pairs"] = sum(a.search(text) is not None and b.search(text) is None for a, b in _PAIRS)
    return row


def _shape(text: str) -> dict[str, float]:
    size = max(len(text), 1)
    return {
        "length": len(text),
        "words": len(text.split()),
        "comments": text.count("("),
        "parentheses_differ": text.count("(") != text.count(")"),
        "share_digits": sum(c.isdigit() for c in text) / size,
        "share_upper": sum(c.isupper() for c in text) / size,
        "semicolons": text.count(";"),
        "has_plus": "+" in text,
        "starts_mozilla": text.startswith("Mozilla/"),
        "has_comma": "," in text.replace("KHTML, like", ""),
        "not_ascii": not text.isascii(),
    }


def _products(text: str) -> dict[str, float]:
    """How many product tokens there are, and how many of them no browser, app or device is known to write."""
    names = [name.lower() for name in _PRODUCT.findall(text)]
    strange = [name for name in names if not is_peoples(name)]
    after = _COMMENT.sub("", text).split()
    last = after[-1].split("/")[0].lower() if after else ""
    compatible = COMPATIBLE.search(text)
    words = [word.lower() for word in _WORD.findall(_URL.sub("", text))]
    return {
        "products": len(names),
        "strange_products": len(strange),
        "strange_share": len(strange) / max(len(names), 1),
        "first_strange": bool(names) and not is_peoples(names[0]),
        "last_strange": bool(last) and not is_peoples(last),
        "known_words": sum(word in PEOPLES_PRODUCTS for word in words),
        "unknown_words": sum(word not in PEOPLES_PRODUCTS for word in words),
        "compatible_strange": compatible is not None and SOURCE_BROWSERS.match(compatible[1]) is None,
    }


def _contacts(text: str) -> dict[str, float]:
    return {
        "has_url": _URL.search(text) is not None,
        "has_domain": _DOMAIN.search(text) is not None,
        "has_email": _EMAIL.search(text) is not None,
    }


def _knowledge(ua: UserAgent) -> dict[str, float]:
    """The parser's findings, except that it is a crawler: that is a list, and lists are the first stage."""
    return {
        "knows_device": ua.is_device,
        "knows_os": ua.os is not None and ua.os != "Other",
        "knows_browser": ua.browser is not None and not ua.is_spider,
        "knows_nothing": ua.is_unrecognised,
    }


@dataclass(frozen=True)
class Behaviour:
    """The data of an event beside its user agent; ``None`` wherever it is not known."""

    events_1h: float | None = None
    events_24h: float | None = None
    pages_24h: float | None = None
    user_agents_24h: float | None = None
    without_referrer_24h: float | None = None
    active_hours_24h: float | None = None
    referrer: str | None = None
    page: str | None = None
    is_hosting: bool | None = None

    @property
    def is_known(self) -> bool:
        """Whether the caller counted anything: a single event's referrer and address alone are no behaviour."""
        return any(value is not None for value in (self.events_1h, self.events_24h, self.pages_24h))


def _behaviour_row(seen: Behaviour) -> dict[str, float]:
    return {
        "log_events_1h": _log(seen.events_1h),
        "log_events_24h": _log(seen.events_24h),
        "log_pages_24h": _log(seen.pages_24h),
        "pages_share": _ratio(seen.pages_24h, seen.events_24h),
        "log_user_agents_24h": _log(seen.user_agents_24h),
        "no_referrer_share": _ratio(seen.without_referrer_24h, seen.events_24h),
        "active_hours": _number(seen.active_hours_24h),
        "events_per_active_hour": _ratio(seen.events_24h, seen.active_hours_24h),
        "is_hosting": _number(seen.is_hosting),
    } | _referrer(seen.referrer, seen.page)


def _referrer(referrer: str | None, page: str | None) -> dict[str, float]:
    if referrer is None:
        return {"has_referrer": math.nan, "referrer_search": math.nan, "referrer_same_site": math.nan}
    host, page_host = _host(referrer), _host(page or "")
    return {
        "has_referrer": bool(referrer),
        "referrer_search": SEARCH_HOSTS.search(host) is not None,
        "referrer_same_site": host == page_host if page_host else math.nan,
    }


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _log(value: float | None) -> float:
    return math.nan if value is None else math.log1p(value)


def _ratio(part: float | None, whole: float | None) -> float:
    return math.nan if part is None or not whole else min(part / whole, 1000.0)


_EMPTY_UA = UserAgent("", "", "", 0, False, False, False, None, None, None)
USER_AGENT_NAMES = tuple(_user_agent_row(_EMPTY_UA))
BEHAVIOUR_NAMES = tuple(_behaviour_row(Behaviour()))
NAMES = USER_AGENT_NAMES + BEHAVIOUR_NAMES


def matrix(user_agents: list[UserAgent | None], behaviours: list[Behaviour]) -> Matrix:
    """Two rows an event: all user agents first, then all behaviours."""
    count, split = len(user_agents), len(USER_AGENT_NAMES)
    rows = np.full((2 * count, len(NAMES)), np.nan)
    for index, (ua, behaviour) in enumerate(zip(user_agents, behaviours, strict=True)):
        if ua is not None:
            rows[index, :split] = [float(value) for value in _user_agent_row(ua).values()]
        rows[count + index, split:] = list(_behaviour_row(behaviour).values())
    return rows
