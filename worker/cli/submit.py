"""``services submit``: one job over HTTP, from the command line.

With ``worker.local.up``'s few lines of HTTP: the worker's package imports nothing of the API's, so not its client
either.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any
from urllib.parse import quote

import click

from worker.cli.common import INPUT_HELP, join_errors, positive, read_input, say_no_example
from worker.discovery import list_plugins, say_written
from worker.errors import ServicesError, UnknownService
from worker.ledger.jobs import TERMINAL, Priority, Status
from worker.settings import get_settings

#: Longest that one request is held; the server may hold it shorter.
HOLD_S = 10.0
#: Least time between two requests for one job.
AGAIN_S = 0.25
#: Statuses that pass: while the API is started again, or is asked too often, the job goes on.
PASSING = frozenset({0, 429, 502, 503, 504})


class Refused(ServicesError):
    """The API refused or failed a request."""

    code = "refused"


class Api:
    """The running API. Raises ``Refused`` and ``UnknownService``, whose texts give advice."""

    def __init__(self, url: str, api_key: str, name: str) -> None:
        self.url = url.rstrip("/")
        if not (api_key.isascii() and api_key.isprintable()):
            raise Refused("the API key (SERVICES_API_KEY or --api-key) must be printable ASCII, as it was shown")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._name = name

    def service(self, name: str) -> Any:
        """A service as it stands."""
        return self._done(*self._ask(f"/services/{quote(name, safe='')}"))

    def submit(self, service: str, value: Any, priority: str) -> Any:
        """A new job."""
        body = json.dumps({"service": service, "input": value, "priority": priority}).encode()
        return self._done(*self._ask("/jobs", body))

    def wait(self, job: Any, timeout_s: float) -> Any:
        """The job once it has ended, or as it stands when the time is over."""
        deadline = time.monotonic() + timeout_s
        while job["status"] not in TERMINAL and (left := deadline - time.monotonic()) > 0:
            began, held = time.monotonic(), min(left, HOLD_S)
            status, answer = self._ask(f"/jobs/{job['id']}?wait={held:.3f}", timeout_s=held + 5)
            job = job if status in PASSING else self._done(status, answer)
            if job["status"] not in TERMINAL:
                time.sleep(min(left, max(0, began + AGAIN_S - time.monotonic())))
        return job

    def _say_here(self) -> str:
        """Advice where a service that the API does not know is installed here."""
        if hint := say_written(self._name):
            return f"; {hint}, and start the API again" if self._name not in list_plugins() else ""
        return ""

    def _ask(self, path: str, body: bytes | None = None, timeout_s: float = 10) -> tuple[int, Any]:
        from worker.local.up import fetch

        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        return fetch(self.url + path, body, headers, timeout_s)

    def _done(self, status: int, answer: Any) -> Any:
        """The answer's content. Raises the error for any other answer."""
        if status == 0:
            hint = "start it with `make run`, or name another by --url or PORT"
            raise Refused(f"no API answers at {self.url} ({answer}): {hint}")
        known = isinstance(answer, dict)
        if known and status in (200, 202):
            return answer
        if not known or "code" not in answer:
            raise Refused(f"{self.url} answers {status}, but not as this API does: name it by --url or PORT")
        if answer["code"] == UnknownService.code:
            raise UnknownService(answer["detail"] + self._say_here())
        if status == 401:
            raise Refused(f"{answer['detail']} `services submit` takes it from SERVICES_API_KEY, or by --api-key")
        told = join_errors(answer["errors"]) if answer.get("errors") else answer["detail"]
        raise Refused(f"{answer['code']}: {told}")


def submit(arguments: argparse.Namespace, settings: Settings) -> int:
    """send one job to the running API, wait for its end and print it (default: the service's example)"""
    name = arguments.name
    api = Api(arguments.url or _find_api(), arguments.api_key or settings.api_key, name)
    value = read_input(arguments.input) if arguments.input is not None else api.service(name)["example"]
    if value is None and arguments.input is None:
        raise Refused(say_no_example(name, f"services submit {name}"))
    job = api.submit(name, value, arguments.priority)
    try:
        job = job if arguments.no_wait else api.wait(job, arguments.timeout)
    except KeyboardInterrupt:
        print(f"the job goes on: GET {api.url}/jobs/{job['id']}", file=sys.stderr)
        raise
    print(json.dumps(job, indent=2, ensure_ascii=False), flush=True)
    if job["status"] == Status.SUCCEEDED or arguments.no_wait:
        return 0
    raise Refused(_say_why(api, job, arguments.timeout))


def _find_api() -> str:
    from worker.local import up

    try:
        return up.find_api()
    except up.Refused as error:
        raise Refused(str(error)) from error


def _say_why(api: Api, job: Any, timeout_s: float) -> str:
    """Why a job has no output."""
    if job["error"]:
        told = join_errors(job["error"]["errors"]) if job["error"].get("errors") else job["error"]["message"]
        return f"{job['error']['code']}: {told}"
    if job["status"] in TERMINAL:
        return f"the job was {job['status']}"
    text = f"the job is {job['status']} after {timeout_s:g} s and goes on: GET {api.url}/jobs/{job['id']}"
    service = api.service(job["service"])
    if service["state"] == "ready":
        return text
    if service["reason"]:
        return f"{text}. The service is {service['state']}: {service['reason']}"
    return f"{text}. The service is {service['state']}: `services run {job['service']}` runs it"


def add_submit(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``services submit``."""
    add = parser.add_argument
    add("name", metavar="NAME", help="a service")
    add("input", nargs="?", metavar="INPUT", help=INPUT_HELP)
    add(
        "--priority",
        choices=[str(priority) for priority in Priority],
        default=str(Priority.NORMAL),
        help="default: normal",
    )
    add("--no-wait", action="store_true", help="print the job as it was accepted, and exit with 0")
    add("--timeout", type=positive, default=60, metavar="S", help="seconds to wait for its end (default: 60)")
    add("--url", type=_url, metavar="URL", help="the API (default: this machine's, by PORT, else 8000)")
    add("--api-key", metavar="KEY", default="", help="better given by SERVICES_API_KEY: others see command lines")


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")) or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"expected http://… or https://…, got {text!r}")
    return text
