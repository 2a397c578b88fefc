"""Every operation of the API, as steps (see ``steps``)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict
from urllib.parse import quote

from libs_service_client.encode import dump
from libs_service_client.errors import ApiError, ConnectionFailed, InvalidRequest, read_problem
from libs_service_client.files import FileBody, StoredFile, read_file
from libs_service_client.models import Event, Raw, Result, ServiceInfo, read_result, read_service
from libs_service_client.sse import EventReader
from libs_service_client.states import TERMINAL, Priority
from libs_service_client.steps import (
    Answer,
    Emit,
    Emits,
    Open,
    Pause,
    Read,
    Request,
    Retries,
    Steps,
    is_temporary,
    read_json,
    send,
)
from libs_service_client.upload import Upload

#: Longest wait of one request for a job's end, in seconds: proxies close a silent connection after 30 to 60.
WAIT_S = 25.0
#: Shortest time between two such requests in seconds, for a server or a proxy that answers without the wait.
TURN_S = 0.5
#: Seconds of silence after which a stream counts as broken and is opened again.
SILENCE_S = 120.0
#: Jobs in one page of a list.
PAGE = 100


class JobOptions(TypedDict, total=False):
    """The options of a job besides the service and the input; see docs/http.md. None: the server's default."""

    priority: Priority | str | None
    start_within_s: float | None
    finish_within_s: float | None
    keep_for_s: float | None
    metadata: Mapping[str, Any] | None
    webhook: str | Mapping[str, Any] | None
    cache_for_s: float | None
    not_before: datetime | str | None


