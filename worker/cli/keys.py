"""``services keys``: API keys from the command line."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime

import click

from worker.cli.common import redis_errors
from worker.discovery import find_plugins
from worker.errors import ServicesError
from worker.ledger.api_keys import DEFAULT_SCOPES, Key, Keys, Scope
from worker.settings import get_settings

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
WIDTHS = {"ID": 12, "NAME": 20, "STATE": 8, "SCOPES": 18, "SERVICES": 20, "RATE": 8, "OPEN": 6}


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise click.BadParameter("expected 1 to 100 printable characters")
    return text.strip()


def _scope(text: str) -> Scope:
    if text not in set(Scope):
        raise click.BadParameter(f"expected one of {', '.join(Scope)}, got {text!r}")
    return Scope(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0.001 <= number <= 1e6:
        raise click.BadParameter(f"expected a number from 0.001 to 1000000, got {text!r}")
    return number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**9):
        raise click.BadParameter(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _moment(text: str) -> float:
    span = re.fullmatch(r"([1-9]\d{0,8})([smhd])", text)
    try:
        moment = time.time() + int(span[1]) * UNITS[span[2]] if span else _parse(text)
    except ValueError:
        moment = 0
    if not time.time() < moment < 253_402_300_800:  # the year 10000
        must = "expected a span such as 12h or 30d, or a time to come (RFC 3339)"
        raise click.BadParameter(f"{must}, got {text!r}")
    return round(moment, 3)


def _parse(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@click.option("--name", required=True, type=_name, metavar="NAME", help="the owner, for people to read")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME",
    help="a service that it may use, given once for each [default: all]",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=_scope,
    metavar="SCOPE",
    help=f"one of {', '.join(Scope)}, given once for each [default: all but admin]",
)
@click.option("--rate", type=_positive, metavar="N", help="requests a second  [default: any number]")
@click.option("--burst", type=_count, metavar="N", help="requests that may come at once [default: those of a second]")
@click.option("--concurrency", type=_count, metavar="N", help="jobs queued or running at once  [default: any number]")
@click.option("--expires", type=_moment, metavar="WHEN", help="after such as 12h or 30d, or at a time (RFC 3339)")
def create(
    name: str,
    services: tuple[str, ...],
    scopes: tuple[Scope, ...],
    rate: float | None,
    burst: int | None,
    concurrency: int | None,
    expires: float | None,
) -> None:
    """Make an API key and show it, this once."""
    if services and Scope.ADMIN in scopes:
        raise ServicesError("--scope admin sees everybody's jobs in all services: it goes with no --service")
    key = Key(
        id="",
        name=name,
        services=tuple(plugin.name for plugin in find_plugins(services)) if services else (),
        scopes=tuple(dict.fromkeys(scopes)) or DEFAULT_SCOPES,
        rate=rate or 0,
        burst=burst or max(1, math.ceil(rate or 0)),
        concurrency=concurrency or 0,
        expires=expires or 0,
    )
    stored = Keys(get_settings())
    with redis_errors(stored.redis):
        text, made = stored.create(key)
    click.echo(f"key {made.id} for {made.name}; only its hash is stored, so it is shown this once:", err=True)
    print(text)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="as a JSON array")
def list_keys(as_json: bool) -> None:
    """List the API keys (never the keys themselves)."""
    stored = Keys(get_settings())
    with redis_errors(stored.redis):
        listed = stored.list()
    if as_json:
        print(json.dumps([asdict(key) | {"state": key.ended() or "valid"} for key in listed], indent=2))
        return
    print("  ".join(name.ljust(width) for name, width in WIDTHS.items()) + "  EXPIRES")
    for key in listed:
        cells = [key.id, key.name, key.ended() or "valid", ",".join(key.scopes), ",".join(key.services) or "all"]
        cells += [f"{key.rate:g}/{key.burst}" if key.rate else "-", str(key.concurrency or "-")]
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True))
        expires = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if key.expires else "never"
        print(f"{padded}  {expires}")


@keys.command()
@click.argument("id")
def revoke(id: str) -> None:
    """End an API key; the APIs refuse it within seconds, its jobs go on."""
    stored = Keys(get_settings())
    with redis_errors(stored.redis):
        key = stored.revoke(id)
    print(f"revoked: {key.id} ({key.name})")
