"""Copy the content of a local file: as shared blocks (copy on write) if the disk supports it, else byte by byte."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from typing import BinaryIO

#: ``ioctl`` of Linux (btrfs, XFS, bcachefs, overlays of them): share the blocks until a write copies them.
FICLONE = 0x40049409
#: Bytes of a call of the kernel's copy, so that signals are served between two calls.
RANGE_BYTES = 256 * 1024 * 1024
#: The target disk is full or read-only: not the plugin's fault.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def copy_content(source: BinaryIO, target: BinaryIO) -> None:
    """Copy a source, from its beginning. A later change of either file does not affect the other."""
    if _clone(source, target) or _copy_in_kernel(source, target):
        return
    source.seek(0)
    target.truncate(0)
    shutil.copyfileobj(source, target, 1024 * 1024)
    target.flush()


def _clone(source: BinaryIO, target: BinaryIO) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except OSError:  # another disk, or a file system without it
        return False
    return True


def _copy_in_kernel(source: BinaryIO, target: BinaryIO) -> bool:
    """Whether the kernel could copy it. A file of size 0, such as in ``/proc``, may have content: it must be read."""
    if sys.platform != "linux" or not os.fstat(source.fileno()).st_size:
        return False
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), RANGE_BYTES):
            pass
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        return False
    return bool(os.fstat(target.fileno()).st_size)
