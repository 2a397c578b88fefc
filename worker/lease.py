"""Until when a worker's lease is safe: written by its main process, read by its pool processes, through shared memory.

A pool process can neither renew the lease nor hear of it while its model holds the GIL, for minutes perhaps. When its
threads run again, they find here that the main process has kept the lease meanwhile.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_FORMAT = struct.Struct("@d")


class SharedLease:
    """One moment by ``time.monotonic``, which all processes of a host share; 0: not known yet.

    Args:
        fd: the ``fd`` of another process's, which this one has inherited; None: a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            with tempfile.TemporaryFile() as file:
                file.truncate(_FORMAT.size)
                fd = os.dup(file.fileno())
        self.fd = fd
        self._memory = mmap.mmap(fd, _FORMAT.size)

    @property
    def safe_until(self) -> float:
        """From then on, others may run what the worker has claimed."""
        moment: float = _FORMAT.unpack_from(self._memory)[0]
        return moment

    @safe_until.setter
    def safe_until(self, moment: float) -> None:
        _FORMAT.pack_into(self._memory, 0, moment)

    def close(self) -> None:
        """Have no part in it any more: a fork's copy."""
        self._memory.close()
        os.close(self.fd)
