"""The command ``services``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from redis import RedisError

from worker.discovery import find_plugins, list_plugins
from worker.errors import ServicesError, UnknownService
from worker.logs import setup_logging
from worker.settings import EX_USAGE, Settings, get_settings

Command = Callable[[argparse.Namespace, Settings], int]


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failed, 2 a command line that cannot be."""
    arguments = _parser().parse_args(argv)
    settings = get_settings()
    setup_logging(settings.log_level)
    command: Command = arguments.command
    try:
        code = command(arguments, settings)
    except UnknownService as error:
        code = _fail(error.message, EX_USAGE)
    except ServicesError as error:
        code = _fail(error.message)
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def list_services(_: argparse.Namespace, __: Settings) -> int:
    """list the installed services"""
    plugins = list_plugins()
    if not plugins:
        print("no service is installed (`pip install -e plugins/<name>`)")
    width = max(map(len, plugins), default=0)
    for plugin in plugins.values():
        print(f"{plugin.name:{width}}  {plugin.version:8}  {plugin.target}  {plugin.description}")
    return 0


def redis(_: argparse.Namespace, settings: Settings) -> int:
    """run the checkout's private Redis until Ctrl-C"""
    from worker.embedded import serve

    return serve(settings)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """run a worker of each service (default: SERVICES, else all), started again when it dies"""
    from worker.embedded import serve_nothing
    from worker.supervisor import run_workers

    names = [plugin.name for plugin in find_plugins(arguments.name or settings.services or list_plugins())]
    return run_workers(names) if names else serve_nothing("no service is installed: nothing to run")


def check(arguments: argparse.Namespace, _: Settings) -> int:
    """check that a plugin keeps the contract"""
    from worker.testing import check_plugin

    (plugin,) = find_plugins([arguments.name])
    failed = False
    for result in check_plugin(plugin):
        failed = failed or bool(result.problem)
        print(f"FAILED  {result.name}: {result.problem}" if result.problem else f"ok      {result.name}", flush=True)
        _show(result.cause)
    return 1 if failed else 0


def predict(arguments: argparse.Namespace, _: Settings) -> int:
    """run one input through a service in this process, without Redis (default: its example)"""
    from worker.testing import example_of, load, run_inline

    (plugin,) = find_plugins([arguments.name])
    given = _read_input(arguments.input) if arguments.input else None
    try:
        service = load(plugin)
    except ServicesError as error:
        _show(error.__cause__)
        raise
    value = given if arguments.input else example_of(plugin, service)
    if value is None and not arguments.input:
        return _fail(f"{plugin.name} has no example; give an input: services predict {plugin.name} FILE (or -)")
    (result,) = run_inline(service, [value])
    if isinstance(result, ServicesError):
        _show(result.__cause__)
        return _fail(f"{result.code}: {_say(result)}")
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def retry(arguments: argparse.Namespace, settings: Settings) -> int:
    """run failed jobs again: all of a service, or one by its id"""
    from worker.ledger import Ledger

    ledger = Ledger(settings, timeout_s=settings.store_timeout_s, retries=0)
    try:
        ids = list(ledger.failed(arguments.target)) if arguments.target in list_plugins() else [arguments.target]
        for job_id in ids:
            ledger.retry(job_id)
            print(f"queued again: {job_id}")
    except RedisError as error:
        return _fail(f"Redis does not answer ({type(error).__name__}). {settings.away_hint}")
    if not ids:
        print(f"no job of {arguments.target} has failed")
    return 0


def up(_: argparse.Namespace, settings: Settings) -> int:
    """start everything in the Procfile, run one sample job, and go on until Ctrl-C (`make run`)"""
    from worker.up import up as start

    return start(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services", description="Asynchronous inference services.")
    parser.epilog = _epilog()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        return sub

    add("list", list_services)
    add("redis", redis)
    add("run", run).add_argument("name", nargs="*", metavar="NAME", help="a service")
    add("check", check).add_argument("name", metavar="NAME", help="a service")
    for_predict = add("predict", predict)
    for_predict.add_argument("name", metavar="NAME", help="a service")
    for_predict.add_argument("input", nargs="?", metavar="FILE", help="a file with the input as JSON; - for stdin")
    add("retry", retry).add_argument("target", metavar="NAME|ID", help="a service, or the id of a job")
    add("up", up)
    return parser


def _epilog() -> str:
    plugins = list_plugins()
    lines = [f"  {plugin.name:20} {plugin.version:8} {plugin.description}" for plugin in plugins.values()]
    return "installed services:\n" + ("\n".join(lines) or "  none (`pip install -e plugins/<name>`)")


def _read_input(name: str) -> object:
    try:
        return json.loads(sys.stdin.read() if name == "-" else Path(name).read_text())
    except OSError as error:
        raise ServicesError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise ServicesError(f"{name} is not JSON: {error}") from error


def _say(error: ServicesError) -> str:
    """Its message, which names the first wrong field, or all fields where there are more."""
    fields = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors or ()]
    return error.message if len(fields) < 2 else "; ".join(fields)


def _show(cause: BaseException | None) -> None:
    """The traceback of what a plugin raised: its author is the one who reads it here."""
    if cause is not None:
        traceback.print_exception(cause)


def _fail(message: str, code: int = 1) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
