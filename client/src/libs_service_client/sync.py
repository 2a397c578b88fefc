"""The client for programs that wait."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from libs_service_client.common import DEFAULT_URL, LIMITS, RETRIES, TIMEOUT_S, our_errors, timeout_for
from libs_service_client.files import FileBody, Source, StoredFile
from libs_service_client.models import BatchFields, Event, JobFields, Raw, Result, ServiceInfo, Status
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
from libs_service_client.upload import Upload

T = TypeVar("T")


class Client:
    """The API of libs-service. One may be shared by many threads; close it, or use it in a ``with``.

    Args:
        url: the API's address.
        api_key: sent as ``Authorization: Bearer``.
        timeout_s: for a connection, and for an answer that nothing holds back.
        retries: of a request that failed for the moment (no connection, 429, 502 to 504), where that is safe.
        http: an ``httpx.Client`` of your own, for proxies or certificates; you close it.
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
        """Submit one job: ``input`` is a dict or a pydantic model.

        Args:
            wait: seconds to hold the answer until the job has ended; after them, the job is given as it stands.
            idempotency_key: the same key and body give the same job again. By default a new one a call, so that the
                client's own repetitions make one job.
            job_id: a UUID of your own; instead of a key.
        """
        return Job(self, self._run(self._operations.submit(service, input, options, idempotency_key, job_id, wait)))

    def get(self, job_id: str) -> Job:
        """A job as it stands. Raises ``NotFound``, or ``Gone`` where its record was dropped."""
        return Job(self, self._run(self._operations.get(job_id)))

    def jobs(self, *, service: str | None = None, status: Status | str | None = None) -> Iterator[Job]:
        """All jobs that are kept, newest first; pages are fetched as they are needed."""
        for raw in self._iterate(self._operations.jobs(service, status)):
            yield Job(self, raw)

    def services(self) -> list[ServiceInfo]:
        """Every installed service and its state."""
        return self._run(self._operations.services())

    def service(self, name: str) -> ServiceInfo:
        """One service and its state."""
        return self._run(self._operations.service(name))

    def batch(self, service: str, inputs: Iterable[Any], **options: Unpack[BatchOptions]) -> Iterator[Result]:
        """Run many inputs (dicts or pydantic models) and give their results in order, in bounded memory.

        The inputs are sent when the first result is asked for; nothing runs before all have arrived. A batch continues
        when its caller stops iterating; ``submit_batch`` gives one that can be cancelled.
        """
        return self._iterate(self._operations.batch(service, Upload(inputs), options))

    def submit_batch(
        self, service: str, inputs: Iterable[Any], *, idempotency_key: str = "", **options: Unpack[BatchOptions]
    ) -> Batch:
        """Send many inputs as one batch.

        The read inputs are kept (in a temporary file where it is much), so that a body that broke off can be sent
        again.
        """
        steps = self._operations.create_batch(service, Upload(inputs), options, idempotency_key)
        return Batch(self, self._run(steps))

    def get_batch(self, batch_id: str) -> Batch:
        """A batch as it stands. Raises ``NotFound``, or ``Gone`` where it was dropped."""
        return Batch(self, self._run(self._operations.get_batch(batch_id)))

    def upload(
        self, source: Source, *, name: str | None = None, content_type: str = "", keep_for_s: float | None = None
    ) -> StoredFile:
        """Store a file for inputs, which name it by its ``reference``.

        Args:
            source: the path of a file, its bytes, or a file that is open for reading in binary mode.
            name: the name of its downloads; by default the last part of its path.
            content_type: by default by the ending of its name; else the server looks at its first bytes.
            keep_for_s: seconds that it is kept; by default as long as the server keeps files.
        """
        return self._run(self._operations.upload(FileBody(source, name, content_type), keep_for_s))

    def _run(self, steps: Steps[T]) -> T:
        with closing(_Exchange(self._http, self._url, self._timeout_s)) as exchange:
            effect = advance(steps)
            while not isinstance(effect, Done):
                effect = exchange.go_on(steps, effect)
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
                    effect = exchange.go_on(steps, effect)


