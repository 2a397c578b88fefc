"""Train antifraud's model and write it, with its card: ``python plugins/antifraud/train.py [--data FOLDER]``.

The flow: read the data (``training.corpus``) → two kinds of rows, user agents and behaviours (``antifraud.features``) →
out-of-fold predictions, grouped by crawler family and by form, for the thresholds → one model on all that is trained
on → figures on the held-out texts → ``model/model.txt`` (LightGBM's text format), ``model/model.json``,
``MODEL_CARD.md``. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from antifraud.features import NAMES, Behaviour, matrix
from antifraud.useragent import read
from numpy.typing import NDArray
from training import card, corpus
from training.corpus import Sample, Visit
from training.metrics import Figure, measure

HERE = Path(__file__).resolve().parent
MODEL = HERE / "src" / "antifraud" / "model"
SEED = 20261123
FOLDS = 5
#: Share of people's events that may score as suspicious, on rows that the scoring model did not see.
FALSE_POSITIVES = {"user_agent": 0.003, "behaviour": 0.01}

#: Features that can only speak for automation, or only against it, beside any other: keeps the model from learning by
#: heart which crawlers happen to lack it.
RISING = ("has_url", "has_email", "has_domain", "strange_products", "strange_share", "first_strange", "last_strange",
          "compatible_strange", "knows_nothing", "broken_pairs", "unknown_words")  # fmt: skip
FALLING = ("knows_device", "knows_os")

PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 12,
    "min_data_in_leaf": 25,
    "lambda_l2": 5.0,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
ROUNDS = 300

Rows = NDArray[np.float64]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    default = os.environ.get("SERVICES_TEST_DATA") or HERE.parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help=f"the data folder (default: {default})")
    data: Path = parser.parse_args().data
    visits = corpus.visits(data)
    samples = [*corpus.crawlers(data), *corpus.browsers(data), *corpus.made_up(SEED), *corpus.logged(visits)]
    seen = [s for s in samples if not s.is_held_out]
    early = [v for v in visits if not v.is_later]
    x, y, w = training_rows(seen, early)
    thresholds = find_thresholds(x, y, w, seen, early)
    booster = fit(x, y, w)
    version = write_model(booster, thresholds)
    figures = evaluate(booster, thresholds, samples, visits)
    card.write(HERE / "MODEL_CARD.md", data, version, thresholds, samples, visits, figures)
    for figure in figures:
        print(f"{figure.name}: AUC {figure.auc:.4f}, bots found at 1 % false positives {figure.tpr_at_1:.1%}")


def user_agent_rows(texts: list[str]) -> Rows:
    """The user-agent rows of the serving matrix."""
    return matrix([read(text) for text in texts], [Behaviour()] * len(texts))[: len(texts)]


def behaviour_rows(behaviours: list[Behaviour]) -> Rows:
    """The behaviour rows of the serving matrix."""
    return matrix([None] * len(behaviours), behaviours)[len(behaviours) :]


def training_rows(samples: list[Sample], visits: list[Visit]) -> tuple[Rows, Rows, Rows]:
    """Rows, labels and weights. Each class of each kind weighs the same, and repeated visits of one source less."""
    agents = user_agent_rows([s.text for s in samples])
    behaviours = behaviour_rows([v.behaviour for v in visits])
    per_source: dict[str, int] = {}
    for visit in visits:
        per_source[visit.who] = per_source.get(visit.who, 0) + 1
    y_agents = np.array([float(s.is_bot) for s in samples])
    y_visits = np.array([float(v.is_bot) for v in visits])
    w_agents = np.array([0.5 if s.source == "grammar" else 1.0 for s in samples])
    w_visits = np.array([per_source[v.who] ** -0.5 for v in visits])
    weights = np.concatenate([balance(y_agents, w_agents), balance(y_visits, w_visits)])
    return np.concatenate([agents, behaviours]), np.concatenate([y_agents, y_visits]), weights


def balance(labels: Rows, weights: Rows) -> Rows:
    """Weights under which both classes sum to the same: as much as 1,500 rows."""
    balanced = weights.copy()
    for label in (0.0, 1.0):
        balanced[labels == label] *= 1500 / weights[labels == label].sum()
    return balanced


def fit(x: Rows, y: Rows, w: Rows) -> lightgbm.Booster:
    """One model of both kinds of rows."""
    signs = [1 if n in RISING or n.startswith("word_") else -1 if n in FALLING else 0 for n in NAMES]
    dataset = lightgbm.Dataset(x, y, weight=w, feature_name=list(NAMES))
    return lightgbm.train({**PARAMETERS, "monotone_constraints": signs}, dataset, num_boost_round=ROUNDS)


def find_thresholds(x: Rows, y: Rows, w: Rows, samples: list[Sample], visits: list[Visit]) -> dict[str, float]:
    """The probability above which so few of people's rows lie, each predicted by a model that never saw its group."""
    groups = np.array([group_of(s) for s in samples] + [corpus.bucket(v.who, FOLDS) for v in visits])
    out = np.zeros(len(y))
    for fold in range(FOLDS):
        out[groups == fold] = fit(x[groups != fold], y[groups != fold], w[groups != fold]).predict(x[groups == fold])
    is_agent = np.arange(len(y)) < len(samples)
    kinds = {"user_agent": is_agent, "behaviour": ~is_agent}
    return {
        kind: round(float(np.quantile(out[rows & (y == 0)], 1 - FALSE_POSITIVES[kind])), 6)
        for kind, rows in kinds.items()
    }


