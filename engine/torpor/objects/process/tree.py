"""The tree itself: which processes, their ids, sessions and groups, and what refuses them.

Kept: PID, parent, group and session in the tree's own PID namespace, job-control stop, current and root directory,
dumpable, child subreaper, THP and KSM settings, oom score adjustment, the nice value of a session as a whole; zombies
with their exit status.

Refused: 32-bit programs, segments and protection keys of a process's own, processes in other namespaces than the
root's, pid 1, kernel threads, a traced process, a process whose first thread has ended before others.

Documented in: credentials(7), pid_namespaces(7), proc_pid_status(5), prctl(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import NotFound, NotPermitted, Reason
from torpor.image import image_pb2 as pb
from torpor.objects.memory import vmas
from torpor.objects.paths import directories
from torpor.objects.paths.directories import Folder
from torpor.objects.process import daemons, security_labels
from torpor.objects.process.daemons import INIT, is_init
from torpor.remote.batch import Batch, Call, Out, Replies
from torpor.remote.freeze import describe_process, not_permitted

PR_GET_DUMPABLE = 3
PR_GET_CHILD_SUBREAPER = 37
PR_GET_THP_DISABLE = 42
PR_GET_MEMORY_MERGE = 68
MEMBARRIER_CMD_GET_REGISTRATIONS = 512
ARCH_GET_XCOMP_PERM = 0x1022
_EXIT_CODE = 52  # field of proc_pid_stat(5)
_READ_LDT = 0  # of modify_ldt(2)
_ERRORS = 1 << 31  # its errors are the low half of a word (arch/x86/kernel/ldt.c)
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD (include/linux/sched.h)
_NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user", "time")
_FOR_CHILDREN = ("pid", "time")
"""Those that a process stays out of: its children are born into them."""


@dataclass(frozen=True)
class Seen:
    """A process as the preflight saw it, running."""

    pid: int
    name: str
    status: Mapping[bytes, bytes]
    stat: procfs.Stat

    @property
    def zombie(self) -> bool:
        """Whether it has ended."""
        return self.stat.state in ("Z", "X")


def job_of(pid: int) -> int:
    """The root of a job when `pid` is the torpor-init that stands for it; else `pid` itself.

    Between the two there may be stand-ins for processes that the job refers to: torpor-inits as well.

    Raises:
        NotFound: it stands for a job that has ended.
    """
    if not is_init(pid):
        if procfs.is_ending(pid, pid) and describe_process(pid).endswith(f"({INIT})"):
            raise NotFound(f"the job of {describe_process(pid)} has ended")
        return pid
    # Orphans of the job are children of its init too: its first argument tells them apart.
    found = 0
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        words = procfs.read(f"/proc/{pid}/cmdline").split(b"\0")
        below = sorted(_alive(procfs.children(pid, [pid])))
        first = [child for child in below if b"%d" % child[1] in words[1:2]] or below[:1]
        found = next(filter(None, (_below(child) for _, _, child in first)), 0)
    if not found:
        raise NotFound(f"the job of {describe_process(pid)} has ended")
    return found


def _alive(pids: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """When each process started, its PID in its own namespace, and its PID; without those that have ended meanwhile."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            yield procfs.stat(pid).start_time, _own_pid(_status(pid)), pid


def _below(pid: int) -> int:
    """The first process that is no torpor-init, at or below one; 0: none."""
    if not is_init(pid):
        return pid
    below: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        below = procfs.children(pid, [pid])
    return next(filter(None, map(_below, below)), 0)


def _status(pid: int) -> Mapping[bytes, bytes]:
    return procfs.status(procfs.read(f"/proc/{pid}/status"))


