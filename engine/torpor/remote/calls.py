"""The system calls that Torpor makes inside a frozen process. The seccomp filters of the process must allow them."""

from __future__ import annotations

from torpor.arch.x86_64 import NR

MADE = frozenset({
    # The scratch mapping, and the return from it (injection.py).
    NR.mmap, NR.munmap, NR.rt_sigreturn, NR.rt_sigprocmask, NR.getpid, NR.gettid, NR.tgkill,
    # State that only the process itself can query (objects).
    NR.arch_prctl, NR.brk, NR.clock_gettime, NR.get_mempolicy, NR.get_robust_list, NR.getitimer, NR.getpriority,
    NR.ioprio_get, NR.kcmp, NR.keyctl, NR.membarrier, NR.mincore, NR.modify_ldt, NR.msgctl, NR.msgrcv, NR.personality,
    NR.poll, NR.prctl, NR.read, NR.rt_sigaction, NR.sched_getaffinity, NR.sched_getattr, NR.sched_getparam,
    NR.sched_getscheduler, NR.semctl, NR.semop, NR.shmctl, NR.sigaltstack, NR.timer_getoverrun, NR.timer_gettime,
    NR.waitid, NR.write,
    # The snapshot of its memory (snapshot.py).
    NR.clone, NR.close_range, NR.exit, NR.exit_group, NR.userfaultfd, NR.wait4,
})  # fmt: skip
"""All of these calls that are made on any host."""

REPORTING = frozenset({
    NR.close, NR.connect, NR.readlink, NR.recvfrom, NR.sendmsg, NR.socket, NR.umask,
})  # fmt: skip
"""Calls that are made besides where kcmp(2) or pidfd_getfd(2) is denied (torpor.dump.self_report)."""


VITAL = frozenset({NR.rt_sigreturn, NR.prctl, NR.exit, NR.exit_group, NR.wait4})
"""The calls that must not fail even when the dumper has died: the return to the program, the restored subreaper flag,
the exit of a snapshot and of its helper, and the wait for the helper. If any other call fails, nothing is left behind
but the unused scratch mapping (injection.py).
"""
