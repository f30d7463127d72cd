"""Files of a tree, opened by their names with the rights of the process that saves, which may be root.

A name may lead elsewhere by now: a user may have replaced a directory by a link to one of root's. So the name is opened
with O_PATH first, which reads nothing and wakes no device. Only the file that the tree has is opened for reading.

A file is identified by its device and inode. In maps, the device is that of the file system, and stat(2) may show
another one (btrfs: one for each subvolume; overlay: one for each layer). Then we map the file too, and look at our own
maps.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import suppress

from torpor import procfs
from torpor.procfs import Mapping
from torpor.remote.sys import closed_on_error

Key = tuple[int, int]
"""Device and inode number, as of stat(2)."""

_known: set[tuple[int, int]] = set()
"""Devices of stat(2), each with the other one that maps shows for their files."""


def key_of(status: os.stat_result) -> Key:
    """The identity of a file."""
    return status.st_dev, status.st_ino


def device_of(mapping: Mapping) -> int:
    """The device number of a mapped file, as maps shows it."""
    major, minor = mapping.device.split(b":")
    return os.makedev(int(major, 16), int(minor, 16))


def open_same(path: str | bytes, key: Key) -> int:
    """Open a regular file for reading, by a name that may lead to another one.

    Raises:
        OSError: it cannot be opened; ENOENT: the name leads to another file.
    """
    return _opened(path, key[1], key[0])


def open_mapped(mapping: Mapping) -> int:
    """Open a mapped file by its name. Raises OSError as `open_same`."""
    fd = _opened(mapping.name, mapping.inode, None)
    with closed_on_error(fd):
        if not is_mapped(fd, mapping):
            raise _another(mapping.name)
        return fd


def is_mapped(fd: int, mapping: Mapping) -> bool:
    """Whether a file, open for reading, is the one of a mapping."""
    status, device = os.fstat(fd), device_of(mapping)
    if status.st_ino != mapping.inode:
        return False
    if status.st_dev != device and (status.st_dev, device) not in _known:
        if _device_in_maps(fd) != device:
            return False
        _known.add((status.st_dev, device))
    return True


def _opened(path: str | bytes, inode: int, device: int | None) -> int:
    named = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(named)
        if not stat.S_ISREG(status.st_mode) or status.st_ino != inode or device not in (None, status.st_dev):
            raise _another(path)
        return os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(named)


def _another(path: str | bytes) -> OSError:
    return FileNotFoundError(errno.ENOENT, "another file has its name", os.fsdecode(path))


def _device_in_maps(fd: int) -> int | None:
    """The device that maps shows for a mapping of an open file; None if it cannot be mapped."""
    before = {one.start for one in procfs.mappings(os.getpid())}
    with suppress(OSError, ValueError), mmap.mmap(fd, 1, access=mmap.ACCESS_READ):  # ValueError: it is empty
        inode = os.fstat(fd).st_ino
        new = (one for one in procfs.mappings(os.getpid()) if one.start not in before and one.inode == inode)
        return next(map(device_of, new), None)
    return None
