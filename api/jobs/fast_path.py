"""The fast path: requests that come thousands of times a second skip FastAPI's layers, none of which they use.

A handler marked ``@fast``, below the decorator of its route, is called through the middleware of the API alone. The
route is an ordinary one of FastAPI too, for the OpenAPI document and for requests below a proxy's path. Measured: a
fifth less processor time of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import unquote

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems

Handler = Callable[[Request], Awaitable[Response]]

_FAST: set[Handler] = set()


def fast(handler: Handler) -> Handler:
    """Mark a handler for the fast path. It takes the request alone; its path may end with one parameter."""
    _FAST.add(handler)
    return handler


class NotStarted(RuntimeError):
    """The reason why the API does not start, shown without a traceback."""


class Front(FastAPI):
    """The application, with a fast path."""

    def add_fast_path(self, router: APIRouter, middleware: Iterable[Middleware]) -> None:
        """Take the router's ``@fast`` handlers past FastAPI, through this middleware, the innermost first."""
        self._fixed: dict[tuple[str, str], APIRoute] = {}  # by method and path
        self._with_parameter: dict[tuple[str, str], tuple[APIRoute, str]] = {}  # by method and the path up to it
        for route in router.routes:
            if isinstance(route, APIRoute) and route.endpoint in _FAST:
                start, _, parameter = route.path.rstrip("}").partition("{")
                for method in route.methods or ():
                    if parameter:
                        self._with_parameter[method, start] = route, parameter
                    else:
                        self._fixed[method, start] = route
        self._fast_app: ASGIApp = _answer
        for layer in middleware:
            self._fast_app = layer.cls(self._fast_app, *layer.args, **layer.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's life."""
        if scope["type"] == "lifespan":
            send = _in_one_line(send)
        elif scope["type"] == "http":
            if b"%2" in (scope.get("raw_path") or b""):
                _keep_slashes(scope)
            if not scope.get("root_path") and self._is_fast(scope):
                scope["app"] = self
                await self._fast_app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def _is_fast(self, scope: Scope) -> bool:
        """Whether a handler of the fast path answers; if so, add the route to the scope, as FastAPI's router does."""
        method, path = scope["method"], scope["path"]
        route, parameters = self._fixed.get((method, path)), {}
        if route is None:
            start, slash, value = path.rpartition("/")
            if not value or (match := self._with_parameter.get((method, start + slash))) is None:
                return False
            route, parameters = match[0], {match[1]: value}
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, parameters
        return True


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the handler's answer, or the problem document that FastAPI would send."""
    request = Request(scope, receive, send)
    try:
        response = await scope["endpoint"](request)
    except Exception as error:
        response = await problems.answer_any(request, error)
    await response(scope, receive, send)


def _in_one_line(send: Send) -> Send:
    """Let the server log the message of a ``NotStarted`` alone, without Starlette's traceback."""

    async def send_in_one_line(message: Message) -> None:
        last_line = str(message.get("message", "")).rstrip().rpartition("\n")[2]
        reason = last_line.partition(f"{NotStarted.__name__}: ")[2]
        await send({**message, "message": reason} if reason else message)

    return send_in_one_line


def _keep_slashes(scope: Scope) -> None:
    """Leave a slash within a job's id encoded (``%2F``) in the path. Other Celery producers may send such ids.

    The server has decoded the path, so that such a slash looks like a separator. The scope gets the decoded id for
    ``requests.read_job_id``.
    """
    root = scope.get("root_path", "")
    parts = scope["raw_path"].decode("latin-1").removeprefix(root).split("/")
    if len(parts) > 2 and parts[1] == "jobs" and "/" in (job_id := unquote(parts[2])):
        scope["job_id"] = job_id
        scope["path"] = root + "/".join([*parts[:3], *map(unquote, parts[3:])])
