"""The first stage: what lists and parameter checks say of an event, as reason codes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from antifraud.ranges import Address, Ranges
from antifraud.schema import Activity, Input
from antifraud.useragent import UserAgent

#: Before the first banner on the web (27 October 1994) there was nothing to click.
FIRST_AD = datetime(1994, 10, 27, tzinfo=UTC)
CLOCK_TOLERANCE = timedelta(hours=1)
#: The two clocks of an event and its impression may be this far apart.
IMPRESSION_TOLERANCE = timedelta(seconds=1)
FASTEST_CLICK = timedelta(seconds=0.1)
LATEST_CLICK = timedelta(hours=24)

#: Counts from which a source is "high" and from which it is "excessive".
ACTIVITY_LIMITS: dict[str, tuple[int, int]] = {
    "events_1h": (300, 3_000),
    "events_24h": (2_000, 20_000),
    "clicks_1h": (20, 100),
    "clicks_24h": (60, 500),
    "user_agents_24h": (20, 200),
}
DUPLICATES_LIMIT = 10


def user_agent_codes(ua: UserAgent | None) -> list[str]:
    """What lists say of the user agent. A disputed one is left to the model, with a code that says so."""
    if ua is None:
        return ["ua_missing"]
    if ua.is_app_library and ua.is_library and not ua.is_spider:
        return ["ua_app_http_library"]
    if ua.is_library:
        return ["ua_http_library"]
    if ua.is_disputed:
        return ["ua_list_disputed"]
    if ua.is_known_crawler:
        return ["ua_known_crawler"]
    return ["ua_not_browser"] if ua.is_unrecognised else []


def address_codes(addresses: list[Address], hosting: Ranges | None, proxies: Ranges | None) -> list[str]:
    """What lists say of the addresses. A relay's ranges lie inside hosting ones, so they are asked first."""
    codes = [] if hosting is not None else ["hosting_check_off"]
    if any(not _is_public(address) for address in addresses):
        codes.append("ip_not_public")
    for address in addresses:
        if proxies is not None and address in proxies:
            codes.append("ip_relay_or_vpn")
        elif hosting is not None and address in hosting:
            codes.append("ip_hosting")
    return list(dict.fromkeys(codes))


def _is_public(address: Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_private)


def time_codes(event: Input, now: datetime) -> list[str]:
    """Impossible and unlikely times."""
    times = [time for time in (event.time, event.imp_time) if time is not None]
    codes = []
    if any(time < FIRST_AD for time in times):
        codes.append("time_impossible")
    if any(time > now + CLOCK_TOLERANCE for time in times):
        codes.append("time_in_future")
    return codes if event.imp_time is None else codes + _delay_codes(event.kind, event.time - event.imp_time)


def _delay_codes(kind: str, delay: timedelta) -> list[str]:
    if delay < -IMPRESSION_TOLERANCE:
        return ["time_before_impression"]
    if kind == "click" and delay < FASTEST_CLICK:
        return ["time_click_too_fast"]
    return ["time_click_too_late"] if kind == "click" and delay > LATEST_CLICK else []


def activity_codes(activity: Activity | None) -> list[str]:
    """Counts over their limits, and counts that cannot all be true."""
    if activity is None:
        return []
    limits = [(getattr(activity, name), *limit) for name, limit in ACTIVITY_LIMITS.items()]
    counts = [(count, high, excessive) for count, high, excessive in limits if count is not None]
    codes = []
    if any(count >= excessive for count, _, excessive in counts):
        codes.append("activity_excessive")
    elif any(count >= high for count, high, _ in counts):
        codes.append("activity_high")
    if (activity.duplicates_24h or 0) >= DUPLICATES_LIMIT:
        codes.append("activity_duplicates")
    return codes + (["activity_contradicts"] if _contradicts(activity) else [])


def _contradicts(seen: Activity) -> bool:
    """A part larger than its whole. Clicks may be kept apart from impressions, but not outnumber them."""
    pairs = (
        (seen.events_1h, seen.events_24h),
        (seen.clicks_1h, seen.events_1h),
        (seen.clicks_1h, seen.clicks_24h),
        (seen.clicks_24h, seen.events_24h),
        (seen.clicks_24h, seen.impressions_24h),
        (seen.impressions_24h, seen.events_24h),
        (seen.pages_24h, seen.events_24h),
        (seen.without_referrer_24h, seen.events_24h),
        (seen.duplicates_24h, seen.events_24h),
    )
    return any(part is not None and whole is not None and part > whole for part, whole in pairs)


def placement_codes(event: Input) -> list[str]:
    """A placement is on a site or in an app."""
    on_site = event.site is not None and bool(event.site.page or event.site.domain)
    in_app = event.app is not None and bool(event.app.bundle)
    return ["placement_site_and_app"] if on_site and in_app else []
