"""The client for programs on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable
from contextlib import aclosing
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from libs_service_client.common import DEFAULT_URL, LIMITS, RETRIES, TIMEOUT_S, our_errors, timeout_for
from libs_service_client.errors import ClientError
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


class AsyncClient:
    """The API of libs-service. One may be shared by the tasks of one event loop; close it, or use it in ``async with``.

    Args:
        url: the API's address.
        api_key: sent as ``Authorization: Bearer``.
        timeout_s: for a connection, and for an answer that nothing holds back.
        retries: of a request that failed for the moment (no connection, 429, 502 to 504), where that is safe.
        http: an ``httpx.AsyncClient`` of your own, for proxies or certificates; you close it.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._owned = http is None
        self._http = http or httpx.AsyncClient(limits=LIMITS)
        self._operations = Operations(api_key, retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    async def submit(
        self,
        service: str,
        input: Any,
        *,
        wait: float = 0,
        idempotency_key: str = "",
        job_id: str = "",
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Submit one job: ``input`` is a dict or a pydantic model.

        Args:
            wait: seconds to hold the answer until the job has ended; after them, the job is given as it stands.
            idempotency_key: the same key and body give the same job again. By default a new one a call, so that the
                client's own repetitions make one job.
            job_id: a UUID of your own; instead of a key.
        """
        return AsyncJob(
            self, await self._run(self._operations.submit(service, input, options, idempotency_key, job_id, wait))
        )

    async def get(self, job_id: str) -> AsyncJob:
        """A job as it stands. Raises ``NotFound``, or ``Gone`` where its record was dropped."""
        return AsyncJob(self, await self._run(self._operations.get(job_id)))

    async def jobs(self, *, service: str | None = None, status: Status | str | None = None) -> AsyncIterator[AsyncJob]:
        """All jobs that are kept, newest first; pages are fetched as they are needed."""
        async for raw in self._iterate(self._operations.jobs(service, status)):
            yield AsyncJob(self, raw)

    async def services(self) -> list[ServiceInfo]:
        """Every installed service and its state."""
        return await self._run(self._operations.services())

    async def service(self, name: str) -> ServiceInfo:
        """One service and its state."""
        return await self._run(self._operations.service(name))

    def batch(
        self, service: str, inputs: Iterable[Any] | AsyncIterable[Any], **options: Unpack[BatchOptions]
    ) -> AsyncIterator[Result]:
        """Run many inputs (dicts or pydantic models, from an iterable of either kind) and give their results in order.

        Memory is bounded. The inputs are sent when the first result is asked for; nothing runs before all have arrived.
        A batch continues when its caller stops iterating; ``submit_batch`` gives one that can be cancelled.
        """
        return self._iterate(self._operations.batch(service, Upload(inputs), options))

    async def submit_batch(
        self,
        service: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        idempotency_key: str = "",
        **options: Unpack[BatchOptions],
    ) -> AsyncBatch:
        """Send many inputs as one batch.

        The read inputs are kept (in a temporary file where it is much), so that a body that broke off can be sent
        again.
        """
        steps = self._operations.create_batch(service, Upload(inputs), options, idempotency_key)
        return AsyncBatch(self, await self._run(steps))

    async def get_batch(self, batch_id: str) -> AsyncBatch:
        """A batch as it stands. Raises ``NotFound``, or ``Gone`` where it was dropped."""
        return AsyncBatch(self, await self._run(self._operations.get_batch(batch_id)))

    async def upload(
        self, source: Source, *, name: str | None = None, content_type: str = "", keep_for_s: float | None = None
    ) -> StoredFile:
        """Store a file for inputs, which name it by its ``reference``.

        Args:
            source: the path of a file, its bytes, or a file that is open for reading in binary mode.
            name: the name of its downloads; by default the last part of its path.
            content_type: by default by the ending of its name; else the server looks at its first bytes.
            keep_for_s: seconds that it is kept; by default as long as the server keeps files.
        """
        return await self._run(self._operations.upload(FileBody(source, name, content_type), keep_for_s))

    async def _run(self, steps: Steps[T]) -> T:
        async with aclosing(_Exchange(self._http, self._url, self._timeout_s)) as exchange:
            effect = advance(steps)
            while not isinstance(effect, Done):
                effect = await exchange.go_on(steps, effect)
        result: T = effect.result
        return result

    async def _iterate(self, steps: Emits[T]) -> AsyncIterator[T]:
        async with aclosing(_Exchange(self._http, self._url, self._timeout_s)) as exchange:
            effect = advance(steps)
            while not isinstance(effect, Done):
                if isinstance(effect, Emit):
                    yield effect.value
                    effect = advance(steps)
                else:
                    effect = await exchange.go_on(steps, effect)


class _Exchange:
    """Carries out the steps of one operation with httpx."""

    def __init__(self, http: httpx.AsyncClient, url: str, timeout_s: float) -> None:
        self._http, self._url, self._timeout_s = http, url, timeout_s
        self._open: httpx.Response | None = None
        self._pieces = _nothing()

    async def go_on(self, steps: Generator[Any, Any, Any], effect: Effect) -> Any:
        """Carry out one effect and pass its result to the steps; gives the next effect."""
        try:
            found = await self._do(effect)
        except Exception as error:
            return advance(steps, error=error)
        return advance(steps, found)

    async def aclose(self) -> None:
        if self._open:
            await self._open.aclose()
            self._open = None

    async def _do(self, effect: Effect) -> Any:
        match effect:
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Read():
                with our_errors(self._url):
                    return await anext(self._pieces, b"")
            case Send(request) | Open(request):
                await self.aclose()
                with our_errors(self._url):
                    return await self._answer(request, isinstance(effect, Open))
        return None

    async def _answer(self, request: Request, is_opened: bool) -> Answer:
        content = request.content if isinstance(request.content, bytes) else request.content.pieces_async()
        asked = self._http.build_request(
            request.method,
            self._url + request.path,
            params=request.query or None,
            headers=request.headers,
            content=content,
            timeout=timeout_for(request, self._timeout_s),
        )
        self._open = await self._http.send(asked, stream=True)
        if is_opened and self._open.is_success:
            self._pieces = self._open.aiter_bytes()
            return Answer(self._open.status_code, self._open.headers)
        answer = Answer(self._open.status_code, self._open.headers, await self._open.aread())
        await self.aclose()
        return answer


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


class AsyncJob(JobFields):
    """A job, as the server described it last."""

    def __init__(self, client: AsyncClient, raw: Raw) -> None:
        super().__init__(raw)
        self._client = client

    @property
    def output(self) -> Any:
        """The output; None before the end, and of a job that did not succeed.

        Raises ``ClientError`` for a job that came in a list, which carries no outputs: await ``get_output()``.
        """
        if not self._has_output:
            must = "await job.get_output(), job.result() or job.refresh() first"
            raise ClientError(f"job {self.id} came in a list, which carries no outputs: {must}")
        return self._output

    async def get_output(self) -> Any:
        """The same of any job; of one that came in a list, it is fetched by its id when it is first asked for."""
        if not self._has_output:
            await self.refresh()
        return self._output

    @overload
    async def result(self, timeout: float | None = None) -> Any: ...
    @overload
    async def result(self, timeout: float | None = None, *, output_type: type[T]) -> T: ...
    async def result(self, timeout: float | None = None, *, output_type: type[T] | None = None) -> Any:
        """The output, once the job has ended; as ``output_type`` (a pydantic model, say) where that is given.

        Raises ``JobFailed``, ``JobCancelled`` or ``JobExpired``; ``TimeoutError`` where it has not ended after
        ``timeout`` seconds, in which case it goes on.
        """
        if not self.ended:
            self._read(await self._client._run(self._client._operations.wait(self.id, timeout)))
        elif not self._has_output:
            await self.refresh()
        return self._outcome(output_type)

    async def refresh(self) -> Self:
        """Read the job anew."""
        self._read(await self._client._run(self._client._operations.get(self.id)))
        return self

    async def cancel(self) -> Self:
        """Cancel the job. Raises ``Conflict`` where it has ended."""
        self._read(await self._client._run(self._client._operations.cancel(self.id)))
        return self

    async def retry(self) -> Self:
        """Run a job that has failed, was cancelled or expired again. Raises ``Conflict`` for any other."""
        self._read(await self._client._run(self._client._operations.retry(self.id)))
        return self

    def events(self, last_event_id: str = "") -> AsyncIterator[Event]:
        """The events of the job, from its beginning (or after that event) to its end; reconnected by itself."""
        return self._client._iterate(self._client._operations.events(self.id, last_event_id))


class AsyncBatch(BatchFields):
    """A batch, as the server described it last."""

    def __init__(self, client: AsyncClient, raw: Raw) -> None:
        super().__init__(raw)
        self._client = client

    async def refresh(self) -> Self:
        """Read the batch anew."""
        self._read(await self._client._run(self._client._operations.get_batch(self.id)))
        return self

    async def cancel(self) -> Self:
        """Cancel the open rows. Raises ``Conflict`` where all has."""
        self._read(await self._client._run(self._client._operations.cancel_batch(self.id)))
        return self

    async def retry(self) -> Self:
        """Run failed and cancelled rows again. Raises ``Conflict`` where nothing did, or it has not ended."""
        self._read(await self._client._run(self._client._operations.retry_batch(self.id)))
        return self

    def events(self, last_event_id: str = "") -> AsyncIterator[Event]:
        """How the batch comes on, from now (or after that event) to its end; reconnected by itself."""
        return self._client._iterate(self._client._operations.batch_events(self.id, last_event_id))

    def results(self) -> AsyncIterator[Result]:
        """Every input's result in the inputs' order, each as soon as it and those before it are there."""
        return self._client._iterate(self._client._operations.results(self.id, self.total))
