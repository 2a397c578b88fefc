"""The gate around every request: it checks the caller, limits the time of the body, and adds headers and a log line.

Plain ASGI: without API keys, its cost per request must be too small to measure.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.auth.keyring import ANYONE, Caller
from api.state import state_of
from worker.errors import Forbidden, ServicesError, Unauthorized
from worker.ledger import api_keys as keys
from worker.settings import Settings

audit = logging.getLogger("services.audit")

#: The scope that a method needs; every other method needs "read".
SCOPES = {"POST": keys.Scope.SUBMIT, "PUT": keys.Scope.SUBMIT, "PATCH": keys.Scope.SUBMIT, "DELETE": keys.Scope.CANCEL}
#: Paths of POST that change nothing, so "read" is enough: Triton's protocol has them so.
READS = frozenset({"/v2/repository/index"})
#: The path of a file's content, which a signed link opens too.
LINK = re.compile(r"/files/[^/]+/content")
#: Paths without any data of jobs, which need no API key: probes, pages and the OpenAPI document.
PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
OPEN = frozenset({"/", *PROBES, "/docs", "/openapi.json"})  # and everything below /static/
#: Each 16 KiB of a body that have arrived extend its time limit by a second.
BYTES_PER_S = 16 * 1024
#: Seconds between two searches for late bodies.
LOOK_S = 0.5

NOSNIFF = (b"x-content-type-options", b"nosniff")
NO_STORE = (b"cache-control", b"no-store")
PAGE_HEADERS = [
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'; object-src 'none'"),
    (b"referrer-policy", b"no-referrer"),
]

NEED_A_KEY = (
    "no API key is configured, so only this machine may use the API, by a loopback address; make a key with "
    "`services keys create`, or set SERVICES_ALLOW_UNAUTHENTICATED=true to let everybody in"
)

OTHER_SITE = (
    "a page of another site may not do this without an API key; name its origin in SERVICES_CORS_ORIGINS, or make a key"
)


def caller_of(request: Request) -> Caller:
    """The caller that sends this request."""
    caller: Caller = request.scope.get("caller", ANYONE)
    return caller


class Gate:
    """The middleware that admits requests."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = Answer(scope, send)
        try:
            if not answer.is_open and not _is_link(scope):
                await self._admit(scope)
            if scope["method"] in SCOPES:
                receive = Body(receive, state_of(scope).bodies).receive
            with state_of(scope).open_requests.count(scope["presented"]) if "caller" in scope else nullcontext():
                await self._app(scope, receive, answer.send)
        except ServicesError as error:
            if not answer.has_begun:  # else the connection is cut: the answer stays incomplete
                await problems.answer(error, scope["path"])(scope, receive, answer.send)
        finally:
            if "presented" in scope and scope["method"] in SCOPES:
                answer.log()

    async def _admit(self, scope: Scope) -> None:
        """Put the caller into the scope. Raises ``Unauthorized``, ``Forbidden`` or ``RateLimited``."""
        keyring = state_of(scope).keyring
        text, host = _read_headers(scope["headers"])
        if not await keyring.are_required(fresh=bool(text)):
            client, server = scope.get("client"), scope.get("server")
            local = _is_local(client[0] if client else "", server[0] if server else "", host)
            if not local and not self._settings.allow_unauthenticated:
                raise Forbidden(NEED_A_KEY)
            if scope["method"] in SCOPES:
                self._refuse_other_sites(scope, host)
            return
        scope["presented"] = "-"
        if not text:
            raise Unauthorized()
        caller = await keyring.find(text)
        scope["caller"], scope["presented"] = caller, caller.owner
        assert caller.key
        await keyring.take(caller.key)
        needed = keys.Scope.READ if scope["path"] in READS else SCOPES.get(scope["method"], keys.Scope.READ)
        if not caller.key.may(needed):
            raise Forbidden(f"the API key has no scope {needed.value!r}, which {scope['method']} {scope['path']} needs")

    def _refuse_other_sites(self, scope: Scope, host: bytes) -> None:
        """Without keys, a page of another site must not post by a visitor's browser, which sends no preflight for it.

        A browser names the page's site: ``Sec-Fetch-Site`` (Fetch Metadata), else ``Origin`` (RFC 6454). Other clients
        send neither. Raises ``Forbidden``.
        """
        sent = {name: value for name, value in scope["headers"] if name in (b"origin", b"sec-fetch-site")}
        site, origin = sent.get(b"sec-fetch-site", b""), sent.get(b"origin", b"").decode("latin-1")
        if origin in self._settings.cors_origins or "*" in self._settings.cors_origins:
            return
        is_foreign = (
            site not in (b"same-origin", b"none") if site else origin.partition("://")[2] != host.decode("latin-1")
        )
        if (site or origin) and is_foreign:
            raise Forbidden(OTHER_SITE)


