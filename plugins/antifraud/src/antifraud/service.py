"""The service: lists and parameter checks first, then the model, once for the whole batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from worker.service import Service

from antifraud.reasons import RULES
from antifraud.schema import Activity, Input, Output, Reason

if TYPE_CHECKING:
    from antifraud.features import Behaviour
    from antifraud.ranges import Address, Ranges
    from antifraud.scoring import Verdict
    from antifraud.useragent import UserAgent

HOSTING_VARIABLE = "ANTIFRAUD_HOSTING_RANGES"
PROXY_VARIABLE = "ANTIFRAUD_PROXY_RANGES"


@dataclass(frozen=True)
class Evidence:
    """One event after the first stage: its reason codes so far, and what the model is to see."""

    codes: list[str]
    user_agent: UserAgent | None
    behaviour: Behaviour


class Antifraud(Service[Input, Output]):
    """Scores ad clicks and impressions for invalid traffic (IVT)."""

    max_batch_size = 64
    time_limit_s = 30

    def load(self) -> None:
        from antifraud.scoring import Model

        self.hosting = _ranges_named_by(HOSTING_VARIABLE)
        self.proxies = _ranges_named_by(PROXY_VARIABLE)
        self.model = Model()

    def warmup(self) -> None:
        """One prediction, so that the first job does not pay for compiling the crawler patterns."""
        example = Input.model_validate(Input.model_json_schema()["examples"][0])
        self.predict_batch([self.preprocess(example)])

    def preprocess(self, input: Input) -> Evidence:
        from antifraud import rules, useragent

        text = (input.device.ua or "").strip() if input.device else ""
        agent = useragent.read(text) if text.strip(" -") else None
        addresses = _addresses(input)
        address_codes = rules.address_codes(addresses, self.hosting, self.proxies)
        codes = [
            *rules.user_agent_codes(agent),
            *address_codes,
            *rules.time_codes(input, datetime.now(UTC)),
            *rules.activity_codes(input.activity),
            *rules.placement_codes(input),
        ]
        is_hosting = "ip_hosting" in address_codes if addresses and self.hosting is not None else None
        return Evidence(codes, agent, _behaviour(input, is_hosting))

    def predict_batch(self, batch: list[Evidence]) -> list[Verdict]:
        from antifraud import scoring

        opinions = self.model.judge([item.user_agent for item in batch], [item.behaviour for item in batch])
        return [
            scoring.decide(opinion, item.user_agent, item.codes) for opinion, item in zip(opinions, batch, strict=True)
        ]

    def postprocess(self, raw: Verdict) -> Output:
        verdict: Literal["valid", "suspicious", "invalid"] = "valid" if raw.effect == "none" else raw.effect
        reasons = [Reason(code=code, text=RULES[code].text, effect=RULES[code].effect) for code in raw.codes]
        return Output(
            score=raw.score,
            verdict=verdict,
            category=raw.category,
            reasons=reasons,
            model_version=self.model.version,
        )


def _ranges_named_by(variable: str) -> Ranges | None:
    from antifraud.ranges import RangesError, read_ranges

    name = os.environ.get(variable, "").strip()
    try:
        return read_ranges(Path(name)) if name else None
    except RangesError as error:
        raise RangesError(f"{variable}: {error}") from error


def _addresses(event: Input) -> list[Address]:
    from antifraud.ranges import unmapped

    given = (event.device.ip, event.device.ipv6) if event.device else ()
    return [unmapped(address) for address in given if address is not None]


def _behaviour(event: Input, is_hosting: bool | None) -> Behaviour:
    from antifraud.features import Behaviour

    seen = event.activity or Activity()
    return Behaviour(
        events_1h=seen.events_1h,
        events_24h=seen.events_24h,
        pages_24h=seen.pages_24h,
        user_agents_24h=seen.user_agents_24h,
        without_referrer_24h=seen.without_referrer_24h,
        active_hours_24h=seen.active_hours_24h,
        referrer=event.site.ref if event.site else None,
        page=event.site.page if event.site else None,
        is_hosting=is_hosting,
    )
