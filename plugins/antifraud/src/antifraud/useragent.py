"""The findings of public lists and the parser about a user agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import ua_parser

from antifraud import form, lists
from antifraud.contradictions import Claims, contradicts
from antifraud.lexicon import APP_LIBRARIES, AUTOMATION_TOOLS, COMPATIBLE, CONTACT, SOURCE_BROWSERS
from antifraud.masking import VAGUE_BRANDS, hide_app, is_sure, mask_maker, mask_model

#: Characters that are read; the rest is padding, and regular expressions should not pay for it.
MAX_LENGTH = 1024

_TV = re.compile(r"\b(?:Roku|tvOS|AppleTV|HbbTV|Vizio)", re.IGNORECASE)


@dataclass(frozen=True)
class UserAgent:
    """One user agent with the findings of lists and the parser.

    ``text`` has the device's model masked: the trained model sees it. ``bare`` has all masked that a maker says, the
    build too: lists and checks read it.

    ``read`` keeps it for the events to come, and so each finding is made once.
    """

    raw: str
    text: str
    bare: str
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
        return AUTOMATION_TOOLS.search(self.bare) is not None

    @cached_property
    def declares_itself(self) -> bool:
        """Whether it declares itself in the form that crawlers use: "compatible; Name", or an address to write to."""
        compatible = COMPATIBLE.search(self.bare)
        named = compatible is not None and SOURCE_BROWSERS.match(compatible[1]) is None
        return named or CONTACT.search(self.bare) is not None

    @cached_property
    def is_malformed(self) -> bool:
        """Whether it breaks a form that every browser keeps."""
        is_recognised = self.is_device or self.os is not None or self.is_tv
        return form.is_malformed(self.raw, self.bare, is_recognised=is_recognised)

    @cached_property
    def has_extra_word(self) -> bool:
        """Whether a browser's user agent goes on with a word that no known browser writes."""
        return form.has_extra_word(self.bare, self.browser)

    @cached_property
    def contradicts_itself(self) -> bool:
        """Whether its system, engine and versions cannot belong together."""
        return contradicts(self.bare)

    @cached_property
    def claims(self) -> Claims:
        """The system and versions that it names."""
        return Claims(self.bare)

    @property
    def is_disputed(self) -> bool:
        """Whether a list knows it as a crawler, while the parser sees a person's device and nothing else speaks for it."""
        is_device = self.lists > 0 and self.is_device and not self.is_spider
        return is_device and not self.declares_itself and not is_sure(self.bare)

    @property
    def is_unrecognised(self) -> bool:
        return self.browser is None and self.os is None and self.brand is None and not self.raw.startswith("Mozilla/")

    @property
    def is_tv(self) -> bool:
        """Whether it names a television or its box, of which the parser knows few."""
        return _TV.search(self.bare) is not None


@lru_cache(maxsize=20_000)
def read(raw: str) -> UserAgent:
    """Everything that is known about ``raw``; kept for the next event, since user agents repeat."""
    raw = raw[:MAX_LENGTH].strip()
    parsed = ua_parser.parse(raw)
    device = parsed.device
    text = mask_model(raw, device.brand, device.model) if device else mask_model(raw, None, None)
    bare = mask_maker(text)
    listed = hide_app(bare)
    is_spider = device is not None and device.family == "Spider"
    if is_spider and listed != raw:
        shown = ua_parser.parse(listed).device
        is_spider = shown is not None and shown.family == "Spider"
    return UserAgent(
        raw=raw,
        text=text,
        bare=bare,
        lists=lists.count(listed),
        is_library=lists.is_library(listed),
        is_app_library=APP_LIBRARIES.search(text) is not None,
        is_spider=is_spider,
        browser=parsed.user_agent.family if parsed.user_agent else None,
        os=parsed.os.family if parsed.os else None,
        brand=device.brand if device else None,
    )
