"""``services submit``: one job over HTTP, from the command line, by the client that programs use too."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from worker.cli.common import INPUT_HELP, InputCommand, join_errors, positive, read_input, say_no_example
from worker.discovery import list_plugins, say_written
from worker.errors import ServicesError, UnknownService
from worker.ledger.jobs import Priority, Status
from worker.settings import get_settings

if TYPE_CHECKING:
    from libs_service_client import Client, Job

#: Repetitions of a request while a job is awaited, until the time is over: the API may be started again meanwhile.
RETRIES = 10_000


class Refused(ServicesError):
    """The API refused or failed a request."""

    code = "refused"


def read_url(text: str) -> str:
    """The type of an option: an address."""
    if not text.startswith(("http://", "https://")) or not text.isprintable() or " " in text:
        raise click.BadParameter(f"expected http://… or https://…, got {text!r}")
    return text.rstrip("/")


@click.command(
    cls=InputCommand,
    help=f"""Send one job to the running API, wait for its end and print it.

INPUT: {INPUT_HELP}; by default the service's example.""",
)
@click.argument("name")
@click.argument("input", required=False)
@click.option("--priority", type=click.Choice([*map(str, Priority)]), default=str(Priority.NORMAL), show_default=True)
@click.option("--no-wait", is_flag=True, help="print the job as it was accepted, and exit with 0")
@click.option(
    "--timeout", type=positive, default=60, show_default=True, metavar="S", help="seconds to wait for its end"
)
@click.option("--url", type=read_url, metavar="URL", help="the API [default: this machine's, by PORT, else 8000]")
@click.option("--api-key", metavar="KEY", default="", help="better given by SERVICES_API_KEY: others see command lines")
def submit(
    name: str, input: str | None, priority: str, no_wait: bool, timeout: float, url: str | None, api_key: str
) -> int:
    """Send one job to the running API."""
    import httpx
    from libs_service_client import Client

    url, key = url or _find_api(), api_key or get_settings().api_key
    if not (key.isascii() and key.isprintable()):
        raise Refused("the API key (SERVICES_API_KEY or --api-key) must be printable ASCII, as it was shown")
    with httpx.Client(trust_env=False) as http, one_line_errors(url, name):  # no proxy of the environment
        client = Client(url, api_key=key or None, retries=0, http=http)
        value = client.service(name).example if input is None else read_input(input)
        if value is None and input is None:
            raise Refused(say_no_example(name, f"services submit {name}"))
        job = client.submit(name, value, priority=priority)
        if not no_wait:
            patient = Client(url, api_key=key or None, retries=RETRIES, http=http)
            job = _wait(patient, url, job, timeout)
        print(json.dumps(job.raw, indent=2, ensure_ascii=False), flush=True)
        if job.raw["status"] != Status.SUCCEEDED and not no_wait:
            raise Refused(_say_why(client, url, job, timeout))
    return 0


def _wait(client: Client, url: str, job: Job, timeout_s: float) -> Job:
    """The job once it has ended, or as it stands when the time is over."""
    from libs_service_client import JobNotSucceeded

    try:
        job = client.get(job.id)
        with suppress(JobNotSucceeded):  # the caller prints its error
            job.result(timeout_s)
    except TimeoutError:
        job.refresh()
    except KeyboardInterrupt:
        print(f"the job goes on: GET {url}/jobs/{job.id}", file=sys.stderr)
        raise
    return job


def _find_api() -> str:
    from worker.local import up

    try:
        return up.find_api()
    except up.Refused as error:
        raise Refused(str(error)) from error


@contextmanager
def one_line_errors(url: str, name: str) -> Iterator[None]:
    """Turn the client's errors into one line that names the remedy. Raises ``Refused`` and ``UnknownService``."""
    from libs_service_client import ApiError, ClientError, ConnectionFailed

    try:
        yield
    except ConnectionFailed as error:
        hint = "start it with `make run`, or name another by --url or PORT"
        reason = str(error.__cause__ or error).rpartition("] ")[2]  # without the error's number
        raise Refused(f"no API answers at {url} ({reason}): {hint}") from error
    except ApiError as error:
        if error.code == "http_error":
            message = f"{url} answers {error.status}, but not as this API does: name it by --url or PORT"
            raise Refused(message) from error
        if error.code == UnknownService.code:
            raise UnknownService(error.detail + _say_here(name)) from error
        if error.status == 401:
            message = f"{error.detail} `services submit` takes it from SERVICES_API_KEY, or by --api-key"
            raise Refused(message) from error
        raise Refused(f"{error.code}: {join_errors(error.errors) if error.errors else error.detail}") from error
    except ClientError as error:
        raise Refused(str(error)) from error


def _say_here(name: str) -> str:
    """Advice where a service that the API does not know is installed here."""
    if (hint := say_written(name)) and name not in list_plugins():
        return f"; {hint}, and start the API again"
    return ""


def _say_why(client: Client, url: str, job: Job, timeout_s: float) -> str:
    """The reason why a job has no output."""
    if error := job.raw["error"]:
        return f"{error['code']}: {join_errors(error['errors']) if error.get('errors') else error['message']}"
    if job.ended:
        return f"the job was {job.status}"
    text = f"the job is {job.status} after {timeout_s:g} s and goes on: GET {url}/jobs/{job.id}"
    service = client.service(job.service)
    if service.state == "ready":
        return text
    if service.reason:
        return f"{text}. The service is {service.state}: {service.reason}"
    return f"{text}. The service is {service.state}: `services run {job.service}` runs it"
