"""The guardian of a pool process: ``python -I -S guardian.py LEASH_FD COMMAND…`` starts it, and ends the processes that
it leaves.

    worker ──leash── guardian ── pool process ── the programs and processes that a plugin starts

On Linux the guardian is a subreaper: a process whose parent has ended becomes the guardian's child, also after
``setsid`` and a double fork. So when the pool process ends, whichever way, the guardian finds and kills all that it has
started. A death signal would reach the pool process's own children at most; a process group or a session can be left.
On other platforms the guardian kills the pool process's process group.

The leash is a socket to the slot. The guardian writes the pool process's id, and at last how that ended (as
``subprocess`` has it: a signal is negative). A byte from the slot, or the end of the leash because the worker is gone,
means: kill the pool process.

It is a program of its own, of the smallest modules alone: a fork of the worker would have its threads' locks. Measured
(Python 3.11): 11 MB resident, of which 4.3 MB are its own; its start takes 21 ms of CPU, the pool process's 930 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

#: ``prctl``'s options (``man 2 prctl``); Linux only.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

#: Seconds for which processes are killed that do not end, as one does that waits for a disk.
KILL_S = 5.0
#: Programs that clean up after the others (shared memory, semaphores) as soon as those are gone, and then end. Killed
#: after this number of seconds, should they not.
CLEANERS, CLEAN_S = (b"resource_tracker", b"torch_shm_manager"), 1.0
#: Seconds between two looks for processes that are left.
LOOK_S = 0.005


def become_reaper() -> None:
    """Have the kernel give this process the orphans among all processes below it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends, or its whole process."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), number)


def find_below(root: int, spare: frozenset[int] = frozenset()) -> list[int]:
    """The living processes below one, parents first; without zombies.

    Args:
        root: the process's id.
        spare: processes that are left out.
    """
    below, parents = [], [root]
    for parent in parents:  # it grows meanwhile
        for child in _children(parent):
            if child not in spare:
                parents.append(child)
                if not _is_zombie(child):
                    below.append(child)
    return below


def kill_below(spare: frozenset[int] = frozenset(), most_s: float = KILL_S) -> bool:
    """Kill the processes below this one, a subreaper, as ``find_below`` finds them; gives whether all are gone."""
    begun = time.monotonic()
    while True:
        waited_s = time.monotonic() - begun
        left = find_below(os.getpid(), spare)
        killed = [pid for pid in left if waited_s > CLEAN_S or not _is_cleaner(pid)]
        for pid in killed or (left if waited_s > CLEAN_S else ()):
            _kill(pid)
        _reap_but(spare)
        if not left or waited_s > most_s:
            return not left
        time.sleep(LOOK_S)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended meanwhile


def _reap_but(spare: frozenset[int]) -> None:
    """Take the ends of this process's children, but for those that others wait for."""
    for pid in _children(os.getpid()):
        if pid not in spare:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # somebody was quicker


def _children(pid: int) -> list[int]:
    """A process's children, those of all of its threads; none where there is no ``/proc``, or it is gone."""
    children: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 (pathlib would be half of this process's memory)
    except OSError:
        return children
    for thread in threads:
        children += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return children


def _is_zombie(pid: int) -> bool:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return not fields or fields[0] in (b"Z", b"X")


def _is_cleaner(pid: int) -> bool:
    command = _read(f"/proc/{pid}/cmdline")
    return any(name in command for name in CLEANERS)


def _read(path: str) -> bytes:
    """The content of a file of ``/proc``; empty where its process is gone."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""


def _start(command: list[str]) -> int:
    """Start the pool process, in a process group of its own; it dies with the guardian."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        die_with_parent()
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


def _serve(leash: int, command: list[str]) -> None:
    """Start the pool process, wait for its end or for the slot's word, and kill the remaining processes."""
    os.set_inheritable(leash, False)
    wake, waking = os.pipe()
    for end in (wake, waking):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a group's signals: the worker decides when its pool ends
    pool = _start(command)
    for fd in range(3, max(leash, wake, waking)):
        if fd not in (leash, wake, waking):
            _close(fd)  # the link to the pool process: its end is to be seen
    _tell(leash, pool)
    waiting = select.poll()
    waiting.register(leash, select.POLLIN)
    waiting.register(wake, select.POLLIN)
    while (ended := _look(pool)) is None:
        for fd, _ in waiting.poll():
            word = os.read(fd, 4096)
            if fd == leash:
                _kill(pool)
                if not word:
                    waiting.unregister(leash)
    if sys.platform == "linux":
        kill_below()
    else:
        _kill_group(pool)
    _tell(leash, ended)


def _look(pool: int) -> int | None:
    """Take the ends of all children that have ended; how the pool process did, if it has."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == pool:
            ended = os.waitstatus_to_exitcode(status)
        if not pid:
            return ended


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        return  # nobody is left in it


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return  # it was not open


def _tell(leash: int, number: int) -> None:
    try:
        os.write(leash, b"%d\n" % number)
    except OSError:
        return  # the worker is gone


if __name__ == "__main__":
    become_reaper()
    _serve(int(sys.argv[1]), sys.argv[2:])
