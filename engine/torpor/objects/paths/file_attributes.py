"""Attributes of a file that only the tree has: owner, mode, times, extended attributes, flags of chattr(1).

Such a file, in memory or without a name, is made again by a restore; a file with a name keeps its own attributes. Kept
are extended attributes of users and access lists (xattr(7)), and those flags (ioctl_iflags(2)) that any owner may set.
An immutable or append-only file is refused: only root could make it, and it could not be filled. Labels of security
modules become those of the restoring process. Other attributes need root's privileges, and a restore does not use these
for a user's image: notices at the checkpoint name them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.objects.paths.opener import Opener

T = TypeVar("T")

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FLAGS = struct.Struct("=I4x")
"""The ioctl number says long; the kernel reads and writes an int (fs/ioctl.c, ioctl_getflags)."""
_KEPT_FLAGS = 0x1 | 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x8000 | 0x800000
"""FS_SECRM_FL, UNRM, COMPR, SYNC, NODUMP, NOATIME, NOTAIL, NOCOW."""
_FORBIDDING = 0x10 | 0x20
"""FS_IMMUTABLE_FL, FS_APPEND_FL."""
_USERS = "user."
_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_OF_MODULES = ("security.selinux", "security.apparmor", "security.SMACK64", "security.ima", "security.evm")
_HAS_NONE = (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
"""Errors of file systems without attributes or without flags."""
_MODE, _SPECIAL = 0o7777, 0o7000


@dataclass(frozen=True)
class Attributes:
    """The attributes of an open file."""

    seals: int = 0
    """F_SEAL_* (fcntl(2))."""
    extended: tuple[tuple[str, bytes], ...] = ()
    flags: int = 0
    """The FS_*_FL flags that are kept."""
    lost: tuple[str, ...] = ()
    """The names of attributes that are not kept."""
    forbids_writing: bool = False


def take(fd: int, seals: int = 0) -> Attributes:
    """Read the attributes of an open file, whatever its access mode. Raises OSError."""
    flags = _asked(lambda: fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_FLAGS.size)), bytes(_FLAGS.size))
    names = _names(fd)
    kept = [name for name in names if _is_kept(name)]
    found = _FLAGS.unpack(flags)[0]
    return Attributes(
        seals,
        tuple((name, os.getxattr(fd, name)) for name in kept),
        found & _KEPT_FLAGS,
        tuple(name for name in names if name not in kept and name not in _OF_MODULES),
        bool(found & _FORBIDDING),
    )


def extended(target: int | bytes) -> list[pb.SharedMemory.Attribute]:
    """The extended attributes of a file that are kept, by a descriptor or a path, whose last link is not followed."""
    found = []
    for name in filter(_is_kept, _names(target)):
        with suppress(OSError):  # it was removed just now
            options = {} if isinstance(target, int) else {"follow_symlinks": False}
            value = os.getxattr(target, name, **options)
            found.append(pb.SharedMemory.Attribute(name=os.fsencode(name), value=value))
    return found


def _names(target: int | bytes) -> list[str]:
    options = {} if isinstance(target, int) else {"follow_symlinks": False}
    return _asked(lambda: sorted(os.listxattr(target, **options)), [])


def _is_kept(name: str) -> bool:
    return name.startswith(_USERS) or name in _ACCESS_LISTS


def _asked(ask: Callable[[], T], otherwise: T) -> T:
    """The answer of a file system, or `otherwise` if it does not support the request."""
    try:
        return ask()
    except OSError as error:
        if error.errno not in _HAS_NONE:
            raise
        return otherwise


def describe(status: os.stat_result, attributes: Attributes, out: pb.SharedMemory) -> None:
    """Write the attributes to the image."""
    out.mode, out.uid, out.gid = status.st_mode & _MODE, status.st_uid, status.st_gid
    out.mtime_ns, out.atime_ns = status.st_mtime_ns, status.st_atime_ns
    out.seals, out.inode_flags = attributes.seals, attributes.flags
    for name, value in attributes.extended:
        out.attributes.add(name=os.fsencode(name), value=value)


# Restore


def restore_flags(fd: int, shared: pb.SharedMemory) -> Iterator[str]:
    """Set the flags of a new file before it is written: some affect later writes. Yields warnings."""
    wanted, now = shared.inode_flags & _KEPT_FLAGS, bytearray(_FLAGS.size)
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, now)
        found = _FLAGS.unpack(now)[0]
        if found & _KEPT_FLAGS != wanted:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(found & ~_KEPT_FLAGS | wanted))
    except OSError as error:
        if wanted:
            yield f"{_name(shared)} has no flags of chattr any more ({wanted:#x}): {error.strerror}"


def restore(fd: int, shared: pb.SharedMemory, opener: Opener) -> Iterator[str]:
    """Set the other attributes of a file, when it has its content. Yields warnings.

    Raises:
        OSError: its mode or times cannot be set.
    """
    for why in restore_extended(fd, shared.attributes):
        yield f"{_name(shared)} {why}"
    if shared.HasField("mtime_ns"):
        yield from _give_owner(fd, shared)
    mode = shared.mode & _MODE
    # A file that root makes for a user's tree must not be setuid or setgid for another user.
    if mode & _SPECIAL and procfs.is_root() and not opener.users & {0, shared.uid}:
        yield f"{_name(shared)} has the mode {mode & ~_SPECIAL:o} now, not {mode:o}: it is another user's"
        mode &= ~_SPECIAL
    os.fchmod(fd, mode)
    if shared.HasField("mtime_ns"):
        os.utime(fd, ns=(shared.atime_ns, shared.mtime_ns))


def restore_extended(fd: int, attributes: Iterable[pb.SharedMemory.Attribute]) -> Iterator[str]:
    """Set extended attributes of a new file. Yields what failed: ``has no attribute user.x any more: ...``"""
    for one in attributes:
        name = os.fsdecode(one.name)
        if not _is_kept(name):
            continue  # no checkpoint writes others
        try:
            os.setxattr(fd, name, one.value)
        except OSError as error:
            yield f"has no attribute {name} any more: {error.strerror}"


def _give_owner(fd: int, shared: pb.SharedMemory) -> Iterator[str]:
    now = os.fstat(fd)
    if procfs.is_root():
        os.fchown(fd, shared.uid, shared.gid)
    elif (now.st_uid, now.st_gid) != (shared.uid, shared.gid):
        try:
            os.fchown(fd, -1, shared.gid)  # a group of the user
            refused = now.st_uid != shared.uid
        except OSError:
            refused = True
        if refused:
            yield f"{_name(shared)} is yours now: it belonged to user {shared.uid} and group {shared.gid}"


def _name(shared: pb.SharedMemory) -> str:
    if shared.kind == pb.SharedMemory.MEMFD:
        return f"the file in memory {os.fsdecode(shared.name)}"
    return f"the file without a name {os.fsdecode(shared.name)}"
