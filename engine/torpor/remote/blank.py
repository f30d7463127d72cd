"""Blank processes: clones of torpor-init that are traced from birth and have run nothing of their own.

All they ever run are tables of system calls, by the interpreter in their window (native/batch.c). The window is a
mapping that init makes and every clone inherits: the interpreter's page, then room for tables.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torpor import procfs
from torpor.arch.x86_64 import (
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
    TILE_CONFIGURATION,
    TOUCH_TILES,
    WORD,
    signed,
)
from torpor.errors import RestoreFailed
from torpor.remote import memory, ptrace
from torpor.remote.batch import CODE, ENTRY_SIZE, NOT_RUN, Batch, Call, Out, Replies, Struct
from torpor.remote.pid_allocation import Numbers
from torpor.remote.sys import syscall

BLOCKED = WORD & ~(1 << (signal.SIGTRAP - 1))
"""All signals but the one that int3 raises: where it is blocked the kernel takes away the program's action for it
(kernel/signal.c, force_sig_info_to_task)."""
_PEEKTEXT, _POKETEXT = 1, 4  # PTRACE_*
_SYSCALL_TRAP = 0xCC050F  # syscall; int3
_BIRTH = struct.Struct("<7q")  # struct birth (native/init.c)
CLONE_THREAD = 0x10000
_CODE_SIZE = 4096
_TOUCH_TILES = 2048  # in it
_MAP_PRIVATE_ANONYMOUS = 0x22
_MAP_FIXED_NOREPLACE = 0x100000
_PROT_RW, _PROT_RX = 3, 5
TABLE_ROOM = 4 << 20
"""Bytes of one table with its data; a longer list of calls is run in parts."""
_MAX_ENTRIES = 60_000
"""Entries are numbered by 16 bits."""
_BIRTHS = (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE)
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGSYS)


class PidTaken(RestoreFailed):
    """Another process has a PID that was to be given, or no way led to it."""


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
    room: int = TABLE_ROOM
    newborn: list[Task] = field(default_factory=list)
    """The tasks that its calls gave birth to, in their order."""


@dataclass
class _Running:
    work: Work
    batch: Batch
    calls: Sequence[Call]


class Blanks:
    """All tasks of a tree under construction. Every call is made by the thread that started init."""

    def __init__(self, init: int, window: range, spare: int, progress: Callable[[int], None] | None = None) -> None:
        """Know of an init that is on its way to its exec stop.

        Args:
            init: its PID as this process sees it.
            window: the addresses of the window, in it and all that come after it.
            spare: bytes at the end of the window that are for other things than tables.
            progress: told the bytes of memory that were filled since the last time.
        """
        self.window = window
        self.tables = range(window.start + _CODE_SIZE, window.stop - spare)
        """Where tables may be."""
        self._init = init
        self._tasks: dict[int, Task] = {}
        self._progress = progress
        self._bearing = 0
        """The address of torpor_bear."""

    def take_init(self) -> Task:
        """Stop init before its first instruction, and make the window in it."""
        _, status = os.waitpid(self._init, ptrace.WALL)
        if os.WIFSTOPPED(status):
            # The exec stop lies within execve, whose result would still be put into rax: go on to its end.
            ptrace.interrupt(self._init)
            ptrace.resume(self._init)
        task = self._add(self._init, "init")
        (self._bearing,) = struct.unpack("<Q", memory.read(task.tid, task.registers[RIP] - 8, 8))
        flags = _MAP_PRIVATE_ANONYMOUS | _MAP_FIXED_NOREPLACE
        made = self._call(task, NR.mmap, self.window.start, len(self.window), _PROT_RW, flags, WORD, 0)
        if made != self.window.start:
            raise RestoreFailed(f"init cannot map its window: {os.strerror(-made)}")
        memory.write(task.tid, made, CODE.ljust(_TOUCH_TILES, b"\0") + TOUCH_TILES)
        self._call(task, NR.mprotect, made, _CODE_SIZE, _PROT_RX)
        return task

    def _add(self, tid: int, name: str) -> Task:
        """Wait for the first stop of a task that was born, and block its signals."""
        task = Task(tid, name, array("Q"))
        self._tasks[tid] = task
        _, status = os.waitpid(tid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise killed(name)
        task.registers = ptrace.get_registers(tid)
        ptrace.set_sigmask(tid, BLOCKED)
        return task

    def _call(self, task: Task, nr: int, *args: int) -> int:
        """Make one call in init without a window, by an instruction put at its entry for a moment."""
        entry = task.registers[RIP]
        before = array("q", [0])
        syscall(NR.ptrace, _PEEKTEXT, task.tid, entry, before)
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

    def run(self, works: Sequence[Work]) -> None:
        """Run lists of calls in several tasks side by side, in as many parts as they need.

        Raises:
            RestoreFailed: a call gave another result than it must, by name of process and step.
        """
        rest = [(work, _parts(work)) for work in works]
        while rest:
            started = []
            for work, parts in rest:
                if (calls := next(parts, None)) is not None:
                    started.append(((work, parts), self._start(work, calls)))
            for _, running in started:
                self._finish(running)
            rest = [one for one, _ in started]

    def ask(self, work: Work) -> list[int]:
        """Run a few calls in a task, and give their results.

        Raises:
            RestoreFailed: as `run`.
        """
        return self._finish(self._start(work, work.calls))[: len(work.calls)]

    def _start(self, work: Work, calls: Sequence[Call]) -> _Running:
        batch = Batch()
        for call in calls:
            # After an error that may be right, the next is made, too.
            batch.add(call.nr, *call.args, on_error=None if callable(call.expect) else len(calls))
        batch.add(NR.getpid, stop=True)
        memory.write(work.task.tid, work.address, batch.encode(work.address))
        registers = array("Q", work.task.registers)
        registers[RIP], registers[R14], registers[R12] = self.window.start, work.address, work.address
        registers[ORIG_RAX], registers[RAX], registers[RSP] = WORD, 0, 0
        ptrace.set_registers(work.task.tid, registers)
        ptrace.resume(work.task.tid)
        return _Running(work, batch, calls)

    def _finish(self, running: _Running) -> list[int]:
        work = running.work
        self._wait_trap(work.task, lambda tid: work.newborn.append(self._add(tid, f"a child of {work.task.name}")))
        raw = memory.read(work.task.tid, work.address, len(running.batch) * ENTRY_SIZE)
        results = Replies(running.batch, raw).results()
        for call, result in zip(running.calls, results, strict=False):
            if not call.ok(result):
                raise failure(work.task, call, result)
            if call.nr in (NR.pread64, NR.preadv) and self._progress:
                self._progress(result)
        return results

    def _wait_trap(self, task: Task, born: Callable[[int], object]) -> None:
        """Wait until a task comes to the int3 at the end of what it runs."""
        while True:
            _, status = os.waitpid(task.tid, ptrace.WALL)
            if not os.WIFSTOPPED(status):
                raise killed(task.name)
            event, sig = ptrace.event(status), ptrace.stop_signal(status)
            if event in _BIRTHS:
                born(_event_message(task.tid))
            elif event == 0 and sig == signal.SIGTRAP:
                return
            elif event == 0 and sig in _FAULTS:
                raise RestoreFailed(f"{task.name} was stopped by {signal.Signals(sig).name} while it was built")
            ptrace.resume(task.tid)

    def bear(self, task: Task, flags: int, pid: int, numbers: Numbers, near: int, loadavg: int) -> Task | None:
        """Let a task bear a child, or another thread, that gets its PID in turn (torpor_bear in native/init.c).

        Args:
            task: it still has torpor-init in memory.
            flags: of clone(2).
            pid: the PID.
            numbers: how PIDs are given here.
            near: how many may be left before it.
            loadavg: a descriptor of /proc/loadavg that the task has.

        Returns:
            The newborn. None: another program was faster, or the PID is not near; nobody was born.

        Raises:
            PidTaken: it may bear nobody.
        """
        address = self.tables.start
        memory.write(task.tid, address, _BIRTH.pack(loadavg, pid, near, numbers.first, numbers.end, flags, NOT_RUN))
        registers = array("Q", task.registers)
        registers[RIP], registers[RDI] = self._bearing, address
        registers[RSP] = self.tables.start + TABLE_ROOM - 8  # as if called
        registers[ORIG_RAX], registers[RAX] = WORD, 0
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        born: list[Task] = []
        self._wait_trap(task, lambda tid: born.append(self._add(tid, f"a child of {task.name}")))
        *_, result = _BIRTH.unpack(memory.read(task.tid, address, _BIRTH.size))
        if not born:
            if result != -errno.ERANGE:
                raise PidTaken(f"{task.name} cannot bear process or thread {pid}: {os.strerror(-result)}")
            return None
        if result == pid:
            return born[0]
        self._undo(task, born[0], flags)
        return None

    def _undo(self, parent: Task, newborn: Task, flags: int) -> None:
        """Let one end that has another PID than it was to have."""
        if flags & CLONE_THREAD:
            self.end(newborn, [Call(NR.exit, (0,), None, "ending")], 0)
            return
        self.end(newborn, [], signal.SIGKILL)
        reaping = Call(NR.wait4, (newborn.tid, 0, ptrace.WALL, 0), newborn.tid, "reaping one with another PID")
        self.run([Work(parent, [reaping], self.tables.start)])

    def touch_tiles(self, task: Task) -> None:
        """Let a thread use an AMX tile, so that the kernel has room for those that it is to get."""
        memory.write(task.tid, self.tables.start, TILE_CONFIGURATION)
        registers = array("Q", task.registers)
        registers[RIP], registers[R14] = self.window.start + _TOUCH_TILES, self.tables.start
        registers[ORIG_RAX] = WORD
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        self._wait_trap(task, lambda _: None)

    def end(self, task: Task, calls: Sequence[Call], sig: int) -> None:
        """Let a blank end: by a signal, or with 0 by the last of `calls`."""
        if sig:
            self.run([Work(task, calls, self.tables.start)])
            ptrace.set_sigmask(task.tid, 0)
            os.kill(task.tid, sig)
            if sig != signal.SIGKILL:
                ptrace.resume(task.tid)
        else:
            self._start(Work(task, calls, self.tables.start), calls)
        while os.WIFSTOPPED(status := os.waitpid(task.tid, ptrace.WALL)[1]):
            ptrace.resume(task.tid, ptrace.CONT, 0 if ptrace.event(status) else ptrace.stop_signal(status))
        del self._tasks[task.tid]

    def forget(self) -> None:
        """All of them have been let go."""
        self._tasks.clear()

    def kill(self) -> None:
        """Kill everything and wait until nothing of it is left."""
        tids = dict.fromkeys([self._init, *self._tasks])
        for tid in list(tids):
            with suppress(FileNotFoundError, ProcessLookupError):
                # Also those that were born, but of whose birth we had not heard when something failed.
                there = procfs.threads(tid)
                tids |= dict.fromkeys([*there, *procfs.children(tid, there)])
        for tid in tids:
            with suppress(ProcessLookupError):
                os.kill(tid, signal.SIGKILL)
        # A namespace's init ends when all in it have, and a main thread after its others: youngest first.
        for tid in reversed(tids):
            with suppress(ChildProcessError):
                while os.WIFSTOPPED(os.waitpid(tid, ptrace.WALL)[1]):
                    pass
        self._tasks.clear()


def killed(name: str) -> RestoreFailed:
    """The error when a task ended that should not have."""
    return RestoreFailed(f"{name} was killed while it was built", advice="see the kernel's log: `dmesg`")


def table_size(calls: Iterable[Call]) -> int:
    """The bytes of a table with its data, at most."""
    return 2 * ENTRY_SIZE + sum(map(_call_size, calls))


def _call_size(call: Call) -> int:
    size = ENTRY_SIZE
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
    size = 2 * ENTRY_SIZE
    for call in work.calls:
        more = _call_size(call)
        if part and (size + more > work.room or len(part) == _MAX_ENTRIES):
            yield part
            part, size = [], 2 * ENTRY_SIZE
        part.append(call)
        size += more
    if part:
        yield part


def _event_message(tid: int) -> int:
    message = array("Q", [0])
    syscall(NR.ptrace, ptrace.GETEVENTMSG, tid, 0, message)
    return message[0]


def failure(task: Task, call: Call, result: int) -> RestoreFailed:
    """The error when a call of a plan gave another result than it must."""
    if result == NOT_RUN:
        why = "was not reached"
    elif -4096 < result < 0:
        why = os.strerror(-result)
    else:
        why = f"gave {result:#x}"
    kind = PidTaken if (call.nr, result) == (NR.clone3, -errno.EEXIST) else RestoreFailed
    return kind(f"{task.name}: {call.words}: {why}", details=f"{NR(call.nr).name}{tuple(call.args)!r:.400}")
