"""The process tree: its processes, their ids, sessions and groups, and what of them is unsupported.

Kept: PID, parent, group and session in the tree's own PID namespace, the signal that tells the parent of the end,
job-control stop, current and root directory, umask, the nice value of a session (autogroup); zombies with their exit
status.

Refused: processes in other namespaces than the root's, PID 1, kernel threads, a traced process, a process whose first
thread has ended before others.

Documented in: credentials(7), pid_namespaces(7), proc_pid_status(5), prctl(2).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import NotFound, NotPermitted, Reason
from torpor.image import image_pb2 as pb
from torpor.objects.paths import directories
from torpor.objects.process import daemons, security_labels
from torpor.objects.process.daemons import INIT, is_init
from torpor.objects.process.texts import Texts, own_pid_of
from torpor.remote.batch import Call
from torpor.remote.naming import WAIT_FOR_TRACER, describe_process, not_permitted

_EXIT_SIGNAL, _EXIT_CODE = 38, 52  # fields of proc_pid_stat(5)
_CORE_DUMPED = 0x80  # in a status of wait(2)
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD (include/linux/sched.h)
_NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user", "time")
_FOR_CHILDREN = ("pid", "time")
"""Namespaces that can be set for the children of a process only."""


@dataclass(frozen=True)
class Seen:
    """A running process at the preflight."""

    pid: int
    name: str
    status: Mapping[bytes, bytes]
    stat: procfs.Stat

    @property
    def zombie(self) -> bool:
        """Whether it has ended."""
        return self.stat.state in ("Z", "X")


def job_of(pid: int) -> int:
    """The root of a job if `pid` is its torpor-init, or the command that stands for it; else `pid` itself.

    Between init and root there may be stand-ins for processes that the job refers to, which are torpor-inits too.

    Raises:
        NotFound: the job of this torpor-init has ended.
    """
    pid = _init_of_command(pid) or pid
    if not is_init(pid):
        if procfs.is_ending(pid, pid) and describe_process(pid).endswith(f"({INIT})"):
            raise NotFound(f"the job of {describe_process(pid)} has ended")
        return pid
    # Orphans of the job are children of its init too; its first argument is the PID of the job's first process.
    found = 0
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        words = procfs.read(f"/proc/{pid}/cmdline").split(b"\0")
        below = sorted(_alive(procfs.children(pid, [pid])))
        first = [child for child in below if b"%d" % child[1] in words[1:2]] or below[:1]
        found = next(filter(None, (_below(child) for _, _, child in first)), 0)
    if not found:
        raise NotFound(f"the job of {describe_process(pid)} has ended")
    return found


def is_torpor(words: Sequence[bytes]) -> bool:
    """Whether these are the words of a command `torpor`: it may follow its interpreter and that one's options."""
    names = [os.path.basename(word) for word in words if not word.startswith(b"-")]
    return bool({b"torpor", b"torpor-cli"} & set(names[:2]))


def _init_of_command(pid: int) -> int:
    """The torpor-init of the job of a `torpor run` or `torpor restore`; 0 if `pid` is not such a command."""
    with suppress(FileNotFoundError, ProcessLookupError):
        words = procfs.read(f"/proc/{pid}/cmdline").split(b"\0")
        if is_torpor(words) and {b"run", b"restore"} & set(words):
            inits = [child for child in procfs.children(pid, procfs.threads(pid)) if is_init(child)]
            return inits[0] if len(inits) == 1 else 0
    return 0


