"""Every reason code: its sentence, the verdict that it asks for, and its category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effect = Literal["none", "suspicious", "invalid"]
Category = Literal["none", "GIVT", "SIVT"]


@dataclass(frozen=True)
class Rule:
    """One reason code: its text and its effect. ``least_score`` places the event at or above its effect's threshold."""

    text: str
    effect: Effect
    category: Category = "GIVT"

    @property
    def least_score(self) -> float:
        return {"none": 0.0, "suspicious": 0.6, "invalid": 0.95}[self.effect]


RULES: dict[str, Rule] = {
    "ua_known_crawler": Rule("The user agent is a crawler or tool that public lists know.", "invalid"),
    "ua_http_library": Rule("The user agent is an HTTP library, a script or a command-line tool.", "invalid"),
    "ua_app_http_library": Rule("The user agent is an HTTP library that apps use, not a browser.", "suspicious"),
    "ua_automation_tool": Rule("The user agent names a tool that drives browsers or runs scripts.", "invalid"),
    "ua_declares_itself": Rule("The user agent says what it is in the form that crawlers use.", "suspicious"),
    "ua_malformed": Rule("The user agent is cut off or breaks the form that browsers keep.", "suspicious"),
    "ua_extra_word": Rule("A browser's user agent goes on with a word that no known browser writes.", "suspicious"),
    "ua_contradicts": Rule("The user agent's system, engine and versions contradict each other.", "suspicious", "SIVT"),
    "device_contradicts": Rule("The device's fields contradict each other or the user agent.", "suspicious", "SIVT"),
    "hints_contradict": Rule("The client hints contradict the user agent or the device.", "suspicious", "SIVT"),
    "ua_blocked": Rule("The user agent holds a word of the operator's block-list.", "invalid"),
    "ua_allowed": Rule("The user agent holds a word of the operator's allow-list; not held against it.", "none"),
    "ua_list_disputed": Rule("A crawler list knows the user agent, but it parses as a person's device.", "suspicious"),
    "ua_not_browser": Rule("The user agent names no browser, device or operating system.", "suspicious"),
    "ua_missing": Rule("The user agent is missing.", "suspicious"),
    "ua_model": Rule("The model finds the user agent built like those of automated clients.", "suspicious", "SIVT"),
    "behaviour_model": Rule("The model finds the recent activity like that of crawlers.", "suspicious", "SIVT"),
    "ip_hosting": Rule("The address belongs to a hosting provider.", "invalid"),
    "ipv6_hosting": Rule("Beside another address, the IPv6 address belongs to a hosting provider.", "invalid"),
    "ip_relay_or_vpn": Rule("The address belongs to a relay or VPN that carries people; not held against it.", "none"),
    "ip_not_public": Rule("The address is not a public one, so no list can know it.", "none"),
    "hosting_check_off": Rule("No file of hosting ranges is configured, so the address was not checked.", "none"),
    "time_before_impression": Rule("The event came before its impression.", "invalid"),
    "time_in_future": Rule("The event's time is over an hour ahead of this server's clock.", "invalid"),
    "time_impossible": Rule("A time lies before there were web ads (1994).", "invalid"),
    "time_click_too_fast": Rule("The click came under 0.1 seconds after its impression.", "suspicious", "SIVT"),
    "time_click_too_late": Rule("The click came over 24 hours after its impression.", "suspicious"),
    "activity_excessive": Rule("The source's counts are over what a person can do.", "invalid"),
    "activity_high": Rule("The source's counts are unusually high for a person.", "suspicious"),
    "activity_duplicates": Rule("The source repeated the same placement and campaign many times.", "suspicious"),
    "activity_contradicts": Rule("The counts contradict each other.", "suspicious", "SIVT"),
    "placement_site_and_app": Rule("The event claims to be on a site and in an app at once.", "suspicious"),
}
