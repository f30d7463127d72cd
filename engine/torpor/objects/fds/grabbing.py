"""Grabbing every open file description of a tree once, through copies of descriptors that are closed at once.

Descriptors in several processes may refer to one description; kcmp(2) shows that, and orders them. Descriptors in a
socket's queue (SCM_RIGHTS) belong to the tree too: reading the queue gives us copies of them, which are examined in
turn.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from io import FileIO
from typing import Any

from torpor import procfs
from torpor._native import ffi, lib
from torpor.arch.x86_64 import NR
from torpor.errors import CheckpointFailed, about, in_words
from torpor.objects.fds import locks, posix_queues, signal_owners
from torpor.objects.fds.memfd import MemoryDescriptor, memfd_device
from torpor.objects.fds.path_only import NameOnly
from torpor.objects.kind import (
    Built,
    FdReference,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    borrowed,
)
from torpor.objects.process import sharing
from torpor.objects.sockets.common import family_of
from torpor.probe import probe
from torpor.remote import copies
from torpor.remote.naming import not_permitted
from torpor.remote.sys import pidfd_open

_LOCAL = (b"bcachefs", b"btrfs", b"ext2", b"ext3", b"ext4", b"f2fs", b"overlay", b"ramfs", b"tmpfs", b"xfs", b"zfs")
Kinds = Sequence[Kind[Any]]
"""In the order in which they are asked whether a description is theirs; the last one accepts all."""


def grab(
    kinds: Kinds,
    pids: Sequence[int],
    *,
    content: bool = True,
    reset_outside: bool = False,
    stdio: Mapping[int, int] | None = None,
    stats: Mapping[int, procfs.Stat] | None = None,
    built: Built | None = None,
) -> GrabbedDescriptors:
    """Grab every description of a tree.

    Args:
        kinds: of descriptions.
        pids: the tree, parents before their children. A process that ends meanwhile has no descriptors.
        content: also take the content of pipes and sockets; the tree is frozen.
        reset_outside: keep sockets with a peer outside of the tree, as sockets whose peer has closed.
        stdio: for descriptors of the first process, the standard descriptor of which each is a copy.
        stats: for each PID the stat with its session and controlling terminal; None: read it if there is a terminal.
        built: see `GrabbedDescriptors.built`.

    Raises:
        NotPermitted: a process belongs to another user.
    """
    tree = GrabbedDescriptors(
        list(pids), content=content, reset_outside=reset_outside, terminals=stats or {}, built=built
    )
    known = _Known(kinds, tree)
    try:
        _grab(known, pids)
    finally:
        for open_file in tree.open_files:
            for copy in open_file.kind.under_way(open_file):
                os.close(copy.fd)
    for fd, number in (stdio or {}).items():
        if (copied := tree.by_reference.get(FdReference(pids[0], fd))) and not copied.stdio:
            copied.stdio.append(number)
    # Look at the ancestors while they still live. Not for sockets: finding their peers takes too long under the freeze.
    if content and any(
        open_file.kind.outside(open_file, tree)
        for open_file in tree.open_files
        if not stat.S_ISSOCK(open_file.stat.st_mode)
    ):
        _ = tree.inherited
    for open_file in tree.open_files:
        if open_file.under_way_to is not None:  # our copy is closed; name the future receiver
            open_file.references = open_file.under_way_to.references[:1]
    return tree


def _grab(known: _Known, pids: Sequence[int]) -> None:
    """Grab the descriptions of all processes."""
    tree = known.tree
    for pid in pids:
        if sharing.with_parent(pid, pids, sharing.KCMP_FILES):
            tree.sharing.add(pid)
            continue
        try:
            pidfd = pidfd_open(pid)
        except ProcessLookupError:
            if tree.content:
                raise _ended(pid) from None
            continue
        try:
            _grab_process(known, pid, pidfd)
        except PermissionError:
            # When a process exits, the kernel gives its /proc/PID to root as soon as its memory is gone, a moment
            # before it is a zombie (task_dump_owner, fs/proc/base.c).
            if not procfs.is_ending(pid, pid):
                raise not_permitted(pid) from None
        finally:
            os.close(pidfd)
    for open_file in tree.open_files:  # descriptions in its queue are appended, and examined in turn
        for one in open_file.kind.under_way(open_file):
            one.open_file = _grab_under_way(known, one.fd, open_file)
    for kind, mine in by_kind(known.kinds, tree):
        kind.finish(mine, tree)


def by_kind(kinds: Kinds, tree: GrabbedDescriptors) -> Iterator[tuple[Kind[Any], list[OpenFile[Any]]]]:
    """Each kind, and its descriptions."""
    for kind in kinds:
        yield kind, [open_file for open_file in tree.open_files if open_file.kind is kind]


def _ended(pid: int) -> CheckpointFailed:
    return CheckpointFailed(f"process {pid} ended while it was saved")


class _Known:
    """The descriptions found so far, in an order that allows to look one up with few comparisons."""

    def __init__(self, kinds: Kinds, tree: GrabbedDescriptors) -> None:
        self.kinds = kinds
        self.tree = tree
        self._buckets: dict[object, _Bucket] = {}

    @cached_property
    def local(self) -> set[int]:
        """The devices of file systems that do nothing when a file is closed."""
        try:
            mounts = list(procfs.mounts(self.tree.pids[0]))
        except OSError:
            if self.tree.content:
                raise
            mounts = []  # it has ended
        return {memfd_device(), *(mount.device for mount in mounts if mount.filesystem in _LOCAL)}

    def find(self, key: object, holder: FdReference) -> tuple[OpenFile[Any] | None, _Bucket, int]:
        """The description of a descriptor, if it is known; else the bucket and the position where to insert it."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
            return None, bucket, 0
        if not probe().kcmp:
            mine = copies.ours(*holder)
            same = (one for one in bucket.open_files if copies.is_same(mine, copies.ours(*one.references[0])))
            return next(same, None), bucket, len(bucket.open_files)
        place = ffi.new("size_t *")
        wanted = ffi.new("struct tp_descriptor *", holder)
        known = ffi.from_buffer("struct tp_descriptor[]", bucket.descriptors)
        found = lib.tp_find_description(wanted, known, len(bucket.open_files), place)
        ffi.release(known)  # which would keep the array from growing
        if found < 0:
            raise OSError(-found, os.strerror(-found), NR.kcmp.name)
        return bucket.open_files[place[0]] if found else None, bucket, place[0]


