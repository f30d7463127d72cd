"""Decide where a tree will live on this host: its namespaces, and what a plan must know of the host.

Used by a restore, and by the proof before a kill (`torpor.dump.proof`), when the tree still lives.
"""

from __future__ import annotations

import grp
import os
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from typing import Literal

from torpor import procfs
from torpor.errors import Reason, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.objects import registry
from torpor.objects.fds import posix_queues
from torpor.objects.memory import copy_on_write, vdso
from torpor.objects.process import birth_order, keyrings, seccomp
from torpor.objects.process.birth_order import UNKNOWN_PID
from torpor.probe import probe
from torpor.remote import pid_allocation
from torpor.remote.pid_allocation import WALK_SECONDS, Walk
from torpor.restorer import id_maps
from torpor.restorer.capsule import INIT, Namespaces, Setting, tried_ids
from torpor.restorer.id_maps import Mapped
from torpor.restorer.plan import Here
from torpor.restorer.walk import length

Way = Literal["best", "native", "capsule"]
"""How a tree is woken: among the host's processes, in its own namespaces, or the way that changes least."""
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24


def setting(
    image: pb.Tree,
    *,
    detach: bool = False,
    way: Way = "best",
    standing: Set[int] = frozenset(),
) -> Setting:
    """Decide where the tree will live: among the host's processes if its PIDs are free and can be had.

    Args:
        image: the tree.
        detach: whether the job must outlive this process and its terminal.
        way: "native" and "capsule" leave no choice.
        standing: PIDs and thread ids of the tree itself if it still lives; they will be free.

    Raises:
        RestoreRefused: the tree cannot live where the way says, or nowhere here.
    """
    root = image.processes[0]
    session = detach or 1 in (root.sid, root.pgid)
    time_namespaces = os.path.exists("/proc/self/ns/time")
    namespaces = Namespaces(0)
    other_boot = image.host.boot_id != procfs.boot_id()
    if posix_queues.of(image) or any(part.needs_ipc_namespace(image) for part in registry.TREE_PARTS):
        namespaces |= Namespaces.IPC
    no_capsule = why_no_capsule()
    monotonic_ns = image.host.monotonic_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    boottime_ns = image.host.boottime_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    # Where no namespace can be made, clocks that are ahead of the job's look to it as if the host had been suspended.
    jump_ns = -monotonic_ns if other_boot and no_capsule and max(monotonic_ns, boottime_ns) < 0 else 0
    if time_namespaces and other_boot and not jump_ns:
        namespaces |= Namespaces.TIME
    # If the tree still lives, the caller is the proof before a kill. It considers a walk only if nothing else works.
    wanted = probe().can_choose_pids or no_capsule or (not standing and _takes_groups())
    native = way == "native" or (way == "best" and bool(wanted))
    if native and not standing:
        pid_allocation.wait_for_zombies(_numbers(image))
    walk = None
    joined = frozenset() if session else _joined(image, way, standing)
    obstacle = next(_obstacles(image, namespaces, joined, standing), None) if native else None
    capsule = not native or obstacle is not None
    if not capsule and not probe().can_choose_pids and not standing:
        try:
            walk = _walk(image, joined)
        except OSError as error:
            obstacle = f"a walk to its PIDs is not possible here: {error.strerror}"
        capsule = walk is None or (way == "best" and not no_capsule and walk.seconds > WALK_SECONDS)
    if way == "native" and obstacle:
        reason = Reason("--as=native", obstacle, "--as=capsule wakes it in namespaces of its own")
        raise RestoreRefused("it cannot be woken natively", [reason])
    if capsule and no_capsule:
        reasons = [Reason("a capsule", no_capsule, "see `torpor doctor`")]
        if obstacle:
            reasons.insert(0, Reason("without a capsule", obstacle))
        raise RestoreRefused("it cannot be woken here", reasons)
    if capsule:
        walk, joined = None, frozenset()
        namespaces |= Namespaces.PID | Namespaces.MOUNT
        if not procfs.is_root():
            namespaces |= Namespaces.USER
        if time_namespaces:
            namespaces |= Namespaces.TIME
    return Setting(
        namespaces,
        monotonic_ns=monotonic_ns,
        boottime_ns=boottime_ns,
        new_session=session,
        hold_filters_off=seccomp.has_own(image),
        pid_max=max(pid_allocation.here().end, max(_numbers(image)) + 1),
        joined=joined,
        walk=walk,
        jump_ns=jump_ns,
    )


def why_no_capsule() -> str:
    """Why an ordinary user cannot make a capsule here, as where parts of /proc are masked; empty if it can be made."""
    return "" if probe().can_choose_pids else probe().cannot_wake


def _takes_groups() -> bool:
    """Return whether a job loses supplementary groups in a capsule, which makes a walk worth its time.

    It does not if the user has none, or if all are granted in /etc/subgid.
    """
    groups = probe().groups
    if not groups or "gid" not in id_maps.wanted():
        return bool(groups)
    ids = tried_ids()
    return ids is None or bool(ids.without(groups))


def _numbers(image: pb.Tree) -> set[int]:
    """Return all PIDs, thread ids, process groups and sessions of the tree."""
    threads = {thread.tid for process in image.processes for thread in process.threads}
    return threads.union(*({process.pid, process.pgid, process.sid} for process in image.processes))


