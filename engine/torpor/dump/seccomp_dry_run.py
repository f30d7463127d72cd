"""Try a checkpoint on a child of this process, if seccomp filters bind both this process and the target.

A process under such a filter cannot read it. The filter may make a call fail, which is an answer, or kill the caller.
So a child, which inherits the same filters, first makes all calls that a checkpoint makes in its target.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from functools import cache

from torpor.arch.x86_64 import NR
from torpor.dump.process_dump import ProcessDump
from torpor.errors import CheckpointFailed, NotFound, Reason, Refused
from torpor.objects.process import seccomp
from torpor.remote import ptrace
from torpor.remote.batch import Batch, Out
from torpor.remote.children import forked, sleep_with
from torpor.remote.code_stubs import CodeStubs
from torpor.remote.freeze import Frozen
from torpor.remote.sys import try_syscall
from torpor.remote.tracer import in_own_thread
from torpor.remote.waits import Waits
from torpor.util.workers import NO_THREAD, RAISE_LIMIT, Thread

_PATIENCE = 10.0
"""Seconds."""
_P_PID, _WNOHANG_EXITED = 1, 5
_NOWHERE = -4096
"""A value that is not a valid descriptor, process, address or flag."""
_NEVER_FAIL = frozenset({
    NR.getpid, NR.gettid, NR.sigaltstack, NR.get_robust_list, NR.getpriority, NR.sched_getscheduler,
    NR.sched_getaffinity, NR.sched_getparam, NR.ioprio_get, NR.personality, NR.rt_sigaction, NR.getitimer, NR.brk,
    NR.clock_gettime, NR.prctl,
})  # fmt: skip
"""Calls whose results a checkpoint needs, and that fail only because of a filter."""


_one_at_a_time = threading.Lock()


def dry_run(root: int) -> None:
    """Try a checkpoint if this process and the tree are under filters; once for all trees.

    The preflight has found that both are under the same filters.

    Raises:
        Refused: the filters would harm a target, or hide what must be known about it.
    """
    with suppress(FileNotFoundError, ProcessLookupError):  # the root has ended: the freeze reports that
        if (count := seccomp.own()) and seccomp.of_thread(root, root).filters:
            with _one_at_a_time:  # the child has copies of what another thread has taken of its tree
                _dry_run(count)


@cache
def _dry_run(count: int) -> None:
    if try_syscall(NR.tgkill, os.getpid(), threading.get_native_id(), 0):
        raise _refused(count, f"they forbid {NR.tgkill.name}, which a checkpoint calls")
    ready, when_ready = os.pipe()
    me = os.getpid()
    pid = forked(lambda: _wait_for_the_end(me, when_ready))
    os.close(when_ready)
    over = threading.Event()

    def watch() -> None:
        if not over.wait(_PATIENCE):
            _kill(pid)

    watchdog = Thread(watch)
    watched = watchdog.start()
    try:
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        poller.poll(_PATIENCE * 1000)  # the child is ready, or has died
        denied = in_own_thread(lambda _: _take(pid)) if watched else set()
    except (CheckpointFailed, NotFound, ProcessLookupError) as failure:
        killers = [nr.name for nr in sorted(seccomp.made()) if _is_killed(nr)]
        calls = f"{', '.join(killers)}, which a checkpoint calls" if killers else f"calls that it makes: {failure}"
        raise _refused(count, f"they forbid {calls}") from failure
    finally:
        os.close(ready)
        over.set()
        watchdog.join()
        _kill(pid)
        ptrace.wait_end(pid)
    if not watched:
        raise CheckpointFailed(NO_THREAD, advice=RAISE_LIMIT)
    if denied:
        raise _refused(count, f"they deny {', '.join(sorted(denied))}, whose answers a checkpoint needs")


def _refused(count: int, why: str) -> Refused:
    subject = f"the system-call filters (seccomp) that Torpor and the job are under ({count})"
    advice = "see the kernel's log (audit), and `torpor doctor` for what to allow"
    return Refused("the checkpoint would do harm", [Reason(subject, why, advice)])


def _wait_for_the_end(parent: int, when_ready: int) -> None:
    _return_from_a_signal()  # a checkpoint calls rt_sigreturn too: if a filter kills for it, the child dies here
    os.write(when_ready, b"\0")
    sleep_with(parent)


def _return_from_a_signal() -> None:
    signal.set_wakeup_fd(-1)  # the other end belongs to the parent
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])  # the caller's thread may block all
    os.kill(os.getpid(), signal.SIGUSR1)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _take(pid: int) -> set[str]:
    """Do with a process what a checkpoint does; return the calls that failed but should not have."""
    with Frozen(pid, _PATIENCE) as frozen:
        taken = ProcessDump(frozen.processes[pid], CodeStubs(), Waits())
        try:
            taken.begin(())
            taken.listen()
            denied = {NR(nr).name for nr in taken.failed_calls() & _NEVER_FAIL}
            taken.ask(_rare())
            taken.begin_snapshot(watch=os.close)
            taken.finish_snapshot()
            taken.leave()
        finally:
            taken.abandon()
    return denied


def _rare() -> Batch:
    """Calls that a checkpoint makes only if a process has such an object; here they name none."""
    batch = Batch()
    for nr in (NR.timer_gettime, NR.timer_getoverrun, NR.shmctl, NR.semctl, NR.msgctl, NR.semop, NR.msgrcv, NR.mincore):
        batch.add(nr, -1, 0, 0, 0)
    batch.add(NR.kcmp, os.getpid(), os.getpid(), 0, 0, 0)
    batch.add(NR.waitid, _P_PID, os.getpid(), Out(ptrace.SIGINFO_SIZE), _WNOHANG_EXITED, 0)
    return batch


def _is_killed(nr: NR) -> bool:
    """Return whether a filter answers a call with SIGSYS, with any arguments."""
    pid = forked(lambda: _call(nr))
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


def _call(nr: NR) -> None:
    signal.signal(signal.SIGSYS, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.alarm(int(_PATIENCE))
    if nr == NR.rt_sigreturn:
        _return_from_a_signal()
    else:
        try_syscall(nr, *[_NOWHERE] * 6)
