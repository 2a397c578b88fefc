"""The figures of the model card, from scores and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def auc(scores: Floats, is_bot: Flags) -> float:
    """The chance that a bot scores above a person; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    bots, people = int(is_bot.sum()), int((~is_bot).sum())
    return float((ranks[is_bot].sum() - bots * (bots + 1) / 2) / (bots * people))


def threshold_at(scores: Floats, is_bot: Flags, false_positives: float) -> float:
    """The least threshold above which at most this share of people scores."""
    people = np.sort(scores[~is_bot])[::-1]
    return float(people[int(false_positives * len(people))])


def figures(scores: Floats, is_bot: Flags) -> dict[str, Any]:
    """AUC, the share of bots found at 1 % false positives, and both rates at the served threshold of 0.5."""
    strict = threshold_at(scores, is_bot, 0.01)
    return {
        "bots": int(is_bot.sum()),
        "people": int((~is_bot).sum()),
        "auc": round(auc(scores, is_bot), 4),
        "found_at_1pct_fp": round(float((scores[is_bot] > strict).mean()), 4),
        "found_at_0.5": round(float((scores[is_bot] >= 0.5).mean()), 4),
        "false_positives_at_0.5": round(float((scores[~is_bot] >= 0.5).mean()), 4),
    }
