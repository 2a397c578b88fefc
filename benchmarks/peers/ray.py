"""Ray Serve: ``@serve.batch``, or its asynchronous inference (Celery over Redis inside) where REDIS_URL is set."""

import os
import signal
import threading
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler
from starlette.requests import Request

from benchmarks.models import MODELS

#: Seconds to wait for a batch to fill.
BATCH_WAIT_S = 0.005
#: Requests that a replica may hold: the default, 5, would be the largest batch.
MOST_REQUESTS = 256

app = FastAPI()


@serve.deployment(max_ongoing_requests=MOST_REQUESTS)
class Batched:
    """One model, in batches."""

    def __init__(self, model: str) -> None:
        self.model = MODELS[model]()

    @serve.batch(max_batch_size=int(os.environ["BENCH_BATCH"]), batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def score(self, rows: list[Any]) -> list[Any]:
        """One call of the model."""
        return list(self.model.predict_batch(rows))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One row."""
        return {"score": await self.score(await request.json())}


def build_asynchronous(model: str, redis_url: str) -> Any:
    """A consumer of tasks, and the HTTP front that its documentation has the user write."""
    adapter = CeleryAdapterConfig(broker_url=redis_url, backend_url=redis_url)
    config = TaskProcessorConfig(queue_name="bench", adapter_config=adapter)

    @serve.deployment
    @task_consumer(task_processor_config=config)
    class Consumer:
        """One model, batches of one."""

        def __init__(self) -> None:
            self.model = MODELS[model]()

        @task_handler(name="score")  # type: ignore[untyped-decorator]
        def score(self, row: dict[str, Any]) -> dict[str, Any]:
            """One row."""
            return {"score": self.model.predict_batch([row])[0]}

    @serve.deployment(max_ongoing_requests=MOST_REQUESTS)
    @serve.ingress(app)
    class Front:
        """Sends tasks and reads their state."""

        def __init__(self, consumer: Any) -> None:
            self.adapter = instantiate_adapter_from_config(config)

        @app.post("/jobs")
        def create(self, row: dict[str, Any]) -> dict[str, Any]:
            """Send one. Its state may be SUCCESS by now, but its result is not in this answer."""
            return {"id": self.adapter.enqueue_task_sync("score", args=[row]).id, "status": "PENDING"}

        @app.get("/jobs/{job_id}")
        def read(self, job_id: str) -> dict[str, Any]:
            """Its state."""
            task = self.adapter.get_task_status_sync(job_id)
            return {"id": job_id, "status": task.status, "output": task.result}

    return Front.bind(Consumer.bind())  # type: ignore[attr-defined]


def main() -> None:
    """Serve until a signal."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    model, port = os.environ["BENCH_MODEL"], int(os.environ["BENCH_PORTS"].split(",")[0])
    redis_url = os.environ.get("REDIS_URL")
    quiet = {"include_dashboard": False, "log_to_driver": False}
    ray.init(**quiet, _temp_dir=os.environ["BENCH_TEMP"], _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    if redis_url:
        serve.run(build_asynchronous(model, redis_url), route_prefix="/")
    else:
        serve.run(Batched.bind(model), route_prefix="/predict")  # type: ignore[attr-defined]
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
