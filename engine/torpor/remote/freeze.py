"""Freeze a process tree: stop every thread of every process with ptrace."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NoReturn

from torpor import procfs
from torpor.arch.x86_64 import RIP, keep_waiting, recover_call, was_restarted
from torpor.arch.x86_64.transfers import is_short
from torpor.errors import CheckpointFailed, NotFound, Reason, Refused
from torpor.remote import memory, ptrace, transfers
from torpor.remote.naming import SEE_WHY, UNINTERRUPTIBLE, describe_process, not_permitted
from torpor.remote.rest import Rest

TRACE_NEW_TASKS = ptrace.O_TRACEFORK | ptrace.O_TRACECLONE
"""With these options, the children and threads that a thread creates before it stops are traced from birth and stop at
once. Not with vfork: there the parent itself stops only when the child has called execve(2) or ended."""
_NEW_TASK_EVENTS = (ptrace.EVENT_FORK, ptrace.EVENT_CLONE)
_CHASE = 64
"""How many times to look for new children of a process before giving up: each may create the next one and end."""


class Stuck(CheckpointFailed):
    """A thread does not stop. The others have been detached; this one stays traced until the tracing thread ends."""


@dataclass
class Thread:
    """A stopped thread, and the state that it is to continue with."""

    tid: int
    registers: array[int] = field(default_factory=lambda: array("Q"))
    """As read with ptrace. From these the kernel itself restarts an interrupted call."""
    named: array[int] = field(default_factory=lambda: array("Q"))
    """The same, but if a call was already restarted (restart_syscall), with its original number, if that can be found.
    """
    stopped_ns: int = 0
    """When its stop was seen (CLOCK_MONOTONIC)."""
    sigmask: int = 0
    stop_signal: int = 0
    """The signal of its job-control stop, or 0. The kernel keeps the thread stopped after the detach."""
    deliver: int = 0
    """A signal that arrived while the thread was stopped; it is delivered at the detach (SIGSTOP cannot be blocked)."""


@dataclass
class Process:
    """A stopped process."""

    pid: int
    parent: Process | None
    threads: dict[int, Thread] = field(default_factory=dict)
    """By thread id, the leader first; empty for a zombie."""
    zombie: bool = False
    """It has ended, and its parent has not waited for it yet."""
    options: int = ptrace.O_TRACESYSGOOD
    """The ptrace options of its threads."""

    @property
    def stopped(self) -> bool:
        """Whether it is in a job-control stop."""
        return self.stop_signal != 0

    @property
    def stop_signal(self) -> int:
        """The signal of its job-control stop; 0 if it is not stopped."""
        return next((thread.stop_signal for thread in self.threads.values() if thread.stop_signal), 0)

    @property
    def name(self) -> str:
        """Its PID and name for messages: ``process 4711 (python3)``."""
        return describe_process(self.pid)


@dataclass(frozen=True)
class LastToStop:
    """Threads that run on for a moment after the others have stopped, to flush their buffers.

    The other threads of the root process are stopped at rest, so that none is in the middle of passing data to these
    threads: see `torpor.remote.rest`.
    """

    matches: Callable[[str], bool]
    """Called with a thread's name: whether it is one of these threads."""
    drained: Callable[[], None]
    """Called when the others have stopped; returns when these threads have nothing left to do."""


