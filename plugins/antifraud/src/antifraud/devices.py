"""Contradictions between OpenRTB's ``device``, its client hints (``sua``) and the user agent.

Each claim names the systems that it leaves room for: an iPad that asks for desktop pages writes Macintosh, Fire OS is
an Android, a phone's desktop mode writes Linux. Two claims contradict each other only where no system fits both.
"""

from __future__ import annotations

import re

from antifraud.lexicon import AUTOMATION_TOOLS
from antifraud.schema import Device
from antifraud.useragent import UserAgent

Systems = frozenset[str]

_UNIXES = frozenset({"linux", "android", "tizen", "webos", "chromeos"})
#: Systems that each name leaves room for: names of user agents' systems, of ``os`` and of ``sua.platform``, lower case.
_ROOM: dict[str, Systems] = {
    "android": frozenset({"android"}),
    "fireos": frozenset({"android"}),
    "harmonyos": frozenset({"android"}),
    "androidtv": frozenset({"android"}),
    "ios": frozenset({"ios"}),
    "iphoneos": frozenset({"ios"}),
    "ipados": frozenset({"ios"}),
    "tvos": frozenset({"ios"}),
    "watchos": frozenset({"ios"}),
    "macos": frozenset({"macos", "ios"}),
    "macosx": frozenset({"macos", "ios"}),
    "osx": frozenset({"macos", "ios"}),
    "windows": frozenset({"windows", "windows_phone"}),
    "windowsphone": frozenset({"windows_phone", "windows"}),
    "windows_phone": frozenset({"windows_phone", "windows"}),
    "linux": _UNIXES,
    "chromeos": frozenset({"chromeos", "linux", "android"}),
    "chromiumos": frozenset({"chromeos", "linux", "android"}),
    "tizen": frozenset({"tizen"}),
    "webos": frozenset({"webos"}),
}
_NOT_APPLE = frozenset({"android", "windows", "windows_phone", "linux", "tizen", "webos", "chromeos"})
_ANDROID_MAKERS = re.compile(
    r"(?:samsung|xiaomi|redmi|poco|huawei|honor|oppo|vivo|oneplus|realme|motorola|tecno|infinix|itel|zte|google|nothing)\b",
    re.IGNORECASE,
)
_APPLE_MODEL = re.compile(r"(?:iphone|ipad|ipod)", re.IGNORECASE)
_ANDROID_MODEL = re.compile(r"(?:SM-[A-Z]\d|Pixel \d|Redmi )")
#: Samsung's codes: the letters behind the number are the region's.
_SAMSUNG_CODE = re.compile(r"\bSM-([A-Z]\d{2,4})")
_MAJOR = re.compile(r"\D{0,20}(\d{1,4})")
#: From here on a number is Android's API level, not its version.
_API_LEVEL = 19
_FROZEN_IOS, _NEW_IOS = 18, 26
_FROZEN_ANDROID = "Android 10; K)"
#: OpenRTB's list of device types: a computer, a television, a phone, a set top box.
_COMPUTER, _TELEVISION, _PHONE, _SET_TOP_BOX = 2, 3, 4, 7
_BROWSERS = re.compile(r"Chromium|Google Chrome|Microsoft Edge")
_HINTS = (1, 2)


def names_automation(device: Device) -> bool:
    """Whether the client hints name a tool that drives browsers."""
    brands = (device.sua.browsers or []) if device.sua else []
    return any(AUTOMATION_TOOLS.search(browser.brand or "") for browser in brands)


def device_contradicts(device: Device, ua: UserAgent | None) -> bool:
    """Whether system, version, maker, model, type, place and user agent cannot be one device's."""
    claims = [_of_user_agent(ua), _of_name(device.os), _of_make(device.make), _of_model(device.model)]
    return (
        not _agree(claims)
        or _versions_differ(device, ua)
        or _models_differ(device.model, ua)
        or _is_other_type(device.devicetype, ua)
        or _is_nowhere(device)
    )


def hints_contradict(device: Device, ua: UserAgent | None) -> bool:
    """Whether the client hints cannot be this user agent's, or not this device's."""
    hints = device.sua
    if hints is None:
        return False
    platform = _of_name(hints.platform.brand) if hints.platform else None
    others = [_of_user_agent(ua), _of_name(device.os), _of_make(device.make), _of_model(device.model)]
    if any(not _agree([claim, other]) for claim in (platform, _of_model(hints.model)) for other in others):
        return True
    return _models_differ(hints.model, ua) or (
        ua is not None and (_browsers_differ(device, ua) or _is_other_size(device, ua))
    )