def walk(root: int) -> list[Seen]:
    """The tree as it is at this moment, parents first.

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
    """The (pid, tid) of every thread of the tree as it is at this moment."""
    waiting = [root, *daemons.of(root)]
    while waiting:
        pid = waiting.pop()
        try:
            tids = procfs.threads(pid)
            waiting += procfs.children(pid, tids)
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield from ((pid, tid) for tid in tids)


def refuse(tree: list[Seen]) -> list[Reason]:
    """What of the processes themselves cannot be kept.

    Raises:
        NotPermitted: the root may not be traced by this user.
    """
    root = tree[0]
    reasons: list[Reason] = []
    if root.stat.flags & _KERNEL_THREAD:
        return [Reason(root.name, "it is a thread of the kernel")]
    if os.geteuid() not in (0, int(root.status[b"Uid"].split()[0])):
        raise not_permitted(root.pid)
    if _own_pid(root.status) == 1:
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
    for seen in tree:
        if seen is root or not seen.zombie:
            reasons += _refuse(seen, home, label)
    return reasons


def _is_leaderless(pid: int) -> bool:
    try:
        return procfs.is_leaderless(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _refuse(seen: Seen, home: Mapping[str, str], label: str) -> list[Reason]:
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
        reasons.append(Reason(seen.name, f"it is already traced by {who}", "end that one first"))
    if seen.status.get(b"x86_Thread_features"):
        what = seen.status[b"x86_Thread_features"].decode()
        reasons.append(Reason(seen.name, f"it uses a shadow stack ({what}), which is not kept"))
    try:
        here = _namespaces(seen.pid)
        of_children = {kind: _for_children(seen.pid, kind) for kind in _FOR_CHILDREN if kind in here}
        reasons += directories.refuse(seen.name, seen.pid)
        reasons += security_labels.refuse(seen.name, security_labels.of(seen.pid), label)
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return reasons  # it ended, or changed into somebody else's: the freeze says so
    for kind, namespace in here.items():
        if namespace != home[kind]:
            why = f"it lives in another {kind} namespace than the root of the tree"
            reasons.append(Reason(seen.name, why, "containers inside a tree are not kept"))
    for kind, pending in of_children.items():
        if pending != here[kind]:
            which = "a new" if pending is None else "another"
            why = f"its next children are to live in {which} {kind} namespace (unshare(2), setns(2)), which is not kept"
            reasons.append(Reason(seen.name, why, "checkpoint it before that, or what lives there by itself"))
    return reasons


def _for_children(pid: int, kind: str) -> str | None:
    """The namespace that children of a process are born into; None: one that has no process yet, whose init the first
    will be (pidns_for_children_get(), kernel/pid_namespace.c)."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}_for_children")
    except FileNotFoundError:
        if os.path.lexists(f"/proc/{pid}/ns/{kind}"):
            return None
        raise


def _namespaces(pid: int) -> dict[str, str]:
    """Those of a process, of the kinds that the kernel has.

    Raises:
        FileNotFoundError: it has none any more: it ends (kernel/exit.c, do_exit) or has ended.
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
    return _own_pid(_status(pid))


def _own_pid(status: Mapping[bytes, bytes]) -> int:
    return int(status[b"NSpid"].split()[-1])


@dataclass
class Grabbed:
    """A process's texts as they were under the freeze."""

    pid: int
    status: Mapping[bytes, bytes]
    stat: procfs.Stat
    cwd: Folder | None = None
    root: Folder | None = None
    limits: bytes = b""
    timers: bytes = b""
    oom_score_adj: int = 0
    coredump_filter: int = 0
    autogroup_nice: int = 0
    label: str = ""

    @property
    def own_pid(self) -> int:
        """The PID in its own PID namespace."""
        return _own_pid(self.status)


def grab(pid: int, *, zombie: bool = False) -> Grabbed:
    """Take the texts that change while a process runs; a zombie has few of them."""
    folder = f"/proc/{pid}"
    status, stat = procfs.status(procfs.read(f"{folder}/status")), procfs.stat(pid)
    if zombie:
        return Grabbed(pid, status, stat)
    return Grabbed(
        pid,
        status,
        stat,
        Folder.of(f"{folder}/cwd"),
        Folder.of(f"{folder}/root"),
        procfs.read(f"{folder}/limits"),
        procfs.read(f"{folder}/timers"),
        int(procfs.read(f"{folder}/oom_score_adj")),
        int(procfs.read(f"{folder}/coredump_filter"), 16),
        _autogroup_nice(folder),
        security_labels.of(pid),
    )


