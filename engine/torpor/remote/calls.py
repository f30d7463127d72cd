"""The system calls that are made in the name of a frozen process: what its seccomp filters must let pass."""

from __future__ import annotations

from torpor.arch.x86_64 import NR

MADE = frozenset({
    # The window, and the way back out of it (injection.py).
    NR.mmap, NR.munmap, NR.rt_sigreturn, NR.getpid, NR.gettid, NR.tgkill,
    # What only a process itself can be asked (objects).
    NR.arch_prctl, NR.brk, NR.clock_gettime, NR.get_mempolicy, NR.get_robust_list, NR.getitimer, NR.getpriority,
    NR.ioprio_get, NR.kcmp, NR.keyctl, NR.membarrier, NR.mincore, NR.modify_ldt, NR.msgctl, NR.msgrcv, NR.personality,
    NR.prctl, NR.rt_sigaction, NR.sched_getaffinity, NR.sched_getattr, NR.sched_getparam,
    NR.sched_getscheduler, NR.semctl, NR.semop, NR.shmctl, NR.sigaltstack, NR.timer_getoverrun, NR.timer_gettime,
    NR.waitid,
    # The snapshot of its memory (snapshot.py).
    NR.clone, NR.close_range, NR.exit, NR.exit_group, NR.userfaultfd, NR.wait4,
})  # fmt: skip
"""All of them; process_dump.py sees to it."""

VITAL = frozenset({NR.rt_sigreturn, NR.prctl, NR.exit, NR.exit_group, NR.wait4})
"""Those that must not even fail when the dumper is gone: the way back; a subreaper that is to be one again; the ends
of a snapshot and of its maker, and the wait for it. Of all others a failure leaves nothing but what is said in
injection.py."""
