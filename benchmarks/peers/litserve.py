"""LitServe: batches in the server's own queue, nothing durable."""

import os
from typing import Any

import litserve
from fastapi import Request

from benchmarks.models import MODELS

#: Seconds to wait for a batch to fill; without it LitServe makes batches of the requests of one look.
BATCH_TIMEOUT_S = 0.005


class Bench(litserve.LitAPI):  # type: ignore[misc]
    """One model."""

    def setup(self, device: str) -> None:
        """Load it."""
        self.model = MODELS[os.environ["BENCH_MODEL"]]()

    def decode_request(self, request: Request) -> Any:
        """The row as it came: LitServe has parsed it, and reads this annotation, which must be a real class."""
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Rows are a list already."""
        return list(inputs)

    def predict(self, rows: list[Any]) -> list[Any]:
        """One call of the model."""
        return list(self.model.predict_batch(rows))

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One result for each row."""
        return output

    def encode_response(self, output: Any) -> Any:
        """JSON."""
        return {"score": output}


def main() -> None:
    """Serve until a signal."""
    port = int(os.environ["BENCH_PORTS"].split(",")[0])
    api = Bench(max_batch_size=int(os.environ["BENCH_BATCH"]), batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
