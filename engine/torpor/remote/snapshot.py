"""A copy-on-write snapshot of a frozen process's memory: a forked process that never runs.

The target must not notice a child. So the target first creates a helper, which shares its memory. The helper closes its
copies of all descriptors (otherwise a pipe would stay open while the snapshot is written), forks the snapshot, and
exits. The target's thread waits for the helper in the same batch. The snapshot is then an orphan: a child of the
subreaper or of PID 1, not of the target. Both have exit signal 0, so the target gets no SIGCHLD.

Copy-on-write may exhaust memory. Then the kernel shall kill the snapshot, not the target (oom_score_adj 1000, which
needs no privilege).

The snapshot is created stopped and traced by the dumper, and dies with it (PTRACE_O_EXITKILL). If it ever runs, because
the dumper died before that option was set, it exits.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import CheckpointFailed
from torpor.remote import ptrace
from torpor.remote.batch import ArgumentOf, Batch, Result
from torpor.remote.copies import descriptor_of
from torpor.remote.injection import Injection
from torpor.remote.userfaultfd import OPEN_FLAGS

_CLONE_VM = 0x100
_EVERY_DESCRIPTOR = 0xFFFFFFFF
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_STOPS_BEFORE_FORK = 4
"""Entry to and exit from close_range(2) and userfaultfd(2)."""

Watch = Callable[[int], None]
"""Called with a userfaultfd of the target's memory, before the fork. The callee must close it."""


class Snapshot:
    """The snapshot of one process. Call `ask` before `Injection.start`; `pid` is known after `finish`."""

    def __init__(self, injection: Injection, *, fork: bool = True, watch: Watch | None = None) -> None:
        """
        Args:
            injection: the injection into the process.
            fork: whether to fork a snapshot; if not, only a userfaultfd is created.
            watch: what to do with a userfaultfd of the target's memory; None: do not create one.
        """
        self.pid = 0
        """The process to read memory from instead of the target; 0 if the kernel did not allow the fork."""
        self.needed = True
        """False once nobody reads the snapshot any more: then it may die."""
        self._fork = fork
        self._watch = watch
        self._is_oom_victim = False
        self._injection = injection
        self._failure = ""
        injection.on_clone = self._on_clone

    def ask(self, batch: Batch) -> None:
        """Add the fork to the host thread's batch, which must be empty.

        A target that is a child subreaper would adopt the snapshot; the batch switches that off for the moment.
        """
        end = 1 + (self._watch is not None) + self._fork
        batch.add(NR.close_range, 0, _EVERY_DESCRIPTOR, 0, on_error=end)
        if self._watch:
            batch.add(NR.userfaultfd, OPEN_FLAGS)
        if self._fork:
            batch.add(NR.clone, 0, 0, 0, 0, 0, on_zero=end + 1)
        batch.add(NR.exit, 0)
        batch.add(NR.exit_group, 0)
        batch.first = len(batch)
        last = batch.first + 4
        batch.add(NR.prctl, _PR_GET_CHILD_SUBREAPER, ArgumentOf(last, 1))
        batch.add(NR.prctl, _PR_SET_CHILD_SUBREAPER, 0)
        child = batch.add(NR.clone, _CLONE_VM, 0, 0, 0, 0, on_zero=0, on_error=last)
        batch.add(NR.wait4, Result(child), 0, ptrace.WALL, 0)
        batch.add(NR.prctl, _PR_SET_CHILD_SUBREAPER, 0)  # the value that PR_GET_CHILD_SUBREAPER has written here
        options = self._injection.process.options | ptrace.O_TRACECLONE
        ptrace.request(ptrace.SETOPTIONS, self._injection.host.tid, 0, options)

    def settle(self) -> None:
        """After `finish`: stop tracing the host's clones. End the snapshot if the kernel might kill the target first.

        Raises:
            CheckpointFailed: the snapshot was made, and then lost.
        """
        ptrace.request(ptrace.SETOPTIONS, self._injection.host.tid, 0, self._injection.process.options)
        if self._failure:
            raise CheckpointFailed(f"the snapshot of {self._injection.process.name} was lost: {self._failure}")
        if not self._is_oom_victim:
            self.end()

    def _on_clone(self, host: int) -> None:
        """Trace the helper until it exits, whatever happens: the host thread waits for its exit."""
        waits = False
        try:
            helper = ptrace.event_message(host)
            ptrace.resume(host, self._injection.how)
            waits = True
            self._trace_helper(helper)
        except OSError as error:
            self._failure = str(error)
            for helper in _without_exit_signal(self._injection.process.pid, host):
                for pid in (*_without_exit_signal(helper, helper), helper):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    ptrace.wait_end(pid)
            if not waits:
                ptrace.resume(host, self._injection.how)

    def _trace_helper(self, helper: int) -> None:
        """Trace the helper; keep the snapshot stopped that it forks.

        The helper makes the userfaultfd. It shares the target's memory, but the target itself never has the descriptor.
        """
        stops = 0 if self._watch else _STOPS_BEFORE_FORK
        ptrace.wait_surely(helper)
        ptrace.resume(helper, ptrace.SYSCALL if self._watch else ptrace.CONT)
        while os.WIFSTOPPED(status := ptrace.wait_surely(helper)):
            deliver = 0
            if ptrace.event(status) == ptrace.EVENT_CLONE:
                self.pid = ptrace.event_message(helper)
                ptrace.wait_surely(self.pid)
                ptrace.request(ptrace.SETOPTIONS, self.pid, 0, ptrace.O_EXITKILL)
                self._is_oom_victim = _make_oom_victim(self.pid)
            elif ptrace.stop_signal(status) == ptrace.SYSCALL_STOP:
                stops += 1
                if stops == _STOPS_BEFORE_FORK and self._watch and (fd := _only_descriptor(helper)) >= 0:
                    self._watch(fd)
            elif not ptrace.event(status) and ptrace.stop_signal(status) == signal.SIGSYS:
                deliver = signal.SIGSYS
            ptrace.resume(helper, ptrace.CONT if stops >= _STOPS_BEFORE_FORK else ptrace.SYSCALL, deliver)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
            self._failure = "a system-call filter (seccomp) killed the helper process that forks it"

    def let_go(self) -> None:
        """Kill the snapshot, whose memory is not needed any more. Its exit takes a while: `end` waits for it."""
        if self.pid:
            self.needed = False
            with suppress(ProcessLookupError):  # another process killed it
                os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the snapshot and wait until it is gone. May be called again."""
        if not self.pid:
            return
        self.let_go()
        try:
            while os.WIFSTOPPED(ptrace.wait_surely(self.pid)):
                pass
        except ChildProcessError:
            pass  # another process killed and reaped it
        self.pid = 0


def _without_exit_signal(pid: int, tid: int) -> list[int]:
    """The children of a thread that have exit signal 0 (field 38 of proc_pid_stat(5)), as helper and snapshot do."""
    found = []
    for child in procfs.children(pid, [tid]):
        with suppress(ProcessLookupError, FileNotFoundError):
            if procfs.stat(child).fields[37] == b"0":
                found.append(child)
    return found


def _make_oom_victim(pid: int) -> bool:
    """Let the kernel kill this process first when memory runs out. Returns False if /proc is mounted read-only."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return False
    return True


def _only_descriptor(pid: int) -> int:
    """A copy of the only descriptor of a process; -1 if it has none."""
    try:
        return descriptor_of(pid, 0)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EPERM, errno.ENOSYS):
            raise
        return -1  # the kernel has no userfaultfd, or does not permit it, or nobody may take it
