"""Stage one: lists and parameter checks. Each gives the codes of its findings (``reasons.RULES``)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from antifraud.devices import device_contradicts, hints_contradict, names_automation
from antifraud.ranges import Ranges, unwrapped
from antifraud.schema import Activity, Address, Device, Input
from antifraud.useragent import UserAgent

#: Before the first banner ad (27 October 1994) there was no ad event.
FIRST_AD = datetime(1994, 10, 27, tzinfo=UTC)
CLOCK_SKEW = timedelta(hours=1)
CLICK_TOO_FAST = timedelta(milliseconds=100)
CLICK_TOO_LATE = timedelta(hours=24)

#: Counts from which a source is unusual, and from which no person does this. A shared address counts as one source,
#: so they are generous.
HIGH = {"events_1h": 500, "events_24h": 3000, "clicks_1h": 20, "clicks_24h": 100, "user_agents_24h": 50}
EXCESSIVE = {"events_1h": 3000, "events_24h": 20_000, "clicks_1h": 100, "clicks_24h": 500, "user_agents_24h": 1000}
DUPLICATES = 50

#: Pairs of counts of which the first cannot be above the second.
NOT_ABOVE = (
    ("events_1h", "events_24h"),
    ("clicks_1h", "clicks_24h"),
    ("clicks_1h", "events_1h"),
    ("clicks_24h", "events_24h"),
    ("impressions_24h", "events_24h"),
    ("duplicates_24h", "events_24h"),
    ("pages_24h", "events_24h"),
    ("without_referrer_24h", "events_24h"),
)


def check_user_agent(ua: UserAgent | None) -> list[str]:
    """The lists' findings about a user agent."""
    if ua is None:
        return ["ua_missing"]
    if ua.is_app_library:
        return [] if ua.is_device or ua.os else ["ua_app_http_library"]
    if ua.is_automation_tool:
        return ["ua_automation_tool"]
    if ua.is_disputed:
        return ["ua_list_disputed"]
    if ua.is_known_crawler:
        return ["ua_http_library" if ua.is_library else "ua_known_crawler"]
    if ua.declares_itself:
        return ["ua_declares_itself"]
    if ua.is_malformed:
        return ["ua_malformed"]
    if ua.has_extra_word:
        return ["ua_extra_word"]
    if ua.contradicts_itself:
        return ["ua_contradicts"]
    return ["ua_not_browser"] if ua.is_unrecognised and not ua.is_tv else []


def check_device(device: Device | None, ua: UserAgent | None) -> list[str]:
    """Contradictions between the device's fields, its client hints and the user agent."""
    if device is None:
        return []
    found = ["ua_automation_tool"] if names_automation(device) else []
    if device_contradicts(device, ua):
        found.append("device_contradicts")
    return [*found, "hints_contradict"] if hints_contradict(device, ua) else found


def check_addresses(device: Device | None, hosting: Ranges | None, proxies: Ranges | None) -> list[str]:
    """The findings of the operator's files about ``ip`` and ``ipv6``: each is looked at, and the worse counts."""
    found = [] if hosting is not None else ["hosting_check_off"]
    if device is None:
        return found
    by_field = {"ip": check_address(device.ip, hosting, proxies), "ipv6": check_address(device.ipv6, hosting, proxies)}
    found += dict.fromkeys(by_field["ip"] + by_field["ipv6"])
    beside = device.ip is not None and "ip_hosting" not in by_field["ip"]
    return [*found, "ipv6_hosting"] if beside and "ip_hosting" in by_field["ipv6"] else found


def check_address(address: Address, hosting: Ranges | None, proxies: Ranges | None) -> list[str]:
    """The findings of the operator's files about one address. A relay or VPN goes before a hosting provider."""
    if address is None:
        return []
    address = unwrapped(address)
    if not address.is_global:
        return ["ip_not_public"]
    if proxies is not None and address in proxies:
        return ["ip_relay_or_vpn"]
    return ["ip_hosting"] if hosting is not None and address in hosting else []


def check_times(event: Input, now: datetime) -> list[str]:
    """Times that cannot be, or that no person makes."""
    times = [time for time in (event.time, event.imp_time) if time is not None]
    found = []
    if any(time < FIRST_AD for time in times):
        found.append("time_impossible")
    if any(time > now + CLOCK_SKEW for time in times):
        found.append("time_in_future")
    if event.imp_time is None:
        return found
    after = event.time - event.imp_time
    if after < timedelta(0):
        found.append("time_before_impression")
    elif event.kind == "click" and after < CLICK_TOO_FAST:
        found.append("time_click_too_fast")
    elif event.kind == "click" and after > CLICK_TOO_LATE:
        found.append("time_click_too_late")
    return found


def check_activity(activity: Activity | None) -> list[str]:
    """Counts above a person's, and counts that cannot be together."""
    if activity is None:
        return []
    counts = {name: value for name, value in activity if value is not None}
    found = []
    if any(counts.get(name, 0) > limit for name, limit in EXCESSIVE.items()):
        found.append("activity_excessive")
    elif any(counts.get(name, 0) > limit for name, limit in HIGH.items()):
        found.append("activity_high")
    if counts.get("duplicates_24h", 0) > DUPLICATES:
        found.append("activity_duplicates")
    if any(a in counts and b in counts and counts[a] > counts[b] for a, b in NOT_ABOVE):
        found.append("activity_contradicts")
    return found


def check_placement(event: Input) -> list[str]:
    """A placement is on a site or in an app."""
    return ["placement_site_and_app"] if event.site is not None and event.app is not None else []
