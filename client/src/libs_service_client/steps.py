"""The parts of the client's operations, without I/O.

An operation is a generator. It yields the next effect (send this request, pause, hand this value to the
caller) and receives its result. ``sync`` and ``asynchronous`` carry out the effects, each in its own way; all that
there is to know of retries and of the API is in here and in ``protocol``, once.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from libs_service_client.errors import ApiError, ConnectionFailed, UnexpectedAnswer, read_problem
from libs_service_client.models import Raw

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: The first pause before a repetition; doubled for each further one, up to the longest. Each is cut by up to half.
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
#: Errors of a proxy or of the server's moment, which may be gone when the request is sent again.
PASSING = frozenset({429, 502, 503, 504})


class Streamed(Protocol):
    """A body that is sent as it comes into being."""

    def pieces(self) -> Iterator[bytes]: ...

    def pieces_async(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | Streamed = b""
    waits_s: float = 0  #: for which the server may be silent, beyond the client's own timeout
    is_repeatable: bool = True  #: whether a second one like it changes nothing more


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer. The body of one that was opened, and not refused, is read piece by piece."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and give its whole ``Answer``."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and give its ``Answer`` as soon as it begins; an earlier open answer is closed."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Give the next piece of the open answer, ``b""`` at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit(Generic[T_co]):
    """Hand this to the caller."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """The operation is over."""

    result: T_co


Effect: TypeAlias = Send | Open | Read | Pause
#: An operation that comes to one result.
Steps: TypeAlias = Generator[Effect, Any, T]
#: An operation that hands out values on its way.
Emits: TypeAlias = Generator[Effect | Emit[T], Any, None]


def advance(steps: Generator[Any, Any, T], found: Any = None, error: Exception | None = None) -> Any:
    """Pass a result to the steps, and give their next request: an ``Effect``, an ``Emit`` or ``Done``."""
    try:
        return steps.throw(error) if error else steps.send(found)
    except StopIteration as stop:
        return Done(stop.value)


class Patience:
    """How often a request is repeated, and after which pauses."""

    def __init__(self, retries: int, deadline: float | None = None) -> None:
        self._retries = retries
        self._deadline = deadline  #: by ``time.monotonic``; a pause that would end after it is not begun
        self.failures = 0

    def reset(self) -> None:
        """It goes on: earlier failures count no more."""
        self.failures = 0

    def pause(self, problem: Exception, at_least_s: float = 0) -> Steps[None]:
        """Wait before the next try, or raise ``problem`` where this was the last."""
        self.failures += 1
        if self.failures > self._retries:
            raise problem
        backoff = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1)) * random.uniform(0.5, 1)
        seconds = max(backoff, at_least_s * random.uniform(1, 1.25))
        if self._deadline is not None and time.monotonic() + seconds > self._deadline:
            raise TimeoutError(f"not within the timeout; the last try: {problem}") from problem
        yield Pause(seconds)


def send(request: Request, patience: Patience) -> Steps[Answer]:
    """Send a request, again where that is safe and may help. Raises ``ApiError`` or ``ConnectionFailed``."""
    while True:
        try:
            answer: Answer = yield Send(request)
        except ConnectionFailed as error:
            if error.sent and not request.is_repeatable:
                raise
            yield from patience.pause(error)
            continue
        if answer.status < 400:
            return answer
        problem = read_problem(answer.status, answer.headers, answer.body)
        if not may_pass(problem) or not (request.is_repeatable or problem.status == 429):
            raise problem
        yield from patience.pause(problem, problem.retry_after_s or 0)


def may_pass(problem: ApiError) -> bool:
    """Whether the same request may succeed a little later."""
    return problem.status in PASSING and problem.code != "service_failed"


def read_json(answer: Answer) -> Raw:
    """An answer's body, which is an object. Raises ``UnexpectedAnswer``."""
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        text = answer.body[:300].decode(errors="replace")
        raise UnexpectedAnswer(f"expected JSON, got {answer.status} {text!r}; is the address right?") from error
    if not isinstance(value, dict):
        raise UnexpectedAnswer(f"expected a JSON object, got {str(value)[:300]}")
    return value
