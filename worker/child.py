"""A pool process: ``python -m worker.child FD NAME…`` loads its services and runs one batch at a time.

It talks with its slot (``pool.py``) in JSON messages over a socket. Child to slot: ``loaded`` or ``failed`` once, then
for each batch ``begun`` and ``ended``. Slot to child: ``{service, token, ids}``. It is a process of its own, started
fresh rather than forked, so that whatever a model's library does to it (threads, CUDA, a segfault) stays in it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from worker.discovery import find_plugins, load_service
from worker.errors import ServiceFailed
from worker.ledger import Ledger
from worker.logs import setup_logging
from worker.runner import PLUGIN_ERRORS, run_batch
from worker.service import Service
from worker.settings import get_settings

log = logging.getLogger("services.worker")

#: ``prctl``'s option that has the kernel send a signal when the parent dies (``man 2 prctl``); Linux only.
PR_SET_PDEATHSIG = 1


def main(fd: int, names: list[str]) -> None:
    """Load the services, then run batches until the slot closes the socket."""
    die_with_parent()
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a group's signal: the worker decides when its pool ends
    settings = get_settings()
    setup_logging(settings.log_level)
    link = Connection(fd)
    services = _load(names, link)
    ledger = Ledger(settings)
    while services:
        try:
            order = json.loads(link.recv_bytes())
        except (EOFError, OSError):
            return
        _send(link, {"begun": order["token"]})
        name = order["service"]
        ended = run_batch(services[name], name, ledger, order["token"], order["ids"])
        _send(link, {"ended": ended})


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel end this process when its worker is killed, so that no job runs on beside its next attempt."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), number)


def _load(names: list[str], link: Connection) -> dict[str, Service[Any, Any]]:
    """Each service's instance, loaded; none where one failed, after telling the slot why."""
    services: dict[str, Service[Any, Any]] = {}
    told = {}
    for plugin in find_plugins(names):
        try:
            cls = load_service(plugin)
            service = cls()
            service.load()
            service.warmup()
        except PLUGIN_ERRORS as error:
            reason = _reason(error)
            log.error("service %s cannot be loaded: %s", plugin.name, reason, exc_info=error)
            _send(link, {"failed": {"service": plugin.name, "reason": reason}})
            return {}
        services[plugin.name] = service
        told[plugin.name] = {"version": plugin.version, "knobs": cls.knobs()}
    _send(link, {"loaded": told})
    return services


def _reason(error: BaseException) -> str:
    if isinstance(error, ServiceFailed):
        return error.message
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _send(link: Connection, message: dict[str, Any]) -> None:
    link.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
