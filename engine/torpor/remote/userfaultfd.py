"""A userfaultfd of another process, which an ordinary user may use as well.

It is made within that process and taken with a copy of its descriptor. What it watches belongs to the memory of the
process that made it; any process that holds the descriptor may make requests.

Documented in: Documentation/admin-guide/mm/userfaultfd.rst, ioctl_userfaultfd(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

UFFD_USER_MODE_ONLY = 1
"""The only mode that an ordinary user may ask for (vm.unprivileged_userfaultfd is 0 by default)."""
OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY
MISSING, WRITE_PROTECTED = 1 << 0, 1 << 1
"""What is watched for: UFFDIO_REGISTER_MODE_*."""

# include/uapi/linux/userfaultfd.h
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_API = struct.Struct("<3Q")  # api, features, ioctls
_REGISTER = struct.Struct("<4Q")  # start, length, mode, ioctls
_RANGE = struct.Struct("<2Q")  # start, length
_UFFD_API = 0xAA


def begin(fd: int, features: int = 0) -> None:
    """Set up a new userfaultfd. Raises OSError: EINVAL if the kernel lacks a feature."""
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(_UFFD_API, features, 0)))


def register(fd: int, start: int, end: int, mode: int) -> bool:
    """Watch a mapping. Return False if the kernel does not allow it, or another userfaultfd watches it.

    Raises:
        ProcessLookupError: the process has become another program, or ended.
    """
    try:
        fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(_REGISTER.pack(start, end - start, mode, 0)))
    except OSError as error:
        if error.errno == errno.ENOMEM:  # its address space is gone (fs/userfaultfd.c, mmget_not_zero)
            raise ProcessLookupError(errno.ESRCH, "it has become another program") from error
        if error.errno not in (errno.EINVAL, errno.EBUSY, errno.EPERM):
            raise
        return False
    return True


def unregister(fd: int, start: int, end: int) -> None:
    """Stop watching a mapping. Raises OSError if it is gone."""
    fcntl.ioctl(fd, _UFFDIO_UNREGISTER, bytearray(_RANGE.pack(start, end - start)))
