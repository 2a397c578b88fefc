# Generated from asynchronous.py by `make generate`: edit that file, not this one.
"""The two clients: ``AsyncClient`` for asyncio in ``asynchronous``, ``Client`` for other programs in ``sync``.

``sync`` is generated from ``asynchronous`` by ``make generate``, so each docstring here describes both.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from libs_service_client.common import DEFAULT_URL, LIMITS, RETRIES, TIMEOUT_S, direct, our_errors, timeout_for
from libs_service_client.files import PIECE_BYTES, FileBody, Source, StoredFile
from libs_service_client.models import BatchFields, Event, Raw, Result, ServiceInfo, Status, SyncJobFields
from libs_service_client.protocol import BatchOptions, JobOptions, Operations
from libs_service_client.steps import (
    Answer,
    Done,
    Effect,
    Emit,
    Emits,
    Open,
    Pause,
    Read,
    Request,
    Send,
    Steps,
    advance,
)
from libs_service_client.upload import Inputs, Upload

T = TypeVar("T")


class Client:
    """The API of libs-service. Close the client after use, or use it as a context manager.

    Many threads may share a ``Client``; the tasks of one event loop may share an ``AsyncClient``.

    Args:
        url: the API's address.
        api_key: sent as ``Authorization: Bearer``.
        timeout_s: seconds to connect, and to wait for an answer beyond the wait that the request asks for.
        retries: repetitions of a request that failed temporarily (no connection, 429, 502 to 504), if they are safe.
        http: an httpx client of your own, for proxies or certificates; you close it.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        http: httpx.Client | None = None,
    ) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._owned = http is None
        self._http = http or httpx.Client(limits=LIMITS)
        self._operations = Operations(api_key, retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owned:
            self._http.close()

    def submit(
        self,
        service: str,
        input: Any,
        *,
        wait: float = 0,
        idempotency_key: str = "",
        job_id: str = "",
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit one job. ``input`` is a dict or a pydantic model.

        Args:
            wait: seconds for which the server waits for the job's end before it answers with the job's current state.
            idempotency_key: requests with the same key and body return the same job. The default is a new key for
                each call, so that the client's own repetitions create one job.
            job_id: a UUID of your own, in place of a key.
        """
        return Job(self, self._run(self._operations.submit(service, input, options, idempotency_key, job_id, wait)))

    def get(self, job_id: str) -> Job:
        """The current state of a job. Raises ``NotFound``, or ``Gone`` if its record has expired."""
        return Job(self, self._run(self._operations.get(job_id)))

    def jobs(self, *, service: str | None = None, status: Status | str | None = None) -> Iterator[Job]:
        """All stored jobs, newest first. Each page is fetched when the iteration reaches it."""
        for raw in self._iterate(self._operations.jobs(service, status)):
            yield Job(self, raw)

    def services(self) -> list[ServiceInfo]:
        """Every installed service and its state."""
        return self._run(self._operations.services())

    def service(self, name: str) -> ServiceInfo:
        """One service and its state."""
        return self._run(self._operations.service(name))

    def batch(self, service: str, inputs: Inputs, **options: Unpack[BatchOptions]) -> Iterator[Result]:
        """Run many inputs (dicts or pydantic models) and yield their results in order, in bounded memory.

        The inputs are sent when the first result is requested, and no input runs before all have arrived. The batch
        continues if its caller stops iterating; ``submit_batch`` returns a batch that can be cancelled.
        """
        return self._iterate(self._operations.batch(service, Upload(inputs), options))

    def submit_batch(
        self, service: str, inputs: Inputs, *, idempotency_key: str = "", **options: Unpack[BatchOptions]
    ) -> Batch:
        """Send many inputs as one batch.

        The inputs that were read are retained (large ones in a temporary file), so that the client can repeat an
        interrupted request.
        """
        steps = self._operations.create_batch(service, Upload(inputs), options, idempotency_key)
        return Batch(self, self._run(steps))

    def get_batch(self, batch_id: str) -> Batch:
        """The current state of a batch. Raises ``NotFound``, or ``Gone`` if its record has expired."""
        return Batch(self, self._run(self._operations.get_batch(batch_id)))

    def upload(
        self, source: Source, *, name: str | None = None, content_type: str = "", keep_for_s: float | None = None
    ) -> StoredFile:
        """Store a file. Inputs refer to it by its ``reference``.

        Args:
            source: the path of a file, its bytes, or a file that is open for reading in binary mode.
            name: the file name of downloads; by default the last part of the path.
            content_type: by default, the server derives it from the name's suffix, else from the first bytes.
            keep_for_s: seconds for which the server stores the file; the default is the server's own.
        """
        return self._run(self._operations.upload(FileBody(source, name, content_type), keep_for_s))

    def _run(self, steps: Steps[T]) -> T:
        with closing(_Exchange(self._http, self._url, self._timeout_s)) as exchange:
            effect = advance(steps)
            while not isinstance(effect, Done):
                effect = exchange.carry_out(steps, effect)
        result: T = effect.result
        return result

    def _iterate(self, steps: Emits[T]) -> Iterator[T]:
        with closing(_Exchange(self._http, self._url, self._timeout_s)) as exchange:
            effect = advance(steps)
            while not isinstance(effect, Done):
                if isinstance(effect, Emit):
                    yield effect.value
                    effect = advance(steps)
                else:
                    effect = exchange.carry_out(steps, effect)


class _Exchange:
    """Carries out the effects of one operation with httpx."""

    def __init__(self, http: httpx.Client, url: str, timeout_s: float) -> None:
        self._http, self._url, self._timeout_s = http, url, timeout_s
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] | None = None  #: the pieces that ``Read`` returns

    def carry_out(self, steps: Generator[Any, Any, Any], effect: Effect) -> Any:
        """Carry out one effect and pass its result to the steps. Returns their next effect."""
        try:
            result = self._do(effect)
        except Exception as error:
            return advance(steps, error=error)
        return advance(steps, result)

    def close(self) -> None:
        if self._response:
            self._response.close()
            self._response = self._pieces = None

    def _do(self, effect: Effect) -> Any:
        match effect:
            case Pause(seconds):
                time.sleep(seconds)
            case Read():
                with our_errors(self._url):
                    return next(self._pieces, b"") if self._pieces else b""
            case Send(request) | Open(request):
                self.close()
                with our_errors(self._url):
                    return self._answer(request, isinstance(effect, Open))
        return None

    def _answer(self, request: Request, is_streamed: bool) -> Answer:
        built = self._http.build_request(
            request.method,
            self._url + request.path,
            params=request.query or None,
            headers=request.headers,
            content=request.content if isinstance(request.content, bytes) else body_of(request.content),
            timeout=timeout_for(request, self._timeout_s),
        )
        response = self._response = self._http.send(built, stream=True)
        if is_streamed and response.is_success:
            self._pieces = response.iter_bytes()
            return Answer(response.status_code, response.headers)
        answer = Answer(response.status_code, response.headers, response.read())
        self.close()
        return answer


def body_of(content: Upload | FileBody) -> Iterator[bytes]:
    """The body of a request in pieces."""
    if isinstance(content, FileBody):
        with content.open() as file:
            while piece := direct(file.read, PIECE_BYTES):
                yield piece
        return
    for piece in content.sent_before():
        yield piece
    for value in content.read():
        if piece := content.add(value):
            yield piece
    if piece := content.take():
        yield piece


class Job(SyncJobFields):
    """A job, with its state at the last answer of the server."""

    def __init__(self, client: Client, raw: Raw) -> None:
        super().__init__(raw)
        self._client = client

    @overload
    def result(self, timeout: float | None = None) -> Any: ...
    @overload
    def result(self, timeout: float | None = None, *, output_type: type[T]) -> T: ...
    def result(self, timeout: float | None = None, *, output_type: type[T] | None = None) -> Any:
        """Wait for the end of the job and return its output, validated as ``output_type`` (such as a pydantic model).

        Raises ``JobFailed``, ``JobCancelled`` or ``JobExpired``. Raises ``TimeoutError`` if the job has not ended after
        ``timeout`` seconds; the job then continues.
        """
        if not self.ended:
            self._read(self._client._run(self._client._operations.wait(self.id, timeout)))
        elif not self._has_output:
            self.refresh()
        return self._outcome(output_type)

    def refresh(self) -> Self:
        """Fetch the current state of the job."""
        self._read(self._client._run(self._client._operations.get(self.id)))
        return self

    def cancel(self) -> Self:
        """Cancel the job. Raises ``Conflict`` if it has ended."""
        self._read(self._client._run(self._client._operations.cancel(self.id)))
        return self

    def retry(self) -> Self:
        """Run the job again. Raises ``Conflict`` unless it has failed, was cancelled or has expired."""
        self._read(self._client._run(self._client._operations.retry(self.id)))
        return self

    def events(self, last_event_id: str = "") -> Iterator[Event]:
        """The events of the job from its start (or after ``last_event_id``) to its end. Reconnects by itself."""
        return self._client._iterate(self._client._operations.events(self.id, last_event_id))


class Batch(BatchFields):
    """A batch, with its state at the last answer of the server."""

    def __init__(self, client: Client, raw: Raw) -> None:
        super().__init__(raw)
        self._client = client

    def refresh(self) -> Self:
        """Fetch the current state of the batch."""
        self._read(self._client._run(self._client._operations.get_batch(self.id)))
        return self

    def cancel(self) -> Self:
        """Cancel the rows that have not ended. Raises ``Conflict`` if all have ended."""
        self._read(self._client._run(self._client._operations.cancel_batch(self.id)))
        return self

    def retry(self) -> Self:
        """Run the failed and cancelled rows again. Raises ``Conflict`` if there are none or the batch has not ended."""
        self._read(self._client._run(self._client._operations.retry_batch(self.id)))
        return self

    def events(self, last_event_id: str = "") -> Iterator[Event]:
        """The progress of the batch from now (or after ``last_event_id``) to its end. Reconnects by itself."""
        return self._client._iterate(self._client._operations.batch_events(self.id, last_event_id))

    def results(self) -> Iterator[Result]:
        """The result of each row in the order of the inputs, as soon as it and the results before it exist."""
        return self._client._iterate(self._client._operations.results(self.id, self.total))
