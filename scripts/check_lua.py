"""luacheck on all Lua: ``python -m scripts.check_lua``, as ``make check`` runs it.

A script of the ledger is a file with the files that it includes, so luacheck reads these together: a name that no
include defines is an error. A name is unused where no script uses it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scripts.system_packages import install_command, packages_of
from worker.ledger.scripts import FOLDER, arrange, read_script

ROOT = Path(__file__).resolve().parent.parent
LEDGER = Path(str(FOLDER))
WARNING = re.compile(r"^(.+?):(\d+):\d+: (.*)$", re.M)


def main() -> int:
    """Print the warnings; gives 1 where there are any."""
    if not shutil.which("luacheck"):
        how = install_command(packages_of(["luacheck"]))
        print(f"luacheck is not installed, so the Lua is not checked. To install it: {how}")
        return 0
    others = [path for path in (ROOT / "worker").rglob("*.lua") if LEDGER not in path.parents]
    messages = sorted(
        [*check_ledger(), *(f"{path.relative_to(ROOT)}:{line}: {text}" for path, line, text in run(others))]
    )
    print("\n".join(messages) or "luacheck: no warnings")
    return 1 if messages else 0


def check_ledger() -> Iterator[str]:
    """The warnings on the ledger's scripts, each once, with the file and the line that it is about."""
    operations = sorted(path.stem for path in LEDGER.glob("*.lua"))
    included = Counter(name for operation in operations for name in read_script(operation))
    places: dict[str, list[tuple[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for operation in operations:
            texts = arrange(read_script(operation))
            places[operation] = [(name, number) for name, text in texts for number in range(1, text.count("\n") + 1)]
            (Path(folder) / f"{operation}.lua").write_text("".join(text for _, text in texts))
        warnings = Counter((places[path.stem][line - 1], text) for path, line, text in run([*Path(folder).iterdir()]))
    for ((name, line), text), times in warnings.items():
        if "unused" not in text or times == included[name]:
            yield f"{LEDGER.relative_to(ROOT) / name}.lua:{line}: {text}"


def run(paths: list[Path]) -> Iterator[tuple[Path, int, str]]:
    """luacheck's warnings on these files: file, line and text."""
    command = ["luacheck", "--config", str(ROOT / ".luacheckrc"), "--formatter", "plain", "--codes", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 2 or done.stderr:
        raise SystemExit(f"luacheck failed: {done.stdout}{done.stderr}")
    for path, line, text in WARNING.findall(done.stdout):
        yield Path(path), int(line), text


if __name__ == "__main__":
    sys.exit(main())
