"""Shared memory between a worker's main process and its pool processes.

``SharedLease``: until when the worker's lease is safe. A pool process can neither renew the lease nor hear of it while
its model holds the GIL, for minutes perhaps. When its threads run again, they find here that the main process has kept
the lease meanwhile.

``Handover``: which of the two has a batch that the pool process claimed ahead. The pool process may not be able to give
it back, for the same reason; its slot in the main process then does.
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
    """One moment by ``time.monotonic``, which all processes of a host share; 0: not known yet.

    Args:
        fd: the ``fd`` of another process's, which this one has inherited; None: a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _make_memory(_FORMAT.size) if fd is None else fd
        self._memory = mmap.mmap(self.fd, _FORMAT.size)

    @property
    def safe_until(self) -> float:
        """From then on, others may run the worker's claimed jobs."""
        moment: float = _FORMAT.unpack_from(self._memory)[0]
        return moment

    @safe_until.setter
    def safe_until(self, moment: float) -> None:
        _FORMAT.pack_into(self._memory, 0, moment)

    def close(self) -> None:
        """Have no part in it any more: a fork's copy."""
        self._memory.close()
        os.close(self.fd)


class Handover:
    """Decides once, between a pool process and its slot, which of the two has a batch that was claimed ahead.

    Batches have the numbers of their tokens, which only grow. The file is locked meanwhile (POSIX locks are a process's
    own, and the kernel releases those of a process that dies), so both cannot take one batch.

    Args:
        fd: the ``fd`` of the other side's, which this process has inherited; None: a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _make_memory(_NUMBER.size) if fd is None else fd
        self._memory = mmap.mmap(self.fd, _NUMBER.size)

    def take(self, number: int, wait: bool = True) -> bool:
        """Take the batch of this number; False where the other side has taken it.

        Args:
            wait: whether to wait for the other side's lock. Otherwise False where it holds that: ask again.
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
        """Give the memory back; doing so twice is the same as once."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.fd)


def _make_memory(size: int) -> int:
    """The descriptor of a file without a name, of so many bytes."""
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
