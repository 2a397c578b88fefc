"""Contradictions within a user agent: its system, its engine and its versions cannot be one browser's.

Only texts that no shipped browser wrote are named here. Versions that vendors have frozen (macOS 10_15_7, Windows NT
10.0, Android 10; K, iOS 18 under Safari 26) and old browsers' games ("like Gecko") are no contradictions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

#: Systems, by the words of their devices. The first that fits counts.
_SYSTEMS = {
    "windows_phone": re.compile(r"Windows Phone|IEMobile|Windows CE|Windows Mobile"),
    "tizen": re.compile(r"Tizen|SMART-TV|Maple"),
    "webos": re.compile(r"Web0S|webOS|hpwOS"),
    "android": re.compile(r"Android|Andr0id|\bAdr [\d.]|Silk-Accelerated"),
    "ios": re.compile(r"\((?:iPhone|iPad|iPod|AppleTV)|CPU (?:iPhone )?OS [\d_]+ like Mac OS X"),
    "windows": re.compile(r"Windows|Win(?:9[58]|NT)\b"),
    "macos": re.compile(r"Macintosh|Mac_PowerPC|Mac OS X"),
    "chromeos": re.compile(r"\bCrOS\b"),
    "linux": re.compile(r"Linux|X11"),
}
_COMMENT = re.compile(r"\(([^()]*)\)")
#: Words of one system that stand in no comment of the other's.
_STRANGERS = (
    (re.compile(r"Windows NT \d"), re.compile(r"Macintosh|iPhone|iPad|X11|Linux|CrOS|Android")),
    (re.compile(r"Macintosh"), re.compile(r"Android|iPhone|iPad;|X11|CrOS")),
    (re.compile(r"^(?:iPhone|iPad|iPod)"), re.compile(r"Android|X11|Linux|CrOS")),
    (re.compile(r"^X11"), re.compile(r"iPhone|iPad|Macintosh|Windows")),
)
_UNIXES = frozenset({"android", "linux", "chromeos", "tizen", "webos"})
#: Products that their makers ship for these systems alone.
_OWN = (
    (re.compile(r"\b(?:CriOS|FxiOS|EdgiOS|OPiOS)/|\bMobile/1\d[A-Z]\d"), frozenset({"ios", "macos"})),
    (re.compile(r"\b(?:EdgA|MiuiBrowser|HuaweiBrowser|HeyTapBrowser|VivoBrowser)/"), _UNIXES),
    (re.compile(r"Trident/\d|\bEdge/1\d\."), frozenset({"windows", "windows_phone"})),
)
_NUMBERS = {
    name: re.compile(pattern)
    for name, pattern in {
        "chrome": r"(?<![A-Za-z])Chrome/(\d{1,4})",
        "webkit": r"AppleWebKit/(\d{1,4})",
        "safari": r" Safari/(\d{3,4})",
        "version": r"Version/(\d{1,4})",
        "firefox": r"(?<![A-Za-z])Firefox/(\d{1,4})",
        "rv": r"rv:(\d{1,4})",
        "edge": r" Edg/(\d{1,4})",
        "msie": r"MSIE (\d{1,3})",
        "trident": r"Trident/(\d{1,3})",
        "android": r"Android (\d{1,3})",
        "ios": r" OS (\d{1,3})_\d",
        "windows": r"Windows NT (\d{1,2}\.\d)",
    }.items()
}
#: Chrome needs at least this Android: the first major version that does, with the system's.
_CHROME_NEEDS_ANDROID = ((139, 10), (120, 8), (107, 6), (96, 5), (72, 4))
#: From this major version on, Chrome's engine writes 537.36, and Firefox its version into its comment.
_BLINK, _MODERN_GECKO = 28, 5
#: From this major version of Chrome on, web views of old, with WebKit's own numbers, are gone.
_BLINK_ALONE = 60
#: Firefox 110 to 119 wrote "rv:109.0", since web sites misread "rv:11".
_FROZEN_RV, _FROZEN_UNTIL = 109, 119
#: No browser's major version is above this for years to come.
_HIGHEST = 400
#: Every version of Windows NT that there is. Windows XP and Vista got no Chrome after 49, and not the latest of forks.
_WINDOWS = frozenset((3.1, 3.5, 4.0, 5.0, 5.1, 5.2, 6.0, 6.1, 6.2, 6.3, 6.4, 10.0))
_WINDOWS_7, _NO_CHROME_BEFORE_7 = 6.1, 90
_WINDOWS_SAFARIS_LAST = 5
#: Android's own browser of old wrote "Version/4.0"; from here on the number is Safari's.
_NO_ANDROIDS = 10
_FROZEN_IOS, _NEW_SAFARI = 18, 26


@dataclass(frozen=True)
class Claims:
    """The systems, engines and versions that a user agent names."""

    text: str

    @cached_property
    def system(self) -> str | None:
        """The system that it names, None where it names none."""
        return next((name for name, words in _SYSTEMS.items() if words.search(self.text)), None)

    def number(self, name: str) -> float | None:
        """A major version, None where it is not there."""
        found = _NUMBERS[name].search(self.text)
        return float(found[1]) if found else None


def contradicts(text: str) -> bool:
    """Whether system, engine and versions cannot belong together.

    Args:
        text: with the device's model masked.
    """
    if not text.startswith("Mozilla/") or "osmeta/" in text:
        return False
    claims = Claims(text)
    return (
        _systems(claims)
        or _engines(claims)
        or _chromes(claims)
        or _firefoxes(claims)
        or _explorers(claims)
        or _safaris(claims)
    )


def _systems(claims: Claims) -> bool:
    """Two systems in one comment."""
    windows = claims.number("windows")
    if windows is not None and windows not in _WINDOWS:
        return True
    comment = _COMMENT.search(claims.text)
    if comment is None or claims.system == "windows_phone" or "like" in comment[1].replace("like Mac OS X", ""):
        return False
    return any(own.search(comment[1]) and other.search(comment[1]) for own, other in _STRANGERS)


def _engines(claims: Claims) -> bool:
    """Two engines, or an engine that the system does not have."""
    text, system = claims.text, claims.system
    if system == "windows_phone":
        return False
    if system == "ios" and (" Chrome/" in text or " Firefox/" in text):
        return True
    if system is not None and any(system not in own for words, own in _OWN if words.search(text)):
        return True
    if ("Gecko/20100101" in text or " Firefox/" in text) and "AppleWebKit/" in text:
        return True
    return ("Trident/" in text or "MSIE " in text) and ("AppleWebKit/" in text or " Firefox/" in text)


def _chromes(claims: Claims) -> bool:
    chrome, webkit, safari = claims.number("chrome"), claims.number("webkit"), claims.number("safari")
    if chrome is None or webkit is None:
        return False
    if chrome > _HIGHEST or (chrome >= _BLINK and webkit < 536 and "Version/" not in claims.text):
        return True
    if chrome >= _BLINK_ALONE and (webkit != 537 or safari not in (None, 537)):
        return True
    edge = claims.number("edge")
    return (edge is not None and abs(edge - chrome) > 1) or _too_old_for(chrome, claims)


def _too_old_for(chrome: float, claims: Claims) -> bool:
    """Whether the system never got this Chrome. Amazon keeps old devices' browser new by itself."""
    windows = claims.number("windows")
    if windows is not None:
        return windows < _WINDOWS_7 and chrome >= _NO_CHROME_BEFORE_7
    android = claims.number("android") if claims.system == "android" and "Silk/" not in claims.text else None
    needed = next((needs for first, needs in _CHROME_NEEDS_ANDROID if chrome >= first), 0)
    return android is not None and android < needed


