"""Runs a plan in blank processes: births, address spaces, threads, registers, and at last letting all of them go.

A *blank* is a clone of torpor-init that has run nothing of its own: it is traced from birth and stops before its
first instruction. All it ever runs are tables of system calls, by the interpreter in its window (native/batch.c).
Until `Builder.release` a failure kills everything; what is built dies too when this process does (EXITKILL).
"""

from __future__ import annotations

import os
import signal
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.plan import Plan, ProcessPlan, ThreadPlan
from torpor.probe import probe
from torpor.remote import memory, ptrace
from torpor.remote.batch import CODE, NOT_RUN, Batch, Call, Out, Replies, Struct
from torpor.remote.sys import syscall
from torpor.remote.x86_64 import (
    NR,
    ORIG_RAX,
    R8,
    R9,
    R10,
    R12,
    R14,
    RAX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    SYSCALL,
    TILE_CONFIGURATION,
    TOUCH_TILES,
    WORD,
    fitted,
    holds_tiles,
    signed,
)

ALL_SIGNALS = WORD
_POKETEXT = 4
_SYSCALL_TRAP = 0xCC050F  # syscall; int3
_CODE_SIZE = 4096
_TOUCH_TILES = 2048  # in it
_MAP_PRIVATE_ANONYMOUS = 0x22
_MAP_FIXED_NOREPLACE = 0x100000
_TABLE_ROOM = 4 << 20
"""Bytes of one table with its data; a longer list of calls is run in parts."""
_MAX_ENTRIES = 60_000
"""Entries are numbered by 16 bits."""
_ENTRY_SIZE = 64

_BIRTHS = (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE)


@dataclass
class Task:
    """A thread of the tree under construction, stopped."""

    tid: int
    """As this process sees it."""
    name: str
    """For people."""
    registers: array[int]
    """Those it was found with."""


@dataclass
class Work:
    """A list of calls for one task, and where in the window its tables are put."""

    task: Task
    calls: Sequence[Call]
    address: int
    room: int = _TABLE_ROOM
    newborn: list[Task] = field(default_factory=list)
    """The tasks that its calls gave birth to, in their order."""


@dataclass
class _Running:
    work: Work
    batch: Batch
    calls: Sequence[Call]
    size: int


@dataclass
class Built:
    """A process of the tree under construction."""

    plan: ProcessPlan
    threads: list[Task]
    """The main thread first."""


