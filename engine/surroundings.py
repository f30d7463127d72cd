"""Where a tree is to live, as this host and this user have it: namespaces, and what a plan must know.

The restore asks when it wakes a tree, and the proof (`proof`) while the tree still stands.
"""

from __future__ import annotations

import grp
import os
import resource
import time
from collections.abc import Iterator, Set
from typing import Literal

from torpor import procfs
from torpor.capsule import Namespaces, Setting
from torpor.errors import Reason, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.objects import copy_on_write, credentials, family, filters, keys, queues, sysv, traits, vdso
from torpor.objects.credentials import Rights
from torpor.objects.family import UNKNOWN_PID
from torpor.objects.threads import Bounds
from torpor.plan import Here
from torpor.probe import probe

Way = Literal["best", "native", "capsule"]
"""How a tree is woken: among the host's processes, in namespaces of its own, or as changes least."""
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
    """Where the tree is to live: among the host's processes if its PIDs are free and may be chosen.

    Args:
        image: the tree.
        detach: the job is to outlive this process and its terminal.
        way: whether it is to live there in any case, or in none.
        standing: processes and threads of the tree itself, which still lives: their PIDs will be free.

    Raises:
        RestoreRefused: it is to live among the host's processes and cannot.
    """
    root = image.processes[0]
    session = detach or 1 in (root.sid, root.pgid)
    time_namespaces = os.path.exists("/proc/self/ns/time")
    namespaces = Namespaces(0)
    if time_namespaces and image.host.boot_id != _boot_id():
        namespaces |= Namespaces.TIME
    if sysv.segments(image) or image.semaphores or image.queues or queues.of(image):
        namespaces |= Namespaces.IPC
    obstacle = None if way == "capsule" else next(_obstacles(image, namespaces, standing), None)
    if way == "native" and obstacle:
        reason = Reason("--as=native", obstacle, "--as=capsule wakes it in namespaces of its own")
        raise RestoreRefused("it cannot be woken natively", [reason])
    if way == "capsule" or obstacle:
        namespaces |= Namespaces.PID | Namespaces.MOUNT
        if not procfs.is_root():
            namespaces |= Namespaces.USER
        if time_namespaces:
            namespaces |= Namespaces.TIME
    return Setting(
        namespaces,
        monotonic_ns=image.host.monotonic_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        boottime_ns=image.host.boottime_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        new_session=session,
        hold_filters_off=filters.has_own(image),
    )


def _obstacles(image: pb.Tree, namespaces: Namespaces, standing: Set[int]) -> Iterator[str]:
    """Why it cannot live among the host's processes."""
    if not probe().can_choose_pids:
        yield "you may not choose PIDs here: that takes CAP_CHECKPOINT_RESTORE"
    capabilities = int(procfs.status(procfs.read("/proc/self/status"))[b"CapEff"], 16)
    if any(process.root for process in image.processes) and not capabilities >> CAP_SYS_CHROOT & 1:
        yield "a process has a root directory of its own, which takes CAP_SYS_CHROOT"
    if namespaces and not capabilities >> CAP_SYS_ADMIN & 1:
        what = "its clocks" if namespaces & Namespaces.TIME else "its System V objects or message queues"
        yield f"{what} need a namespace, which takes CAP_SYS_ADMIN"
    top = family.arrange(image, UNKNOWN_PID, _is_taken)
    members = [member.pid for member in top.walk() if member.pid != UNKNOWN_PID]
    tids = [thread.tid for process in image.processes for thread in process.threads]
    for pid in sorted({*members, *tids} - standing):
        if _is_taken(pid):
            yield f"another process or thread has the PID {pid}"


def _is_taken(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def warnings(where: Setting) -> Iterator[str]:
    """What a tree that lives there cannot do any more, in words."""
    others = sorted(set(os.getgroups()) - {os.getegid()})
    if where.namespaces & Namespaces.USER and others:
        names = ", ".join(map(_group_name, others))
        yield f"it is in a capsule, where it cannot give files to your groups {names}: cp -a and sed -i lose them"
    if where.namespaces & Namespaces.USER and (count := keys.keys_of_user()):
        yield f"it is in a capsule, where your keyring (@u) is an empty one: it does not find the {count} keys in yours"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def here(where: Setting) -> Here:
    """What a plan must know of this host."""
    status = procfs.status(procfs.read("/proc/self/status"))
    last = int(procfs.read("/proc/sys/kernel/cap_last_cap"))
    keep = procfs.is_root()
    return Here(
        init=1 if where.capsule else UNKNOWN_PID,
        is_taken=(lambda _: False) if where.capsule else _is_taken,
        rights=Rights(
            keep=keep,
            last_capability=last,
            capabilities=int(status[b"CapPrm"], 16) if keep else (2 << last) - 1,
            hard_limits=tuple(_hard_limit(number) for number in range(len(credentials.LIMIT_NAMES))),
        ),
        bounds=Bounds(
            processors=frozenset(os.sched_getaffinity(0)),
            nice=os.getpriority(os.PRIO_PROCESS, 0),
            may_lower_nice=keep,
            scheduler=os.sched_getscheduler(0),
            allowed=traits.allowed(),
        ),
        vdso=vdso.host(),
        timer_restore_ids=probe().timer_restore_ids,
        keys=keys.Here(keys.own_session(), keys.users_own(), _boot_id()),
        oom_score_adj=int(procfs.read("/proc/self/oom_score_adj")),
        room=copy_on_write.room(),
        may_lower_oom=procfs.in_initial_user_namespace() and bool(int(status[b"CapEff"], 16) >> CAP_SYS_RESOURCE & 1),
    )


def _boot_id() -> str:
    return procfs.read("/proc/sys/kernel/random/boot_id").strip().decode()


def _hard_limit(number: int) -> int:
    return resource.getrlimit(number)[1] & credentials.UNLIMITED