def group_of(sample: Sample) -> int:
    """The fold of a user agent: those of one form, digits aside, are together."""
    return corpus.bucket(re.sub(r"\d+", "0", sample.text)[:60], FOLDS)


def write_model(booster: lightgbm.Booster, thresholds: dict[str, float]) -> str:
    """The model and the data that serving needs; gives its version, which is its content's."""
    MODEL.mkdir(parents=True, exist_ok=True)
    text = booster.model_to_string()
    version = f"1-{hashlib.sha256((text + json.dumps(thresholds)).encode()).hexdigest()[:8]}"
    (MODEL / "model.txt").write_text(text)
    (MODEL / "model.json").write_text(json.dumps({"version": version, "calibration": thresholds}, indent=2) + "\n")
    return version


def evaluate(
    booster: lightgbm.Booster, thresholds: dict[str, float], samples: list[Sample], visits: list[Visit]
) -> list[Figure]:
    """The card's figures: the model alone, on texts that it was not trained on."""

    def agents(name: str, keep: Callable[[Sample], bool]) -> Figure:
        kept = [s for s in samples if keep(s)]
        scores = booster.predict(user_agent_rows([s.text for s in kept]))
        return measure(name, scores, [s.is_bot for s in kept], thresholds["user_agent"])

    def behaviours(name: str, kept: list[Visit]) -> Figure:
        scores = booster.predict(behaviour_rows([v.behaviour for v in kept]))
        return measure(name, scores, [v.is_bot for v in kept], thresholds["behaviour"])

    known = {v.who for v in visits if not v.is_later}
    later = [v for v in visits if v.is_later]

    def by_hand(name: str, which: str) -> Figure:
        peoples, bots = corpus.handmade(HERE / "tests", which)
        scores = booster.predict(user_agent_rows(peoples + bots))
        return measure(name, scores, [False] * len(peoples) + [True] * len(bots), thresholds["user_agent"])

    return [
        agents("crawler families never seen, against browsers never seen", lambda s: s.is_held_out),
        agents(
            "the same, later user agents of the access log as the people",
            lambda s: s.is_held_out and (s.is_bot or s.source == "apache_access_log"),
        ),
        by_hand("hand-made set from other sources", "handmade"),
        by_hand("second hand-made set, written after the model", "second"),
        behaviours("behaviour, later time span", later),
        behaviours("behaviour, later time span, addresses never seen", [v for v in later if v.who not in known]),
    ]


if __name__ == "__main__":
    main()