def _firefoxes(claims: Claims) -> bool:
    firefox, rv = claims.number("firefox"), claims.number("rv")
    if firefox is None or " Gecko/" not in claims.text or "Goanna" in claims.text:
        return False
    if firefox > _HIGHEST:
        return True
    if rv is None or firefox < _MODERN_GECKO or rv < _MODERN_GECKO:
        return False
    return rv != firefox and not (rv == _FROZEN_RV and _FROZEN_RV <= firefox <= _FROZEN_UNTIL)


def _explorers(claims: Claims) -> bool:
    """Each Trident came with one Internet Explorer, which could show itself as an older one, never as a newer one."""
    msie, trident = claims.number("msie"), claims.number("trident")
    return msie is not None and trident is not None and msie > trident + 4


def _safaris(claims: Claims) -> bool:
    version, text = claims.number("version"), claims.text
    if version is None or "Safari/" not in text or "Chrome/" in text or "AppleWebKit/" not in text:
        return False
    if claims.system == "windows":
        return version > _WINDOWS_SAFARIS_LAST
    if claims.system == "android" and version >= _NO_ANDROIDS:
        return True
    ios = claims.number("ios") if claims.system == "ios" else None
    if ios is None or ios < 9:
        return False
    return abs(version - ios) > 1 and not (ios >= _FROZEN_IOS and version >= _NEW_SAFARI)
