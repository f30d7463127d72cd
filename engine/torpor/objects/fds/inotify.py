"""inotify: watches on files and directories (inotify(7)).

Kept: every watch, under its number, with its mask. The kernel shows the file system and the inode of what is watched,
but no name (Documentation/filesystems/proc.rst, 3.8). A name is found by the file handle that it shows too, which needs
CAP_DAC_READ_SEARCH, or by a search for the inode (`torpor.objects.paths.inode_search`). A file without a name is
watched by a descriptor that the tree has of it.

Refused: watches for which no name is found, and unread events, which cannot be restored. Events between the snapshot
and the restore are not reported.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import termios
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.image.image_pb2 import Inotify as InotifyMessage
from torpor.objects.fds.files import Directory, RegularFile
from torpor.objects.fds.memfd import MemoryDescriptor
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import Opening, naming
from torpor.objects.paths import inode_search, own_places
from torpor.objects.paths.inode_search import Key
from torpor.objects.paths.opener import Opener, Openers
from torpor.objects.sockets import common
from torpor.remote.sys import syscall

INOTIFY_IOC_SETNEXTWD = 0x40044900
"""_IOW('I', 0, __s32) (include/uapi/linux/inotify.h); kernels with CONFIG_CHECKPOINT_RESTORE."""
IN_DONT_FOLLOW = 0x02000000
KEPT = 0xFFF | 0x04000000 | 0x80000000
"""IN_ALL_EVENTS, IN_EXCL_UNLINK, IN_ONESHOT: the flags that belong to a watch."""
LAST_WATCH = (1 << 31) - 1

_MORE_INSTANCES = "raise fs.inotify.max_user_instances (sysctl), or end programs of this user that watch files"
_MORE_WATCHES = "raise fs.inotify.max_user_watches (sysctl), or end programs of this user that watch files"

_WATCHABLE = (RegularFile, Directory, MemoryDescriptor)
"""Kinds of descriptions by which a watch can be added, and that are made before it."""
_WATCH = re.compile(
    rb"^inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) .*?"
    rb"fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+)",
    re.MULTILINE,
)


@dataclass
class Watch:
    """One watch."""

    number: int
    mask: int
    key: Key
    handle: bytes
    """struct file_handle (name_to_handle_at(2))."""
    path: str = ""
    open_file: OpenFile[Any] | None = None
    """An open description of the same inode in the tree, if no name leads to it."""


@dataclass
class InotifyState:
    """The watches, once they were read, and the unread events."""

    queued: int
    """In bytes."""
    watches: list[Watch] = field(default_factory=list)
    looked: bool = False
    """Whether names were searched for."""


class Inotify(Kind[InotifyState]):
    """A set of watches."""

    field = "inotify"

    def matches(self, seen: Seen) -> bool:
        """By its link, which newer kernels show without brackets (fs/notify/inotify)."""
        return seen.link in ("anon_inode:inotify", "anon_inode:[inotify]")

    def grab(self, open_file: OpenFile[InotifyState], pidfd: int, *, content: bool) -> InotifyState:
        """Read the size of unread events; fdinfo has the rest."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return InotifyState(struct.unpack("i", fcntl.ioctl(copy, termios.FIONREAD, bytes(4)))[0])

    def finish(self, mine: list[OpenFile[InotifyState]], tree: GrabbedDescriptors) -> None:
        """Copy the content of small files that are watched, as far as their names are known from the preflight."""
        for watch in (watch for open_file in mine for watch in _parse(open_file.info)):
            if tree.small and (path := inode_search.last_name(watch.key)):
                tree.small.take(path, path, os.lstat(path), written=False)

    def unsupported(self, open_file: OpenFile[InotifyState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It may have no unread events, and each watch must have a name."""
        if open_file.state.queued:
            yield Unsupported("it has unread events, which cannot be kept", "read them, or try again", passing=True)
        _look(tree)
        if len(open_file.state.watches) != open_file.info.count(b"\ninotify wd:"):
            yield Unsupported("the kernel does not tell what it watches", "see CONFIG_EXPORTFS of this kernel")
        for watch in open_file.state.watches:
            if not watch.path and watch.open_file is None:
                yield Unsupported(
                    f"it watches inode {watch.key[1]} of device {os.major(watch.key[0])}:{os.minor(watch.key[0])}, for"
                    " which no name was found in or near the directories of the tree",
                    "remove the watch, or let a process stand in a directory above it",
                )

    def describe(
        self, open_file: OpenFile[InotifyState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its watches with their names."""
        out.inotify.SetInParent()
        for watch in open_file.state.watches:
            said = out.inotify.watches.add(number=watch.number, mask=watch.mask, path=os.fsencode(watch.path))
            if watch.open_file is not None:
                said.held = 1 + image.index_of(watch.open_file)

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The watched files must exist, and this user must be able to watch them."""
        openers = Openers(image)
        for index, description in mine.items():
            watches = description.inotify.watches
            numbers = [watch.number for watch in watches]
            sound = all(0 < number <= LAST_WATCH for number in numbers) and len(set(numbers)) == len(numbers)
            count = len(image.descriptions)
            if not sound or any(watch.mask & ~KEPT or watch.held > count for watch in watches):
                yield Reason("the image", "it has invalid watches (inotify)")
                continue
            try:
                fd = syscall(NR.inotify_init1, os.O_CLOEXEC)
            except OSError as error:
                yield Reason("an inotify", f"none can be made here: {error.strerror}", _MORE_INSTANCES)
                return
            try:
                for watch in watches:
                    if not watch.held:  # otherwise the check of its kind covers it
                        yield from _validate_watch(fd, watch, image, openers.description(index))
            finally:
                os.close(fd)

    def make(self, description: Description, opening: Opening) -> int:
        """Add watches after everything else that they would report; then discard the events that the restore has
        caused.
        """
        index = opening.making
        opening.to_watch.append(partial(_watch, index, description, opening))
        opening.when_built.append(partial(_forget, index, opening))
        return syscall(NR.inotify_init1, os.O_CLOEXEC)


# ---------------------------------------------------------------------------------------------------- names


def _look(tree: GrabbedDescriptors) -> None:
    """Find the names of everything that is watched in a tree, once; not done under the freeze."""
    mine = [open_file for open_file in tree.of(Inotify) if not open_file.state.looked]
    if not mine:
        return
    for open_file in mine:
        open_file.state.looked = True
        open_file.state.watches = list(_parse(open_file.info))
    watches = [watch for open_file in mine for watch in open_file.state.watches]
    open_ones = {
        (open_file.stat.st_dev, open_file.stat.st_ino): open_file
        for open_file in tree.open_files
        if isinstance(open_file.kind, _WATCHABLE)
    }
    by_key = {watch.key: watch for watch in watches}
    # Files without a name cannot be found.
    wanted = [key for key in by_key if key not in open_ones or open_ones[key].stat.st_nlink]
    found = inode_search.find(wanted, tree, lambda key, near: _by_handle(by_key[key], tree.asked(tree.pids[0]), near))
    for watch in watches:
        watch.path = found.get(watch.key, "")
        if not watch.path:
            watch.open_file = open_ones.get(watch.key)


def _parse(info: bytes) -> Iterator[Watch]:
    for match in _WATCH.finditer(info):
        number, inode, device, mask, size, kind = (int(match[group], 16) for group in range(1, 7))
        content = bytes.fromhex(match[7].decode())[:size]
        # fdinfo has the kernel's own dev_t: twelve bits of major, twenty of minor (include/linux/kdev_t.h)
        key = os.makedev(device >> 20, device & 0xFFFFF), inode
        yield Watch(number, mask, key, struct.pack("=Ii", len(content), kind) + content)


def _by_handle(watch: Watch, pid: int, near: Collection[str]) -> str:
    """The name by the file handle; empty if this user may not open handles, or no name leads there.

    A file system may be mounted in several places. Of several names, one below a directory that the tree uses is
    preferred.
    """
    found: list[str] = []
    with suppress(OSError):
        for mount in procfs.mounts(pid):
            if mount.device == watch.key[0]:
                found += _by_mount(watch, os.fsdecode(mount.point))
    nearest = (path for path in found if any(str(parent) in near for parent in Path(path).parents[:-1]))
    return next(nearest, next(iter(found), ""))


def _by_mount(watch: Watch, point: str) -> Iterator[str]:
    try:
        mount = os.open(point, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # covered by another mount, or this user may not open it
        return
    try:
        fd = syscall(NR.open_by_handle_at, mount, watch.handle, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    finally:
        os.close(mount)
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    if inode_search.key_of(path) == watch.key:
        yield path


# -------------------------------------------------------------------------------------------------- restore


def _add(fd: int, watch: InotifyMessage.Watch, opener: Opener) -> int:
    """Watch what a path leads to, without following a symbolic link."""
    found = opener.lookup(watch.path, follow=False)
    try:
        return opener.call(NR.inotify_add_watch, fd, b"/proc/self/fd/%d\0" % found, watch.mask)
    finally:
        os.close(found)


def _validate_watch(fd: int, watch: InotifyMessage.Watch, image: Tree, opener: Opener) -> Iterator[Reason]:
    """Add a watch and remove it at once: a tree that still lives has as many, and counts against the same limit."""
    try:
        syscall(NR.inotify_rm_watch, fd, _add(fd, watch, opener))
    except OSError as error:
        full = error.errno == errno.ENOSPC
        if cause := own_places.why_missing(image, watch.path, error, opener):
            why = f"the program watches it, and here it cannot: {cause}"
            advice = _MORE_WATCHES if full else "put it back, and let this user read it"
            yield Reason(os.fsdecode(watch.path), why, advice)


def _watch(index: int, description: Description, opening: Opening) -> None:
    """Add each watch under its number."""
    opening.making = index
    with naming(description):
        for watch in description.inotify.watches:
            _add_as(opening.slots[index], watch, opening)


def _forget(index: int, opening: Opening) -> None:
    """Discard unread events: the tree had none."""
    fd = opening.slots[index]
    while size := common.queued(fd):
        os.read(fd, size)


def _add_as(fd: int, watch: InotifyMessage.Watch, opening: Opening) -> None:
    """Add a watch under its number: the kernel assigns numbers in turn, or the one that was set as the next."""
    try:
        fcntl.ioctl(fd, INOTIFY_IOC_SETNEXTWD, watch.number)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
    if watch.held:
        name = b"/proc/self/fd/%d\0" % opening.slots[watch.held - 1]
        got = opening.opener.call(NR.inotify_add_watch, fd, name, watch.mask)
    else:
        got = _add(fd, watch, opening.opener)
    if got != watch.number:
        raise RestoreFailed(
            f"the watch on {os.fsdecode(watch.path) or 'what has no name'} had the number {watch.number} and got {got}",
            advice="use a kernel with CONFIG_CHECKPOINT_RESTORE",
        )
