"""``services api``, ``redis``, ``run`` and ``up``: processes on this machine, each until Ctrl-C."""

from __future__ import annotations

import click

from worker.cli.common import fail
from worker.discovery import find_plugins, list_plugins
from worker.names import WEBHOOKS
from worker.settings import get_settings


def read_port(text: str) -> int:
    """The type of an option: a port."""
    from worker.local import up

    try:
        return up.read_port("it", text)
    except up.Refused as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="to listen on")
@click.option("--port", type=read_port, metavar="PORT", help="to listen on  [default: PORT, else 8000]")
def api(host: str, port: int | None) -> int:
    """Run the HTTP API, by uvicorn, until Ctrl-C."""
    from worker.local import up

    try:
        up.serve_api(host, port or up.find_port())
    except up.Refused as error:
        return fail(str(error), error.code)
    return 0


@click.command()
def redis() -> int:
    """Run the checkout's private Redis until Ctrl-C."""
    from worker.local.redis_server import serve

    return serve(get_settings())


@click.command(
    help="Run a worker of each service NAME, started again when it dies.\n\nBy default those in SERVICES, else "
    f"all, and one of {WEBHOOKS}."
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
def run(names: tuple[str, ...]) -> int:
    """Run workers."""
    from worker.local.redis_server import serve_nothing
    from worker.local.supervisor import run_workers

    wanted = [name for name in names if name != WEBHOOKS]
    if not names:
        wanted = list(get_settings().services or list_plugins())
    workers = [plugin.name for plugin in find_plugins(wanted)]
    if WEBHOOKS in names or (workers and not names):
        workers.append(WEBHOOKS)
    return run_workers(workers) if workers else serve_nothing("no service is installed: nothing to run")


@click.command()
def up() -> int:
    """Start everything, run one sample job, go on until Ctrl-C.

    Everything is Redis, the API, the workers and Flower, or the lines of a Procfile.
    """
    from worker.local.up import up as start

    return start(get_settings())
