"""What tasks share.

Kept: a table of descriptors, or a current directory with root directory and umask, that children share with their
parent (clone(2) with CLONE_FILES or CLONE_FS): they are born so again.

Refused: processes that share memory without being threads (CLONE_VM); processes that share anything with others than
their parents, because the process between them has ended or no longer shares it; and threads with a current directory,
namespaces, ids or capabilities of their own (unshare(2), setns(2), capset(2), raw setuid calls). Threads with
descriptors of their own are refused in descriptors.py.

Documented in: clone(2), unshare(2), kcmp(2), capabilities(7).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.process import security_labels
from torpor.probe import probe
from torpor.remote.naming import describe_process
from torpor.remote.sys import Argument, try_syscall

KCMP_VM, KCMP_FILES, KCMP_FS = 1, 2, 3
SHARED = {
    KCMP_VM: "they share their memory (clone(CLONE_VM)) without being threads of one process",
    KCMP_FILES: "they share one table of descriptors (clone(CLONE_FILES)), and neither is the other's parent",
    KCMP_FS: "they share their current directory and umask (clone(CLONE_FS)), and neither is the other's parent",
}
_CLONE_FS, _CLONE_FILES = 0x200, 0x400
_PATIENCE = 0.5
"""Seconds."""
_OWN = {
    b"Uid": "user ids", b"Gid": "group ids", b"Groups": "groups", b"CapInh": "capabilities", b"CapPrm": "capabilities",
    b"CapEff": "capabilities", b"CapBnd": "capabilities", b"CapAmb": "capabilities",
}  # fmt: skip
"""Lines of a status that must be the same for all threads."""
_NAMESPACES = ("mnt", "net", "ipc", "uts", "cgroup", "pid_for_children", "time_for_children")
"""Namespaces that a thread can have for itself."""


def unsupported(pids: Sequence[int]) -> list[Reason]:
    """Which sharing in a tree cannot be kept. `pids` are its living processes.

    Where this host withholds kcmp(2), what processes share is found under the freeze (torpor.dump.self_report).
    """
    reasons = _lasting(pids) if probe().kcmp else []
    for pid in pids:
        try:
            reasons += _within(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
    return reasons


def compare(pid: int, other: int, kind: int, *more: Argument) -> int:
    """What kcmp(2) answers: 0 if something is the same, 1 or 2 if not, or a negated errno."""
    return try_syscall(NR.kcmp, pid, other, kind, *more) if probe().kcmp else -errno.EPERM


_known: dict[int, frozenset[int]] = {}


@contextmanager
def known(pid: int, kinds: frozenset[int]) -> Iterator[None]:
    """Within the block, it is known what a frozen process shares with its parent: KCMP_FILES, KCMP_FS."""
    _known[pid] = kinds
    try:
        yield
    finally:
        del _known[pid]


def clone_flags(process: pb.Process) -> int:
    """The flags of clone(2) by which a process shares with its parent what it shared."""
    return (_CLONE_FS if process.shares_fs else 0) | (_CLONE_FILES if process.shares_fds else 0)


def validate_form(process: pb.Process) -> Iterator[str]:
    """What in an image no checkpoint would have written."""
    if process.shares_fds and process.fds:
        yield "it has its parent's descriptors, and others"
    if process.zombie and clone_flags(process):
        yield "it had ended, and shares something with its parent"


def _lasting(pids: Sequence[int]) -> list[Reason]:
    """What processes share for longer than a child shares with its parent between vfork or posix_spawn and execve."""
    found = [reason for kind in SHARED for reason in _between(pids, kind)]
    deadline = time.monotonic() + _PATIENCE
    while found and time.monotonic() < deadline:
        time.sleep(_PATIENCE / 50)
        now = {reason for kind in SHARED for reason in _between(pids, kind)}
        found = [reason for reason in found if reason in now]
    return found


def with_parent(pid: int, tree: Container[int], kind: int) -> bool:
    """Whether a process shares something with its parent, and that is in the tree."""
    try:
        parent = procfs.stat(pid).ppid
    except (FileNotFoundError, ProcessLookupError):
        return False  # it ended
    same = kind in _known[pid] if pid in _known else compare(pid, parent, kind) == 0
    return same and parent in tree


def _between(pids: Sequence[int], kind: int) -> Iterator[Reason]:
    """Find processes that share what cannot be kept.

    kcmp gives an order, so that each is compared with only a few others. One that shares with its parent is left out:
    its parent stands for it.
    """
    ordered: list[int] = []
    for pid in pids:
        if kind != KCMP_VM and with_parent(pid, pids, kind):
            continue
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            order = compare(pid, ordered[middle], kind)
            if order == 0:
                if procfs.is_ending(pid, pid) or procfs.is_ending(ordered[middle], ordered[middle]):
                    break  # both have released everything
                yield Reason(f"{describe_process(pid)} and {describe_process(ordered[middle])}", SHARED[kind])
                break
            low, high = (low, middle) if order == 1 else (middle + 1, high)
        else:
            ordered.insert(low, pid)


def _within(pid: int) -> Iterator[Reason]:
    tids = procfs.threads(pid)
    if len(tids) == 1:
        return
    leader, label = _status(pid, pid), security_labels.of(pid)
    # Without a capability no thread can enter or create a namespace for itself alone.
    home = _namespaces(pid, pid) if int(leader[b"CapPrm"], 16) else ()
    for tid in tids[1:]:
        try:
            mine = _status(pid, tid)
            what = {words for line, words in _OWN.items() if mine.get(line) != leader.get(line)}
            if home and _namespaces(pid, tid) != home:
                what.add("namespaces")
            if security_labels.of(pid, tid) != label:
                what.add("a security label")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        if compare(pid, tid, KCMP_FS) in (1, 2):
            what.add("a current directory")
        if what and not procfs.is_ending(pid, tid):  # one that ends has released what it shared
            owned = ", ".join(sorted(what))
            yield Reason(f"{describe_process(pid)}, thread {tid}", f"it has {owned} of its own, which is not kept")


def _status(pid: int, tid: int) -> Mapping[bytes, bytes]:
    return procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))


def _namespaces(pid: int, tid: int) -> tuple[str, ...]:
    folder = f"/proc/{pid}/task/{tid}/ns"
    return tuple(os.readlink(f"{folder}/{name}") for name in _NAMESPACES if os.path.lexists(f"{folder}/{name}"))
