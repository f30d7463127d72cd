"""Where a tree is to live, as this host and this user have it: namespaces, and what a plan must know.

The restore asks when it wakes a tree, and the proof (`proof`) while the tree still stands.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Set

from torpor import procfs
from torpor.capsule import Namespaces, Setting
from torpor.image import image_pb2 as pb
from torpor.objects import credentials, family, filters, queues, sysv, traits, vdso
from torpor.objects.credentials import Rights
from torpor.objects.family import UNKNOWN_PID
from torpor.objects.threads import Bounds
from torpor.plan import Here
from torpor.probe import probe

CAP_SYS_CHROOT = 18
CAP_SYS_RESOURCE = 24


def setting(
    image: pb.Tree, *, detach: bool = False, own_pids: bool = False, standing: Set[int] = frozenset()
) -> Setting:
    """Where the tree is to live: among the host's processes if its PIDs are free and may be chosen.

    Args:
        image: the tree.
        detach: the job is to outlive this process and its terminal.
        own_pids: it is to have PIDs of its own in any case.
        standing: processes and threads of the tree itself, which still lives: their PIDs will be free.
    """
    host = probe()
    root = image.processes[0]
    session = detach or 1 in (root.sid, root.pgid)
    namespaces = Namespaces(0)
    may_chroot = int(procfs.status(procfs.read("/proc/self/status"))[b"CapEff"], 16) >> CAP_SYS_CHROOT & 1
    elsewhere = any(process.root for process in image.processes) and not may_chroot
    if own_pids or elsewhere or not host.can_choose_pids or not _pids_are_free(image, standing):
        namespaces = Namespaces.PID | Namespaces.MOUNT
        if os.geteuid():
            namespaces |= Namespaces.USER
    boot = procfs.read("/proc/sys/kernel/random/boot_id").strip().decode()
    if os.path.exists("/proc/self/ns/time") and (namespaces or image.host.boot_id != boot):
        namespaces |= Namespaces.TIME
    if sysv.segments(image) or image.semaphores or image.queues or queues.of(image):
        namespaces |= Namespaces.IPC
    return Setting(
        namespaces,
        monotonic_ns=image.host.monotonic_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        boottime_ns=image.host.boottime_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        new_session=session,
        hold_filters_off=filters.has_own(image),
    )


def _pids_are_free(image: pb.Tree, standing: Set[int]) -> bool:
    members = [member.pid for member in family.arrange(image, UNKNOWN_PID).walk() if member.pid != UNKNOWN_PID]
    tids = [thread.tid for process in image.processes for thread in process.threads]
    return not any(os.path.exists(f"/proc/{pid}") for pid in {*members, *tids} - standing)


def here(where: Setting) -> Here:
    """What a plan must know of this host."""
    status = procfs.status(procfs.read("/proc/self/status"))
    last = int(procfs.read("/proc/sys/kernel/cap_last_cap"))
    keep = os.geteuid() == 0
    return Here(
        init=1 if where.capsule else UNKNOWN_PID,
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
        oom_score_adj=int(procfs.read("/proc/self/oom_score_adj")),
        may_lower_oom=bool(int(status[b"CapEff"], 16) >> CAP_SYS_RESOURCE & 1),
    )


def _hard_limit(number: int) -> int:
    return resource.getrlimit(number)[1] & credentials.UNLIMITED
