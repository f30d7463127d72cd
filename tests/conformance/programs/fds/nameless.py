"""Files without a name and files in memory: all that fstat(2), fcntl(2), /proc and their attributes tell of them."""

import fcntl
import os
import signal
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ready import HERE, judge, ready_and_wait, same

F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
PROCESS = 1
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_NODUMP_FL, FS_NOATIME_FL = 0x40, 0x80
O_ASYNC = 0o20000
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, 0xFFFFFFFF), (2, 4, os.getuid()), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)
"""user::rw- user:N:r-- group::r-- mask::r-- other::---, as an extended attribute (linux/posix_acl_xattr.h)."""


def unlinked(name: str, mode: int) -> int:
    fd = os.open(HERE / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"content")
    os.fchmod(fd, mode)
    return fd


def attempt(act: Callable[[], Any]) -> None:
    """Set what this file system or kernel may not have: then it is not there before or after."""
    with suppress(OSError):
        act()


def furnish(fd: int) -> None:
    attempt(lambda: os.setxattr(fd, "user.torpor", b"of a test\0"))
    attempt(lambda: os.setxattr(fd, "system.posix_acl_access", ACL))
    flags = bytearray(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))) if has_flags(fd) else bytearray()
    if flags:
        flags[0] |= FS_NODUMP_FL | FS_NOATIME_FL
        attempt(lambda: fcntl.ioctl(fd, FS_IOC_SETFLAGS, bytes(flags)))
    os.utime(fd, ns=(1_000_000_001, 2_000_000_003))


def has_flags(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return False
    return True


def seen(fd: int) -> dict[str, Any]:
    status = os.fstat(fd)
    attributes = {}
    attempt(lambda: attributes.update({name: os.getxattr(fd, name) for name in os.listxattr(fd)}))
    return {
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": (status.st_uid, status.st_gid),
        "links": status.st_nlink,
        "size": status.st_size,
        "changed": status.st_mtime_ns,
        "read": status.st_atime_ns,
        "flags": oct(fcntl.fcntl(fd, fcntl.F_GETFL)),
        "attributes": attributes,
        "chattr": fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[0] if has_flags(fd) else None,
        "signals": (fcntl.fcntl(fd, F_GETOWN_EX, bytes(8)), fcntl.fcntl(fd, F_GETSIG)),
    }


def main() -> None:
    plain = unlinked("plain", 0o640)
    special = unlinked("spec\nial (deleted)", 0o7751)
    only_controlled = os.open(HERE / "plain", 3)
    below = HERE / "below" / "further"
    below.mkdir(parents=True)
    alone = unlinked("below/further/alone", 0o600)
    memory = os.memfd_create("in memory", os.MFD_CLOEXEC)
    os.write(memory, b"content")
    os.fchmod(memory, 0o4711)
    memory_controlled = os.open(f"/proc/self/fd/{memory}", 3)
    temporary = os.open(HERE, os.O_TMPFILE | os.O_RDWR, 0o604)
    taken = unlinked("taken", 0o644)
    named = os.open(HERE / "named", os.O_RDWR | os.O_CREAT)
    named_controlled = os.open(HERE / "named", 3)
    if groups := sorted(set(os.getgroups()) - {os.getegid()}):
        os.fchown(plain, -1, groups[0])
    if not os.geteuid():
        os.fchown(special, 12345, 54321)
        os.fchmod(special, 0o7751)
    for name in ("plain", "spec\nial (deleted)", "below/further/alone", "taken"):
        os.unlink(HERE / name)
    below.rmdir()
    below.parent.rmdir()
    (HERE / "taken").write_text("another one")
    everything = [plain, special, only_controlled, alone, memory, memory_controlled, temporary, taken]
    for fd in (plain, special, alone, memory, temporary, taken):
        furnish(fd)
    fcntl.fcntl(plain, F_SETOWN_EX, struct.pack("ii", PROCESS, os.getpid()))
    fcntl.fcntl(plain, F_SETSIG, signal.SIGRTMIN + 2)
    fcntl.fcntl(memory, F_SETOWN_EX, struct.pack("ii", PROCESS, os.getpid()))
    fcntl.fcntl(named, F_SETOWN_EX, struct.pack("ii", PROCESS, os.getpid()))
    fcntl.fcntl(named, F_SETSIG, signal.SIGRTMIN + 3)
    fcntl.fcntl(named, fcntl.F_SETFL, O_ASYNC)
    controlled = [only_controlled, memory_controlled, named_controlled]
    names = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in (plain, special, alone, memory, only_controlled)}
    before = {fd: seen(fd) for fd in [*everything, named, named_controlled]}
    ready_and_wait()
    for fd, what in before.items():
        now = seen(fd)
        for key, was in what.items():
            same(now[key], was, f"{key} of {names.get(fd, fd)!r}")
    same({fd: os.readlink(f"/proc/self/fd/{fd}") for fd in names}, names, "names")
    same((HERE / "taken").read_text(), "another one", "who has the name of one")
    same(sorted(path.name for path in HERE.iterdir() if path.name in ("plain", "below")), [], "what was left")
    folder = os.open(HERE, os.O_RDONLY)
    for fd in (plain, taken):
        try:  # with a descriptor of a directory it is linkat(2), which follows the link of /proc
            os.link(f"/proc/self/fd/{fd}", HERE / "again", src_dir_fd=folder, follow_symlinks=True)
            same("linked", "refused", f"a name for {names.get(fd, fd)!r}, which was deleted")
        except FileNotFoundError:
            pass
    os.link(f"/proc/self/fd/{temporary}", HERE / "temporary", src_dir_fd=folder, follow_symlinks=True)
    for fd in controlled:
        try:
            os.pread(fd, 1, 0)
            same("read", "refused", f"reading descriptor {fd}, which is for ioctl(2) alone")
        except OSError:
            pass
    same(os.pread(plain, 7, 0), b"content", "content")
    same(os.path.sameopenfile(plain, only_controlled), True, "two descriptions of one file")


judge(main)
