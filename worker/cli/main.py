"""The command ``services``: a click group; each command is a function in a module of its topic."""

from __future__ import annotations

import signal
import sys

import click

from worker.cli.bench import bench
from worker.cli.common import fail
from worker.cli.keys import keys
from worker.cli.local import api, redis, run, up
from worker.cli.new import new
from worker.cli.plugins import check, list_services, predict
from worker.cli.retry import retry
from worker.cli.submit import submit
from worker.cli.webhooks import webhooks
from worker.discovery import list_plugins
from worker.errors import ServicesError, UnknownService
from worker.ledger.data_schema import own_version
from worker.processes.logs import setup_logging
from worker.settings import EX_USAGE, get_settings


class Services(click.Group):
    """The group of all commands. Its help lists the installed services too."""

    def list_commands(self, context: click.Context) -> list[str]:
        """In the order in which they are needed, not by the alphabet."""
        return list(self.commands)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the installed services."""
        rows = [(plugin.name, f"{plugin.version}  {plugin.description}") for plugin in list_plugins().values()]
        with formatter.section("Installed services"):
            formatter.write_dl(rows or [("none", "install one by `pip install -e plugins/<name>`")])


@click.group(cls=Services, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(own_version(), "--version", message="libs-service %(version)s")
def services() -> None:
    """Asynchronous inference services."""
    setup_logging(get_settings().log_level)


for command in (list_services, api, redis, run, new, check, predict, submit, bench, retry, webhooks, keys, up):
    services.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failed, 2 a command line that is wrong."""
    try:
        code = services.main(arguments, prog_name="services", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UnknownService as error:
        code = fail(error.message, EX_USAGE)
    except ServicesError as error:
        code = fail(error.message)
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        code = 128 + signal.SIGINT
    sys.exit(code)


if __name__ == "__main__":
    main()