class Answer:
    """The answer to a request: gets its headers here, and is noted for the audit log."""

    __slots__ = ("_location", "_scope", "_send", "_status", "has_begun", "is_open")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._status = 0
        self._location = ""
        self.has_begun = False
        self.is_open = scope["path"] in OPEN or scope["path"].startswith("/static/")

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self._status, self.has_begun = message["status"], True
            message["headers"] = self._complete(list(message.get("headers", ())))
        await self._send(message)

    def log(self) -> None:
        """Log a request that may have changed something; status 0: the client left before the answer."""
        scope = self._scope
        path = scope["path"][:200]
        parts = (self._location or path).split("/")
        job = parts[2] if len(parts) > 2 and parts[1] in ("jobs", "batches") else scope.get("stored", "-")
        client = (scope.get("client") or ("-",))[0]
        line = "key=%s client=%s verb=%s path=%s job=%s status=%d"
        audit.info(
            line, scope["presented"], client, scope["method"], problems.quote(path), problems.quote(job), self._status
        )

    def _complete(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        may_store, is_page, added = self.is_open, False, [NOSNIFF]
        for name, value in headers:
            if name == b"content-type":
                is_page = value.startswith(b"text/html")
            elif name == b"cache-control":
                may_store = True
            elif name == NOSNIFF[0]:
                added = []
            elif name == b"location":
                self._location = value.decode("latin-1")
        headers += added
        if not may_store:
            headers.append(NO_STORE)
        if is_page:
            own = {name for name, _ in headers}
            headers += [header for header in PAGE_HEADERS if header[0] not in own]
        return headers


class Bodies:
    """The bodies that are arriving. One search for late ones twice a second costs less than a timer for each."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.waiting: dict[Body, asyncio.Task[Any]] = {}

    async def run(self) -> None:
        """Cancel the requests of late bodies, for ever."""
        while True:
            await asyncio.sleep(min(LOOK_S, self.timeout_s / 2))
            now = time.monotonic()
            for body, task in self.waiting.items():
                if now > body.until:
                    body.is_late = True
                    task.cancel()


class Body:
    """A request's body. It must arrive within ``timeout_s`` and a second more for each ``BYTES_PER_S`` bytes."""

    __slots__ = ("_bodies", "_is_whole", "_receive", "is_late", "until")

    def __init__(self, receive: Receive, bodies: Bodies) -> None:
        self._receive = receive
        self._bodies = bodies
        self._is_whole = False
        self.until = time.monotonic() + bodies.timeout_s
        self.is_late = False

    async def receive(self) -> Message:
        """The next piece. Raises ``BodyTimedOut``."""
        if self._is_whole:  # the next message is that the client has left
            return await self._receive()
        task = asyncio.current_task()
        assert task
        self._bodies.waiting[self] = task
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self.is_late:
                raise
            task.uncancel()
            must = f"the body did not arrive within {self._bodies.timeout_s:g} s (SERVICES_BODY_TIMEOUT_S)"
            raise problems.BodyTimedOut(must) from None
        finally:
            del self._bodies.waiting[self]
        self._is_whole = not message.get("more_body", False)
        self.until += len(message.get("body", b"")) / BYTES_PER_S
        return message


def bound_elsewhere(argv: Sequence[str]) -> str:
    """The address that uvicorn's command line binds to, unless it is a loopback address; else ""."""
    if Path(argv[0]).name not in ("uvicorn", "__main__.py"):
        return ""
    hosts = [argv[i + 1] for i in range(1, len(argv) - 1) if argv[i] == "--host"]
    hosts += [argument.removeprefix("--host=") for argument in argv if argument.startswith("--host=")]
    return next((host for host in hosts if not _is_loopback(host)), "")


def _is_link(scope: Scope) -> bool:
    """Whether the URL is a file's signed link, which needs no API key; ``api.files.routes`` checks its signature."""
    return b"signature=" in scope["query_string"] and LINK.fullmatch(scope["path"]) is not None


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, bytes]:
    """The API key of a request ("": none), and its host. ``Authorization`` has precedence over ``X-API-Key``."""
    bearer = key = host = b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
        elif name == b"x-api-key":
            key = value.strip()
    return (bearer or key).decode("latin-1"), host


@lru_cache(maxsize=256)
def _is_local(client: str, server: str, host: bytes) -> bool:
    """Whether a request comes from this machine, and not from a web page by DNS rebinding, which sends another host.

    A unix socket has no addresses; its file permissions protect it. The server's own address is checked too, since a
    proxy may have set the client's, where uvicorn trusts proxies.
    """
    name = re.sub(r":\d*$", "", host.decode("latin-1")).strip("[]").rstrip(".").lower()
    named_local = not name or name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
    addresses = [place for place in (client, server) if place and not place.startswith("/")]
    return named_local and all(_is_loopback(place) for place in addresses)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
