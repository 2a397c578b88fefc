"""MLServer: adaptive batching, or batches of one where BENCH_BATCH is 1."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy
from mlserver import MLModel
from mlserver.cli import main as mlserver
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.models import MODELS

#: Seconds to wait for a batch to fill: MLServer batches only with a time, and waits for it.
BATCH_TIME_S = 0.005


class Bench(MLModel):  # type: ignore[misc]
    """One model."""

    async def load(self) -> bool:
        """Load it."""
        self.model = MODELS[os.environ["BENCH_MODEL"]]()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One call of the model."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        scores = numpy.array(self.model.predict_batch([{"x": row} for row in rows]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("score", scores.reshape(-1, 1))]
        )


def main() -> None:
    """Serve by two files in the current folder."""
    http, grpc, metrics = map(int, os.environ["BENCH_PORTS"].split(","))
    size = int(os.environ["BENCH_BATCH"])
    server = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "debug": False}
    model = {"name": "model", "implementation": "benchmarks.peers.mlserver.Bench"}
    batching = {"max_batch_size": size, "max_batch_time": BATCH_TIME_S} if size > 1 else {}
    # In the server's own process, which is faster here at either model than a process of its own (the default, 1).
    Path("settings.json").write_text(json.dumps({**server, "parallel_workers": 0}))
    Path("model-settings.json").write_text(json.dumps({**model, **batching}))
    sys.argv = ["mlserver", "start", "."]
    mlserver()


if __name__ == "__main__":
    main()
