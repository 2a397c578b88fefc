"""``services webhooks``: the secrets that sign webhooks."""

from __future__ import annotations

import click

from worker.cli.common import fail, redis_errors
from worker.ledger.data_schema import check_schema
from worker.settings import get_settings


@click.command()
@click.argument("action", type=click.Choice(("secret", "rotate", "new")))
def webhooks(action: str) -> int:
    """Show, rotate or make the secrets that sign webhooks.

    secret: print those in use, the newest first; rotate: add one to them; new: print one for the settings.
    """
    from worker.ledger.sync_ledger import Ledger
    from worker.net.signing import make_secret
    from worker.webhooks.events import read_secrets, rotate_secrets

    settings = get_settings()
    if action == "new":
        print(make_secret())
        return 0
    if action == "rotate" and settings.webhook_secrets:
        return fail("SERVICES_WEBHOOK_SECRETS is set: put a new secret (`services webhooks new`) before those in it")
    client = Ledger(settings, timeout_s=settings.store_timeout_s, retries=0).redis
    with redis_errors(client):
        check_schema(client, settings)
        secrets = (rotate_secrets if action == "rotate" else read_secrets)(client, settings)
    print("\n".join(secrets))
    return 0
