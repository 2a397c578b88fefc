"""The command ``services``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from redis import RedisError

from worker.cli.input import INPUT_HELP, join_errors, positive, read_input, say_no_example
from worker.cli.keys import add_keys
from worker.cli.new import new, read_name
from worker.cli.submit import add_submit, submit
from worker.discovery import find_plugins, list_plugins, say_known
from worker.errors import JobExpired, JobNotFound, JobNotRetryable, QueueFull, ServicesError, UnknownService
from worker.ledger.data_schema import check_schema
from worker.names import WEBHOOKS
from worker.processes.launch import find_here
from worker.processes.logs import setup_logging
from worker.settings import EX_USAGE, Settings, get_settings

if TYPE_CHECKING:
    from worker.ledger.sync_ledger import Ledger

PERCENTILES = ("p50", "p95", "p99")

BENCH_HELP = """\
Measure a service at several batch sizes and numbers of clients, and propose its knobs.

Starts a Redis, an API and a worker of its own, which harm no others and are gone afterwards. Each client sends the
input over HTTP, waits for its output and sends again. A point is measured in windows until the last three are within
10 % of each other in throughput and mean latency (the rule of Triton's perf_analyzer), at most ten; "not stable" marks
one that did not get there. max_batch_size is swept by SERVICES_MAX_BATCH_SIZE; the plugin is left as it is. Numbers of
clients that cannot fill a larger batch than the one before are left out.

Then max_queue_delay_ms is tried at the best point, where its batches are not full.
"""

T = TypeVar("T")
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


def list_services(arguments: argparse.Namespace, _: Settings) -> int:
    """list the installed services"""
    plugins = list_plugins()
    if arguments.json:
        print(json.dumps([asdict(plugin) for plugin in plugins.values()], indent=2, ensure_ascii=False))
        return 0
    if not plugins:
        print("no service is installed (`pip install -e plugins/<name>`)")
    width = max(map(len, plugins), default=0)
    for plugin in plugins.values():
        print(f"{plugin.name:{width}}  {plugin.version:8}  {plugin.target}  {plugin.description}")
    return 0


def api(arguments: argparse.Namespace, _: Settings) -> int:
    """run the HTTP API, by uvicorn, until Ctrl-C"""
    from worker.local import up

    try:
        port = arguments.port or up.find_port()
    except up.Refused as error:
        return _fail(str(error), error.code)
    up.serve_api(arguments.host, port)
    return 0


def redis(_: argparse.Namespace, settings: Settings) -> int:
    """run the checkout's private Redis until Ctrl-C"""
    from worker.local.redis_server import serve

    return serve(settings)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """run a worker of each service (default: SERVICES, else all) and one of webhooks, started again when they die"""
    from worker.local.redis_server import serve_nothing
    from worker.local.supervisor import run_workers

    wanted = [name for name in arguments.name if name != WEBHOOKS]
    if not arguments.name:
        wanted = list(settings.services or list_plugins())
    names = [plugin.name for plugin in find_plugins(wanted)]
    if WEBHOOKS in arguments.name or (names and not arguments.name):
        names.append(WEBHOOKS)
    return run_workers(names) if names else serve_nothing("no service is installed: nothing to run")


def check(arguments: argparse.Namespace, _: Settings) -> int:
    """check that a plugin keeps the contract (its prints are left out)"""
    from worker.testing import check_plugin

    find_here()
    (plugin,) = find_plugins([arguments.name])
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


def predict(arguments: argparse.Namespace, _: Settings) -> int:
    """run one input through a service in this process, without Redis (default: its example); prints go to stderr"""
    from worker.testing import example_of, load, run_inline

    find_here()
    (plugin,) = find_plugins([arguments.name])
    given = read_input(arguments.input) if arguments.input else None
    try:
        service = _without_prints(lambda: load(plugin))
    except ServicesError as error:
        _show(error.__cause__)
        raise
    value = given if arguments.input else example_of(plugin, service)
    if value is None and not arguments.input:
        return _fail(say_no_example(plugin.name, f"services predict {plugin.name}"))
    (result,) = _without_prints(lambda: run_inline(service, [value]))
    if isinstance(result, ServicesError):
        _show(result.__cause__)
        return _fail(f"{result.code}: {_say(result)}")
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


def retry(arguments: argparse.Namespace, settings: Settings) -> int:
    """run failed jobs again: all of a service, or one by its id"""
    from worker.filestore.holds import run_again
    from worker.ledger.sync_ledger import Ledger
    from worker.net.redis_clients import say_refusal

    target, plugins = arguments.target, list_plugins()
    ledger = Ledger(settings, timeout_s=settings.store_timeout_s, retries=0)
    try:
        check_schema(ledger.redis, settings)
        if target in plugins:
            return _retry_all(ledger, target)
        run_again(ledger, target)
        print(f"queued again: {target}")
    except JobNotFound as error:
        return _fail(f"{error.message}, and no service this name; {say_known(plugins)}")
    except RedisError as error:
        return _fail(say_refusal(error, settings.away_hint))
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
            print(f"passed over: {error.message}")  # somebody else was quicker
        except QueueFull as error:
            left = len(ids) - queued
            wait = f"run this again in {error.retry_after_s} s"
            return _fail(f"the queue of {service} is full: {queued} queued again, {left} still failed; {wait}")
        else:
            queued += 1
            print(f"queued again: {job_id}")
    if not ids:
        print(f"no job of {service} has failed")
    return 0


def bench(arguments: argparse.Namespace, settings: Settings) -> int:
    """measure a service at several batch sizes and numbers of clients, and propose its knobs"""
    from worker.cli.bench import Plan, propose, write_plot
    from worker.cli.bench import run as measure
    from worker.testing import example_of

    (plugin,) = find_plugins([arguments.name])
    value = read_input(arguments.input) if arguments.input else example_of(plugin)
    if value is None and not arguments.input:
        return _fail(say_no_example(plugin.name, f"services bench {plugin.name} --input"))
    plan = Plan(
        batch_sizes=arguments.batch_sizes,
        clients=arguments.clients,
        window_s=arguments.window_s,
        budget_ms=arguments.budget_ms,
        percentile=arguments.percentile,
    )
    plot = arguments.plot or get_settings().data_folder / "bench" / f"{plugin.name}.svg"
    plot.parent.mkdir(parents=True, exist_ok=True)
    points = measure(plugin, value, plan, settings)
    print(f"\n{propose(points, plan)}\n{write_plot(points, plugin.name, plot)}")
    return 0


def webhooks(arguments: argparse.Namespace, settings: Settings) -> int:
    """show, rotate or make the secrets that sign webhooks"""
    from worker.ledger.sync_ledger import Ledger
    from worker.net.redis_clients import say_refusal
    from worker.net.signing import make_secret
    from worker.webhooks.events import read_secrets, rotate_secrets

    if arguments.action == "new":
        print(make_secret())
        return 0
    if arguments.action == "rotate" and settings.webhook_secrets:
        return _fail("SERVICES_WEBHOOK_SECRETS is set: put a new secret (`services webhooks new`) before those in it")
    client = Ledger(settings, timeout_s=settings.store_timeout_s, retries=0).redis
    try:
        check_schema(client, settings)
        secrets = (rotate_secrets if arguments.action == "rotate" else read_secrets)(client, settings)
    except RedisError as error:
        return _fail(say_refusal(error, settings.away_hint))
    print("\n".join(secrets))
    return 0


def keys(_: argparse.Namespace, __: Settings) -> int:
    """make, list and revoke API keys"""
    raise AssertionError("argparse asks for one of its actions")


def up(_: argparse.Namespace, settings: Settings) -> int:
    """start Redis, the API, the workers and Flower (or the Procfile's lines), run one sample job, go on until Ctrl-C"""
    from worker.local.up import up as start

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

    add("list", list_services).add_argument("--json", action="store_true", help="as a JSON array")
    for_api = add("api", api)
    for_api.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: 127.0.0.1)")
    for_api.add_argument("--port", type=_port, metavar="PORT", help="to listen on (default: PORT, else 8000)")
    add("redis", redis)
    add("run", run).add_argument("name", nargs="*", metavar="NAME", help=f"a service, or {WEBHOOKS}")
    making = add("new", new)
    making.add_argument("name", metavar="NAME", type=read_name, help="of the service; its package has _ for -")
    into = "the folder to write it into (default: plugins/ of the checkout, else of the current folder)"
    making.add_argument("--into", type=Path, metavar="DIR", help=into)
    add("check", check).add_argument("name", metavar="NAME", help="a service")
    for_predict = add("predict", predict)
    for_predict.add_argument("name", metavar="NAME", help="a service")
    for_predict.add_argument("input", nargs="?", metavar="INPUT", help=INPUT_HELP)
    add_submit(add("submit", submit))
    _add_bench(add("bench", bench))
    add("retry", retry).add_argument("target", metavar="NAME|ID", help="a service, or the id of a job")
    actions = ("secret", "rotate", "new")
    which = "secret: print those in use, the newest first; rotate: add one to them; new: print one for the settings"
    add("webhooks", webhooks).add_argument("action", choices=actions, help=which)
    add_keys(add("keys", keys))
    add("up", up)
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = BENCH_HELP
    add = parser.add_argument
    add("name", metavar="NAME", help="a service")
    add("--input", metavar="INPUT", help=f"of every job: {INPUT_HELP} (default: the service's example)")
    add("--batch-sizes", type=_whole_numbers, default=(1, 4, 16, 64), metavar="N,N", help="default: 1,4,16,64")
    add("--clients", type=_whole_numbers, default=(1, 4, 16, 64), metavar="N,N", help="default: 1,4,16,64")
    add("--budget-ms", type=positive, default=100, metavar="MS", help="the longest latency (default: 100)")
    add("--percentile", choices=PERCENTILES, default="p99", help="which latency the budget is for (default: p99)")
    add("--window-s", type=positive, default=1, metavar="S", help="length of a window (default: 1)")
    plot = "where to draw throughput over latency (default: .services/bench/NAME.svg); without matplotlib, a .csv"
    add("--plot", type=Path, metavar="FILE", help=plot)


def _port(text: str) -> int:
    from worker.local import up

    try:
        return up.read_port("it", text)
    except up.Refused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1, comma-separated, got {text!r}")
    return tuple(numbers)


def _epilog() -> str:
    plugins = list_plugins()
    lines = [f"  {plugin.name:20} {plugin.version:8} {plugin.description}" for plugin in plugins.values()]
    return "installed services:\n" + ("\n".join(lines) or "  none (`pip install -e plugins/<name>`)")


def _say(error: ServicesError) -> str:
    """Its message, which names the first wrong field, or all fields where there are more."""
    return join_errors(error.errors) if len(error.errors or ()) > 1 else error.message


def _show(cause: BaseException | None) -> None:
    """Print the traceback of a plugin's exception, for the plugin's author."""
    if cause is None:
        return
    told = traceback.TracebackException.from_exception(cause)
    own = [frame for frame in told.stack if "importlib" not in frame.filename]  # ten frames of which none is anybody's
    told.stack = traceback.StackSummary.from_list(own)
    print("".join(told.format()), end="", file=sys.stderr)


def _fail(message: str, code: int = 1) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