class Frozen:
    """A frozen tree; parents come before their children. A context manager: its exit lets all threads run.

    Args:
        root: the PID of the root.
        timeout: seconds until all threads must have stopped.
        last: threads that are stopped after the others.
        hold: for how many seconds stopped threads wait for a thread in an uninterruptible call.
        apart: returns the PIDs of processes that belong to the tree but have no parent in it, including those that have
            ended; called repeatedly.
        look: called before each attempt to stop the tree; with `last` several may be needed.

    Raises:
        NotFound: the root is gone.
        NotPermitted: the kernel does not permit tracing one of the processes.
        CheckpointFailed: a thread did not stop within `timeout` seconds; all others run again.
    """

    def __init__(
        self,
        root: int,
        timeout: float,
        last: LastToStop | None = None,
        hold: float = 0.05,
        apart: Callable[[], Iterable[int]] = tuple,
        look: Callable[[], object] = tuple,
    ) -> None:
        self.root = root
        self._apart, self._look = apart, look
        self._hold = hold
        self.processes: dict[int, Process] = {}
        self.started = 0
        """When the first thread was asked to stop (CLOCK_MONOTONIC)."""
        self.pause_ns = 0
        """How long the tree was frozen, in ns; known once it runs again."""
        self._timeout = timeout
        self._running: list[Thread] = []
        self._ended: set[int] = set()
        """Processes without a parent in the tree that have ended, and have not been reaped yet."""
        self._born: set[int] = set()
        """Threads and processes that were created traced."""
        self._moved = True
        """Whether a process or thread appeared, stopped or ended in this round."""
        self._denied: set[int] = set()
        """Threads that could not be seized although they had not ended."""
        try:
            if last:
                self._stop_at_rest(last.matches)
                last.drained()
            else:
                self._begin()
            self._stop_all()
        except BaseException:
            self.thaw()
            raise

    def __enter__(self) -> Frozen:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()

    def _begin(self) -> None:
        self._look()
        self.started = time.monotonic_ns()
        self._denied.clear()
        self._add(Process(self.root, None))

    def _stop_at_rest(self, spared: Callable[[str], bool]) -> None:
        """Stop all threads but the spared ones, at a moment when the threads of the root process are at rest."""
        rest = Rest()
        while True:
            self._begin()
            self._stop_all(spared)
            root = self.processes[self.root]
            if root.stopped or rest.is_reached(root.pid, root.threads):
                return
            self.thaw()
            time.sleep(rest.pause)

    def _stop_all(self, spared: Callable[[str], bool] | None = None) -> None:
        self._deadline = time.monotonic() + self._timeout
        self._moved = True
        while self._moved:
            # A thread may have created others before it stopped: repeat until a round finds that nothing has moved.
            if time.monotonic() > self._deadline:
                self._give_up()
            self._moved = False
            for process in list(self.processes.values()):
                self._seize_threads(process, spared)
            self._wait()
            for process in list(self.processes.values()):
                self._find(process, spared)
            self._find(None, spared)
            self._let_strangers_go()
        for process in self.processes.values():
            for tid, thread in process.threads.items():
                try:
                    _continue_call(process.pid, thread)
                    ptrace.request(ptrace.SETOPTIONS, tid, 0, process.options)
                except ProcessLookupError:
                    if not procfs.is_ending(process.pid, tid):  # a killed thread is noticed later
                        raise

    def _let_strangers_go(self) -> None:
        """Detach what was created traced, but has ended or has no parent in the tree (CLONE_PARENT)."""
        for tid in self._strangers():
            self._moved = True
            _let_go_late(Thread(tid))
        self._born.clear()

    def _strangers(self) -> set[int]:
        return self._born.difference(*(process.threads for process in self.processes.values()))

    def _add(self, process: Process) -> None:
        self.processes[process.pid] = process

    def _find(self, parent: Process | None, spared: Callable[[str], bool] | None) -> None:
        """Seize new children of a process. If `parent` is None, seize new orphans below the tree's torpor-init.

        Each child may create the next one and end. So they are seized at once, the youngest first, and the search is
        repeated.
        """
        for _ in range(_CHASE):
            if not (new := self._new_children(parent) if parent else self._new_apart()):
                return
            self._moved = True
            found = [Process(pid, parent) for pid in new]
            for process in found:
                self._add(process)
            for process in reversed(found):
                if not spared:
                    self._seize(process, process.pid)
                else:
                    self._seize_threads(process, spared)
        self._give_up()

    def _give_up(self) -> NoReturn:
        name = describe_process(self.root)
        reason = Reason(name, "it creates processes faster than they can be stopped", "try again", passing=True)
        raise Refused(f"{name} cannot be stopped", [reason])

    def _new_children(self, parent: Process) -> list[int]:
        return [pid for pid in procfs.children(parent.pid, list(parent.threads)) if pid not in self.processes]

    def _new_apart(self) -> list[int]:
        seen = list(self._apart())
        self._ended.intersection_update(seen)
        return [pid for pid in seen if pid not in self.processes and pid not in self._ended]

    def _seize_threads(self, process: Process, spared: Callable[[str], bool] | None) -> None:
        if process.zombie:
            return  # it stays a zombie: its parent has stopped
        for tid in self._threads_of(process):
            if tid not in process.threads and not (spared and spared(_name(process.pid, tid))):
                self._seize(process, tid)

    def _threads_of(self, process: Process) -> list[int]:
        """The ids of its threads, including a main thread that has ended before the others; none if it is gone."""
        try:
            return procfs.threads(process.pid)
        except FileNotFoundError:
            if process.pid == self.root:
                raise NotFound(f"there is no process {self.root}") from None
            del self.processes[process.pid]
            self._moved = True
            return []

    def _seize(self, process: Process, tid: int) -> None:
        self._moved = True
        try:
            ptrace.seize(tid, process.options | TRACE_NEW_TASKS)
            ptrace.interrupt(tid)
        except ProcessLookupError:
            return  # it has ended
        except PermissionError:
            if _state(process.pid, tid) in ("Z", "X", None):
                if tid == process.pid:
                    self._has_ended(process)
                return
            if not _is_born_traced(process.pid, tid):
                # A thread that calls execve takes the id of the thread group leader, and its old id does not exist any
                # more (de_thread, fs/exec.c). If the kernel really refuses, it does so again in the next round.
                if tid in self._denied:
                    raise not_permitted(process.pid) from None
                self._denied.add(tid)
                return
        thread = Thread(tid)
        process.threads[tid] = thread
        self._running.append(thread)

    def _has_ended(self, process: Process) -> None:
        """Handle a process whose main thread has ended."""
        if not (tids := self._threads_of(process)):
            return
        if len(tids) > 1:
            if procfs.is_leaderless(process.pid) or time.monotonic() > self._deadline:
                why = "the main thread of {} has ended while other threads run: this state cannot be saved"
                raise CheckpointFailed(why.format(process.name))
        elif process.pid == self.root:
            raise CheckpointFailed(f"{process.name} has ended")
        elif process.parent:
            process.zombie = True
        else:  # no process of the tree will wait for it
            self._ended.add(process.pid)
            del self.processes[process.pid]

    def _wait(self) -> None:
        for thread in self._running:
            self._moved = True
            try:
                self._wait_stopped(thread)
            except ChildProcessError:
                self._forget(thread)
        self._running.clear()

    def _wait_stopped(self, thread: Thread) -> None:
        hold = time.monotonic() + self._hold
        while True:
            try:
                status = ptrace.wait(thread.tid, min(hold, self._deadline))
            except TimeoutError:
                if _state(thread.tid, thread.tid) == "D" or time.monotonic() >= self._deadline:
                    name = f"thread {thread.tid} of {describe_process(thread.tid)}"
                    raise Stuck(f"{name} does not stop: {UNINTERRUPTIBLE}", advice=SEE_WHY) from None
                hold = time.monotonic() + self._hold
                continue
            if not os.WIFSTOPPED(status):
                self._forget(thread)
                return
            try:
                if ptrace.event(status) == ptrace.EVENT_STOP:
                    _note(thread, status)
                    return
                ptrace.interrupt(thread.tid)  # any other stop has cleared the one that was asked for (ptrace_stop)
                if ptrace.event(status) in _NEW_TASK_EVENTS:
                    self._born.add(ptrace.event_message(thread.tid))
                    ptrace.resume(thread.tid)
                else:  # a signal came first: let the kernel set up its handler; then the stop follows
                    ptrace.resume(thread.tid, ptrace.CONT, ptrace.stop_signal(status))
            except ProcessLookupError:
                continue  # it was killed: the next wait returns its status

    def _forget(self, thread: Thread) -> None:
        """Remove a thread that ended while it was being stopped."""
        for process in self.processes.values():
            process.threads.pop(thread.tid, None)

    def thaw(self) -> None:
        """Let every thread continue as it was. A second call does nothing."""
        threads = [thread for process in self.processes.values() for thread in process.threads.values()]
        stopped = [thread for thread in threads if thread.registers]
        strangers = self._strangers()
        self._born.clear()
        with ExitStack() as stack:  # an error with one thread must not keep the others frozen
            stack.callback(self._note_pause)
            for tid in strangers:
                stack.callback(_let_go_late, Thread(tid))
            for thread in threads:
                if not thread.registers:
                    stack.callback(_let_go_late, thread)
            back = [thread for thread in stopped if _give_back(thread)]
            ptrace.detach([(thread.tid, thread.deliver) for thread in back])

    def _note_pause(self) -> None:
        if self.processes:
            self.pause_ns = time.monotonic_ns() - self.started
        self.processes.clear()


