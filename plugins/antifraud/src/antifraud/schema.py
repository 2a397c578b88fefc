"""Input and output. Pydantic alone: the API imports this module to validate before it accepts."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field


def _require_text(value: Any) -> Any:
    """Refuse numbers, which ``ipaddress`` would read as the address with that many below it; "" is none."""
    if value is None or isinstance(value, (str, IPv4Address, IPv6Address)):
        return value or None
    raise ValueError('an address is text, such as "203.0.113.7" or "2001:db8::7"')


Address = Annotated[IPv4Address | IPv6Address | None, BeforeValidator(_require_text)]
AddressV6 = Annotated[IPv6Address | None, BeforeValidator(_require_text)]
Identifier = Annotated[str, Field(max_length=256)]
Url = Annotated[str, Field(max_length=8192)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
#: Versions and codes that callers send as text or as numbers.
Text = Annotated[
    str, Field(max_length=256), BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)
]
Flag = Annotated[int, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Extension = dict[str, Any]


class Part(BaseModel):
    """Base of every object of the input: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class BrandVersion(Part):
    """OpenRTB's ``BrandVersion``: a browser or a system, as client hints name it."""

    brand: Text | None = Field(default=None, description='Name, such as "Chromium" or "Windows".')
    version: list[Text] | None = Field(default=None, max_length=16, description='Version in parts: ["126", "0"].')
    ext: Extension | None = Field(default=None, description="Taken, not looked at.")


class UserAgentHints(Part):
    """OpenRTB's ``sua``: the browser's client hints."""

    browsers: list[BrandVersion] | None = Field(default=None, max_length=32, description="The browser's brands.")
    platform: BrandVersion | None = Field(default=None, description="The system.")
    mobile: Flag | None = Field(default=None, description="1: the browser asks for pages for phones.")
    architecture: Text | None = Field(default=None, description="Taken, not looked at.")
    bitness: Text | None = Field(default=None, description="Taken, not looked at.")
    model: Text | None = Field(default=None, description="The device's model.")
    source: int | None = Field(default=None, description="Whence it is: 1 and 2 hints, 3 parsed from the user agent.")
    ext: Extension | None = Field(default=None, description="Taken, not looked at.")


class Geo(Part):
    """OpenRTB's ``geo``. Taken; only coordinates that are nowhere count."""

    lat: Number | None = Field(default=None, description="Latitude, from -90 to 90.")
    lon: Number | None = Field(default=None, description="Longitude, from -180 to 180.")
    type: int | None = Field(default=None, description="Whence it is; taken, not looked at.")
    accuracy: Number | None = Field(default=None, description="Metres; taken, not looked at.")
    lastfix: Number | None = Field(default=None, description="Seconds; taken, not looked at.")
    ipservice: int | None = Field(default=None, description="Taken, not looked at.")
    country: Text | None = Field(default=None, description="Taken, not looked at.")
    region: Text | None = Field(default=None, description="Taken, not looked at.")
    regionfips104: Text | None = Field(default=None, description="Taken, not looked at.")
    metro: Text | None = Field(default=None, description="Taken, not looked at.")
    city: Text | None = Field(default=None, description="Taken, not looked at.")
    zip: Text | None = Field(default=None, description="Taken, not looked at.")
    utcoffset: int | None = Field(default=None, description="Minutes; taken, not looked at.")
    ext: Extension | None = Field(default=None, description="Taken, not looked at.")


class Device(Part):
    """OpenRTB 2.6's ``device``. All its fields are taken; those that can contradict are compared."""

    ua: str | None = Field(default=None, max_length=8192, description="User agent as sent; empty counts as missing.")
    sua: UserAgentHints | None = Field(default=None, description="Client hints; compared with the user agent.")
    ip: Address = Field(default=None, description="IPv4 or IPv6 address; leave out where the person opted out.")
    ipv6: AddressV6 = Field(default=None, description="IPv6 address beside `ip`. Both are looked at, the worse counts.")
    make: Text | None = Field(default=None, description="The device's maker; compared with the user agent.")
    model: Text | None = Field(default=None, description="The device's model; compared with the user agent.")
    os: Text | None = Field(default=None, description="The system; compared with the user agent.")
    osv: Text | None = Field(default=None, description="The system's version; compared with the user agent.")
    devicetype: int | None = Field(default=None, description="OpenRTB's list; compared with the user agent.")
    geo: Geo | None = Field(default=None, description="Where the device is.")
    lmt: Flag | None = Field(default=None, description="1: the person limits tracking; not held against an event.")
    dnt: Flag | None = Field(default=None, description="1: do not track; not held against an event.")
    ifa: Text | None = Field(default=None, description="Advertising id; taken, not looked at.")
    hwv: Text | None = Field(default=None, description="Hardware version; taken, not looked at.")
    h: int | None = Field(default=None, description="Screen height; taken, not looked at.")
    w: int | None = Field(default=None, description="Screen width; taken, not looked at.")
    ppi: int | None = Field(default=None, description="Taken, not looked at.")
    pxratio: Number | None = Field(default=None, description="Taken, not looked at.")
    js: Flag | None = Field(default=None, description="Taken, not looked at.")
    geofetch: Flag | None = Field(default=None, description="Taken, not looked at.")
    flashver: Text | None = Field(default=None, description="Taken, not looked at.")
    language: Text | None = Field(default=None, description="Taken, not looked at.")
    langb: Text | None = Field(default=None, description="Taken, not looked at.")
    carrier: Text | None = Field(default=None, description="Taken, not looked at.")
    mccmnc: Text | None = Field(default=None, description="Taken, not looked at.")
    connectiontype: int | None = Field(default=None, description="Taken, not looked at.")
    didsha1: Text | None = Field(default=None, description="Taken, not looked at.")
    didmd5: Text | None = Field(default=None, description="Taken, not looked at.")
    dpidsha1: Text | None = Field(default=None, description="Taken, not looked at.")
    dpidmd5: Text | None = Field(default=None, description="Taken, not looked at.")
    macsha1: Text | None = Field(default=None, description="Taken, not looked at.")
    macmd5: Text | None = Field(default=None, description="Taken, not looked at.")
    ext: Extension | None = Field(default=None, description="Taken, not looked at.")


