"""Whether a user agent keeps the form in which browsers, apps and devices write theirs."""

from __future__ import annotations

import re

from antifraud.lexicon import PEOPLES_PRODUCTS, TAIL_PRODUCTS
from antifraud.masking import FACEBOOK

#: From this length on, an unclosed bracket may come from a log that cuts its columns.
LONG = 200

#: No browser writes only this, or any of this: cut off, a template that was never filled, an attack.
_BROKEN = re.compile(
    r"^Mozilla(?:/[\d.]+)?(?: \(compatible;?\))?$|^(?:Chrome|Safari|Firefox|Edge?|Opera)(?:/[\d.]+)?$"
    r"|[{}`]|\$\(|%[sd]\b"
)
#: In brackets for a model's build, some makers left their own template ("Build/<buildID>"): only elsewhere it is none.
_ANGLED = re.compile(r"[<>]")
#: Toolbars of old put their id in braces into Internet Explorer's comment, Facebook's apps their screen.
_BRACED = re.compile(r"=\{[0-9A-Fa-f-]{36}\}|FBDM/\{[^{}\[\]]{0,120}\}?")

#: Copied with the text around it: a header's name, quotes, JSON, another program's escapes.
_WRAPPED = re.compile(
    r"^(?:http[_-])?(?:user[-_ ]?agent|ua)\s{0,3}[:=]|^\\?[\"'`\u201c\u201d\u2018\u2019\u00ab\u201e]"
    r"|^[bu][\"']|^&(?:quot|#34|#39);|^[\[({]\s{0,3}[\"']|^Mozilla\\",
    re.IGNORECASE,
)
#: URL-encoded, once or more often, by "%20" or by "+".
_ENCODED = re.compile(
    r"^(?:%(?:25)*22)?(?:Mozilla|Opera|Dalvik)(?:%(?:25)*2F|/[\d.]+(?:%(?:25)*2[08]|\+))"
    r"|^Mozilla/[\d.]+ ?\([^()%]{0,200}%(?:25)*(?:20|3B)|^%(?:25)*(?:22|4D%(?:25)*6F)",
    re.IGNORECASE,
)
#: No product follows the comment, or none that a browser writes precedes it.
_SHORT = re.compile(
    r"^Mozilla/5\.0 ?\((?!compatible; (?:MSIE|Konqueror))[^()]*\)$"
    r"|^Mozilla/5\.\d [\w./+-]{1,80}(?: [\w./+-]{1,80}){0,2}$",
    re.IGNORECASE,
)
#: "(KHTML, like Gecko; …)": no browser has a second part there, but for old ones' Safari and for Sony's consoles.
_SECOND_PART = re.compile(r"\(KHTML, like Gecko ?[;,](?! Safari\b| HEVC)", re.IGNORECASE)
_DOUBLERS = ("", " ", ",", ", ", ";", "; ", "|")

#: Computers and phones whose browsers are known by name. Televisions, cars and consoles add words of their own.
_KNOWN_SYSTEMS = re.compile(
    r"^Mozilla/5\.0 \((?:Windows NT|Macintosh|X11; (?:\w+; )?(?:Linux (?:x86_64|i686|aarch64)|CrOS)|iPhone|iPad|iPod"
    r"|Linux; (?:U; |arm_64; )?Android|Android)|^Mozilla/[45]\.0 \((?:compatible; MSIE [\d.b]{1,6}; )?Windows NT"
)
_OTHER_SCREENS = re.compile(
    r"\b(?:TV|STV|Xbox|CrKey|SmartTV|HbbTV|CE-HTML|SRAF|OMI|Tesla|VR|Quest|Kindle|PocketBook)\b|BRAVIA|AFT[A-Z]", re.I
)
#: An app's own browser: the word at its end is the app's name.
_WEB_VIEWS = re.compile(
    r"osmeta/|\) Opera \d|; wv\)|Version/4\.\d (?:Chrome|Mobile|Safari)|Electron/|QtWebEngine/|OculusBrowser"
)
#: The last word of a browser's own user agent, after which its rivals' and apps' names stand.
_BROWSERS_END = re.compile(
    r"\(KHTML, like Gecko\) .{0,200}? Safari/[\d.]+(?= )|\bGecko/(?:20100101|[\d.]{2,6}) Firefox/[\d.]+(?= )"
    r"|^Mozilla/[45]\.0 \(compatible; MSIE [^()]{1,600}\)(?= )|rv:11\.0\) like Gecko(?= )"
)
_VERSION = re.compile(r"[\d.:]+")
_MARKED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")