def bring_to_freeze_stop(processes: Iterable[Process]) -> None:
    """Bring threads that the calling thread already traces from any ptrace stop to the stop of a freeze.

    None of them runs meanwhile: the kernel checks for an interrupt before it delivers a signal (get_signal()).

    Raises:
        CheckpointFailed: one has ended.
    """
    threads = [thread for process in processes for thread in process.threads.values()]
    for thread in threads:
        ptrace.interrupt(thread.tid)
        ptrace.resume(thread.tid)
    for thread in threads:
        status = ptrace.wait_surely(thread.tid)
        if not os.WIFSTOPPED(status) or ptrace.event(status) != ptrace.EVENT_STOP:
            raise CheckpointFailed(f"thread {thread.tid} of {describe_process(thread.tid)} did not stop")
        _note(thread, status)


def _note(thread: Thread, status: int) -> None:
    """Save the state with which a stopped thread shall continue. Registers come last: they show that all is saved."""
    stopped_by = ptrace.stop_signal(status)
    thread.stop_signal = stopped_by if stopped_by != signal.SIGTRAP else 0
    registers = ptrace.get_registers(thread.tid)
    if keep_waiting(registers):
        ptrace.set_registers(thread.tid, registers)  # at once: the dumper may die at any instant
    thread.stopped_ns = time.monotonic_ns()
    thread.sigmask = ptrace.get_sigmask(thread.tid)
    thread.named = _named(thread.tid, registers)
    thread.registers = registers