class _Bucket:
    """Descriptions that may be the same, in the order of kcmp(2)."""

    def __init__(self) -> None:
        self.open_files: list[OpenFile[Any]] = []
        self.descriptors = array("i")
        """The PID and the number of a descriptor of each."""

    def insert(self, place: int, open_file: OpenFile[Any]) -> None:
        self.open_files.insert(place, open_file)
        self.descriptors[2 * place : 2 * place] = array("i", open_file.references[0])


def _grab_process(known: _Known, pid: int, pidfd: int) -> None:
    with ExitStack() as stack:
        try:
            table, infos = (_open_folder(f"/proc/{pid}/{name}", stack) for name in ("fd", "fdinfo"))
            names = os.listdir(table)
        except FileNotFoundError:
            if known.tree.content:
                raise _ended(pid) from None
            return
        for name in names:
            try:
                _grab_descriptor(known, FdReference(pid, int(name)), pidfd, table, infos)
            except PermissionError:
                raise
            except OSError as error:
                # In a running tree the number may now be free, or something that the call does not expect.
                if known.tree.content:
                    raise CheckpointFailed(f"fd {name} of process {pid} cannot be read: {in_words(error)}") from error


def _open_folder(path: str, stack: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _grab_descriptor(known: _Known, holder: FdReference, pidfd: int, table: int, infos: int) -> None:
    tree, info = known.tree, _read(str(holder.fd), infos)
    open_file, is_new = _description(known, holder, info, pidfd, table, infos)
    if not is_new:
        open_file.add(holder)
    tree.by_reference[holder] = open_file
    if _flags(info) & os.O_CLOEXEC:
        tree.cloexec.add(holder)
    if found := locks.lines(info):
        tree.locked[holder] = found
        if locks.owner(b"LEASE", found) is not None and id(open_file) not in tree.lease_signals:
            with borrowed(pidfd, holder.fd) as copy:
                tree.lease_signals[id(open_file)] = fcntl.fcntl(copy, locks.F_GETSIG)


def _grab_under_way(known: _Known, copy: int, socket: OpenFile[Any]) -> OpenFile[Any]:
    """The description of a descriptor in a socket's queue, by our copy of it."""
    holder = FdReference(os.getpid(), copy)
    with ExitStack() as stack:
        pidfd = pidfd_open(holder.pid)
        stack.callback(os.close, pidfd)
        table, infos = (_open_folder(f"/proc/self/{name}", stack) for name in ("fd", "fdinfo"))
        open_file, is_new = _description(known, holder, _read(str(copy), infos), pidfd, table, infos)
    if is_new:
        open_file.under_way_to = socket
        if known.tree.content and isinstance(open_file.kind, MemoryDescriptor):
            open_file.ours = FileIO(f"/proc/self/fd/{copy}")
    return open_file


def _description(
    known: _Known, holder: FdReference, info: bytes, pidfd: int, table: int, infos: int
) -> tuple[OpenFile[Any], bool]:
    """The description of a descriptor, and whether it is new: then it is grabbed.

    Raises:
        FileNotFoundError: in a running tree, the descriptor has changed meanwhile.
    """
    position, _, *identity = info.split(b"\n", 4)[:4]
    flags = _flags(info) & ~os.O_CLOEXEC
    key = (position, flags, *identity)
    open_file, bucket, place = known.find(key, holder)
    if open_file is not None:
        return open_file, False
    seen = _look(str(holder.fd), table, pidfd)
    open_file = OpenFile(_kind(known.kinds, seen, flags), seen.link, seen.stat, flags, info)
    open_file.add(holder)
    if _has_owner(known, seen, flags):
        with borrowed(pidfd, holder.fd) as copy:
            open_file.owner = signal_owners.ask(copy)
    spared = known.tree.built is not None and holder in known.tree.built.spared
    open_file.state = open_file.kind.grab(open_file, pidfd, content=known.tree.content and not spared)
    if not known.tree.content:
        name = str(holder.fd)
        if _read(name, infos).split(b"\n", 4)[2:4] != identity or _link(name, table) != seen.link:
            raise FileNotFoundError(name)
    bucket.insert(place, open_file)
    known.tree.open_files.append(open_file)
    return open_file, True


def _has_owner(known: _Known, seen: Seen, flags: int) -> bool:
    """Whether to read the owner of its signals: not for a file if closing our copy may write to a network."""
    if flags & os.O_PATH or stat.S_ISDIR(seen.stat.st_mode):
        return False
    return not stat.S_ISREG(seen.stat.st_mode) or seen.stat.st_dev in known.local


def _flags(info: bytes) -> int:
    return int(info.split(b"\n", 2)[1].split()[1], 8)


def _read(name: str, directory: int) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with about(f"fdinfo/{name}"):
            text = os.read(fd, 1 << 12)
            while more := os.read(fd, 1 << 16):
                text += more
        return text
    finally:
        os.close(fd)


def _look(name: str, table: int, pidfd: int) -> Seen:
    link = _link(name, table)
    status = os.stat(name, dir_fd=table)
    if link.startswith("socket:["):
        with borrowed(pidfd, int(name)) as copy:
            return Seen(link, status, family_of(copy))
    if posix_queues.may_be(link, status):
        with borrowed(pidfd, int(name)) as copy:
            return Seen(link, status, None, posix_queues.is_queue(copy))
    return Seen(link, status, None)


def _link(name: str, table: int) -> str:
    """The target of a descriptor's link; empty if the path is longer than the kernel shows (fs/proc/base.c)."""
    try:
        return os.readlink(name, dir_fd=table)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return ""


def _kind(kinds: Kinds, seen: Seen, flags: int) -> Kind[Any]:
    if flags & os.O_PATH and not (stat.S_ISREG(seen.stat.st_mode) or stat.S_ISDIR(seen.stat.st_mode)):
        return next(kind for kind in kinds if isinstance(kind, NameOnly))
    return next(kind for kind in kinds if kind.matches(seen))