def _joined(image: pb.Tree, way: Way, standing: Set[int]) -> frozenset[int]:
    """Return the ids of the tree's session and of process groups in it that others have: the tree joins this process's.

    That happens if these are the same, or if the user asked for a native wake: a shell rarely has its old PID when its
    jobs are woken. It does not happen if the tree had the session's terminal, which needs its own session.
    """
    root = image.processes[0]
    own = {process.pid for process in image.processes}
    outer = {root.sid, *(one.pgid for one in image.processes if one.sid == root.sid)} - own - standing
    taken = set(filter(pid_allocation.is_taken, outer))
    if root.sid not in taken or any(session.sid == root.sid for session in image.sessions):
        return frozenset()
    if way == "native":
        return frozenset(taken)
    return frozenset(taken) if root.sid == os.getsid(0) and taken <= {root.sid, os.getpgrp()} else frozenset()


def _walk(image: pb.Tree, joined: frozenset[int]) -> Walk:
    top = birth_order.arrange(image, UNKNOWN_PID, joined, _cannot_be_had())
    tids = {process.pid: [thread.tid for thread in process.threads[1:]] for process in image.processes}
    here = pid_allocation.here()
    if (short := length(top, tids, here, pid_allocation.last())) < pid_allocation.SHORT:
        return Walk(pid_allocation.SLOW, short)
    return Walk(pid_allocation.pace(), length(top, tids, here, pid_allocation.last()))


def _obstacles(image: pb.Tree, namespaces: Namespaces, joined: frozenset[int], standing: Set[int]) -> Iterator[str]:
    """Yield the reasons why the tree cannot live among the host's processes."""
    walking = not probe().can_choose_pids
    if walking and not probe().can_walk:
        yield f"its memory layout cannot be set ({probe().why.get('lay_out_memory', 'PR_SET_MM_MAP')})"
    capabilities = int(procfs.status(procfs.read("/proc/self/status"))[b"CapEff"], 16)
    if any(process.root for process in image.processes) and not capabilities >> CAP_SYS_CHROOT & 1:
        yield "a process has a root directory of its own, which takes CAP_SYS_CHROOT"
    if namespaces and not capabilities >> CAP_SYS_ADMIN & 1:
        what = "its System V objects or message queues need a namespace"
        if namespaces & Namespaces.TIME:
            what = "its clocks need a namespace, since this host has not been up for as long as the one before"
        yield f"{what}, which takes CAP_SYS_ADMIN"
    top = birth_order.arrange(image, UNKNOWN_PID, joined, _cannot_be_had())
    members = [member.pid for member in top.walk() if member.pid != UNKNOWN_PID]
    tids = [thread.tid for process in image.processes for thread in process.threads]
    given = pid_allocation.here()
    for pid in sorted({*members, *tids}):
        if pid not in standing and pid_allocation.is_taken(pid):
            yield _who_has(pid)
        if pid >= given.end:
            yield f"no process can have the PID {pid} here: kernel.pid_max is {given.end}"
        if walking and pid < given.first and pid <= pid_allocation.last():
            once = f"PIDs below {given.first} are given only once after the boot"
            yield f"the kernel never gives the PID {pid} again: {once}"


def _who_has(pid: int) -> str:
    with suppress(OSError):
        holder = procfs.stat(pid)
        if holder.state in pid_allocation.ZOMBIE:
            return f"a zombie has the PID {pid} until its parent, process {holder.ppid}, waits for it"
    return f"another process, thread or process group has the PID {pid}"


def _cannot_be_had() -> Callable[[int], bool]:
    end = pid_allocation.here().end
    return lambda pid: pid >= end or pid_allocation.is_taken(pid)


def warnings(where: Setting, ids: Mapped | None) -> Iterator[str]:
    """Yield warnings of what a tree cannot do any more where it lives.

    Args:
        where: the place where the tree lives.
        ids: the ids that exist in its user namespace; None if it has no user namespace of its own.
    """
    if ids and (others := ids.without(probe().groups)):
        names = ", ".join(map(_group_name, others))
        why = f" ({ids.why})" if ids.why else ""
        yield f"it is in a capsule, where it cannot give files to your groups {names}: cp -a and sed -i lose them{why}"
    if ids and (count := keyrings.keys_of_user()):
        keys = "key" if count == 1 else f"{count} keys"
        yield f"it is in a capsule, where your keyring (@u) is an empty one: it does not find the {keys} in yours"
    if where.jump_ns:
        seconds = where.jump_ns / 1e9
        yield f"no time namespace can be made here: its clock CLOCK_MONOTONIC has gone on by {seconds:.0f} s"
    foreign = where.joined - {os.getsid(0), os.getpgrp()}
    if foreign:
        shown = ", ".join(map(str, sorted(foreign)))
        yield f"it is in your session now, and in your process group: other processes have its own ids ({shown})"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def here(where: Setting) -> Here:
    """Collect what a plan must know of this host."""
    end = pid_allocation.here().end
    return Here(
        init=1 if where.capsule else UNKNOWN_PID,
        is_taken=(lambda pid: pid >= end) if where.capsule else _cannot_be_had(),
        vdso=vdso.host(),
        hosts=registry.hosts(),
        room=copy_on_write.room(),
        init_program=os.fsencode(INIT.resolve()),
        joined=where.joined,
        walk=where.walk is not None,
        executes=where.walk is not None and not probe().can_set_exe,
    )
