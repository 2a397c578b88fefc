"""``services keys``: API keys from the command line."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

from redis import RedisError

from worker.discovery import find_plugins
from worker.errors import ServicesError
from worker.ledger.api_keys import DEFAULT_SCOPES, Key, Keys, Scope
from worker.net.redis_clients import say_refusal
from worker.settings import Settings

Command = Callable[[argparse.Namespace, Settings], int]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
WIDTHS = {"ID": 12, "NAME": 20, "STATE": 8, "SCOPES": 18, "SERVICES": 20, "RATE": 8, "OPEN": 6}


def create(arguments: argparse.Namespace, settings: Settings) -> int:
    """make an API key and show it, this once"""
    if arguments.service and Scope.ADMIN in arguments.scope:
        raise ServicesError("--scope admin sees everybody's jobs in all services: it goes with no --service")
    services = tuple(plugin.name for plugin in find_plugins(arguments.service)) if arguments.service else ()
    key = Key(
        id="",
        name=arguments.name,
        services=services,
        scopes=tuple(dict.fromkeys(arguments.scope)) or DEFAULT_SCOPES,
        rate=arguments.rate,
        burst=arguments.burst or max(1, math.ceil(arguments.rate)),
        concurrency=arguments.concurrency,
        expires=arguments.expires,
    )
    text, made = Keys(settings).create(key)
    told = f"key {made.id} for {made.name}; only its hash is stored, so it is shown this once:"
    print(told, file=sys.stderr, flush=True)
    print(text)
    return 0


def list_keys(arguments: argparse.Namespace, settings: Settings) -> int:
    """list the API keys (never the keys themselves)"""
    found = Keys(settings).list()
    if arguments.json:
        print(json.dumps([asdict(key) | {"state": key.ended() or "valid"} for key in found], indent=2))
        return 0
    print("  ".join(name.ljust(width) for name, width in WIDTHS.items()) + "  EXPIRES")
    for key in found:
        cells = [key.id, key.name, key.ended() or "valid", ",".join(key.scopes), ",".join(key.services) or "all"]
        cells += [f"{key.rate:g}/{key.burst}" if key.rate else "-", str(key.concurrency or "-")]
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True))
        expires = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if key.expires else "never"
        print(f"{padded}  {expires}")
    return 0


def revoke(arguments: argparse.Namespace, settings: Settings) -> int:
    """end an API key; the APIs refuse it within seconds, its jobs go on"""
    key = Keys(settings).revoke(arguments.id)
    print(f"revoked: {key.id} ({key.name})")
    return 0


def guarded(command: Command) -> Command:
    """The command, with one line where Redis does not answer."""

    def run(arguments: argparse.Namespace, settings: Settings) -> int:
        try:
            return command(arguments, settings)
        except RedisError as error:
            raise ServicesError(say_refusal(error, settings.away_hint)) from error

    run.__doc__ = command.__doc__
    return run


def add_keys(parser: argparse.ArgumentParser) -> None:
    """The parts of ``services keys``."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, command: Command) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=guarded(command))
        return sub

    making = add("create", create)
    making.add_argument("--name", required=True, type=_name, help="whose it is, for people to read")
    making.add_argument(
        "--service", action="append", default=[], help="a service that it may use, given once for each (default: all)"
    )
    scopes = f"one of {', '.join(Scope)}, given once for each (default: all but admin)"
    making.add_argument("--scope", action="append", default=[], metavar="SCOPE", type=_scope, help=scopes)
    making.add_argument("--rate", type=_positive, default=0, help="requests a second (default: any number)")
    making.add_argument("--burst", type=_count, default=0, help="requests that may come at once (default: a second's)")
    making.add_argument("--concurrency", type=_count, default=0, help="jobs queued or running at once (default: any)")
    making.add_argument("--expires", type=_moment, default=0, help="after such as 12h or 30d, or at a time (RFC 3339)")
    add("list", list_keys).add_argument("--json", action="store_true", help="as a JSON array")
    add("revoke", revoke).add_argument("id", metavar="ID", help="of `services keys list`")


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise argparse.ArgumentTypeError("expected 1 to 100 printable characters")
    return text.strip()


def _scope(text: str) -> Scope:
    if text not in set(Scope):
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(Scope)}, got {text!r}")
    return Scope(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0.001 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"expected a number from 0.001 to 1000000, got {text!r}")
    return number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**9):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _moment(text: str) -> float:
    span = re.fullmatch(r"([1-9]\d{0,8})([smhd])", text)
    try:
        moment = time.time() + int(span[1]) * UNITS[span[2]] if span else _parse(text)
    except ValueError:
        moment = 0
    if not time.time() < moment < 253_402_300_800:  # the year 10000
        must = "expected a span such as 12h or 30d, or a time to come (RFC 3339)"
        raise argparse.ArgumentTypeError(f"{must}, got {text!r}")
    return round(moment, 3)


def _parse(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
