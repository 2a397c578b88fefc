"""Figures of a scorer against labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """How one set was told apart. Rates are shares from 0 to 1."""

    name: str
    auc: float
    tpr_at_1: float  #: bots found where 1 % of people are taken for bots
    tpr: float  #: bots found at the served threshold
    fpr: float  #: people taken for bots at the served threshold
    positives: int
    negatives: int


def auc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve: the chance that a bot scores above a person, ties counting half (Hanley 1982)."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = labels.sum(), (~labels).sum()
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def measure(name: str, scores: Any, labels: Any, threshold: float) -> Figure:
    """All figures of one set."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    people, bots = np.sort(scores[~labels]), scores[labels]
    at_1 = people[min(int(np.ceil(len(people) * 0.99)), len(people) - 1)]
    return Figure(
        name=name,
        auc=auc(scores, labels),
        tpr_at_1=float((bots > at_1).mean()),
        tpr=float((bots >= threshold).mean()),
        fpr=float((people >= threshold).mean()),
        positives=len(bots),
        negatives=len(people),
    )
