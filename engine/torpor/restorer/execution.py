"""Run a plan in blank processes: create processes, address spaces, threads, set registers, and let all of them run.

Until `Builder.release` a failure kills everything. If this process dies, so does the tree (PTRACE_O_EXITKILL).
"""

from __future__ import annotations

import os
import signal
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import (
    NR,
    ORIG_RAX,
    RSP,
    WORD,
    holds_tiles,
)
from torpor.arch.x86_64.transfers import Transfer, short
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory import address_space, filling, vmas
from torpor.objects.process import signals
from torpor.objects.process.process_attributes import PR_SET_CHILD_SUBREAPER
from torpor.probe import probe
from torpor.remote import memory, ptrace, transfers, userfaultfd
from torpor.remote.batch import Call
from torpor.remote.blank import TABLE_ROOM, Blanks, Task, Work, killed, table_size
from torpor.remote.copies import descriptor_of
from torpor.remote.freeze import Process, Thread, bring_to_freeze_stop
from torpor.remote.sys import syscall
from torpor.remote.userfaultfd import OPEN_FLAGS
from torpor.remote.written import Private
from torpor.restorer import last_calls
from torpor.restorer.built import Built, image_of
from torpor.restorer.plan import WALL, Plan, ThreadPlan
from torpor.restorer.walk import Walker
from torpor.store import SnapshotReader

_TERMINAL_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PATIENCE, _AGAIN = 5.0, 0.02
"""Seconds for which to retry a write to a file of /proc, and the pause between two tries."""
CLONE_VM, CLONE_NEWUSER = 0x100, 0x10000000


class Filled(NamedTuple):
    """A process under construction: its memory is filled, its other state is still to be restored."""

    pid: int
    """In this process's PID namespace."""
    image: pb.Process
    userfaultfd: int
    """A userfaultfd of its memory, which the receiver must close; -1 if the kernel gives none."""

    @property
    def watchable(self) -> list[Private]:
        """Its private mappings by address."""
        private = (vma for vma in self.image.memory.vmas if vma.kind in vmas.PRIVATE)
        return [Private(one.start, one.end, one.kind != pb.Vma.ANONYMOUS, huge=one.huge_page > 0) for one in private]


