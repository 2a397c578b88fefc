"""The models of the benchmark, the same code for every stack. Trained where they are loaded: nothing is pickled."""

from __future__ import annotations

import random
import time
from typing import Any, ClassVar, Protocol

FEATURES = 20


class Model(Protocol):
    """The interface that a stack calls."""

    def predict_batch(self, rows: list[Any]) -> list[Any]:
        """One result for each input."""
        ...


class Noop:
    """No model at all: the system alone."""

    example: ClassVar[Any] = {"n": 1}

    def predict_batch(self, rows: list[Any]) -> list[Any]:
        """Nothing."""
        return [0.0] * len(rows)


class Slow:
    """100 ms, however many rows."""

    example: ClassVar[Any] = {"n": 1}

    def predict_batch(self, rows: list[Any]) -> list[Any]:
        """Sleep as a model on another device would compute."""
        time.sleep(0.1)
        return [0.0] * len(rows)


class Slow8(Slow):
    """The same for at most 8 rows at once: this measures the number of workers."""

    max_batch_size = 8


class OwnLogger:
    """One row at a time, 100 ms each."""

    example: ClassVar[Any] = {"n": 1}
    max_batch_size = 1

    def predict_batch(self, rows: list[Any]) -> list[Any]:
        """Sleep."""
        time.sleep(self.seconds(len(rows)))
        return [0.0] * len(rows)

    def seconds(self, rows: int) -> float:
        """Seconds that a run of this number of rows takes."""
        return 0.1


class Steady16(OwnLogger):
    """At most 16 rows at once: 40 ms, and 10 ms more for each."""

    max_batch_size = 16

    def seconds(self, rows: int) -> float:
        """Seconds that a run of this number of rows takes."""
        return 0.04 + 0.01 * rows


class Varying(OwnLogger):
    """One row at a time, 100 ms in the mean: most are short, few are long (exponentially distributed)."""

    def seconds(self, rows: int) -> float:
        """Seconds that a run of this number of rows takes."""
        return random.expovariate(1 / 0.1)


class Varying16(Steady16):
    """At most 16 rows at once, 200 ms in the mean, spread likewise."""

    def seconds(self, rows: int) -> float:
        """Seconds that a run of this number of rows takes."""
        return random.expovariate(1 / 0.2)


class Large:
    """One megabyte in, its length out."""

    example: ClassVar[Any] = {"text": "x" * 1_000_000}

    def predict_batch(self, rows: list[Any]) -> list[Any]:
        """The lengths."""
        return [float(len(row["text"])) for row in rows]


class _Sklearn:
    example: ClassVar[Any] = {"x": [round(random.Random(i).random(), 6) for i in range(FEATURES)]}
    estimator: Any

    def predict_batch(self, rows: list[Any]) -> list[Any]:
        """The second class's probability of each row of 20 floats."""
        scores: list[float] = self.estimator.predict_proba([row["x"] for row in rows])[:, 1].tolist()
        return scores


class Tiny(_Sklearn):
    """scikit-learn's logistic regression."""

    def __init__(self) -> None:
        from sklearn.linear_model import LogisticRegression

        self.estimator = LogisticRegression().fit(*_data())


class Batchable(_Sklearn):
    """scikit-learn's random forest of 300 trees: one row costs nearly as much as a batch."""

    def __init__(self) -> None:
        from sklearn.ensemble import RandomForestClassifier

        self.estimator = RandomForestClassifier(n_estimators=300, max_depth=8, random_state=0).fit(*_data())


class Bulk256(Batchable):
    """The same for ``POST /batches``: the larger its batches, the less time it takes a row."""

    max_batch_size = 256


class Bulk1024(Bulk256):
    """With larger batches."""

    max_batch_size = 1024


class Bulk4096(Bulk256):
    """With the largest: beyond, a row takes little less."""

    max_batch_size = 4096


def bulk_inputs(rows: int) -> list[dict[str, list[float]]]:
    """A number of different inputs: with equal ones the processor would predict the forest's branches."""
    drawn = random.Random(0)
    return [{"x": [round(drawn.random(), 6) for _ in range(FEATURES)]} for _ in range(rows)]


def _data() -> tuple[Any, Any]:
    from sklearn.datasets import make_classification

    data: tuple[Any, Any] = make_classification(n_samples=2000, n_features=FEATURES, random_state=0)
    return data


BULK = (Bulk256, Bulk1024, Bulk4096)
_SLEEPING = (Slow, Slow8, OwnLogger, Steady16, Varying, Varying16)
MODELS: dict[str, type[Any]] = {cls.__name__.lower(): cls for cls in (Noop, Tiny, Batchable, Large, *BULK, *_SLEEPING)}

SCHEMA = """
from typing import Any
from pydantic import BaseModel

class Input(BaseModel):
    n: int = 0
    text: str = ""
    x: list[float] = []

class Output(BaseModel):
    score: float
"""

SERVICE = """
from benchmarks.models import MODELS
from worker.service import Service
from {name}.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = {batch}

    def load(self):
        self.model = MODELS["{name}"]()

    def predict_batch(self, batch):
        return self.model.predict_batch([vars(item) for item in batch])

    def postprocess(self, raw):
        return Output(score=raw)
"""