def _autogroup_nice(folder: str) -> int:
    """The nice value of a session's group of processes (sched(7)); 0 as well where the kernel has no such groups."""
    with suppress(FileNotFoundError):
        words = procfs.read(f"{folder}/autogroup").split()  # /autogroup-12 nice 5
        return int(words[-1]) if words else 0
    return 0


@dataclass
class Questions:
    """The entries of a process's batch that `describe` reads."""

    dumpable: int
    subreaper: int
    thp_disable: int
    memory_merge: int
    membarriers: int
    xstate_permitted: int
    segments: int


def ask(batch: Batch) -> Questions:
    """What only the process itself can be asked."""
    return Questions(
        batch.add(NR.prctl, PR_GET_DUMPABLE),
        batch.add(NR.prctl, PR_GET_CHILD_SUBREAPER, Out(4)),
        batch.add(NR.prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0),
        batch.add(NR.prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0),
        batch.add(NR.membarrier, MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0),
        batch.add(NR.arch_prctl, ARCH_GET_XCOMP_PERM, Out(8)),
        batch.add(NR.modify_ldt, _READ_LDT, Out(8), 8),
    )


def is_subreaper(asked: Questions, replies: Replies) -> bool:
    """Whether the process adopts orphans."""
    return replies.output(asked.subreaper, 1) != bytes(4)


def has_segments(asked: Questions, replies: Replies) -> bool:
    """Whether the process has a local descriptor table: segments of its own (modify_ldt(2))."""
    return 0 < replies.result(asked.segments) < _ERRORS


def describe(asked: Questions, replies: Replies, grabbed: Grabbed, parent: int, image: pb.Process) -> None:
    """Fill a process's place in the tree.

    Args:
        asked: from `ask`.
        replies: of the host thread.
        grabbed: its texts.
        parent: the parent's PID in the tree's PID namespace, 0 when the parent is outside of it.
        image: the message to fill.
    """
    _describe_ids(grabbed, parent, image)
    if grabbed.cwd:
        image.cwd = os.fsencode(grabbed.cwd.path)
        grabbed.cwd.describe(image.cwd_inode)
    if grabbed.root and (grabbed.root.path != "/" or grabbed.root.removed):
        image.root = os.fsencode(grabbed.root.path)
        grabbed.root.describe(image.root_inode)
    image.dumpable = replies.result(asked.dumpable)
    image.child_subreaper = is_subreaper(asked, replies)
    thp = replies.result(asked.thp_disable)
    image.thp_disable, image.thp_disable_flags = bool(thp & 1), thp & ~1
    image.membarriers = max(replies.result(asked.membarriers), 0)  # an error: the kernel cannot tell (before 6.3)
    image.memory_merge = replies.result(asked.memory_merge) == 1  # an error: the kernel does not have it
    image.oom_score_adj = grabbed.oom_score_adj
    image.coredump_filter = grabbed.coredump_filter
    image.autogroup_nice = grabbed.autogroup_nice
    if replies.result(asked.xstate_permitted) == 0:  # an older kernel has no such request, and nothing to ask for
        image.xstate_permitted = int.from_bytes(replies.output(asked.xstate_permitted, 1), "little")


def _describe_ids(grabbed: Grabbed, parent: int, image: pb.Process) -> None:
    image.pid = grabbed.own_pid
    image.ppid = parent
    image.pgid = int(grabbed.status[b"NSpgid"].split()[-1])
    image.sid = int(grabbed.status[b"NSsid"].split()[-1])


