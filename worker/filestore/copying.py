"""One local file's content into another: shared until one of the two is written to, where the disk can, else copied."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from typing import BinaryIO

#: ``ioctl`` of Linux (btrfs, XFS, bcachefs, overlays of them): the same blocks, of which a write makes its own.
FICLONE = 0x40049409
#: Bytes of one call of the kernel's copy, so that a signal is served between two.
RANGE_BYTES = 256 * 1024 * 1024
#: The disk that is written to is full, or may not be written to: nothing that a plugin did.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def copy_content(source: BinaryIO, target: BinaryIO) -> None:
    """All of a source that stands at its beginning. Neither is a link to the other: each may be changed alone."""
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
    except OSError:  # another disk, or one that cannot
        return False
    return True


def _copy_in_kernel(source: BinaryIO, target: BinaryIO) -> bool:
    """Whether it could be done; a file without a size (of ``/proc``) has a content all the same, to be read."""
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
