"""Triton through ``nvidia-pytriton``: its C++ front and dynamic batcher, the model in Python."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.models import FEATURES, MODELS


def main() -> None:
    """Serve until a signal; leaving the block stops Triton's processes and frees their shared memory."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    model = MODELS[os.environ["BENCH_MODEL"]]()

    @batch  # type: ignore[untyped-decorator]
    def infer(x: Any) -> dict[str, Any]:
        return {"score": numpy.array(model.predict_batch([{"x": row} for row in x])).reshape(-1, 1)}

    ports = map(int, os.environ["BENCH_PORTS"].split(","))
    names = ("http_port", "grpc_port", "metrics_port")
    config = TritonConfig(http_address="127.0.0.1", grpc_address="127.0.0.1", **dict(zip(names, ports, strict=True)))
    with Triton(config=config, workspace=Path(os.environ["BENCH_TEMP"]) / "triton") as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=numpy.float64, shape=(FEATURES,))],
            outputs=[Tensor(name="score", dtype=numpy.float64, shape=(1,))],
            # No delay: the waiting requests are a batch as soon as the model is free, which is the fastest here at
            # either model.
            config=ModelConfig(max_batch_size=int(os.environ["BENCH_BATCH"]), batcher=DynamicBatcher()),
        )
        triton.serve()


if __name__ == "__main__":
    main()
