"""The parts of the client's operations, without I/O.

An operation is a generator. It yields the next effect (send this request, pause, emit this value to the caller) and
receives the effect's result. ``sync`` and ``asynchronous`` carry out the effects. Everything about retries and the API
is here and in ``protocol``, once for both.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from libs_service_client.errors import ApiError, ConnectionFailed, UnexpectedAnswer, read_problem
from libs_service_client.files import FileBody
from libs_service_client.models import Raw
from libs_service_client.upload import Upload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: Seconds before the first repetition. Each further pause doubles, up to the longest; jitter cuts off up to half.
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
#: Statuses of a proxy's error or of a temporary state of the server: a repetition of the request may succeed.
TEMPORARY = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | Upload | FileBody = b""
    waits_s: float = 0  #: seconds for which the server may be silent, beyond the client's own timeout
    is_repeatable: bool = True  #: whether a second equal request changes nothing


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer. ``body`` is empty after a successful ``Open``: ``Read`` then returns its pieces."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and return its whole ``Answer``."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and return its ``Answer`` once the headers are there. Closes the answer opened before."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Return the next piece of the open answer, ``b""`` at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit(Generic[T_co]):
    """Yield this value to the caller."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """The operation has ended."""

    result: T_co


Effect: TypeAlias = Send | Open | Read | Pause
#: An operation with one result.
Steps: TypeAlias = Generator[Effect, Any, T]
#: An operation that yields values to the caller.
Emits: TypeAlias = Generator[Effect | Emit[T], Any, None]


def advance(steps: Generator[Any, Any, T], result: Any = None, error: Exception | None = None) -> Any:
    """Pass the result of an effect, or its error, to the steps. Returns the next ``Effect``, ``Emit`` or ``Done``."""
    try:
        return steps.throw(error) if error else steps.send(result)
    except StopIteration as stop:
        return Done(stop.value)


class Retries:
    """The repetitions of a request that are left, and the pauses before them."""

    def __init__(self, most: int, deadline: float | None = None) -> None:
        self._most = most
        self._deadline = deadline  #: by ``time.monotonic``: a pause that would end after it raises instead
        self.failures = 0

    def reset(self) -> None:
        """Forget the earlier failures: the server has answered."""
        self.failures = 0

    def pause(self, problem: Exception, at_least_s: float = 0) -> Steps[None]:
        """Wait before the next attempt. Raises ``problem`` after the last attempt."""
        self.failures += 1
        if self.failures > self._most:
            raise problem
        backoff = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1)) * random.uniform(0.5, 1)
        seconds = max(backoff, at_least_s * random.uniform(1, 1.25))
        if self._deadline is not None and time.monotonic() + seconds > self._deadline:
            raise TimeoutError(f"no success within the timeout; the last attempt failed: {problem}") from problem
        yield Pause(seconds)


def send(request: Request, retries: Retries) -> Steps[Answer]:
    """Send a request, repeatedly if that is safe and may help. Raises ``ApiError`` or ``ConnectionFailed``."""
    while True:
        try:
            answer: Answer = yield Send(request)
        except ConnectionFailed as error:
            if error.sent and not request.is_repeatable:
                raise
            yield from retries.pause(error)
            continue
        if answer.status < 400:
            return answer
        problem = read_problem(answer.status, answer.headers, answer.body)
        if not is_temporary(problem) or not (request.is_repeatable or problem.status == 429):
            raise problem
        yield from retries.pause(problem, problem.retry_after_s or 0)


def is_temporary(problem: ApiError) -> bool:
    """Whether a repetition of the request may succeed."""
    return problem.status in TEMPORARY and problem.code != "service_failed"


def read_json(answer: Answer) -> Raw:
    """Read the body of an answer, a JSON object. Raises ``UnexpectedAnswer``."""
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        text = answer.body[:300].decode(errors="replace")
        raise UnexpectedAnswer(f"expected JSON, got {answer.status} {text!r}; is the address right?") from error
    if not isinstance(value, dict):
        raise UnexpectedAnswer(f"expected a JSON object, got {str(value)[:300]}")
    return value
