"""From the model's two raw values to one probability, and from that and the findings to a verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antifraud.features import NAMES, Behaviour, matrix
from antifraud.reasons import RULES, Category, Effect
from antifraud.useragent import UserAgent

SUSPICIOUS = 0.5
INVALID = 0.9
#: Behaviour alone never makes an event invalid: many people may share an address.
BEHAVIOUR_MOST = 0.85
#: Digits of a score: enough to rank by, too few for the batch's size to show in.
DIGITS = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Opinion:
    """The model's scores of one event; 0 where there was nothing to judge."""

    user_agent: float
    behaviour: float


@dataclass(frozen=True)
class Verdict:
    """The outcome of one event, before it is put into words."""

    score: float
    effect: Effect
    category: Category
    codes: list[str]


class Model:
    """The trained model and the anchors that turn its raw values into scores."""

    def __init__(self) -> None:
        import lightgbm

        folder = resources.files("antifraud") / "model"
        self.facts: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if tuple(self.facts["features"]) != NAMES:
            raise ValueError("model.json was trained on other features than this code makes; run train.py again")
        text = (folder / "model.txt").read_text(encoding="utf-8")
        self._booster = lightgbm.Booster(model_str=text)

    @cached_property
    def version(self) -> str:
        return str(self.facts["version"])

    def judge(self, user_agents: list[UserAgent | None], behaviours: list[Behaviour]) -> list[Opinion]:
        """Judge a batch in one call of the model."""
        raw = np.asarray(self._booster.predict(matrix(user_agents, behaviours), num_threads=1), dtype=np.float64)
        by_agent = calibrate(raw[: len(user_agents)], self.facts["user_agent_anchors"])
        by_behaviour = calibrate(raw[len(user_agents) :], self.facts["behaviour_anchors"])
        return [
            Opinion(float(a) if ua is not None else 0.0, float(b) if seen.is_known else 0.0)
            for ua, seen, a, b in zip(user_agents, behaviours, by_agent, by_behaviour, strict=True)
        ]


def calibrate(raw: Floats, anchors: list[list[float]]) -> Floats:
    """Map raw values to scores along straight lines between the anchors that training measured."""
    return np.interp(raw, [anchor[0] for anchor in anchors], [anchor[1] for anchor in anchors])


def decide(opinion: Opinion, ua: UserAgent | None, codes: list[str]) -> Verdict:
    """Weigh the model's opinion against the first stage's ``codes``."""
    codes = [*codes, *_model_codes(opinion, ua, codes)]
    least = max((RULES[code].least_score for code in codes), default=0.0)
    chance = 1 - (1 - opinion.user_agent) * (1 - opinion.behaviour)
    # Above its floor the score still follows the model, so that events with the same finding can be ranked.
    score = round(max(chance, least + (1 - least) * chance * 0.5 if least else 0.0), DIGITS)
    if not any(RULES[code].effect != "none" for code in codes):
        score = min(score, SUSPICIOUS - 10**-DIGITS)
    if not any(RULES[code].effect == "invalid" for code in codes) and opinion.user_agent < INVALID:
        score = min(score, INVALID - 10**-DIGITS)
    effect: Effect = "invalid" if score >= INVALID else "suspicious" if score >= SUSPICIOUS else "none"
    ranked = sorted(codes, key=lambda code: -RULES[code].least_score)
    return Verdict(score, effect, _category(effect, ranked), ranked)


def _model_codes(opinion: Opinion, ua: UserAgent | None, codes: list[str]) -> list[str]:
    found = []
    listed = any(code in ("ua_known_crawler", "ua_http_library") for code in codes)
    if ua is not None and opinion.user_agent >= SUSPICIOUS and not listed:
        found.append("ua_known_crawler" if ua.is_known_crawler and not ua.is_app_library else "ua_model")
    if opinion.behaviour >= SUSPICIOUS:
        found.append("behaviour_model")
    return found


def _category(effect: Effect, codes: list[str]) -> Category:
    """GIVT wins: what a list or a check can show needs no analysis."""
    if effect == "none":
        return "none"
    categories = [RULES[code].category for code in codes if RULES[code].effect != "none"]
    return "GIVT" if "GIVT" in categories else "SIVT"