#: Browsers whose last words are all known. Of others, the parser may know the word that is not.
_KNOWN_BROWSERS = frozenset(
    ["Chrome", "Chrome Mobile", "Chrome Mobile WebView", "Chrome Mobile iOS", "Chromium", "Edge", "Edge Mobile",
     "Firefox", "Firefox Mobile", "IE", "Safari", "Mobile Safari", "Mobile Safari UI/WKWebView", "Opera",
     "Opera Mobile", "Vivaldi", "Brave", "Yandex Browser"],
)  # fmt: skip


def is_malformed(raw: str, text: str, *, is_recognised: bool) -> bool:
    """Whether it breaks a form that every browser keeps. Long ones may have been cut by the log that kept them.

    Args:
        raw: as it was sent.
        text: the same with the device's model masked.
        is_recognised: whether the parser knows the device or system, so that its comment alone may be all.
    """
    cut = len(raw) < LONG and all(shown.count("(") != shown.count(")") for shown in (raw, text))
    plain = _BRACED.sub("", FACEBOOK.sub("", raw))
    broken = _BROKEN.search(plain) is not None or _ANGLED.search(text) is not None
    return (
        cut
        or broken
        or _is_wrapped(raw)
        or _is_doubled(raw)
        or _has_second_part(text)
        or (_is_half(text) and not is_recognised)
    )


def _is_wrapped(raw: str) -> bool:
    return any(pattern.search(raw) is not None for pattern in (_WRAPPED, _ENCODED))


def _is_half(text: str) -> bool:
    return _SHORT.search(text) is not None


def _has_second_part(text: str) -> bool:
    return _SECOND_PART.search(text) is not None


def _is_doubled(raw: str) -> bool:
    """Two user agents in one. Old Internet Explorers may hold a second one in their comment."""
    if raw.count("Mozilla/") > 1 and "MSIE" not in raw:
        return True
    halves = ((len(raw) - len(between), between) for between in _DOUBLERS)
    return any(
        not size % 2
        and size >= 20
        and raw[: size // 2] + between == raw[: len(raw) - size // 2]
        and raw[: size // 2] == raw[len(raw) - size // 2 :]
        for size, between in halves
    )


def has_extra_word(text: str, browser: str | None) -> bool:
    """Whether a browser's user agent goes on with a word that no browser, app or device is known to write there.

    Args:
        text: with the device's model masked.
        browser: the browser that the parser knows: it may be the word at the end.
    """
    if browser not in _KNOWN_BROWSERS or not _KNOWN_SYSTEMS.search(text):
        return False
    if _OTHER_SCREENS.search(text) or _WEB_VIEWS.search(text):
        return False
    found = _BROWSERS_END.search(text)
    return found is not None and any(not _may_follow(word) for word in _words(text[found.end() :]))


def _words(rest: str) -> list[str]:
    """The names in the rest, lower case. A number behind a name is the name's version."""
    words = [word.split("/")[0].lower() for word in _MARKED.sub(" ", rest).split()]
    return [word for at, word in enumerate(words) if not at or not _VERSION.fullmatch(word)]


def _may_follow(name: str) -> bool:
    return name in TAIL_PRODUCTS or name.rstrip("0123456789") in TAIL_PRODUCTS or is_peoples(name)


def is_peoples(name: str) -> bool:
    """Whether people's software is known to write this name, lower case."""
    return name in PEOPLES_PRODUCTS or re.split(r"[^a-z.]", name, maxsplit=1)[0] in PEOPLES_PRODUCTS