class BatchOptions(TypedDict, total=False):
    """The options of a batch besides the service and the inputs."""

    priority: Priority | str | None
    keep_for_s: float | None


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of one client."""

    api_key: str | None
    retries: int

    # -- jobs --

    def submit(self, service: str, input: Any, options: JobOptions, key: str, job_id: str, wait: float) -> Steps[Raw]:
        """``POST /jobs`` or ``PUT /jobs/<id>``. Repetitions of either create one job."""
        body = {name: value for name, value in options.items() if value is not None}
        if options.get("not_before") is not None:
            body["not_before"] = _write_moment(options["not_before"])
        content = dump({"service": service, "input": input, **body})
        query = {"wait": f"{wait:g}"} if wait else {}
        headers = {"Content-Type": "application/json"}
        if job_id:
            request = self._request("PUT", _job(job_id), query, headers, content, waits_s=wait)
        else:
            headers["Idempotency-Key"] = key or str(uuid.uuid4())
            request = self._request("POST", "/jobs", query, headers, content, waits_s=wait)
        return read_json((yield from send(request, Retries(self.retries))))

    def get(self, job_id: str) -> Steps[Raw]:
        """``GET /jobs/<id>``."""
        return (yield from self._get(_job(job_id)))

    def wait(self, job_id: str, timeout_s: float | None) -> Steps[Raw]:
        """The job after its end. Raises ``TimeoutError``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            started = time.monotonic()
            wait = WAIT_S if deadline is None else min(WAIT_S, max(0.0, deadline - started))
            request = self._request("GET", _job(job_id), {"wait": f"{wait:.3f}"}, waits_s=wait)
            raw = read_json((yield from send(request, Retries(self.retries, deadline))))
            if raw.get("status") in TERMINAL:
                return raw
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"job {job_id} is still {raw.get('status')} after {timeout_s:g} s")
            pause_s = min(TURN_S - (now - started), TURN_S if deadline is None else deadline - now)
            if pause_s > 0:
                yield Pause(pause_s)

    def cancel(self, job_id: str) -> Steps[Raw]:
        """``DELETE /jobs/<id>``. A repetition may find the job cancelled by the first request."""
        retries = Retries(self.retries)
        try:
            return read_json((yield from send(self._request("DELETE", _job(job_id)), retries)))
        except ApiError as error:
            if error.code == "job_finished" and retries.failures:
                raw = yield from self.get(job_id)
                if raw.get("status") == "cancelled":
                    return raw
            raise

    def retry(self, job_id: str) -> Steps[Raw]:
        """``POST /jobs/<id>/retry``. Not repeated if the server may have received it: the job might run once more."""
        request = self._request("POST", f"{_job(job_id)}/retry", is_repeatable=False)
        return read_json((yield from send(request, Retries(self.retries))))

    def jobs(self, service: str | None, status: str | None) -> Emits[Raw]:
        """``GET /jobs``, page after page."""
        query = {"limit": str(PAGE)}
        query |= {name: value for name, value in (("service", service), ("status", status)) if value}
        while True:
            page = yield from self._get("/jobs", query)
            for raw in page["jobs"]:
                yield Emit(raw)
            if not page["next_cursor"]:
                return
            query["cursor"] = page["next_cursor"]

    def events(self, job_id: str, last_event_id: str) -> Emits[Event]:
        """``GET /jobs/<id>/events``, reconnected until the event of the job's end."""
        return self._follow(_job(job_id), last_event_id)

    def batch_events(self, batch_id: str, last_event_id: str) -> Emits[Event]:
        """``GET /batches/<id>/events``, reconnected until the event of the batch's end."""
        return self._follow(_batch(batch_id), last_event_id)

    def _follow(self, path: str, last_event_id: str) -> Emits[Event]:
        reader = EventReader(last_event_id)
        retries = Retries(self.retries)
        has_ended = False
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": reader.last_id} if reader.last_id else {})
            request = self._request("GET", f"{path}/events", headers=headers, waits_s=SILENCE_S)
            is_open = False
            problem: ConnectionFailed | ApiError = ConnectionFailed(f"the event stream of {path} ended early")
            reader.restart()
            try:
                answer: Answer = yield Open(request)
                is_open = _check(answer).status < 400
                if answer.status == 204:  # by the specification of server-sent events: do not reconnect
                    return
                while piece := (yield Read()):
                    retries.reset()
                    for event in reader.feed(piece):
                        has_ended = event.ends_job or (has_ended and event.type != "status")
                        yield Emit(event)
            except (ConnectionFailed, ApiError) as error:
                problem = _temporary(error, retries, is_open)
            if has_ended:
                return
            yield from retries.pause(problem, reader.retry_s or 0)

    # -- batches --

    def create_batch(self, service: str, upload: Upload, options: BatchOptions, key: str = "") -> Steps[Raw]:
        """``POST /batches`` with JSON lines."""
        query = {"service": service, **{name: f"{value}" for name, value in options.items() if value is not None}}
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key or str(uuid.uuid4())}
        request = self._request("POST", "/batches", query, headers, upload, waits_s=SILENCE_S)
        try:
            return read_json((yield from send(request, Retries(self.retries))))
        finally:
            upload.close()

    def batch(self, service: str, upload: Upload, options: BatchOptions) -> Emits[Result]:
        """Send the inputs, then yield the results. Without inputs there are no results."""
        try:
            raw = yield from self.create_batch(service, upload, options)
        except InvalidRequest:
            if upload.count:
                raise
            return
        yield from self.results(raw["id"], raw["total"])

    def get_batch(self, batch_id: str) -> Steps[Raw]:
        """``GET /batches/<id>``."""
        return (yield from self._get(_batch(batch_id)))

    def cancel_batch(self, batch_id: str) -> Steps[Raw]:
        """``DELETE /batches/<id>``. A repetition may find the batch cancelled by the first request."""
        retries = Retries(self.retries)
        try:
            return read_json((yield from send(self._request("DELETE", _batch(batch_id)), retries)))
        except ApiError as error:
            if error.code == "job_finished" and retries.failures:
                return (yield from self.get_batch(batch_id))
            raise

    def retry_batch(self, batch_id: str) -> Steps[Raw]:
        """``POST /batches/<id>/retry``. Not repeated if the server may have received it."""
        request = self._request("POST", f"{_batch(batch_id)}/retry", is_repeatable=False)
        return read_json((yield from send(request, Retries(self.retries))))

    def results(self, batch_id: str, total: int) -> Emits[Result]:
        """``GET /batches/<id>/results``. An interrupted answer is requested again, and yielded results are skipped."""
        request = self._request("GET", f"{_batch(batch_id)}/results", waits_s=SILENCE_S)
        retries = Retries(self.retries)
        yielded = 0
        while True:
            is_open = False
            problem: ConnectionFailed | ApiError = ConnectionFailed(f"the results of the batch {batch_id} ended early")
            lines = _Lines()
            try:
                is_open = _check((yield Open(request))).status < 400
                while piece := (yield Read()):
                    retries.reset()
                    for number, line in lines.feed(piece):
                        if number >= yielded:
                            yielded = number + 1
                            yield Emit(read_result(json.loads(line)))
            except (ConnectionFailed, ApiError) as error:
                problem = _temporary(error, retries, is_open)
            if yielded >= total:
                return
            yield from retries.pause(problem)

    # -- files --

    def upload(self, body: FileBody, keep_for_s: float | None) -> Steps[StoredFile]:
        """``POST /files``. Repetitions store one file, since the content determines its id."""
        query = {} if keep_for_s is None else {"keep_for_s": f"{keep_for_s}"}
        request = self._request("POST", "/files", query, body.headers, body, waits_s=SILENCE_S)
        return read_file(read_json((yield from send(request, Retries(self.retries)))))

    # -- services --

    def services(self) -> Steps[list[ServiceInfo]]:
        """``GET /services``."""
        return [read_service(raw) for raw in (yield from self._get("/services"))["services"]]

    def service(self, name: str) -> Steps[ServiceInfo]:
        """``GET /services/<name>``."""
        return read_service((yield from self._get(f"/services/{quote(name, safe='')}")))

    def _get(self, path: str, query: dict[str, str] | None = None) -> Steps[Raw]:
        return read_json((yield from send(self._request("GET", path, query), Retries(self.retries))))

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        content: bytes | Upload | FileBody = b"",
        *,
        waits_s: float = 0,
        is_repeatable: bool = True,
    ) -> Request:
        known = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return Request(method, path, dict(query or {}), {**known, **(headers or {})}, content, waits_s, is_repeatable)