def _alive(pids: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """The start time, the PID in its own namespace and our PID of each process that still exists."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            yield procfs.stat(pid).start_time, own_pid_of(_status(pid)), pid


def _below(pid: int) -> int:
    """The first process at or below `pid` that is not a torpor-init; 0: none."""
    if not is_init(pid):
        return pid
    below: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        below = procfs.children(pid, [pid])
    return next(filter(None, map(_below, below)), 0)


def _status(pid: int) -> Mapping[bytes, bytes]:
    return procfs.status(procfs.read(f"/proc/{pid}/status"))


def walk(root: int) -> list[Seen]:
    """The tree at this moment, parents first.

    Raises:
        NotFound: there is no such process.
    """
    found: list[Seen] = []
    waiting = [root, *daemons.of(root)]
    while waiting:
        pid = waiting.pop(0)
        try:
            seen = Seen(pid, describe_process(pid), _status(pid), procfs.stat(pid))
            waiting += procfs.children(pid, procfs.threads(pid))
        except (FileNotFoundError, ProcessLookupError):
            if pid == root:
                raise NotFound(f"there is no process {root}", advice="see `ps -u $USER`") from None
            continue
        found.append(seen)
    return found


def tasks(root: int) -> Iterator[tuple[int, int]]:
    """The (pid, tid) of every thread of the tree at this moment."""
    waiting = [root, *daemons.of(root)]
    while waiting:
        pid = waiting.pop()
        try:
            tids = procfs.threads(pid)
            waiting += procfs.children(pid, tids)
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield from ((pid, tid) for tid in tids)


def unsupported(tree: list[Seen]) -> list[Reason]:
    """Why the processes themselves cannot be kept.

    Raises:
        NotPermitted: this user may not trace the root.
    """
    root = tree[0]
    reasons: list[Reason] = []
    if root.stat.flags & _KERNEL_THREAD:
        return [Reason(root.name, "it is a thread of the kernel")]
    if os.geteuid() not in (0, int(root.status[b"Uid"].split()[0])):
        raise not_permitted(root.pid)
    if own_pid_of(root.status) == 1:
        reasons.append(Reason(root.name, "it is the init of its PID namespace", "checkpoint the job below it"))
    for seen in tree:
        if seen.zombie and _is_leaderless(seen.pid):
            why = "its first thread has ended while others run, which is not kept"
            reasons.append(Reason(seen.name, why, "have the main thread wait for the others"))
    if reasons:
        return reasons
    try:
        home, label = _namespaces(root.pid), security_labels.of(root.pid)
    except OSError as error:
        raise permitted(error, root.pid) from None
    reasons += _elsewhere(root, home)
    for seen in tree:
        if seen is root or not seen.zombie:
            reasons += _unsupported(seen, home, label)
    return reasons


def _is_leaderless(pid: int) -> bool:
    try:
        return procfs.is_leaderless(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _unsupported(seen: Seen, home: Mapping[str, str], label: str) -> list[Reason]:
    reasons: list[Reason] = []
    if seen.stat.state in ("Z", "X"):
        return [
            Reason(
                seen.name,
                "it has ended, and its parent has not waited for it yet",
                "try again a little later",
            )
        ]
    tracer = int(seen.status[b"TracerPid"])
    if tracer:
        who = describe_process(tracer)
        reasons.append(Reason(seen.name, f"it is already traced by {who}", WAIT_FOR_TRACER))
    if seen.status.get(b"x86_Thread_features"):
        what = seen.status[b"x86_Thread_features"].decode()
        reasons.append(Reason(seen.name, f"it uses a shadow stack ({what}), which is not kept"))
    try:
        here = _namespaces(seen.pid)
        of_children = {kind: _for_children(seen.pid, kind) for kind in _FOR_CHILDREN if kind in here}
        reasons += directories.unsupported(seen.name, seen.pid)
        reasons += security_labels.unsupported(seen.name, security_labels.of(seen.pid), label)
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return reasons  # it ended, or changed its user: the freeze reports it
    for kind, namespace in here.items():
        if namespace != home[kind]:
            why = f"it lives in another {kind} namespace than the root of the tree"
            reasons.append(Reason(seen.name, why, "containers inside a tree are not kept"))
    for kind, pending in of_children.items():
        if pending != here[kind]:
            which = "a new" if pending is None else "another"
            why = f"its next children will be in {which} {kind} namespace (unshare(2), setns(2)), which is not kept"
            reasons.append(Reason(seen.name, why, "checkpoint it before that, or what lives there by itself"))
    return reasons


def _elsewhere(root: Seen, home: Mapping[str, str]) -> Iterator[Reason]:
    """Refuse a whole tree in a container: after a wake its network, its host name or its user ids would be others.

    A capsule has a user namespace of its own, but the network and the host name of the processes around it.
    """
    ours = _namespaces(os.getpid())
    for kind in ("net", "uts") if _is_in_capsule(root.pid, home) else ("net", "uts", "user"):
        if home.get(kind) != ours.get(kind):
            why = f"it lives in another {kind} namespace than Torpor, as in a container"
            yield Reason(root.name, why, "start Torpor inside of that")


def _is_in_capsule(root: int, home: Mapping[str, str]) -> bool:
    """Whether a process has the namespaces that a torpor-init is the init of."""
    with suppress(OSError):  # the init has ended, or belongs to another user
        inits = daemons.inits(root)
        return bool(inits) and own_pid_of(_status(inits[-1])) == 1 and _namespaces(inits[-1])["user"] == home["user"]
    return False


def _for_children(pid: int, kind: str) -> str | None:
    """The namespace that children of a process are born into.

    None if that namespace has no process yet: the first child becomes its init (pidns_for_children_get(),
    kernel/pid_namespace.c).
    """
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}_for_children")
    except FileNotFoundError:
        if os.path.lexists(f"/proc/{pid}/ns/{kind}"):
            return None
        raise


def _namespaces(pid: int) -> dict[str, str]:
    """The namespaces of a process, of the types that the kernel has.

    Raises:
        FileNotFoundError: it has none any more: it is exiting (kernel/exit.c, do_exit) or gone.
    """
    found: dict[str, str] = {}
    for kind in _NAMESPACES:
        try:
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
        except FileNotFoundError:
            if os.path.lexists(f"/proc/self/ns/{kind}"):
                raise
    return found


def own_pid(pid: int) -> int:
    """The PID of a process in its own PID namespace."""
    return own_pid_of(_status(pid))


def describe(grabbed: Texts, parent: int, image: pb.Process) -> None:
    """Write a process's place in the tree.

    Args:
        grabbed: its texts.
        parent: the parent's PID in the tree's PID namespace, 0 if the parent is outside of the tree.
        image: the message to fill.
    """
    _describe_ids(grabbed, parent, image)
    if grabbed.cwd:
        image.cwd = os.fsencode(grabbed.cwd.path)
        grabbed.cwd.describe(image.cwd_inode)
    if grabbed.root and (grabbed.root.path != "/" or grabbed.root.removed):
        image.root = os.fsencode(grabbed.root.path)
        grabbed.root.describe(image.root_inode)
    image.umask = int(grabbed.status[b"Umask"], 8)
    image.shares_fs = grabbed.shares_fs
    image.autogroup_nice = grabbed.autogroup_nice


def _describe_ids(grabbed: Texts, parent: int, image: pb.Process) -> None:
    image.pid = grabbed.own_pid
    image.ppid = parent
    image.pgid = int(grabbed.status[b"NSpgid"].split()[-1])
    image.sid = int(grabbed.status[b"NSsid"].split()[-1])
    exit_signal = int(grabbed.stat.fields[_EXIT_SIGNAL - 1])
    if exit_signal != signal.SIGCHLD:
        image.exit_signal = 1 + exit_signal


def describe_zombie(grabbed: Texts, parent: int, image: pb.Process) -> None:
    """Write what is left of a process that has ended: its ids, its name and its exit status."""
    _describe_ids(grabbed, parent, image)
    image.zombie = True
    image.exit_status = int(grabbed.stat.fields[_EXIT_CODE - 1]) & ~_CORE_DUMPED
    image.threads.add(tid=image.pid, name=grabbed.stat.comm)
    image.credentials.uids.extend(map(int, grabbed.status[b"Uid"].split()))


def notices_of_zombie(grabbed: Texts) -> Iterator[str]:
    """Say what its parent will see differently after a restore, which cannot make a process that leaves a core dump."""
    if int(grabbed.stat.fields[_EXIT_CODE - 1]) & _CORE_DUMPED:
        yield f"the parent of {describe_process(grabbed.pid)} will not be told that it left a core dump (WCOREDUMP)"


def outside_parent(root: Texts) -> int:
    """The PID of the root's parent as the root sees it; 0 if the parent is in another PID namespace."""
    try:
        parent = procfs.status(procfs.read(f"/proc/{root.stat.ppid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    mine, theirs = root.status[b"NSpid"].split(), parent[b"NSpid"].split()
    return int(theirs[-1]) if len(mine) == len(theirs) else 0


def permitted(error: OSError, pid: int) -> NotPermitted | NotFound:
    """The error for a failure to read /proc/PID."""
    if isinstance(error, PermissionError) and not procfs.is_ending(pid, pid):
        return not_permitted(pid)
    return NotFound(f"process {pid} has ended")


# Restore


def restore_calls(process: pb.Process, cwd: int, root: int) -> Iterator[Call]:
    """The calls by which a process sets its directories and umask, unless they are its parent's.

    Args:
        process: of the image.
        cwd: a descriptor of its current directory.
        root: a descriptor of its root directory; -1 if that is the tree's.
    """
    if process.shares_fs:
        return
    if root >= 0:
        yield Call(NR.fchdir, (root,), 0, f"changing to the directory {os.fsdecode(process.root)}")
        yield Call(NR.chroot, (b".\0",), 0, "making it its root directory")
    yield Call(NR.fchdir, (cwd,), 0, f"changing to the directory {os.fsdecode(process.cwd)}")
    yield Call(NR.umask, (process.umask,), None, f"setting the umask {process.umask:03o}")
