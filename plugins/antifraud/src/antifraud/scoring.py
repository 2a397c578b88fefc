"""From findings and the model's probabilities to a score, a verdict and its reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from antifraud.reasons import RULES, Category
from antifraud.schema import Output, Reason

SUSPICIOUS, INVALID = 0.5, 0.9
#: The model alone never calls an event invalid: nobody can look a probability up in a list.
MODEL_MOST = 0.89
#: Room above a finding's least score, in which the model orders events of the same finding.
ROOM = 0.05
_GRAVITY = {"none": 0, "suspicious": 1, "invalid": 2}


@dataclass(frozen=True)
class Calibration:
    """The model's probabilities at which an event becomes suspicious, by the kind of row."""

    user_agent: float
    behaviour: float


def calibrated(probability: float, threshold: float) -> float:
    """A score that passes ``SUSPICIOUS`` where the probability passes its threshold, linear in the log-odds.

    The log-odds keep scores apart that a plain probability rounds together near 0 and 1.
    """
    if probability < threshold:
        return SUSPICIOUS * _share(_logit(probability), _logit(1e-6), _logit(threshold))
    return SUSPICIOUS + (MODEL_MOST - SUSPICIOUS) * _share(_logit(probability), _logit(threshold), _logit(1 - 1e-6))


def judge(findings: list[str], model: dict[str, float], version: str) -> Output:
    """The answer to one event.

    Args:
        findings: codes of stage one.
        model: calibrated scores of stage two by the code of their reason, for the known data of the event.
        version: the model's.
    """
    codes = findings + [code for code, score in model.items() if score >= SUSPICIOUS]
    best = max(model.values(), default=0.0)
    least = max((RULES[code].least_score for code in findings), default=0.0)
    score = round(max(best, least + ROOM * best if least else 0.0), 6)
    verdict = "invalid" if score >= INVALID else "suspicious" if score >= SUSPICIOUS else "valid"
    reasons = [Reason(code=code, text=RULES[code].text, effect=RULES[code].effect) for code in codes]
    reasons.sort(key=lambda reason: -_GRAVITY[reason.effect])
    return Output(
        score=score, verdict=verdict, category=_category(codes, verdict), reasons=reasons, model_version=version
    )


def _category(codes: list[str], verdict: str) -> Category:
    """The gravest findings: lists and parameter checks (GIVT) before analysis (SIVT)."""
    if verdict == "valid":
        return "none"
    gravest = [RULES[code].category for code in codes if RULES[code].effect == verdict]
    return "GIVT" if "GIVT" in gravest else "SIVT"


def _logit(probability: float) -> float:
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