def _agree(claims: list[Systems | None]) -> bool:
    known = [claim for claim in claims if claim is not None]
    return all(not one.isdisjoint(other) for at, one in enumerate(known) for other in known[at + 1 :])


def _of_user_agent(ua: UserAgent | None) -> Systems | None:
    system = ua.claims.system if ua is not None else None
    return _ROOM[system] if system is not None else None


def _of_name(name: str | None) -> Systems | None:
    return _ROOM.get(re.sub(r"[^a-z]", "", name.lower())) if name else None


def _of_make(make: str | None) -> Systems | None:
    if not make:
        return None
    if make.strip().lower() in ("apple", "apple inc", "apple inc."):
        return frozenset({"ios", "macos"})
    return _NOT_APPLE if _ANDROID_MAKERS.match(make.strip()) else None


def _of_model(model: str | None) -> Systems | None:
    if not model:
        return None
    if _APPLE_MODEL.match(model):
        return frozenset({"ios"})
    return _NOT_APPLE if _ANDROID_MODEL.match(model) else None


def _versions_differ(device: Device, ua: UserAgent | None) -> bool:
    """``osv`` against the version in the user agent, where neither is frozen. A phone may be one update ahead."""
    found = _MAJOR.match(device.osv) if device.osv else None
    if found is None or ua is None:
        return False
    said, system = int(found[1]), ua.claims.system
    if system == "android" and _of_name(device.os) in (None, _ROOM["android"]):
        version = ua.claims.number("android")
        frozen = _FROZEN_ANDROID in ua.raw or said >= _API_LEVEL
        return version is not None and not frozen and abs(version - said) > 1
    if system == "ios" and _of_name(device.os) in (None, _ROOM["ios"]):
        version = ua.claims.number("ios")
        frozen = version is not None and version >= _FROZEN_IOS and said >= _NEW_IOS
        return version is not None and not frozen and abs(version - said) > 1
    return False


def _models_differ(model: str | None, ua: UserAgent | None) -> bool:
    said = _SAMSUNG_CODE.search(model) if model else None
    shown = _SAMSUNG_CODE.search(ua.raw) if said and ua is not None else None
    return said is not None and shown is not None and said[1] != shown[1]


def _is_other_type(devicetype: int | None, ua: UserAgent | None) -> bool:
    system = ua.claims.system if ua is not None else None
    if ua is None or system is None:
        return False
    if devicetype == _PHONE:
        return system in ("windows", "chromeos")
    if devicetype in (_TELEVISION, _SET_TOP_BOX):
        return "iPhone" in ua.raw or "iPad" in ua.raw or system == "windows_phone"
    return devicetype == _COMPUTER and ("iPhone" in ua.raw or system == "windows_phone")


def _is_nowhere(device: Device) -> bool:
    geo = device.geo
    return geo is not None and (abs(geo.lat or 0) > 90 or abs(geo.lon or 0) > 180)


def _browsers_differ(device: Device, ua: UserAgent) -> bool:
    """Chromium's brands, which other engines never send, and Chromium's version against the user agent's."""
    brands = (device.sua.browsers or []) if device.sua else []
    chromiums = [browser for browser in brands if _BROWSERS.fullmatch(browser.brand or "")]
    if not chromiums:
        return False
    chrome = ua.claims.number("chrome")
    if chrome is None:
        return " Firefox/" in ua.bare or (" Version/" in ua.bare and " Safari/" in ua.bare)
    versions = [
        _MAJOR.match(browser.version[0]) for browser in chromiums if browser.brand == "Chromium" and browser.version
    ]
    return any(found is not None and int(found[1]) != chrome for found in versions)


def _is_other_size(device: Device, ua: UserAgent) -> bool:
    """A computer that asks for pages for phones, or a phone's own browser that does not, by its own hints."""
    mobile = device.sua.mobile if device.sua else None
    if mobile == 1:
        return ua.claims.system in ("windows", "chromeos", "macos")
    is_own = device.sua is not None and device.sua.source in _HINTS
    return mobile == 0 and is_own and ua.claims.system == "android" and " Mobile Safari/" in ua.bare