class Site(Part):
    """OpenRTB's ``site``: the page that showed the ad."""

    page: Url | None = Field(default=None, description="URL of the page with the ad.")
    ref: Url | None = Field(
        default=None, description='Referrer of that page. "": known to be empty; left out: not known.'
    )
    domain: Identifier | None = Field(default=None, description="Domain of the site.")


class App(Part):
    """OpenRTB's ``app``: the app that showed the ad, in place of a site."""

    bundle: Identifier | None = Field(default=None, description="Bundle or package name of the app.")


class Imp(Part):
    """OpenRTB's ``imp``: the placement."""

    tagid: Identifier | None = Field(default=None, description="The placement's id.")


class Activity(Part):
    """The caller's counts for the same source (device, else address) up to and including this event."""

    events_1h: Count | None = Field(default=None, description="Events of any kind in the last hour.")
    events_24h: Count | None = Field(default=None, description="Events of any kind in the last 24 hours.")
    clicks_1h: Count | None = Field(default=None, description="Clicks in the last hour.")
    clicks_24h: Count | None = Field(default=None, description="Clicks in the last 24 hours.")
    impressions_24h: Count | None = Field(default=None, description="Impressions in the last 24 hours.")
    duplicates_24h: Count | None = Field(
        default=None, description="Events in the last 24 hours that repeat one of the same placement and campaign."
    )
    pages_24h: Count | None = Field(default=None, description="Distinct pages in the last 24 hours.")
    user_agents_24h: Count | None = Field(default=None, description="Distinct user agents in the last 24 hours.")
    without_referrer_24h: Count | None = Field(
        default=None, description="Events in the last 24 hours whose referrer was empty."
    )
    active_hours_24h: int | None = Field(
        default=None, ge=0, le=25, description="Clock hours with at least one event in the last 24 hours (at most 25)."
    )


CLICK: dict[str, Any] = {
    "kind": "click",
    "time": "2026-08-22T10:15:07.420Z",
    "imp_time": "2026-08-22T10:14:59.105Z",
    "device": {
        "ua": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/150.0.0.0 Mobile Safari/537.36",
        "ip": "198.51.100.23",
    },
    "site": {"page": "https://news.example/sport/final", "ref": "https://www.google.com/"},
    "imp": {"tagid": "sidebar-300x250"},
    "publisher": "pub-1842",
    "campaign": "autumn-sale",
    "activity": {"events_1h": 4, "events_24h": 9, "clicks_1h": 1, "clicks_24h": 1, "impressions_24h": 8},
}
CRAWLER: dict[str, Any] = {
    "kind": "impression",
    "time": "2026-08-22T10:15:08Z",
    "device": {"ua": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "ip": "2001:db8::7"},
}


class Input(Part):
    """One ad event. Only ``kind`` and ``time`` are required; missing data is judged as unknown."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [CLICK, CRAWLER, {"kind": "impression", "time": "2026-08-22T10:15:09Z"}]},
    )

    kind: Literal["click", "impression"] = Field(description="What happened.")
    time: AwareDatetime = Field(description="When it happened, with a UTC offset; a time without one is refused.")
    imp_time: AwareDatetime | None = Field(
        default=None, description="When the impression that belongs to it was shown, with a UTC offset."
    )
    device: Device | None = Field(
        default=None, description="User agent, address, and what else is known of the device."
    )
    site: Site | None = Field(default=None, description="The page, for an ad on the web.")
    app: App | None = Field(default=None, description="The app, for an ad in an app.")
    imp: Imp | None = Field(default=None, description="The placement.")
    publisher: Identifier | None = Field(default=None, description="The publisher's id.")
    campaign: Identifier | None = Field(default=None, description="The campaign's id.")
    activity: Activity | None = Field(default=None, description="Recent counts that the caller keeps.")


class Reason(BaseModel):
    """One finding: a stable code, a sentence, and its effect on the verdict."""

    code: str = Field(description="Stable code; the README lists all.")
    text: str = Field(description="What was found, in a sentence.")
    effect: Literal["none", "suspicious", "invalid"] = Field(description="The least verdict that it asks for.")


class Output(BaseModel):
    """The answer to one event."""

    model_config = ConfigDict(protected_namespaces=())

    score: float = Field(ge=0, le=1, description="0 valid to 1 invalid; from 0.5 suspicious, from 0.9 invalid.")
    verdict: Literal["valid", "suspicious", "invalid"]
    category: Literal["none", "GIVT", "SIVT"] = Field(
        description="GIVT: found by lists and parameter checks; SIVT: by the model or by behaviour; none: valid."
    )
    reasons: list[Reason] = Field(description="Gravest first; empty when nothing was found.")
    model_version: str = Field(description="Version of the trained model.")
