"""``services list``, ``check`` and ``predict``: the installed plugins, without Redis."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import click

from worker.cli.common import INPUT_HELP, InputCommand, fail, join_errors, read_input, say_no_example
from worker.discovery import find_plugins, list_plugins
from worker.errors import ServicesError
from worker.processes.launch import find_here

T = TypeVar("T")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="as a JSON array")
def list_services(as_json: bool) -> None:
    """List the installed services."""
    plugins = list_plugins()
    if as_json:
        print(json.dumps([asdict(plugin) for plugin in plugins.values()], indent=2, ensure_ascii=False))
        return
    if not plugins:
        print("no service is installed (`pip install -e plugins/<name>`)")
    width = max(map(len, plugins), default=0)
    for plugin in plugins.values():
        print(f"{plugin.name:{width}}  {plugin.version:8}  {plugin.target}  {plugin.description}")


@click.command()
@click.argument("name")
def check(name: str) -> int:
    """Check that a plugin keeps the contract. The plugin's own prints are left out."""
    from worker.testing import check_plugin

    find_here()
    (plugin,) = find_plugins([name])
    failed = False
    results = check_plugin(plugin)
    while result := _without_prints(lambda: next(results, None), os.devnull):
        failed = failed or bool(result.problem)
        if result.left_out:
            print(f"left out: {result.name}: {result.left_out}", file=sys.stderr, flush=True)
            continue
        print(f"FAILED  {result.name}: {result.problem}" if result.problem else f"ok      {result.name}", flush=True)
        _show(result.cause)
    return 1 if failed else 0


@click.command(
    cls=InputCommand,
    help=f"Run one input through a service in this process, without Redis.\n\nINPUT: {INPUT_HELP}; "
    "by default the service's example. The plugin's prints go to stderr.",
)
@click.argument("name")
@click.argument("input", required=False)
def predict(name: str, input: str | None) -> int:
    """Run one input through a service."""
    from worker.testing import example_of, load, run_inline

    find_here()
    (plugin,) = find_plugins([name])
    given = read_input(input) if input else None
    try:
        service = _without_prints(lambda: load(plugin))
    except ServicesError as error:
        _show(error.__cause__)
        raise
    value = given if input else example_of(plugin, service)
    if value is None and not input:
        return fail(say_no_example(plugin.name, f"services predict {plugin.name}"))
    (result,) = _without_prints(lambda: run_inline(service, [value]))
    if isinstance(result, ServicesError):
        _show(result.__cause__)
        # the message names the first wrong field alone
        text = join_errors(result.errors) if len(result.errors or ()) > 1 else result.message
        return fail(f"{result.code}: {text}")
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def _without_prints(call: Callable[[], T], to: str = "") -> T:
    """Call a plugin while its prints, from C too, go to stderr (or to this file): stdout is for our output."""
    sys.stdout.flush()
    stdout = os.dup(1)
    other = os.open(to, os.O_WRONLY) if to else os.dup(2)
    os.dup2(other, 1)
    os.close(other)
    try:
        return call()
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _show(cause: BaseException | None) -> None:
    """Print the traceback of a plugin's exception, for the plugin's author."""
    if cause is None:
        return
    trace = traceback.TracebackException.from_exception(cause)
    own = [frame for frame in trace.stack if "importlib" not in frame.filename]  # ten frames of no use
    trace.stack = traceback.StackSummary.from_list(own)
    print("".join(trace.format()), end="", file=sys.stderr)
