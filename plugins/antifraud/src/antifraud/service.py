"""The service: list and parameter checks of one event each, then one call of the model for the whole batch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from antifraud.agents import Agents, read_agents
from antifraud.features import Behaviour, matrix
from antifraud.ranges import Ranges, read_ranges, unwrapped
from antifraud.rules import (
    check_activity,
    check_addresses,
    check_device,
    check_placement,
    check_times,
    check_user_agent,
)
from antifraud.schema import Activity, Input, Output
from antifraud.scoring import Calibration, calibrated, judge
from antifraud.useragent import UserAgent, read
from worker.service import Service

#: Files of ranges, one CIDR a line; without the first, addresses are not checked.
HOSTING_RANGES = "ANTIFRAUD_HOSTING_RANGES"
PROXY_RANGES = "ANTIFRAUD_PROXY_RANGES"
#: Files of words of user agents, one a line: never, and always, held against an event.
ALLOWED_AGENTS = "ANTIFRAUD_ALLOWED_AGENTS"
BLOCKED_AGENTS = "ANTIFRAUD_BLOCKED_AGENTS"


@dataclass(frozen=True)
class Event:
    """One event after stage one."""

    findings: list[str]
    user_agent: UserAgent | None
    behaviour: Behaviour


@dataclass(frozen=True)
class Scored:
    """One event after stage two: the model's probabilities, None where nothing is known to judge by."""

    findings: list[str]
    user_agent: float | None
    behaviour: float | None


class Antifraud(Service[Input, Output]):
    """Scores ad events for invalid traffic."""

    max_batch_size = 128

    def load(self) -> None:
        """Read the model, and the operator's files of ranges and of words."""
        import lightgbm

        folder = files("antifraud") / "model"
        self.booster = lightgbm.Booster(model_str=(folder / "model.txt").read_text())
        card = json.loads((folder / "model.json").read_text())
        self.version: str = card["version"]
        self.calibration = Calibration(**card["calibration"])
        self.hosting = _ranges_from(HOSTING_RANGES)
        self.proxies = _ranges_from(PROXY_RANGES)
        self.allowed = _agents_from(ALLOWED_AGENTS)
        self.blocked = _agents_from(BLOCKED_AGENTS)

    def warmup(self) -> None:
        """Compile the lists' regular expressions before the first event waits for it."""
        read("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/150.0.0.0 Safari/537.36")

    def preprocess(self, input: Input) -> Event:
        """Stage one."""
        device = input.device
        ua = read(device.ua) if device and device.ua and device.ua.strip() else None
        findings, ua = self._user_agent(ua)
        on_lists = check_addresses(device, self.hosting, self.proxies)
        findings += on_lists + check_times(input, datetime.now(UTC))
        findings += check_activity(input.activity) + check_placement(input) + check_device(device, ua)
        is_hosting = self._is_hosting(input, on_lists)
        return Event(list(dict.fromkeys(findings)), ua, _behaviour(input, is_hosting))

    def _user_agent(self, ua: UserAgent | None) -> tuple[list[str], UserAgent | None]:
        """The findings about the user agent, and the user agent itself where it may be held against the event.

        The block-list goes before the allow-list, and both go before the public lists, the checks and the model.
        """
        if ua is not None and self.blocked is not None and ua.raw in self.blocked:
            return ["ua_blocked"], ua
        if ua is not None and self.allowed is not None and ua.raw in self.allowed:
            return ["ua_allowed"], None
        return check_user_agent(ua), ua

    def _is_hosting(self, event: Input, on_lists: list[str]) -> bool | None:
        """Whether the address is a hosting provider's; None where no list could know."""
        device = event.device
        addresses = [device.ip, device.ipv6] if device else []
        known = [a for a in addresses if a is not None and unwrapped(a).is_global]
        return "ip_hosting" in on_lists if self.hosting is not None and known else None

    def predict_batch(self, batch: list[Event]) -> list[Scored]:
        """Stage two: one call of the model, in which each event has two rows."""
        rows = matrix([event.user_agent for event in batch], [event.behaviour for event in batch])
        probabilities = self.booster.predict(rows, num_threads=1)
        return [
            Scored(
                event.findings,
                float(probabilities[i]) if event.user_agent else None,
                float(probabilities[len(batch) + i]) if event.behaviour.is_known else None,
            )
            for i, event in enumerate(batch)
        ]

    def postprocess(self, raw: Scored) -> Output:
        """Score, verdict and reasons."""
        model = {}
        if raw.user_agent is not None:
            model["ua_model"] = calibrated(raw.user_agent, self.calibration.user_agent)
        if raw.behaviour is not None:
            model["behaviour_model"] = calibrated(raw.behaviour, self.calibration.behaviour)
        return judge(raw.findings, model, self.version)


def _behaviour(event: Input, is_hosting: bool | None) -> Behaviour:
    counts = event.activity or Activity()
    return Behaviour(
        events_1h=counts.events_1h,
        events_24h=counts.events_24h,
        pages_24h=counts.pages_24h,
        user_agents_24h=counts.user_agents_24h,
        without_referrer_24h=counts.without_referrer_24h,
        active_hours_24h=counts.active_hours_24h,
        referrer=event.site.ref if event.site else None,
        page=event.site.page if event.site else None,
        is_hosting=is_hosting,
    )


def _ranges_from(variable: str) -> Ranges | None:
    name = os.environ.get(variable)
    return read_ranges(Path(name)) if name else None


def _agents_from(variable: str) -> Agents | None:
    name = os.environ.get(variable)
    return read_agents(Path(name)) if name else None