class _Exchange:
    """Carries out the steps of one operation with httpx."""

    def __init__(self, http: httpx.Client, url: str, timeout_s: float) -> None:
        self._http, self._url, self._timeout_s = http, url, timeout_s
        self._open: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def go_on(self, steps: Generator[Any, Any, Any], effect: Effect) -> Any:
        """Carry out one effect and pass its result to the steps; gives the next effect."""
        try:
            found = self._do(effect)
        except Exception as error:
            return advance(steps, error=error)
        return advance(steps, found)

    def close(self) -> None:
        if self._open:
            self._open.close()
            self._open = None

    def _do(self, effect: Effect) -> Any:
        match effect:
            case Pause(seconds):
                time.sleep(seconds)
            case Read():
                with our_errors(self._url):
                    return next(self._pieces, b"")
            case Send(request) | Open(request):
                self.close()
                with our_errors(self._url):
                    return self._answer(request, isinstance(effect, Open))
        return None

    def _answer(self, request: Request, is_opened: bool) -> Answer:
        content = request.content if isinstance(request.content, bytes) else request.content.pieces()
        asked = self._http.build_request(
            request.method,
            self._url + request.path,
            params=request.query or None,
            headers=request.headers,
            content=content,
            timeout=timeout_for(request, self._timeout_s),
        )
        self._open = self._http.send(asked, stream=True)
        if is_opened and self._open.is_success:
            self._pieces = self._open.iter_bytes()
            return Answer(self._open.status_code, self._open.headers)
        answer = Answer(self._open.status_code, self._open.headers, self._open.read())
        self.close()
        return answer


class Job(JobFields):
    """A job, as the server described it last."""

    def __init__(self, client: Client, raw: Raw) -> None:
        super().__init__(raw)
        self._client = client

    @property
    def output(self) -> Any:
        """The output; None before the end, and of a job that did not succeed.

        Lists carry no outputs: of a job that came in one, it is fetched by its id when it is first asked for.
        """
        if not self._has_output:
            self.refresh()
        return self._output

    @overload
    def result(self, timeout: float | None = None) -> Any: ...
    @overload
    def result(self, timeout: float | None = None, *, output_type: type[T]) -> T: ...
    def result(self, timeout: float | None = None, *, output_type: type[T] | None = None) -> Any:
        """The output, once the job has ended; as ``output_type`` (a pydantic model, say) where that is given.

        Raises ``JobFailed``, ``JobCancelled`` or ``JobExpired``; ``TimeoutError`` where it has not ended after
        ``timeout`` seconds, in which case it goes on.
        """
        if not self.ended:
            self._read(self._client._run(self._client._operations.wait(self.id, timeout)))
        elif not self._has_output:
            self.refresh()
        return self._outcome(output_type)

    def refresh(self) -> Self:
        """Read the job anew."""
        self._read(self._client._run(self._client._operations.get(self.id)))
        return self

    def cancel(self) -> Self:
        """Cancel the job. Raises ``Conflict`` where it has ended."""
        self._read(self._client._run(self._client._operations.cancel(self.id)))
        return self

    def retry(self) -> Self:
        """Run a job that has failed, was cancelled or expired again. Raises ``Conflict`` for any other."""
        self._read(self._client._run(self._client._operations.retry(self.id)))
        return self

    def events(self, last_event_id: str = "") -> Iterator[Event]:
        """The events of the job, from its beginning (or after that event) to its end; reconnected by itself."""
        return self._client._iterate(self._client._operations.events(self.id, last_event_id))


class Batch(BatchFields):
    """A batch, as the server described it last."""

    def __init__(self, client: Client, raw: Raw) -> None:
        super().__init__(raw)
        self._client = client

    def refresh(self) -> Self:
        """Read the batch anew."""
        self._read(self._client._run(self._client._operations.get_batch(self.id)))
        return self

    def cancel(self) -> Self:
        """Cancel the open rows. Raises ``Conflict`` where all has."""
        self._read(self._client._run(self._client._operations.cancel_batch(self.id)))
        return self

    def retry(self) -> Self:
        """Run failed and cancelled rows again. Raises ``Conflict`` where nothing did, or it has not ended."""
        self._read(self._client._run(self._client._operations.retry_batch(self.id)))
        return self

    def events(self, last_event_id: str = "") -> Iterator[Event]:
        """How the batch comes on, from now (or after that event) to its end; reconnected by itself."""
        return self._client._iterate(self._client._operations.batch_events(self.id, last_event_id))

    def results(self) -> Iterator[Result]:
        """Every input's result in the inputs' order, each as soon as it and those before it are there."""
        return self._client._iterate(self._client._operations.results(self.id, self.total))