def _continue_call(pid: int, thread: Thread) -> None:
    """Have a thread go on with a call that the freeze has ended in the middle."""
    if is_short(thread.registers) and (registers := transfers.continued(pid, thread.tid, thread.registers)):
        ptrace.set_registers(thread.tid, registers)  # at once, as above
        thread.registers, thread.named = registers, array("Q", registers)


def _named(tid: int, kept: array[int]) -> array[int]:
    registers = array("Q", kept)
    if was_restarted(registers):
        try:
            recover_call(registers, memory.read(tid, registers[RIP] - 7, 7))
        except OSError as error:
            if error.errno != errno.EFAULT:  # code that cannot be read: the number stays unknown
                raise
    return registers


def _give_back(thread: Thread) -> bool:
    """Restore the mask and then the registers of a stopped thread (for the order see injection.py).

    If this fails, the thread recovers by itself: the injected registers lead to a signal frame that restores its own.

    Returns:
        Whether the thread still exists.
    """
    try:
        ptrace.set_sigmask(thread.tid, thread.sigmask)
        ptrace.set_registers(thread.tid, thread.registers)
    except ChildProcessError:
        return False
    except OSError:
        pass  # usually it was killed: the detach handles that
    return True


def _let_go_late(thread: Thread) -> None:
    """Detach a thread that was not yet seen to stop, and the children that it has created meanwhile.

    A thread in an uninterruptible call does not stop: the kernel detaches it when the tracing thread ends.
    """
    try:
        status = ptrace.wait(thread.tid, time.monotonic() + (0 if _state(thread.tid, thread.tid) == "D" else 1))
    except (ChildProcessError, TimeoutError):
        return
    if not os.WIFSTOPPED(status):
        return
    if not ptrace.event(status):
        thread.deliver = ptrace.stop_signal(status)  # a signal came first
    child = ptrace.event_message(thread.tid) if ptrace.event(status) in _NEW_TASK_EVENTS else 0
    ptrace.detach([(thread.tid, thread.deliver)])
    if child:
        _let_go_late(Thread(child))


def _name(pid: int, tid: int) -> str:
    try:
        return procfs.read(f"/proc/{pid}/task/{tid}/comm").decode(errors="replace").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended


def _state(pid: int, tid: int) -> str | None:
    try:
        return procfs.parse_stat(procfs.read(f"/proc/{pid}/task/{tid}/stat")).state
    except (FileNotFoundError, ProcessLookupError):
        return None


def _is_born_traced(pid: int, tid: int) -> bool:
    """Whether this thread traces a thread that it has not seized: a seized thread has created it."""
    try:
        fields = procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[b"TracerPid"]) == threading.get_native_id()
