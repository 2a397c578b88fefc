"""``services new``: a plugin that works at once, to begin from.

``worker/cli/new_plugin/`` is that plugin, of the name ``plugin-name``; it is copied with another name.
"""

from __future__ import annotations

import keyword
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from worker.discovery import list_plugins
from worker.errors import ServicesError
from worker.names import WEBHOOKS
from worker.processes.procfile import find_checkout

TEMPLATE = Path(__file__).parent / "new_plugin"

#: Narrower than a service's name may be: it is a package's and a distribution's too, and stands in lines of code.
NAME = re.compile(r"[a-z]([a-z0-9_-]{0,38}[a-z0-9])?")

#: As classes, words of the contract; a queue of our own; the checkout's tests; in the distribution's name, our client.
TAKEN = frozenset({"input", "output", "service", WEBHOOKS, "tests", "client"})


class Refused(ServicesError):
    """It cannot be written; nothing was."""

    code = "refused"


def read_name(text: str) -> str:
    """The type of an argument: a plugin's name."""
    if not NAME.fullmatch(text):
        must = "expected at most 40 lower-case letters, digits, - and _, a letter first and no - or _ last"
        raise click.BadParameter(f"{text!r} cannot be a plugin's name: {must}")
    package, kind = _in_code(text)
    if text in TAKEN or keyword.iskeyword(package) or keyword.iskeyword(kind):
        raise click.BadParameter(f"{text!r} means something else already: choose another name")
    return text


@click.command()
@click.argument("name", type=read_name)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="the folder to write it into [default: plugins/ of the checkout, else of the current folder]",
)
def new(name: str, into: Path | None) -> None:
    """Write a plugin that works at once, to begin from.

    NAME is the service's; the plugin's package has _ for -.
    """
    names = _find_names(name)
    prefix = _find_prefix()
    target = _find_folder(into) / name
    if os.path.lexists(target):
        raise Refused(f"{target} is there already: nothing is overwritten")
    _write(target, names)
    shown = shlex.quote(os.path.relpath(target) if target.is_relative_to(Path.cwd()) else str(target))
    print(f"written: {shown}, a service that works: replace what is marked in src/{names['plugin_name']}/. Next:\n")
    print(f"  {_say_install(prefix)} -e {shown}")
    print(f"  {prefix}services check {name}\n  {prefix}services predict {name}\n")
    print(
        "An API that runs already does not know it: start `services up` (`make run`), or the API and a worker, again."
    )
    print(f"For `docker compose`, its block stands in {shown}/README.md.")


def _in_code(name: str) -> tuple[str, str]:
    """The package and the class of a plugin."""
    package = name.replace("-", "_")
    return package, "".join(part.capitalize() for part in package.split("_"))


def _find_prefix() -> str:
    """The path before the commands of this environment, if it is not activated and a shell would not find them."""
    here = Path(sys.prefix) / "bin"
    if shutil.which("services") in (None, str(here / "services")) and shutil.which("pip") == str(here / "pip"):
        return ""
    return shlex.quote(f"{os.path.relpath(here) if here.is_relative_to(Path.cwd()) else here}/")


def _say_install(prefix: str) -> str:
    """The command that installs into this environment: one that uv has made holds no pip."""
    if (Path(sys.prefix) / "bin" / "pip").exists() or not shutil.which("uv"):
        return f"{prefix}pip install"
    return "uv pip install" + (f" --python {prefix}python" if prefix else "")


def _find_names(name: str) -> dict[str, str]:
    """The words of the template and their replacements. Raises ``Refused`` for a name that is taken."""
    package, kind = _in_code(name)
    if installed := list_plugins().get(name):
        raise Refused(f"a service named {name} is installed already, by {installed.distribution} {installed.version}")
    if find_spec(package) is not None:
        raise Refused(f"there is a Python module {package} already, which this one would hide: choose another name")
    return {"plugin_name": package, "plugin-name": name, "PluginName": kind}


def _find_folder(into: Path | None) -> Path:
    """The folder in which plugins are. Raises ``Refused``."""
    if into is not None:
        if not into.is_dir():
            raise Refused(f"--into: there is no folder {into}")
        return into.resolve()
    folder = find_checkout() / "plugins"
    try:
        folder.mkdir(exist_ok=True)  # the first plugin of a team's own repository
    except OSError as error:
        raise Refused(f"cannot make the folder {folder} ({error.strerror}); name another by --into DIR") from error
    return folder


def _write(target: Path, names: dict[str, str]) -> None:
    """Copy the template under its new names; nothing is left of a copy that fails. Raises ``Refused``."""
    try:
        target.mkdir()  # fails where somebody else was quicker
    except OSError as error:
        raise Refused(f"cannot write {target}: {error.strerror}") from error
    try:
        for source in sorted(TEMPLATE.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                file = target / _rename(str(source.relative_to(TEMPLATE)), names)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_sort_imports(_rename(source.read_text(encoding="utf-8"), names)), encoding="utf-8")
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise Refused(f"cannot write {target}: {error.strerror}") from error


def _rename(text: str, names: dict[str, str]) -> str:
    return re.sub("|".join(names), lambda found: names[found[0]], text)


def _sort_imports(text: str) -> str:
    """Lines of imports in order of their modules, which the new name may have changed."""
    return re.sub(r"(?m)(^from .*\n){2,}", lambda found: "".join(sorted(found[0].splitlines(keepends=True))), text)
