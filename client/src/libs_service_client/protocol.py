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
    Patience,
    Pause,
    Read,
    Request,
    Steps,
    may_pass,
    read_json,
    send,
)
from libs_service_client.upload import Upload

#: Seconds that one request waits for a job's end: proxies give up on a silent one after 30 to 60.
WAIT_S = 25.0
#: A server (or a proxy) that holds no answer for long is asked no more often than this.
TURN_S = 0.5
#: Seconds after which a stream that is silent is taken for dead and opened anew.
SILENCE_S = 120.0
#: Jobs of one page.
PAGE = 100


class JobOptions(TypedDict, total=False):
    """The options of a job, beside the service and the input; see docs/http.md. None: not asked for."""

    priority: Priority | str | None
    start_within_s: float | None
    finish_within_s: float | None
    keep_for_s: float | None
    metadata: Mapping[str, Any] | None
    webhook: str | Mapping[str, Any] | None
    cache_for_s: float | None
    not_before: datetime | str | None


class BatchOptions(TypedDict, total=False):
    """The options of a batch, beside the service and the inputs."""

    priority: Priority | str | None
    keep_for_s: float | None


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations, for one server and one caller."""

    api_key: str | None
    retries: int

    # -- jobs --

    def submit(self, service: str, input: Any, options: JobOptions, key: str, job_id: str, wait: float) -> Steps[Raw]:
        """``POST /jobs``, or ``PUT /jobs/<id>``: either makes one job, however often it is sent."""
        given = {name: value for name, value in options.items() if value is not None}
        if options.get("not_before") is not None:
            given["not_before"] = _write_moment(options["not_before"])
        body = dump({"service": service, "input": input, **given})
        query = {"wait": f"{wait:g}"} if wait else {}
        headers = {"Content-Type": "application/json"}
        if job_id:
            request = self._request("PUT", _job(job_id), query, headers, body, waits_s=wait)
        else:
            headers["Idempotency-Key"] = key or str(uuid.uuid4())
            request = self._request("POST", "/jobs", query, headers, body, waits_s=wait)
        return read_json((yield from send(request, Patience(self.retries))))

    def get(self, job_id: str) -> Steps[Raw]:
        """``GET /jobs/<id>``."""
        return (yield from self._get(_job(job_id)))

    def wait(self, job_id: str, timeout_s: float | None) -> Steps[Raw]:
        """The job once it has ended. Raises ``TimeoutError``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            began = time.monotonic()
            wait = WAIT_S if deadline is None else min(WAIT_S, max(0.0, deadline - began))
            request = self._request("GET", _job(job_id), {"wait": f"{wait:.3f}"}, waits_s=wait)
            raw = read_json((yield from send(request, Patience(self.retries, deadline))))
            if raw.get("status") in TERMINAL:
                return raw
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"job {job_id} is still {raw.get('status')} after {timeout_s:g} s")
            early = min(TURN_S - (now - began), TURN_S if deadline is None else deadline - now)
            if early > 0:
                yield Pause(early)

    def cancel(self, job_id: str) -> Steps[Raw]:
        """``DELETE /jobs/<id>``; one that was repeated may find its own work done."""
        patience = Patience(self.retries)
        try:
            return read_json((yield from send(self._request("DELETE", _job(job_id)), patience)))
        except ApiError as error:
            if error.code == "job_finished" and patience.failures:
                raw = yield from self.get(job_id)
                if raw.get("status") == "cancelled":
                    return raw
            raise

    def retry(self, job_id: str) -> Steps[Raw]:
        """``POST /jobs/<id>/retry``; not repeated where the server may have got it: the job might run once more."""
        request = self._request("POST", f"{_job(job_id)}/retry", is_repeatable=False)
        return read_json((yield from send(request, Patience(self.retries))))

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
        """``GET /jobs/<id>/events``, reconnected until the job's end was told."""
        return self._follow(_job(job_id), last_event_id)

    def batch_events(self, batch_id: str, last_event_id: str) -> Emits[Event]:
        """``GET /batches/<id>/events``, reconnected until the batch's end was told."""
        return self._follow(_batch(batch_id), last_event_id)

    def _follow(self, path: str, last_event_id: str) -> Emits[Event]:
        reader = EventReader(last_event_id)
        patience = Patience(self.retries)
        has_ended = False
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": reader.last_id} if reader.last_id else {})
            request = self._request("GET", f"{path}/events", headers=headers, waits_s=SILENCE_S)
            is_open = False
            problem: ConnectionFailed | ApiError = ConnectionFailed(f"the events of {path} broke off early")
            reader.restart()
            try:
                answer: Answer = yield Open(request)
                is_open = _check(answer).status < 400
                if answer.status == 204:  # by the specification: nothing more will come
                    return
                while piece := (yield Read()):
                    patience.reset()
                    for event in reader.feed(piece):
                        has_ended = event.ends_job or (has_ended and event.type != "status")
                        yield Emit(event)
            except (ConnectionFailed, ApiError) as error:
                problem = _passing(error, patience, is_open)
            if has_ended:
                return
            yield from patience.pause(problem, reader.retry_s or 0)

    # -- batches --

    def create_batch(self, service: str, upload: Upload, options: BatchOptions, key: str = "") -> Steps[Raw]:
        """``POST /batches`` with JSON lines."""
        query = {"service": service, **{name: f"{value}" for name, value in options.items() if value is not None}}
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key or str(uuid.uuid4())}
        request = self._request("POST", "/batches", query, headers, upload, waits_s=SILENCE_S)
        try:
            return read_json((yield from send(request, Patience(self.retries))))
        finally:
            upload.close()

    def batch(self, service: str, upload: Upload, options: BatchOptions) -> Emits[Result]:
        """Both: the inputs up, the results down. No inputs have no results."""
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
        """``DELETE /batches/<id>``; one that was repeated may find its own work done."""
        patience = Patience(self.retries)
        try:
            return read_json((yield from send(self._request("DELETE", _batch(batch_id)), patience)))
        except ApiError as error:
            if error.code == "job_finished" and patience.failures:
                return (yield from self.get_batch(batch_id))
            raise

    def retry_batch(self, batch_id: str) -> Steps[Raw]:
        """``POST /batches/<id>/retry``; not repeated where the server may have got it."""
        request = self._request("POST", f"{_batch(batch_id)}/retry", is_repeatable=False)
        return read_json((yield from send(request, Patience(self.retries))))

    def results(self, batch_id: str, total: int) -> Emits[Result]:
        """``GET /batches/<id>/results``; if it breaks off, opened again and continued after the last given result."""
        request = self._request("GET", f"{_batch(batch_id)}/results", waits_s=SILENCE_S)
        patience = Patience(self.retries)
        handed_out = 0
        while True:
            is_open = False
            problem: ConnectionFailed | ApiError = ConnectionFailed(f"the results of {batch_id} broke off early")
            lines = _Lines()
            try:
                is_open = _check((yield Open(request))).status < 400
                while piece := (yield Read()):
                    patience.reset()
                    for number, line in lines.feed(piece):
                        if number >= handed_out:
                            handed_out = number + 1
                            yield Emit(read_result(json.loads(line)))
            except (ConnectionFailed, ApiError) as error:
                problem = _passing(error, patience, is_open)
            if handed_out >= total:
                return
            yield from patience.pause(problem)

    # -- files --

    def upload(self, body: FileBody, keep_for_s: float | None) -> Steps[StoredFile]:
        """``POST /files``: the same content is the same file, however often it is sent."""
        query = {} if keep_for_s is None else {"keep_for_s": f"{keep_for_s}"}
        request = self._request("POST", "/files", query, body.headers, body, waits_s=SILENCE_S)
        return read_file(read_json((yield from send(request, Patience(self.retries)))))

    # -- services --

    def services(self) -> Steps[list[ServiceInfo]]:
        """``GET /services``."""
        return [read_service(raw) for raw in (yield from self._get("/services"))["services"]]

    def service(self, name: str) -> Steps[ServiceInfo]:
        """``GET /services/<name>``."""
        return read_service((yield from self._get(f"/services/{quote(name, safe='')}")))

    def _get(self, path: str, query: dict[str, str] | None = None) -> Steps[Raw]:
        return read_json((yield from send(self._request("GET", path, query), Patience(self.retries))))

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
    """The lines of an answer, numbered, out of its pieces."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._number = 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """The lines that are whole with this piece."""
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


def _passing(error: ConnectionFailed | ApiError, patience: Patience, was_open: bool) -> ConnectionFailed | ApiError:
    """The error, where a stream may be opened anew after it; the silence of one that was open is no failure."""
    if isinstance(error, ApiError) and not may_pass(error):
        raise error
    if was_open and isinstance(error, ConnectionFailed) and error.timed_out:
        patience.reset()
    return error


def _write_moment(moment: datetime | str | None) -> str | None:
    """A time as the API takes it. Raises ``ValueError`` for a datetime that says no zone."""
    if not isinstance(moment, datetime):
        return moment
    if moment.utcoffset() is None:
        must = "expected a datetime with its zone, such as datetime.now(UTC) + timedelta(hours=1)"
        raise ValueError(f"not_before: {must}; got {moment!r}, which has none")
    return moment.isoformat()


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _batch(batch_id: str) -> str:
    return f"/batches/{quote(batch_id, safe='')}"
