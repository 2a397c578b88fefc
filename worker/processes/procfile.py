"""Which lines ``services up`` starts: those of a Procfile, else the built-in ones."""

from __future__ import annotations

import re
from pathlib import Path

#: The lines to start where there is no Procfile of ours: the same four lines as the checkout's, by names of our own.
DEFAULT = """\
api: exec services api
redis: exec services redis
workers: exec services run
flower: exec celery -A libs_service flower --address=127.0.0.1 --port=${FLOWER_PORT:-5555} --logging=error
"""

#: A line of a Procfile: ``name: command``.
LINE = re.compile(r"^([A-Za-z0-9_-]+):\s*(.+)$")

#: A Procfile is ours where one of its lines starts something of ours. Many a repository has one for other programs.
OURS = re.compile(r"^[\w-]+\s*:.*(\bservices\s+(api|redis|run)\b|\blibs_service\b)", re.M)


def find_procfile() -> Path | None:
    """The nearest Procfile of ours, from the current folder upwards; None where there is none."""
    here = Path.cwd()
    return next((folder / "Procfile" for folder in (here, *here.parents) if _is_ours(folder / "Procfile")), None)


def find_checkout() -> Path:
    """The folder of the nearest Procfile of ours; else the current folder. The data folder lies in it."""
    procfile = find_procfile()
    return procfile.parent if procfile else Path.cwd()


def read_procfile() -> str:
    """The lines to start."""
    procfile = find_procfile()
    return procfile.read_text() if procfile else DEFAULT


def parse_procfile(text: str) -> dict[str, str]:
    """The command lines of a Procfile, by their names."""
    return {match[1]: match[2] for line in text.splitlines() if (match := LINE.match(line))}


def say_others() -> str:
    """A note about a Procfile in the current folder that starts nothing of ours; "" where there is none."""
    other = Path.cwd() / "Procfile"
    if find_procfile() or not other.is_file():
        return ""
    return (
        f"{other} starts nothing of libs-service, so it is left alone and the built-in lines are started: "
        "services api, services redis, services run, Flower"
    )


def _is_ours(path: Path) -> bool:
    try:
        return OURS.search(path.read_text(errors="replace")) is not None
    except OSError:  # none is there, it is a folder, or it cannot be read
        return False
