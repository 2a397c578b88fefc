"""BentoML's tasks: a queue in the server's memory, results in its SQLite file; the client polls."""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml

from benchmarks.models import MODELS


@bentoml.service(workers=1, traffic={"timeout": 600})
class Bench:
    """One model."""

    def __init__(self) -> None:
        self.model = MODELS[os.environ["BENCH_MODEL"]]()

    @bentoml.task  # type: ignore[untyped-decorator]
    def score(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row: tasks are not batched."""
        return {"score": self.model.predict_batch([row])[0]}


def main() -> None:
    """Serve until a signal."""
    port = os.environ["BENCH_PORTS"].split(",")[0]
    target = "benchmarks.peers.bentoml:Bench"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", port]
    # No line in its log a request: no other stack of this benchmark writes one.
    os.execve(
        sys.executable, command, {**os.environ, "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false"}
    )


if __name__ == "__main__":
    main()
