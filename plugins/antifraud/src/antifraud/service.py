"""The service: list and parameter checks of one event each, then one call of the model for the whole batch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from antifraud.features import Behaviour, matrix
from antifraud.ranges import Ranges, read_ranges
from antifraud.rules import check_activity, check_address, check_placement, check_times, check_user_agent
from antifraud.schema import Activity, Input, Output
from antifraud.scoring import Calibration, calibrated, judge
from antifraud.useragent import UserAgent, read
from worker.service import Service

#: Files of ranges, one CIDR a line; without the first, addresses are not checked.
HOSTING_RANGES = "ANTIFRAUD_HOSTING_RANGES"
PROXY_RANGES = "ANTIFRAUD_PROXY_RANGES"


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
        """Read the model, and the operator's files of ranges."""
        import lightgbm

        folder = files("antifraud") / "model"
        self.booster = lightgbm.Booster(model_str=(folder / "model.txt").read_text())
        card = json.loads((folder / "model.json").read_text())
        self.version: str = card["version"]
        self.calibration = Calibration(**card["calibration"])
        self.hosting = _ranges_from(HOSTING_RANGES)
        self.proxies = _ranges_from(PROXY_RANGES)

    def warmup(self) -> None:
        """Compile the lists' regular expressions before the first event waits for it."""
        read("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/150.0.0.0 Safari/537.36")

    def preprocess(self, input: Input) -> Event:
        """Stage one."""
        device = input.device
        ua = read(device.ua) if device and device.ua and device.ua.strip() else None
        address = (device.ip or device.ipv6) if device else None
        findings = check_user_agent(ua)
        on_lists = check_address(address, self.hosting, self.proxies)
        findings += on_lists + check_times(input, datetime.now(UTC))
        findings += check_activity(input.activity) + check_placement(input)
        checked = self.hosting is not None and address is not None and "ip_not_public" not in on_lists
        return Event(findings, ua, _behaviour(input, "ip_hosting" in on_lists if checked else None))

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