class Builder:
    """Builds the tree below a stopped init. All calls are made by the thread that started init."""

    def __init__(self, plan: Plan, init: int, progress: Callable[[int], None] | None = None) -> None:
        """Take over init, which is on its way to its exec stop.

        Args:
            plan: what to build.
            init: its PID as this process sees it.
            progress: told the bytes of memory that were filled since the last time.
        """
        self.plan = plan
        self.processes: dict[int, Built] = {}
        self._tasks: dict[int, Task] = {}
        self._window = plan.window
        self._tables = plan.window.start + _CODE_SIZE
        self._progress = progress
        self._init = init

    # ------------------------------------------------------------------------------------------- the stages

    def bear(self) -> None:
        """Give birth to every process, level by level, each by its own parent."""
        self._take_init()
        top = self.plan.processes[0]
        by_pid = {process.member.pid: process for process in self.plan.processes}
        level = [top]
        while level:
            works = [Work(self._main(process), process.birth, self._tables) for process in level]
            self._run(works)
            below = []
            for process, work in zip(level, works, strict=True):
                for child, task in zip(process.member.births, work.newborn, strict=True):
                    plan = by_pid[child.pid]
                    task.name = plan.name
                    self.processes[child.pid] = Built(plan, [task])
                    below.append(plan)
            level = below

    def build(self) -> None:
        """Build address spaces, descriptors and threads of all processes, side by side."""
        self._bury()
        built = [process for process in self.processes.values() if process.plan.build]
        works = [Work(process.threads[0], process.plan.build, self._tables) for process in built]
        self._run(works)
        for process, work in zip(built, works, strict=True):
            process.threads += work.newborn
            for task, thread in zip(process.threads, process.plan.threads, strict=True):
                task.name = f"{process.plan.name}, thread {thread.image.tid}"
            for name, text in process.plan.proc:
                _write_proc(process, name, text)
        for pid in [pid for pid, process in self.processes.items() if process.plan.member.only_group]:
            self._end(self.processes.pop(pid).threads[0], signal.SIGKILL)

    def settle(self) -> None:
        """Let every thread set what is its own: timers, pending signals, names, credentials."""
        stopped = [process for process in self.processes.values() if _image(process).stopped]
        # Children first: a parent is told of a stop before it takes up its own state.
        for process in reversed(stopped):
            self._settle([process])
            self._remove_windows([process])
            self._stop(process)
        rest = [process for process in self.processes.values() if not _image(process).stopped]
        self._settle(rest)
        self._remove_windows([process for process in rest if process.plan.threads])

    def _settle(self, processes: Sequence[Built]) -> None:
        works: list[Work] = []
        for process in processes:
            address = self._tables
            for task, thread in zip(process.threads, process.plan.threads, strict=False):
                room = _size(thread.calls)
                if address + room > self._window.stop:
                    self._run(works)
                    works, address = [], self._tables
                works.append(Work(task, thread.calls, address, room))
                address += room + -room % 16
        self._run(works)
        for process in processes:
            for task, thread in zip(process.threads, process.plan.threads, strict=False):
                if holds_tiles(thread.image.xstate):
                    self._touch_tiles(task)

    def _touch_tiles(self, task: Task) -> None:
        memory.write(task.tid, self._tables, TILE_CONFIGURATION)
        registers = array("Q", task.registers)
        registers[RIP], registers[R14] = self._window.start + _TOUCH_TILES, self._tables
        registers[ORIG_RAX] = WORD
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        self._wait_trap(task, lambda _: None)

    def release(
        self,
        stand_in: Callable[[int, int], Sequence[bytes]],
        status_fd: int,
        first: Callable[[str], bool] | None = None,
        connected: Callable[[], None] | None = None,
    ) -> None:
        """Let everything go: init first.

        Args:
            stand_in: gives the arguments of torpor-init for a process that stands for another: its PID, the other's.
            status_fd: init's own descriptor, the only one that it keeps.
            first: tells by a thread's name whether it is let go before the others.
            connected: called in between. An error from it is a failure like any before.
        """
        others = [process for process in self.processes.values() if process.plan.member.image is None]
        ours = [process for process in self.processes.values() if process.plan.member.image is not None]
        for process in others:
            keep = status_fd if process.plan.member is self.plan.processes[0].member else -1
            self._run([Work(process.threads[0], list(_close_all(keep)), self._tables)])
            self._rewind(process, stand_in)
        early: list[Task] = []
        late: list[Task] = []
        for process in ours:
            for task, thread in zip(process.threads, process.plan.threads, strict=True):
                _set_state(task, thread)
                soon = first is not None and first(thread.image.name.decode(errors="replace"))
                (early if soon else late).append(task)
        ptrace.detach((task.tid, 0) for task in [*(process.threads[0] for process in others), *early])
        if connected is not None:
            connected()
        ptrace.detach((task.tid, 0) for task in late)
        self._tasks.clear()

    def kill(self) -> None:
        """Kill everything and wait until nothing of it is left."""
        for task in self._tasks.values():
            with suppress(ProcessLookupError):
                os.kill(task.tid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        # A namespace's init ends when all in it have, and a main thread after its others: youngest first.
        for tid in [*reversed(self._tasks), self._init]:
            with suppress(ChildProcessError):
                while os.WIFSTOPPED(os.waitpid(tid, ptrace.WALL)[1]):
                    pass
        self._tasks.clear()

    # ------------------------------------------------------------------------------------------- running calls

    def _main(self, process: ProcessPlan) -> Task:
        return self.processes[process.member.pid].threads[0]

    def _add_task(self, tid: int, name: str) -> Task:
        """Wait for the first stop of a task that was born, and block its signals."""
        task = Task(tid, name, array("Q"))
        self._tasks[tid] = task
        _, status = os.waitpid(tid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise RestoreFailed(f"{name} was killed when it was born", advice="see the kernel's log: `dmesg`")
        task.registers = ptrace.get_registers(tid)
        ptrace.set_sigmask(tid, ALL_SIGNALS)
        return task

    def _take_init(self) -> None:
        _, status = os.waitpid(self._init, ptrace.WALL)
        if os.WIFSTOPPED(status):
            # The exec stop lies within execve, whose result would still be put into rax: go on to its end.
            ptrace.interrupt(self._init)
            ptrace.resume(self._init)
        task = self._add_task(self._init, "init")
        self.processes[self.plan.processes[0].member.pid] = Built(self.plan.processes[0], [task])
        # Its first two calls are made by an instruction put at its entry for a moment.
        start, size = self._window.start, len(self._window)
        made = self._call(task, NR.mmap, start, size, 3, _MAP_PRIVATE_ANONYMOUS | _MAP_FIXED_NOREPLACE, WORD, 0)
        if made != start:
            raise RestoreFailed(f"init cannot map its window: {os.strerror(-made)}")
        memory.write(task.tid, start, CODE.ljust(_TOUCH_TILES, b"\0") + TOUCH_TILES)
        self._call(task, NR.mprotect, start, _CODE_SIZE, 5)

    def _call(self, task: Task, nr: int, *args: int) -> int:
        """Make one call in init, without a window."""
        entry = task.registers[RIP]
        before = array("q", [0])
        syscall(NR.ptrace, 1, task.tid, entry, before.buffer_info()[0])  # PTRACE_PEEKTEXT
        syscall(NR.ptrace, _POKETEXT, task.tid, entry, _SYSCALL_TRAP)
        registers = array("Q", task.registers)
        registers[RAX], registers[ORIG_RAX] = nr, WORD
        for register, value in zip((RDI, RSI, RDX, R10, R8, R9), args, strict=False):
            registers[register] = value
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        self._wait_trap(task, lambda _: None)
        syscall(NR.ptrace, _POKETEXT, task.tid, entry, before[0])
        return signed(ptrace.get_registers(task.tid)[RAX])

    def _run(self, works: Sequence[Work]) -> None:
        """Run lists of calls in several tasks side by side, in as many parts as they need.

        Raises:
            RestoreFailed: a call gave another result than it must, by name of process and step.
        """
        parts = [(work, _parts(work)) for work in works]
        while parts:
            running = []
            for work, rest in parts:
                if (calls := next(rest, None)) is not None:
                    running.append(self._start(work, calls))
            for one in running:
                self._finish(one)
            done = {id(one.work) for one in running}
            parts = [(work, rest) for work, rest in parts if id(work) in done]

    def _start(self, work: Work, calls: Sequence[Call]) -> _Running:
        batch = Batch()
        last = len(calls)
        for call in calls:
            batch.add(call.nr, *call.args, on_error=last)
        batch.add(NR.getpid, stop=True)
        table = batch.encode(work.address)
        memory.write(work.task.tid, work.address, table)
        registers = array("Q", work.task.registers)
        registers[RIP], registers[R14], registers[R12] = self._window.start, work.address, work.address
        registers[ORIG_RAX], registers[RAX], registers[RSP] = WORD, 0, 0
        ptrace.set_registers(work.task.tid, registers)
        ptrace.resume(work.task.tid)
        return _Running(work, batch, calls, len(batch) * _ENTRY_SIZE)

    def _finish(self, running: _Running) -> None:
        work = running.work
        self._wait_trap(work.task, lambda tid: work.newborn.append(self._add_task(tid, f"a child of {work.task.name}")))
        replies = Replies(running.batch, memory.read(work.task.tid, work.address, running.size))
        for index, call in enumerate(running.calls):
            result = replies.result(index)
            if not call.ok(result):
                raise _failure(work.task, call, result)
            if call.nr in (NR.pread64, NR.preadv) and self._progress:
                self._progress(result)

    def _wait_trap(self, task: Task, born: Callable[[int], object]) -> None:
        """Wait until a task comes to the int3 at the end of what it runs."""
        while True:
            _, status = os.waitpid(task.tid, ptrace.WALL)
            if not os.WIFSTOPPED(status):
                raise RestoreFailed(
                    f"{task.name} was killed while it was built", advice="see the kernel's log: `dmesg`"
                )
            event, sig = ptrace.event(status), ptrace.stop_signal(status)
            if event in _BIRTHS:
                born(_event_message(task.tid))
            elif event == 0 and sig == signal.SIGTRAP:
                return
            elif event == 0 and sig in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGSYS):
                why = signal.Signals(sig).name
                raise RestoreFailed(f"{task.name} was stopped by {why} while it was built")
            ptrace.resume(task.tid)

    def _end(self, task: Task, sig: int) -> None:
        """Let a blank end by a signal, or, with 0, by what it is about to do."""
        if sig:
            ptrace.set_sigmask(task.tid, 0)
            os.kill(task.tid, sig)
        if sig not in (0, signal.SIGKILL):
            ptrace.resume(task.tid)
        while os.WIFSTOPPED(status := os.waitpid(task.tid, ptrace.WALL)[1]):
            ptrace.resume(task.tid, ptrace.CONT, ptrace.stop_signal(status) if not ptrace.event(status) else 0)
        del self._tasks[task.tid]

    def _bury(self) -> None:
        """Let those end that had ended. Their parents' signal actions are not set yet, so they stay unreaped."""
        for pid in [pid for pid, process in self.processes.items() if _image(process).zombie]:
            process = self.processes.pop(pid)
            task, calls = process.threads[0], process.plan.build
            sig = _image(process).exit_status & 0x7F
            if sig:
                self._run([Work(task, calls, self._tables)])
            else:
                self._start(Work(task, calls, self._tables), calls)
            self._end(task, sig)

    def _stop(self, process: Built) -> None:
        """Stop a process as job control does: by a SIGSTOP that it gets while nothing of it can run."""
        main = process.threads[0]
        os.kill(main.tid, signal.SIGSTOP)
        for task in process.threads:
            ptrace.resume(task.tid)
        waiting = list(process.threads)
        while waiting:
            task = waiting.pop(0)
            _, status = os.waitpid(task.tid, ptrace.WALL)
            if not os.WIFSTOPPED(status):
                raise RestoreFailed(f"{task.name} was killed while it was stopped")
            if ptrace.event(status) != ptrace.EVENT_STOP or ptrace.stop_signal(status) != signal.SIGSTOP:
                ptrace.resume(task.tid, ptrace.CONT, signal.SIGSTOP if ptrace.event(status) == 0 else 0)
                waiting.append(task)

    # ------------------------------------------------------------------------------------------- the last steps

    def _rewind(self, process: Built, arguments: Callable[[int, int], Sequence[bytes]]) -> None:
        """Make init, or a clone of it, begin at its entry, with its own arguments."""
        task, member = process.threads[0], process.plan.member
        words = [word + b"\0" for word in arguments(member.pid, _stands_for(process))]
        # Not the stack that execve made: clones of init have the same, and arguments of another length.
        first = self.processes[self.plan.processes[0].member.pid].threads[0].registers
        stack = (first[RSP] - 4096) & ~0xF
        strings = stack + 8 * (len(words) + 3)
        pointers = [strings + sum(map(len, words[:k])) for k in range(len(words))]
        content = struct.pack(f"<{len(words) + 3}Q", len(words), *pointers, 0, 0) + b"".join(words)
        memory.write(task.tid, stack, content)
        registers = array("Q", first)
        registers[RSP], registers[ORIG_RAX] = stack, WORD
        ptrace.set_registers(task.tid, registers)

    def _remove_windows(self, processes: Sequence[Built]) -> None:
        """Unmap the windows, by the `syscall` in each vDSO, and bring the threads to a stop from which the kernel
        restarts interrupted calls: one inside its signal handling, which a system-call stop is not.
        """
        for process in processes:
            task = process.threads[0]
            registers = array("Q", task.registers)
            registers[RIP] = _syscall_instruction(task, _image(process).memory)
            registers[RAX], registers[ORIG_RAX], registers[RSP] = NR.munmap, WORD, 0
            registers[RDI], registers[RSI] = self._window.start, len(self._window)
            ptrace.set_registers(task.tid, registers)
            ptrace.resume(task.tid, ptrace.SYSCALL)
        for stage in ("entry", "exit"):
            for process in processes:
                self._wait_syscall(process.threads[0])
                if stage == "entry":
                    ptrace.resume(process.threads[0].tid, ptrace.SYSCALL)
        for process in processes:
            task = process.threads[0]
            result = signed(ptrace.get_registers(task.tid)[RAX])
            if result:
                raise RestoreFailed(f"{task.name}: unmapping the window: {os.strerror(-result)}")
            ptrace.interrupt(task.tid)
            ptrace.resume(task.tid)
        for process in processes:
            _, status = os.waitpid(process.threads[0].tid, ptrace.WALL)
            if not os.WIFSTOPPED(status) or ptrace.event(status) != ptrace.EVENT_STOP:
                raise RestoreFailed(f"{process.threads[0].name} was killed while it was built")

    def _wait_syscall(self, task: Task) -> None:
        _, status = os.waitpid(task.tid, ptrace.WALL)
        if not os.WIFSTOPPED(status) or ptrace.stop_signal(status) != ptrace.SYSCALL_STOP:
            raise RestoreFailed(f"{task.name} did not come to its last system call (status {status:#x})")


_NOBODY = pb.Process()


def _image(process: Built) -> pb.Process:
    """The image of a process; of a stand-in, an empty one."""
    return process.plan.member.image or _NOBODY


def _write_proc(process: Built, name: str, text: str) -> None:
    task = process.threads[0]
    try:
        with open(f"/proc/{task.tid}/{name}", "w") as file:
            file.write(text)
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


def _syscall_instruction(task: Task, space: pb.AddressSpace) -> int:
    code = memory.read(task.tid, space.vdso, space.vdso_end - space.vdso)
    return space.vdso + code.index(SYSCALL)


def _set_state(task: Task, thread: ThreadPlan) -> None:
    registers = array("Q")
    registers.frombytes(thread.image.registers)
    try:
        if thread.image.below:
            memory.write_stack(task.tid, thread.image.below_address, thread.image.below)
        ptrace.set_xstate(task.tid, fitted(thread.image.xstate, probe().xsave_size))
        ptrace.set_registers(task.tid, registers)
        ptrace.set_sigmask(task.tid, thread.image.sigmask)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RestoreFailed(f"{task.name}: setting its registers: {why}") from error


def _event_message(tid: int) -> int:
    message = array("Q", [0])
    syscall(NR.ptrace, ptrace.GETEVENTMSG, tid, 0, message.buffer_info()[0])
    return message[0]


def _size(calls: Iterable[Call]) -> int:
    """The bytes of a table with its data, at most."""
    return 2 * _ENTRY_SIZE + sum(map(_call_size, calls))


def _call_size(call: Call) -> int:
    size = _ENTRY_SIZE
    for arg in call.args:
        if isinstance(arg, bytes):
            size += len(arg) + 16
        elif isinstance(arg, Struct):
            size += len(arg.content) + 16
        elif isinstance(arg, Out):
            size += arg.size + 16
    return size


def _parts(work: Work) -> Iterator[Sequence[Call]]:
    """The calls in parts that fit into the window."""
    part: list[Call] = []
    size = 2 * _ENTRY_SIZE
    for call in work.calls:
        more = _call_size(call)
        if part and (size + more > work.room or len(part) == _MAX_ENTRIES):
            yield part
            part, size = [], 2 * _ENTRY_SIZE
        part.append(call)
        size += more
    if part:
        yield part


def _failure(task: Task, call: Call, result: int) -> RestoreFailed:
    if result == NOT_RUN:
        why = "was not reached"
    elif -4096 < result < 0:
        why = os.strerror(-result)
    else:
        why = f"gave {result:#x}"
    return RestoreFailed(f"{task.name}: {call.words}: {why}", details=f"{NR(call.nr).name}{tuple(call.args)!r:.400}")
