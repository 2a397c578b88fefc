"""``services retry``: failed jobs again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from worker.cli.common import fail, redis_errors
from worker.discovery import list_plugins, say_known
from worker.errors import JobExpired, JobNotFound, JobNotRetryable, QueueFull
from worker.ledger.data_schema import check_schema
from worker.settings import get_settings

if TYPE_CHECKING:
    from worker.ledger.sync_ledger import Ledger


@click.command()
@click.argument("target", metavar="NAME|ID")
def retry(target: str) -> int:
    """Run failed jobs again: all of a service, or one by its id."""
    from worker.filestore.holds import run_again
    from worker.ledger.sync_ledger import Ledger

    settings, plugins = get_settings(), list_plugins()
    ledger = Ledger(settings, timeout_s=settings.store_timeout_s, retries=0)
    with redis_errors(ledger.redis):
        check_schema(ledger.redis, settings)
        if target in plugins:
            return _retry_all(ledger, target)
        try:
            run_again(ledger, target)
        except JobNotFound as error:
            return fail(f"{error.message}, and no service this name; {say_known(plugins)}")
        print(f"queued again: {target}")
    return 0


def _retry_all(ledger: Ledger, service: str) -> int:
    """Every failed job of a service, as far as its queue has room."""
    from worker.filestore.holds import run_again

    ids = list(ledger.failed(service))
    queued = 0
    for job_id in ids:
        try:
            run_again(ledger, job_id)
        except (JobNotFound, JobExpired, JobNotRetryable) as error:
            print(f"passed over: {error.message}")  # another command was quicker
        except QueueFull as error:
            left = len(ids) - queued
            wait = f"run this again in {error.retry_after_s} s"
            return fail(f"the queue of {service} is full: {queued} queued again, {left} still failed; {wait}")
        else:
            queued += 1
            print(f"queued again: {job_id}")
    if not ids:
        print(f"no job of {service} has failed")
    return 0
