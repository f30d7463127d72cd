"""The names of a file. "(deleted)" in /proc means that one name is gone; the inode may have others.

The C library's sem_open(3) makes a semaphore under a temporary name, links it to its own name, and removes the
temporary one, under which it is mapped. Editors and package managers do the same with hard links.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from torpor import procfs
from torpor.objects.paths.same_file import device_of

DELETED = " (deleted)"
"""The kernel appends this to the path of a file that has lost this name (fs/d_path.c)."""
OF_KERNEL = re.compile(rb"/(proc|sys)(/|$)")
"""Names of files that the kernel generates."""
SILLY = re.compile(rb".*/(\.nfs[0-9a-f]{24}|\.fuse_hidden[0-9a-f]{16})")
"""Names of files that were removed while they were open, on NFS (fs/nfs/unlink.c) and FUSE (libfuse, hide_node()). The
file system removes such a file when its last user closes it: it counts as one without a name.
"""
MAKESHIFT = b".torpor-"
"""Prefix of the names that a restore makes up."""


def is_gone(name: bytes, inode: int) -> bool:
    """Whether a name in maps says that it is gone. The file's own name may end like that, too."""
    if not name.endswith(DELETED.encode()):
        return False
    with suppress(OSError):
        return os.lstat(name).st_ino != inode
    return True


def another_name(path: str, device: int, inode: int) -> str | None:
    """A name of a file in the directory where it had one; None if this user sees none."""
    try:
        with os.scandir(os.path.dirname(path)) as entries:
            for entry in entries:
                if entry.inode() == inode:
                    status = os.lstat(entry.path)
                    if (status.st_dev, status.st_ino) == (device, inode):
                        return entry.path
    except OSError:  # the directory is gone, or this user may not read it
        pass
    return None


def lasting_name(path: str, status: os.stat_result) -> str:
    """The name of an open file in /proc/PID/fd; if that is gone or another file's, another name of the file."""
    if not path.endswith(DELETED) or not status.st_nlink or os.path.lexists(path) or is_silly(path):
        return path
    return another_name(path, status.st_dev, status.st_ino) or path


def is_used(device: int, inode: int) -> bool:
    """Whether another process that we may read has a file open or mapped."""
    for pid in procfs.pids():
        if pid == os.getpid():
            continue
        try:
            maps = procfs.mappings(pid)
            links = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # it has ended, or belongs to another user
            continue
        if any(mapping.inode == inode and device_of(mapping) == device for mapping in maps):
            return True
        for link in links:
            with suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{link}")
                if (status.st_dev, status.st_ino) == (device, inode):
                    return True
    return False


def is_silly(path: str | bytes) -> bool:
    """Whether a file was removed while it was open, and has this name from its file system until it is closed."""
    return SILLY.fullmatch(os.fsencode(path).removesuffix(DELETED.encode())) is not None


def as_gone(path: bytes) -> bytes:
    """A name of a file that `is_silly`, as maps shows one of a file that is gone."""
    return path.removesuffix(DELETED.encode()) + DELETED.encode()


def makeshift_name() -> bytes:
    """Make up a name. It has no PID: another restore may have the same, in a capsule or on a node that shares the
    directory.
    """
    return MAKESHIFT + os.urandom(8).hex().encode()


def is_makeshift(path: bytes) -> bool:
    """Whether a restore has made up this name, because the old one was not free."""
    return os.path.basename(path).startswith(MAKESHIFT)