def describe_zombie(grabbed: Grabbed, parent: int, image: pb.Process) -> None:
    """Fill what is left of a process that has ended: its ids, its name and how it ended."""
    _describe_ids(grabbed, parent, image)
    image.zombie = True
    image.exit_status = int(grabbed.stat.fields[_EXIT_CODE - 1])
    image.threads.add(tid=image.pid, name=grabbed.stat.comm)
    image.credentials.uids.extend(map(int, grabbed.status[b"Uid"].split()))


def outside_parent(root: Grabbed) -> int:
    """The PID of the root's parent as the root sees it: 0 when it is in another PID namespace."""
    try:
        parent = procfs.status(procfs.read(f"/proc/{root.stat.ppid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    mine, theirs = root.status[b"NSpid"].split(), parent[b"NSpid"].split()
    return int(theirs[-1]) if len(mine) == len(theirs) else 0


def permitted(error: OSError, pid: int) -> NotPermitted | NotFound:
    """The error for people when /proc/PID cannot be read."""
    if isinstance(error, PermissionError) and not procfs.is_ending(pid, pid):
        return not_permitted(pid)
    return NotFound(f"process {pid} has ended")


# Restore

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_THP_DISABLE = 41
PR_SET_MEMORY_MERGE = 67
MADV_MERGEABLE, MADV_UNMERGEABLE = 12, 13
ARCH_REQ_XCOMP_PERM = 0x1023
_XTILE_DATA = 18
"""The only component that a process must ask for (Documentation/arch/x86/xstate.rst)."""


def steps(process: pb.Process, cwd: int, root: int) -> Iterator[Call]:
    """What a process sets for itself.

    Args:
        process: of the image.
        cwd: a descriptor of its current directory.
        root: one of its root directory; -1: that is the tree's.
    """
    if root >= 0:
        yield Call(NR.fchdir, (root,), 0, f"changing to the directory {os.fsdecode(process.root)}")
        yield Call(NR.chroot, (b".\0",), 0, "making it its root directory")
    yield Call(NR.fchdir, (cwd,), 0, f"changing to the directory {os.fsdecode(process.cwd)}")
    yield Call(NR.umask, (process.umask,), None, f"setting the umask {process.umask:03o}")
    if process.child_subreaper:
        yield Call(NR.prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0, "becoming the one whom orphans fall to")
    if process.thp_disable:
        args = (PR_SET_THP_DISABLE, 1, process.thp_disable_flags, 0, 0)
        yield Call(NR.prctl, args, 0, "turning huge pages off")
    for bit in range(process.membarriers.bit_length()):
        if process.membarriers >> bit & 1:
            yield Call(NR.membarrier, (1 << bit, 0, 0), 0, "registering for memory barriers")
    if process.memory_merge:
        yield Call(NR.prctl, (PR_SET_MEMORY_MERGE, 1, 0, 0, 0), 0, "having its equal pages merged")
        # What was mapped before is told so, too: not what it has taken out again, nor its stack since an execve.
        for vma in process.memory.vmas:
            if vma.kind in vmas.PRIVATE and MADV_MERGEABLE not in vma.advice:
                words = f"but not those at {vma.start:#x}-{vma.end:#x}"
                yield Call(NR.madvise, (vma.start, vma.end - vma.start, MADV_UNMERGEABLE), 0, words)
    if process.xstate_permitted >> _XTILE_DATA & 1:
        yield Call(NR.arch_prctl, (ARCH_REQ_XCOMP_PERM, _XTILE_DATA), 0, "asking leave to use AMX")


def last_steps(process: pb.Process) -> Iterator[Call]:
    """What each change of a thread's credentials undoes for the whole process (commit_creds(), kernel/cred.c)."""
    # 2 (root may read it) is what the kernel sets after a change of ids; it cannot be asked for.
    dumpable = int(process.dumpable == 1)
    yield Call(NR.prctl, (PR_SET_DUMPABLE, dumpable, 0, 0, 0), 0, "setting who may read it")