class Builder:
    """Builds the tree below a stopped init. Call it from the thread that started init."""

    def __init__(
        self,
        plan: Plan,
        init: int,
        options: int,
        progress: Callable[[int], None] | None = None,
        walker: Walker | None = None,
        init_program: int = 0,
        reader: SnapshotReader | None = None,
    ) -> None:
        """Take over init, which is about to reach its exec stop.

        Args:
            plan: what to build.
            init: init's PID in this process's PID namespace.
            options: the PTRACE_O_* options of init, used for all other threads too.
            progress: called with the bytes of memory filled since the last call.
            walker: creates the processes of a plan whose PIDs cannot be chosen.
            init_program: a descriptor of torpor-init, if blanks execute programs.
            reader: the snapshot, from which large processes are filled.
        """
        self.plan = plan
        self._options = options
        self.processes: dict[int, Built] = {}
        self._ended: dict[int, int] = {}
        """The PIDs of the zombies in this process's PID namespace, by their PID in the image."""
        self._blanks = Blanks(init, plan.scratch, address_space.GAP, progress)
        self._walker, self._init_program = walker, init_program
        self._reader, self._progress = reader, progress

    def create_processes(self) -> None:
        """Create every process, each by its own parent."""
        top = Built(self.plan.processes[0], [self._blanks.take_init()])
        for calls in self.plan.by_init:
            self._blanks.run([self._work(top, calls)])
        if self._walker:
            found = self._walker.create_processes(self.plan, self._blanks, top.threads[0])
            self.processes = {plan.member.pid: Built(plan, found[plan.member.pid]) for plan in self.plan.processes}
        else:
            self._create_by_levels(top)
        self._orphan()

    def _create_by_levels(self, top: Built) -> None:
        by_pid = {process.member.pid: process for process in self.plan.processes}
        level = [top]
        while level:
            works = [self._work(process, process.plan.birth) for process in level]
            self._blanks.run(works)
            self.processes |= {process.plan.member.pid: process for process in level}
            below = []
            for process, work in zip(level, works, strict=True):
                for child, task in zip(process.plan.member.births, work.newborn, strict=True):
                    task.name = by_pid[child.pid].name
                    below.append(Built(by_pid[child.pid], [task]))
            level = below

    def _orphan(self) -> None:
        """Kill the stand-ins whose children must be reparented to an ancestor, the only subreaper meanwhile."""
        for member in [process.plan.member for process in self.processes.values() if process.plan.member.adopter]:
            assert member.adopter
            assert member.parent
            adopter, parent = self.processes[member.adopter.pid], self.processes[member.parent.pid]
            adopts = [Call(NR.prctl, (PR_SET_CHILD_SUBREAPER, on, 0, 0, 0), 0, "adopting orphans") for on in (1, 0)]
            if member.adopter.image is None:
                adopts = []  # init is a subreaper already
            self._blanks.run([self._work(adopter, adopts[:1])])
            self._blanks.end(self.processes.pop(member.pid).threads[0], [], signal.SIGKILL)
            reaping = Call(NR.wait4, (member.pid, 0, WALL, 0), member.pid, f"reaping the stand-in {member.pid}")
            self._blanks.run([self._work(parent, [reaping])])
            self._blanks.run([self._work(adopter, adopts[1:])])

    def build(self, filled: Callable[[Iterable[Filled]], None] | None = None) -> None:
        """Build the address spaces, threads and descriptors of all processes in parallel.

        Args:
            filled: called with all processes, one after the other, once their memory has the content of the image.
        """
        ended = [process for process in self.processes.values() if image_of(process).zombie]
        self._blanks.run([self._work(process, process.plan.build) for process in ended])
        built = [process for process in self.processes.values() if process.plan.build and process not in ended]
        works = [self._work(process, process.plan.build) for process in built]
        self._blanks.run(works)
        for process, work in zip(built, works, strict=True):
            process.threads += work.newborn
            for task, thread in zip(process.threads, process.plan.threads, strict=True):
                task.name = f"{process.plan.name}, thread {thread.image.tid}"
        self._fill(built)
        if filled is not None:
            filled(Filled(process.threads[0].tid, image_of(process), self._userfaultfd(process)) for process in built)
        for process in built:
            self._lay_out(process)
        self._blanks.run([self._work(process, process.plan.process_state) for process in built])
        self._blanks.run([self._work(process, process.plan.place) for process in built if process.plan.place])
        self._blanks.run([self._work(process, process.plan.share) for process in built])
        for process in built:
            for name, text in process.plan.proc:
                _write_proc(process, name, text)
        for pid in [pid for pid, process in self.processes.items() if process.plan.member.only_group]:
            self._blanks.end(self.processes.pop(pid).threads[0], [], signal.SIGKILL)
        self._end_zombies()

    def _lay_out(self, process: Built) -> None:
        """Set the memory layout by a helper that shares the memory (CLONE_VM) but has its own user namespace.

        The kernel requires a capability in the caller's user namespace (kernel/sys.c, prctl_set_mm_map).
        """
        if not process.plan.layout:
            return
        words = "starting a helper in a user namespace"
        work = self._work(process, [Call(NR.clone, (CLONE_VM | CLONE_NEWUSER, 0, 0, 0), lambda pid: pid > 0, words)])
        self._blanks.run([work])
        (helper,) = work.newborn
        self._blanks.run([Work(helper, process.plan.layout, self._blanks.tables.start)])
        self._blanks.end(helper, [Call(NR.exit_group, (0,), 0, "ending")], 0)
        reaping = Call(NR.wait4, (helper.tid, 0, WALL, 0), helper.tid, "reaping the helper")
        self._blanks.run([self._work(process, [reaping])])

    def _userfaultfd(self, process: Built) -> int:
        """Make a userfaultfd of a process's memory and close it in that process; -1 if the kernel gives none."""
        words = "watching its memory"
        open_it = Call(NR.userfaultfd, (OPEN_FLAGS,), lambda _: True, words)
        (number,) = self._blanks.ask(self._work(process, [open_it]))
        if number < 0:
            return -1
        copy = descriptor_of(process.threads[0].tid, number)
        self._blanks.ask(self._work(process, [Call(NR.close, (number,), 0, words)]))
        return copy

    def _work(self, process: Built, calls: Sequence[Call]) -> Work:
        return Work(process.threads[0], calls, self._blanks.tables.start)

    def _fill(self, built: Sequence[Built]) -> None:
        """Give the processes their pages: all small ones together, by calls of their own, then each large one."""
        self._blanks.run([self._work(process, process.plan.fill) for process in built])
        for process in built:
            if process.plan.content:
                self._fill_large(process)

    def _fill_large(self, process: Built) -> None:
        assert self._reader is not None
        space, pid = image_of(process).memory, process.threads[0].tid
        mappings = [(vma.start, vma.end) for vma in space.vmas]
        layout = filling.layout(space, process.plan.content, probe().transparent_hugepages)
        fd = self._userfaultfd(process)
        with filling.Filling(self._reader, self._progress) as fill:
            try:
                if fd >= 0:
                    self._blanks.run([self._work(process, list(address_space.advise_huge(layout.advised)))])
                    fill.touch(process.plan.name, pid, layout.huge)
                    userfaultfd.begin(fd)
                    for start, end in layout.fresh:
                        userfaultfd.register(fd, start, end, userfaultfd.MISSING)
                fill.add(process.plan.name, pid, fd, filling.parts(process.plan.content, self._reader.blocks, mappings))
                fill.finish()
            finally:
                if fd >= 0:
                    os.close(fd)

    def _end_zombies(self) -> None:
        """Let the processes exit that were zombies. Their parents have no signal actions yet, so nothing reaps them."""
        for pid in [pid for pid, process in self.processes.items() if image_of(process).zombie]:
            process = self.processes.pop(pid)
            self._ended[pid] = process.threads[0].tid
            self._blanks.end(process.threads[0], process.plan.end, image_of(process).exit_status & 0x7F)

    def settle(self) -> None:
        """Let every thread set its own state: timers, pending signals, names, credentials."""
        stopped = [process for process in self.processes.values() if image_of(process).stopped]
        # Children first: a parent waits for the stop of a child before it sets its own state.
        for process in reversed(stopped):
            self._settle([process])
            self._unmap_scratch([process])
            self._stop(process)
        rest = [process for process in self.processes.values() if not image_of(process).stopped]
        self._settle(rest)
        self._unmap_scratch([process for process in rest if process.plan.threads])

    def _unmap_scratch(self, processes: Sequence[Built]) -> None:
        last_calls.unmap_scratch(processes, self._blanks.scratch, self._blanks.tables.start)

    def _settle(self, processes: Sequence[Built]) -> None:
        works: list[Work] = []
        for process in processes:
            address = self._blanks.tables.start
            for task, thread in zip(process.threads, process.plan.threads, strict=False):
                room = min(table_size(thread.calls), TABLE_ROOM)  # tens of thousands of signals are run in parts
                if address + room > self._blanks.tables.stop:
                    self._blanks.run(works)
                    works, address = [], self._blanks.tables.start
                works.append(Work(task, thread.calls, address, room))
                address += room + -room % 16
        self._blanks.run(works)
        for process in processes:
            for task, thread in zip(process.threads, process.plan.threads, strict=False):
                if holds_tiles(thread.image.xstate):
                    self._blanks.touch_tiles(task)

    def settle_others(self, stand_in: Callable[[int, int], Sequence[bytes]], status_fd: int) -> None:
        """Let init and the stand-ins drop everything of the tree and begin their own work.

        Args:
            stand_in: returns the arguments of torpor-init for such a process, given its PID and that of its main child.
            status_fd: the only descriptor that init keeps: its end of the status pipe.
        """
        for process in self._others():
            keep = status_fd if process.plan.member is self.plan.processes[0].member else -1
            if process.threads[0].program:  # it is a clone of one that has executed a program
                self._blanks.execute(process.threads[0], self._init_program)
            self._blanks.run([self._work(process, [*self.plan.last, *_close_all(keep)])])
            self._rewind(process, stand_in)

    @property
    def pids(self) -> dict[int, int]:
        """The PIDs of all processes in this process's PID namespace, by their PID in the image."""
        return {pid: process.threads[0].tid for pid, process in self.processes.items()} | self._ended

    def as_frozen(self, image: pb.Tree) -> dict[int, Process]:
        """Return the tree as a freeze would, by PID in this process's PID namespace, in the order of its image.

        The caller may change the threads' registers: `release` sets them again. New children of the threads are not
        stopped.
        """
        found: dict[int, Process] = {}
        options = self._options & ~ptrace.O_TRACECLONE
        for one in image.processes:
            pid = self.pids[one.pid]
            process = Process(pid, found.get(procfs.stat(pid).ppid), zombie=one.zombie, options=options)
            if not one.zombie:
                built = self.processes[one.pid]
                for task, thread in zip(built.threads, built.plan.threads, strict=True):
                    _set_state(task, thread)
                    ptrace.request(ptrace.SETOPTIONS, task.tid, 0, options)
                    process.threads[task.tid] = Thread(task.tid)
            found[pid] = process
        bring_to_freeze_stop(found.values())
        return found

    def release(
        self, first: Callable[[str], bool] | None = None, connected: Callable[[], object] | None = None
    ) -> None:
        """Detach from everything, from init first.

        Args:
            first: given a thread's name, says whether that thread runs before the others.
            connected: called between those threads and the others. If it raises, the restore fails.
        """
        early: list[Task] = []
        late: list[Task] = []
        for process in [process for process in self.processes.values() if process.plan.member.image is not None]:
            if signals.stops(image_of(process).pending):
                os.kill(process.threads[0].tid, signal.SIGSTOP)
            for task, thread in zip(process.threads, process.plan.threads, strict=True):
                _set_state(task, thread)
                if signals.stops(thread.image.pending):
                    syscall(NR.tgkill, process.threads[0].tid, task.tid, signal.SIGSTOP)
                soon = first is not None and first(thread.image.name.decode(errors="replace"))
                (early if soon else late).append(task)
        ptrace.detach((task.tid, 0) for task in [*(process.threads[0] for process in self._others()), *early])
        if connected is not None:
            connected()
        ptrace.detach((task.tid, 0) for task in late)
        self._blanks.forget()

    def _others(self) -> list[Built]:
        """Return init and the stand-ins."""
        return [process for process in self.processes.values() if process.plan.member.image is None]

    def kill(self) -> None:
        """Kill everything and wait until it has ended."""
        self._blanks.kill()

    def _stop(self, process: Built) -> None:
        """Stop a process as job control does, by the signal that had stopped it.

        Each thread first gets its own SIGSTOP, so that none of them runs. When all have stopped to deliver it, the
        tracer replaces it with the real signal, so that no signal mask can block that.
        """
        pid, sig = process.threads[0].tid, self._stop_signal(process)
        for task in process.threads:
            ptrace.set_sigmask(task.tid, WORD & ~(1 << (sig - 1)))
            syscall(NR.tgkill, pid, task.tid, signal.SIGSTOP)
            ptrace.resume(task.tid)
        for task in process.threads:
            self._wait_stop(task, 0, signal.SIGSTOP)
        for task in process.threads:
            ptrace.resume(task.tid, ptrace.CONT, sig)
        for task in process.threads:
            self._wait_stop(task, ptrace.EVENT_STOP, sig)

    def _wait_stop(self, task: Task, event: int, sig: int) -> None:
        while True:
            _, status = os.waitpid(task.tid, ptrace.WALL)
            if not os.WIFSTOPPED(status):
                raise killed(task.name)
            if (ptrace.event(status), ptrace.stop_signal(status)) == (event, sig):
                return
            ptrace.resume(task.tid)

    def _stop_signal(self, process: Built) -> int:
        """Return the signal that can stop a process again.

        The terminal's signals do not stop an orphaned process group, and a group whose shell is not in the tree is
        orphaned now.
        """
        image = image_of(process)
        if image.stop_signal not in _TERMINAL_STOPS or any(
            one.signal == image.stop_signal and one.handler for one in image.actions
        ):
            return signal.SIGSTOP
        stats = {tid: procfs.stat(tid) for tid in (built.threads[0].tid for built in self.processes.values())}
        group = stats[process.threads[0].tid].pgrp
        for stat in stats.values():
            above = stats.get(stat.ppid)
            if stat.pgrp == group and above and above.pgrp != group and above.session == stat.session:
                return image.stop_signal
        return signal.SIGSTOP

    def _rewind(self, process: Built, arguments: Callable[[int, int], Sequence[bytes]]) -> None:
        """Restart init, or a clone of it, at its entry point with its own arguments."""
        task, member = process.threads[0], process.plan.member
        words = [word + b"\0" for word in arguments(member.pid, _stands_for(process))]
        # Below the stack that execve made, which clones of init share: their arguments differ in length.
        first = task.entry
        stack = (first[RSP] - 4096) & ~0xF
        strings = stack + 8 * (len(words) + 3)
        pointers = [strings + sum(map(len, words[:k])) for k in range(len(words))]
        content = struct.pack(f"<{len(words) + 3}Q", len(words), *pointers, 0, 0) + b"".join(words)
        memory.write(task.tid, stack, content)
        registers = array("Q", first)
        registers[RSP], registers[ORIG_RAX] = stack, WORD
        ptrace.set_registers(task.tid, registers)


