"""The parts that commands share: their arguments, and their errors."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from redis import Redis, RedisError

from worker.errors import ServicesError
from worker.settings import get_settings

#: The forms of an input, for a command's help.
INPUT_HELP = "the input as JSON; @FILE or FILE: a file with it; - for stdin"


class InputCommand(click.Command):
    """A command with an INPUT, which may be a negative number: click alone reads ``-5`` as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; an unknown option beside a negative number is refused as an extra argument."""
        ctx.ignore_unknown_options = any(re.fullmatch(r"-(\d+\.?\d*|\.\d+)", argument) for argument in args)
        return super().parse_args(ctx, args)


def read_input(given: str) -> Any:
    """An input from the command line: JSON, ``@file``, a file's name, or ``-`` for stdin. Raises ``ServicesError``."""
    if given == "-":
        return _parse(sys.stdin.read(), "what came by stdin")
    if not given.startswith("@"):
        try:
            return json.loads(given)
        except ValueError as error:
            if given.lstrip().startswith(("{", "[", '"')):
                raise ServicesError(f"the input is not JSON: {error}") from error
    name = given.removeprefix("@")
    try:
        return _parse(Path(name).read_text(encoding="utf-8"), name)
    except OSError as error:
        raise ServicesError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServicesError(f"{name} is not JSON: it is not UTF-8") from error


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServicesError(f"{name} is not JSON: {error}") from error


def say_no_example(name: str, command: str) -> str:
    """Advice for a service that has no example."""
    return f"{name} has no example; give an input: {command} JSON (or FILE, or -)"


def fail(message: str, code: int = 1) -> int:
    """Print an error; returns the exit code."""
    click.echo(f"Error: {message}", err=True)
    return code


@contextmanager
def redis_errors(client: Redis) -> Iterator[None]:
    """Turn an error of Redis into one line that names the remedy, and close the client at the end."""
    from worker.net.redis_clients import say_refusal

    try:
        yield
    except RedisError as error:
        raise ServicesError(say_refusal(error, get_settings().away_hint)) from error
    finally:
        client.close()


def join_errors(errors: Any) -> str:
    """The fields that are wrong, each with the expectation."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)


def positive(text: str) -> float:
    """The type of an option: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise click.BadParameter(f"expected a number above 0, got {text!r}")
    return number
