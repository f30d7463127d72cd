"""File locks (flock(2), fcntl_locking(2)).

Kept: flock, open file description locks and POSIX record locks, each with its type, its range, and whether it is
shared. The first two belong to a description. The last belong to a process, which takes its own when it has all its
descriptors and no others: closing another one would release them. A flock is taken by the process that took it before,
which the kernel shows as its owner, if it still has the file open; else by the restorer, like the locks of a
description. The restore is refused while another process has a conflicting lock.

A lease (F_SETLEASE) is taken by the process that had it, with its signal; no other process may have the file open in a
conflicting way. A lease that is being broken is refused. A process that waits for a lock continues to wait: its call is
restarted.

fdinfo has a line for each lock that was taken through a descriptor (Documentation/filesystems/proc.rst, 3.8; the line's
format is that of /proc/locks).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Container, Iterable, Iterator

from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Lock, Process, Tree
from torpor.objects.fds import files
from torpor.objects.kind import Unsupported
from torpor.objects.opening import words
from torpor.objects.paths.opener import Openers
from torpor.remote.batch import Call

# include/uapi/asm-generic/fcntl.h
F_RDLCK, F_WRLCK = 0, 1
F_SETLK = 6
F_OFD_SETLK = 37
FLOCK = struct.Struct("=hhxxxxqqixxxx")
"""struct flock: type, whence, start, length (0: to the end), PID."""
LAST = (1 << 63) - 1
F_SETSIG, F_GETSIG = 10, 11
F_SETLEASE = 1024
OF_FLOCK = (Lock.FLOCK, Lock.FLOCK_BY)
KINDS = {b"FLOCK": Lock.FLOCK, b"OFDLCK": Lock.OFD, b"POSIX": Lock.POSIX, b"LEASE": Lock.LEASE}

_LINE = re.compile(rb"^lock:\t\d+: (\w+) +(\w+) +(\w+) +(-?\d+) \S+ (\d+) (\d+|EOF)$")


def lines(info: bytes) -> list[bytes]:
    """The lines of fdinfo on locks."""
    return [line for line in info.split(b"\n") if line.startswith(b"lock:")]


def unsupported(found: Iterable[bytes]) -> Iterator[Unsupported]:
    """Say which of them cannot be kept."""
    for line in found:
        match = _LINE.match(line)
        if match and match[1] == b"LEASE" and match[2] != b"ACTIVE":
            yield Unsupported("its lease (F_SETLEASE) is being broken", "let the program give it up", passing=True)
        elif match is None or match[1] not in KINDS or match[3] not in (b"READ", b"WRITE"):
            yield Unsupported(
                f"it has a lock of a kind that is not known: {line.decode(errors='replace')}", "unlock it"
            )


def parse(found: Iterable[bytes]) -> list[Lock]:
    """The locks that can be kept, for an image."""
    made = []
    for line in found:
        if (match := _LINE.match(line)) and match[1] in KINDS:
            start = int(match[5])
            length = 0 if match[6] == b"EOF" else int(match[6]) - start + 1
            made.append(Lock(kind=KINDS[match[1]], exclusive=match[3] == b"WRITE", start=start, length=length))
    return made


def owner(kind: bytes, found: Iterable[bytes]) -> int | None:
    """The PID of the process that took a lock of this kind, in our PID namespace; None if there is none."""
    owners = (int(match[4]) for line in found if (match := _LINE.match(line)) and match[1] == kind)
    return next(owners, None)


def leased(image: Tree) -> set[bytes]:
    """The files on which the tree has leases: opening one breaks its lease."""
    indexes = {
        entry.description
        for process in image.processes
        for entry in process.fds
        if any(lock.kind == Lock.LEASE for lock in entry.locks)
    }
    return {image.descriptions[index].file.path for index in indexes}


def validate(image: Tree) -> Iterator[Reason]:
    """Say which locks cannot be taken here, because another process has a conflicting one."""
    of_processes: dict[int, list[Lock]] = {}
    for process in image.processes:
        for entry in process.fds:
            of_processes.setdefault(entry.description, []).extend(entry.locks)
    openers = Openers(image)
    for index, description in enumerate(image.descriptions):
        mine = [*description.locks, *of_processes.get(index, ())]
        known = (*KINDS.values(), Lock.FLOCK_BY)
        if any(lock.start + lock.length > LAST or lock.kind not in known for lock in mine):
            yield Reason("the image", "it has invalid locks")
        elif mine and description.WhichOneof("kind") in ("file", "directory"):
            try:
                fd = files.open_described(description, openers.description(index))
            except OSError:
                continue  # its kind reports that
            try:
                for lock in mine:
                    if lock.kind == Lock.LEASE:
                        continue  # this descriptor itself would conflict
                    # Nothing of the image is locked yet, so a conflicting lock belongs to another program.
                    _take(fd, lock)
            except OSError as error:
                yield Reason(words(description), f"the program had it locked, and {_why(error)}", "end that process")
            finally:
                os.close(fd)


def take(image: Tree, slots: dict[int, int], *, but: Container[str]) -> None:
    """Take the locks that belong to descriptions.

    Args:
        image: the tree.
        slots: the descriptors of the descriptions.
        but: the kinds of descriptions that processes of the tree open, and then lock, themselves (`calls`).

    Raises:
        RestoreFailed: another process has a conflicting lock.
    """
    for index, description in enumerate(image.descriptions):
        if description.WhichOneof("kind") in but:
            continue
        for lock in description.locks:
            try:
                _take(slots[index], lock)
            except OSError as error:
                raise RestoreFailed(f"{words(description)} cannot be locked again: {_why(error)}") from error


def calls(description: Description, fd: int) -> Iterator[Call]:
    """The calls by which a process that has opened a description takes the locks that belong to it."""
    for lock in description.locks:
        if lock.kind in OF_FLOCK:
            yield Call(NR.flock, (fd, _operation(lock)), 0, f"locking {words(description)}")
        else:
            yield Call(NR.fcntl, (fd, F_OFD_SETLK, _request(lock)), 0, f"locking {words(description)}")


def restore_calls(process: Process) -> Iterator[Call]:
    """The calls by which a process takes its own locks, after it has closed its last descriptor."""
    for entry in process.fds:
        for lock in entry.locks:
            if lock.kind == Lock.LEASE:
                yield from _lease(entry.fd, lock)
                continue
            if lock.kind == Lock.FLOCK_BY:
                text = f"locking the file of descriptor {entry.fd}, which no other process may have locked"
                yield Call(NR.flock, (entry.fd, _operation(lock)), 0, text)
                continue
            extent = f"{lock.start}-{lock.start + lock.length - 1}" if lock.length else f"{lock.start}-"
            text = f"locking bytes {extent} of descriptor {entry.fd}"
            yield Call(NR.fcntl, (entry.fd, F_SETLK, _request(lock)), 0, text)


def _lease(fd: int, lock: Lock) -> Iterator[Call]:
    if lock.signal:
        yield Call(NR.fcntl, (fd, F_SETSIG, lock.signal), 0, f"choosing the signal of descriptor {fd}")
    kind = F_WRLCK if lock.exclusive else F_RDLCK
    words = f"taking the lease of descriptor {fd}, whose file no other process may have open"
    yield Call(NR.fcntl, (fd, F_SETLEASE, kind), 0, words)


def _operation(lock: Lock) -> int:
    return (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB


def _request(lock: Lock) -> bytes:
    return FLOCK.pack(F_WRLCK if lock.exclusive else F_RDLCK, os.SEEK_SET, lock.start, lock.length, 0)


def _take(fd: int, lock: Lock) -> None:
    if lock.kind in OF_FLOCK:
        fcntl.flock(fd, _operation(lock))
    else:
        fcntl.fcntl(fd, F_OFD_SETLK, _request(lock))


def _why(error: OSError) -> str:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return "another process has it locked"
    return str(error.strerror)
