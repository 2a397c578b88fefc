"""Generate the sync client from the asyncio one: ``python -m scripts.generate_client``, as ``make generate`` runs it.

``--check``, as in ``make check``, writes nothing and fails if the file in the repository differs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from unasync import Rule, unasync_files

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "client/src/libs_service_client/asynchronous.py"
TARGET = SOURCE.with_name("sync.py")
HEADER = f"# Generated from {SOURCE.name} by `make generate`: edit that file, not this one.\n"
#: Names that change, besides unasync's own (``AsyncIterator``, ``__aenter__`` …; ``AsyncX`` becomes ``SyncX``).
NAMES = {
    "AsyncBatch": "Batch",
    "AsyncClient": "Client",
    "AsyncInputs": "Inputs",
    "AsyncJob": "Job",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "anext": "next",
    "aread": "read",
    "asyncio": "time",  # asyncio.sleep
    "read_async": "read",
    "to_thread": "direct",
}


def main() -> int:
    """Write the generated file, or check it; returns the exit code."""
    text = generate()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif text != TARGET.read_text():
        name, source = TARGET.relative_to(ROOT), SOURCE.relative_to(ROOT)
        print(f"{name} is stale: it differs from the file that {source} generates. Run `make generate`.")
        return 1
    return 0


def generate() -> str:
    """The text of the generated file."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copy(SOURCE, folder))
        unasync_files([str(source)], [Rule(f"/{SOURCE.name}", f"/{TARGET.name}", NAMES)])
        text = HEADER + source.with_name(TARGET.name).read_text()
    return run_ruff(run_ruff(text, "check", "--fix", "--quiet", "--select", "I"), "format")


def run_ruff(text: str, *arguments: str) -> str:
    """The text after a command of ruff, by the rules of this repository."""
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


if __name__ == "__main__":
    sys.exit(main())