class _Lines:
    """Splits an answer that comes in pieces into numbered lines."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._number = 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """The lines that this piece completes."""
        first, *more = piece.split(b"\n")
        self._rest.append(first)
        for part in more:
            line, self._rest = b"".join(self._rest), [part]
            if line:
                yield self._number, line
                self._number += 1


def _check(answer: Answer) -> Answer:
    if answer.status >= 400:
        raise read_problem(answer.status, answer.headers, answer.body)
    return answer


def _temporary(error: ConnectionFailed | ApiError, retries: Retries, was_open: bool) -> ConnectionFailed | ApiError:
    """Return the error if the stream may be opened again, else raise it. Silence of an open stream is no failure."""
    if isinstance(error, ApiError) and not is_temporary(error):
        raise error
    if was_open and isinstance(error, ConnectionFailed) and error.timed_out:
        retries.reset()
    return error


def _write_moment(moment: datetime | str | None) -> str | None:
    """A time in the form that the API accepts. Raises ``ValueError`` for a datetime without a time zone."""
    if not isinstance(moment, datetime):
        return moment
    if moment.utcoffset() is None:
        expected = "expected a datetime with its zone, such as datetime.now(UTC) + timedelta(hours=1)"
        raise ValueError(f"not_before: {expected}; got {moment!r}, which has none")
    return moment.isoformat()


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _batch(batch_id: str) -> str:
    return f"/batches/{quote(batch_id, safe='')}"
