"""``GET /metrics``, read by Prometheus's own parser."""

from __future__ import annotations

import re

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.system import ROOT, System, finished, poll

Samples = dict[tuple[str, ...], float]


def scrape(client: httpx.Client) -> Samples:
    """Each sample's value by its name and the values of its labels, but for the process."""
    answer = client.get("/metrics").raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for name, labels, value, *_ in family.samples:
            key = (name, *(value for label, value in sorted(labels.items()) if label != "process"))
            assert key not in found
            found[key] = value
    return found


def send(client: httpx.Client, service: str, **input: object) -> str:
    answer = client.post("/jobs", json={"service": service, "input": input}).raise_for_status()
    return str(answer.json()["id"])


def test_it_tells_of_jobs_workers_and_requests(serving: System) -> None:
    with serving.client() as client:
        ids = [send(client, "echo", n=i) for i in range(3)] + [send(client, "echo", n=9, do="raise")]
        for job_id in ids:
            finished(client, job_id)
        client.delete(f"/jobs/{send(client, 'small', n=1)}").raise_for_status()
        send(client, "small", n=2)
        rows = {"service": "echo", "inputs": [{"n": 1}, {"n": 2, "do": "raise"}, {"n": 3}]}
        batch = client.post("/batches", json=rows).raise_for_status().json()["id"]
        client.get(f"/batches/{batch}/results").raise_for_status()
        client.get("/no/such/route")
        client.request("BREW", "/jobs")

        ready = ("services_workers", "echo", "ready")
        poll(lambda: scrape(client)[ready] == 1, what="the worker has told the ledger that it is ready")
        now = scrape(client)

        assert now["services_store_up",] == 1
        assert now["services_jobs_ended_total", "echo", "succeeded"] == 3
        assert now["services_jobs_ended_total", "echo", "failed"] == 1
        assert now["services_jobs_ended_total", "small", "cancelled"] == 1
        assert now["services_batch_inputs_ended_total", "echo", "succeeded"] == 2
        assert now["services_batch_inputs_ended_total", "echo", "failed"] == 1
        assert now["services_jobs_requeued_total", "lost", "echo"] == 0
        assert now["services_queue_depth", "small"] == 1
        assert now["services_queue_bytes", "small"] > 0
        assert now["services_queue_oldest_age_seconds", "small"] > 0
        assert now["services_workers", "small", "ready"] == 0
        assert now["services_failed", "bad_schema"] == 1
        assert 0 < now["services_jobs_ended_per_second", "echo"] < 100
        assert now["services_api_requests_total", "POST", "/jobs", "202"] == 6
        assert now["services_api_requests_total", "GET", "none", "404"] == 1
        assert now["services_api_request_duration_seconds_count", "POST", "/jobs"] == 6
        assert ("services_api_request_duration_seconds_count", "GET", "/jobs/{job_id}") in now
        assert not any(job_id in str(key) for key in now for job_id in ids)
        assert now["process_cpu_seconds_total",] > 0


def test_requests_that_wait_are_counted_apart(serving: System) -> None:
    with serving.client() as client:
        job_id = send(client, "echo", n=1, sleep_s=1)
        before = scrape(client)
        client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=5"}).raise_for_status()
        after = scrape(client)
        key = ("services_api_request_duration_seconds_count", "GET", "/jobs/{job_id}")
        assert after.get(key, 0) == before.get(key, 0)
        assert after["services_api_requests_held",] == 0


def test_the_document_names_every_metric_and_no_other(serving: System) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    with serving.client() as client:
        answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        families = list(parse_openmetrics(answer.text))
    exposed = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    ours = {name for name in exposed if name.startswith("services_")}
    assert ours == set(re.findall(r"services_\w+", page))


def test_while_redis_is_away_the_metrics_of_the_process_remain(system: System) -> None:
    system.start_api()
    system.redis.stop()
    with system.client() as client:
        assert client.get("/services").status_code == 503
        away = scrape(client)
        assert away["services_store_up",] == 0
        assert away["services_api_requests_total", "GET", "/services", "503"] == 1
        assert not [key for key in away if key[0].startswith("services_jobs")]

        system.redis.start()

        poll(lambda: scrape(client)["services_store_up",] == 1, what="Redis is back")
        assert scrape(client)["services_queue_depth", "echo"] == 0