def _write_proc(process: Built, name: str, text: str) -> None:
    task = process.threads[0]
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with open(f"/proc/{task.tid}/{name}", "w") as file:
                    file.write(text)
                return
            except BlockingIOError:  # autogroup: without privilege the whole host allows one write every 100 ms
                if time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN)
    except OSError as error:
        raise RestoreFailed(f"{process.plan.name}: writing {text} to its {name}: {error.strerror}") from error


def _stands_for(process: Built) -> int:
    children = [child for child in process.plan.member.children if not child.only_group]
    return children[0].pid if children else 0


def _close_all(keep: int) -> Iterator[Call]:
    last = (1 << 32) - 1
    if keep < 0:
        yield Call(NR.close_range, (0, last, 0), 0, "closing all descriptors")
        return
    yield Call(NR.close_range, (0, keep - 1, 0), 0, f"closing the descriptors below {keep}")
    yield Call(NR.close_range, (keep + 1, last, 0), 0, f"closing the descriptors above {keep}")


def _set_state(task: Task, thread: ThreadPlan) -> None:
    registers = array("Q")
    registers.frombytes(thread.image.registers)
    try:
        if thread.image.moved:
            transfer = Transfer(registers, thread.image.moved)
            registers = transfers.in_code(task.tid, transfer) or short(transfer)
        if thread.image.below:
            memory.write_stack(task.tid, thread.image.below_address, thread.image.below)
        ptrace.set_xstate(task.tid, thread.image.xstate)
        ptrace.set_registers(task.tid, registers)
        ptrace.set_sigmask(task.tid, thread.image.sigmask)
    except OSError as error:
        raise RestoreFailed(f"{task.name}: setting its registers: {error.strerror}") from error
