"""Shared memory between a worker's main process and its pool processes.

``SharedLease``: the time until which the worker's lease is safe. While a model holds the GIL, perhaps for minutes, its
pool process can neither renew the lease nor receive a message about it. When its threads run again, they read here that
the main process has renewed the lease meanwhile.

``Handover``: which of the two owns a batch that the pool process claimed ahead. For the same reason, the pool process
may be unable to give the batch back; its slot in the main process then does so.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile

_FORMAT = struct.Struct("@d")
_NUMBER = struct.Struct("@q")


class SharedLease:
    """A moment by ``time.monotonic``, which all processes of a host share; 0: not known yet.

    Args:
        fd: the inherited ``fd`` of the main process's object; None: create new memory.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _make_memory(_FORMAT.size) if fd is None else fd
        self._memory = mmap.mmap(self.fd, _FORMAT.size)

    @property
    def safe_until(self) -> float:
        """From then on, other workers may run the worker's claimed jobs."""
        moment: float = _FORMAT.unpack_from(self._memory)[0]
        return moment

    @safe_until.setter
    def safe_until(self, moment: float) -> None:
        _FORMAT.pack_into(self._memory, 0, moment)

    def close(self) -> None:
        """Release the memory in a forked process."""
        self._memory.close()
        os.close(self.fd)


class Handover:
    """Decides once, between a pool process and its slot, which of the two owns a batch that was claimed ahead.

    A batch has the number of its token, and these numbers only grow. The file is locked during the decision, so the two
    cannot take the same batch. POSIX locks belong to a process, and the kernel releases those of a process that dies.

    Args:
        fd: the inherited ``fd`` of the slot's object; None: create new memory.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _make_memory(_NUMBER.size) if fd is None else fd
        self._memory = mmap.mmap(self.fd, _NUMBER.size)

    def take(self, number: int, wait: bool = True) -> bool:
        """Take the batch of this number; False if the other side has taken it.

        Args:
            wait: whether to wait for the other side's lock. Without waiting, False may also mean "locked": try again.
        """
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        try:
            if _NUMBER.unpack_from(self._memory)[0] > number:
                return False
            _NUMBER.pack_into(self._memory, 0, number + 1)
            return True
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the memory; a second call has no effect."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.fd)


def _make_memory(size: int) -> int:
    """The descriptor of an unnamed file of this many bytes."""
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
