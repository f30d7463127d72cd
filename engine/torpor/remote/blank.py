"""Blank processes: clones of torpor-init, traced from birth, from which a restore builds the processes of an image.

A blank runs no program code, only tables of system calls, by the interpreter in its scratch mapping (native/batch.c).
Init creates the scratch mapping and every clone inherits it: it begins with the interpreter and a copy of init's code,
the rest is for tables. A blank that has executed another program (`Blanks.execute`) gets a new one, at the same place.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import (
    ARGUMENTS,
    NR,
    ORIG_RAX,
    R12,
    R14,
    RAX,
    RDI,
    RIP,
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
"""All signals but SIGTRAP, which int3 raises: if SIGTRAP were blocked, the kernel would reset the program's action for
it (kernel/signal.c, force_sig_info_to_task).
"""
_PEEKTEXT, _POKETEXT = 1, 4  # PTRACE_*
_SYSCALL_TRAP = 0xCC050F  # syscall; int3
_CLONE_REQUEST = struct.Struct("<7q")  # struct clone_request (native/init.c)
CLONE_THREAD = 0x10000
_CODE_SIZE = 4 * 4096
_TOUCH_TILES, _CODE_OF_INIT = 2048, 4096  # offsets in the scratch mapping
_MAP_PRIVATE_ANONYMOUS = 0x22
_MAP_FIXED_NOREPLACE = 0x100000
_PROT_RW, _PROT_RX = 3, 5
_AT_EMPTY_PATH = 0x1000
TABLE_ROOM = 4 << 20
"""The maximal size of a table with its data, in bytes. A longer list of calls is run in parts."""
_MAX_ENTRIES = 60_000
"""Entry numbers have 16 bits."""
_NEW_TASK_EVENTS = (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE)
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGSYS)


class PidTaken(RestoreFailed):
    """Another process has the required PID, or the kernel could not be made to assign it."""


@dataclass
class Task:
    """A stopped thread of the tree that is being built."""

    tid: int
    """Its thread ID in the PID namespace of this process."""
    name: str
    """How messages name it."""
    registers: array[int]
    """The registers at its first stop."""
    program: int = 0
    """The descriptor of the program that it or the blank of which it is a clone has executed; 0 for init."""
    entry: array[int] = field(default_factory=lambda: array("Q"))
    """The registers at the entry of that program."""


@dataclass
class Work:
    """A list of calls for one task, and where its tables are placed in the scratch mapping."""

    task: Task
    calls: Sequence[Call]
    address: int
    room: int = TABLE_ROOM
    newborn: list[Task] = field(default_factory=list)
    """The tasks that its calls created, in order."""


class _Table(NamedTuple):
    """A part of a list of calls, ready to be run."""

    work: Work
    calls: Sequence[Call]
    batch: Batch
    encoded: bytearray


class Blanks:
    """All tasks of a tree that is being built. The thread that started init must make every call."""

    def __init__(self, init: int, scratch: range, spare: int, progress: Callable[[int], None] | None = None) -> None:
        """Take charge of an init that is about to reach its exec stop.

        Args:
            init: its PID in the namespace of this process.
            scratch: the addresses of the scratch mapping, the same in init and in every clone.
            spare: bytes at the end of the scratch mapping that are not for tables.
            progress: called with the number of bytes of memory that were filled since its last call.
        """
        self.scratch = scratch
        self.tables = range(scratch.start + _CODE_SIZE, scratch.stop - spare)
        """The addresses where tables may be placed."""
        self._init = init
        self._tasks: dict[int, Task] = {}
        self._progress = progress
        self._code = b""
        """What the scratch mapping begins with."""
        self._clone_code = 0
        """The address of torpor_clone (native/init.c) there: init's code runs at any address."""

    def take_init(self) -> Task:
        """Stop init before its first instruction, and map the scratch mapping in it."""
        _, status = os.waitpid(self._init, ptrace.WALL)
        if os.WIFSTOPPED(status):
            self._return_from_exec(self._init)
        task = self._stopped(Task(self._init, "init", array("Q")))
        (clone_code,) = struct.unpack("<Q", memory.read(task.tid, task.registers[RIP] - 8, 8))
        code = next(one for one in procfs.mappings(task.tid) if one.start <= clone_code < one.end)
        self._code = CODE.ljust(_TOUCH_TILES, b"\0") + TOUCH_TILES
        self._code = self._code.ljust(_CODE_OF_INIT, b"\0") + memory.read(task.tid, code.start, code.end - code.start)
        self._clone_code = self.scratch.start + _CODE_OF_INIT + clone_code - code.start
        assert len(self._code) <= _CODE_SIZE
        if made := self._map_scratch(task):
            raise RestoreFailed(f"init cannot map its scratch mapping: {os.strerror(-made)}")
        return task

    def _map_scratch(self, task: Task) -> int:
        """Map the scratch mapping in a task that is at the entry of its program; return 0 or a negated errno."""
        task.entry = task.registers
        flags = _MAP_PRIVATE_ANONYMOUS | _MAP_FIXED_NOREPLACE
        made = self._call(task, NR.mmap, self.scratch.start, len(self.scratch), _PROT_RW, flags, WORD, 0)
        if made != self.scratch.start:
            return made
        memory.write(task.tid, made, self._code)
        return self._call(task, NR.mprotect, made, _CODE_SIZE, _PROT_RX)

    def execute(self, task: Task, program: int) -> None:
        """Let a blank with a single thread execute a program, for its link /proc/PID/exe; it stops before any of its
        code.

        Args:
            task: the blank.
            program: a descriptor of the program in it.

        Raises:
            RestoreFailed: it cannot be executed.
        """
        arguments = Struct(struct.pack("<QQ8x", 16, 0), (0,))  # argv: an empty string
        call = Call(NR.execveat, (program, b"\0", arguments, 0, _AT_EMPTY_PATH), 0, "executing its program")
        table = _table(Work(task, [call], self.tables.start), [call])
        self._start(table)
        _, status = os.waitpid(task.tid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise killed(task.name)
        if ptrace.event(status) != ptrace.EVENT_EXEC:
            raw = memory.read(task.tid, self.tables.start, len(table.batch) * ENTRY_SIZE)
            raise failure(task, call, Replies(table.batch, raw).result(0))
        self._return_from_exec(task.tid)
        self._stopped(task)
        if made := self._map_scratch(task):
            raise RestoreFailed(f"{task.name}: its program lies where it is built: {os.strerror(-made)}")
        task.program = program

    def _return_from_exec(self, tid: int) -> None:
        """The exec stop is inside execve(), which stores its result in rax when it returns: let it return."""
        ptrace.interrupt(tid)
        ptrace.resume(tid)

    def _born(self, parent: Task, tid: int) -> Task:
        """Wait for the first stop of a new task."""
        return self._stopped(Task(tid, f"a child of {parent.name}", array("Q"), parent.program, parent.entry))

    def _stopped(self, task: Task) -> Task:
        """Wait for the stop of a task that is new or executes a program, and block its signals."""
        self._tasks[task.tid] = task
        _, status = os.waitpid(task.tid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise killed(task.name)
        task.registers = ptrace.get_registers(task.tid)
        ptrace.set_sigmask(task.tid, BLOCKED)
        return task

    def _call(self, task: Task, nr: int, *args: int) -> int:
        """Make one call in init, which has no scratch mapping yet: put a syscall instruction at its entry for a
        moment."""
        entry = task.registers[RIP]
        before = array("q", [0])
        syscall(NR.ptrace, _PEEKTEXT, task.tid, entry, before)
        syscall(NR.ptrace, _POKETEXT, task.tid, entry, _SYSCALL_TRAP)
        registers = array("Q", task.registers)
        registers[RAX], registers[ORIG_RAX] = nr, WORD
        for register, value in zip(ARGUMENTS, args, strict=False):
            registers[register] = value
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        self._wait_trap(task, lambda _: None)
        syscall(NR.ptrace, _POKETEXT, task.tid, entry, before[0])
        return signed(ptrace.get_registers(task.tid)[RAX])

    def run(self, works: Sequence[Work]) -> None:
        """Run lists of calls in several tasks at the same time, each in as many parts as it needs.

        Raises:
            RestoreFailed: a call did not give the required result; the error names the process and the step.
        """
        running: deque[tuple[_Table, Iterator[_Table]]] = deque()
        for tables in map(_tables, works):
            if table := next(tables, None):
                self._start(table)
                running.append((table, tables))
        while running:
            table, tables = running.popleft()
            following = next(tables, None)  # encoded while this one runs
            self._finish(table)
            if following:
                self._start(following)
                running.append((following, tables))

    def ask(self, work: Work) -> list[int]:
        """Run a few calls in a task and return their results.

        Raises:
            RestoreFailed: as in `run`.
        """
        table = _table(work, work.calls)
        self._start(table)
        return self._finish(table)[: len(work.calls)]

    def _start(self, table: _Table) -> None:
        work = table.work
        memory.write(work.task.tid, work.address, table.encoded)
        registers = array("Q", work.task.registers)
        registers[RIP], registers[R14], registers[R12] = self.scratch.start, work.address, work.address
        registers[ORIG_RAX], registers[RAX], registers[RSP] = WORD, 0, 0
        ptrace.set_registers(work.task.tid, registers)
        ptrace.resume(work.task.tid)

    def _finish(self, table: _Table) -> list[int]:
        work = table.work
        self._wait_trap(work.task, lambda tid: work.newborn.append(self._born(work.task, tid)))
        raw = memory.read(work.task.tid, work.address, len(table.batch) * ENTRY_SIZE)
        results = Replies(table.batch, raw).results()
        for call, result in zip(table.calls, results, strict=False):
            if not call.ok(result):
                raise failure(work.task, call, result)
            if call.nr in (NR.pread64, NR.preadv) and self._progress:
                self._progress(result)
        return results

    def _wait_trap(self, task: Task, born: Callable[[int], object]) -> None:
        """Wait until a task reaches the int3 at the end of what it runs."""
        while True:
            _, status = os.waitpid(task.tid, ptrace.WALL)
            if not os.WIFSTOPPED(status):
                raise killed(task.name)
            event, sig = ptrace.event(status), ptrace.stop_signal(status)
            if event in _NEW_TASK_EVENTS:
                born(_event_message(task.tid))
            elif event == 0 and sig == signal.SIGTRAP:
                return
            elif event == 0 and sig in _FAULTS:
                raise RestoreFailed(f"{task.name} was stopped by {signal.Signals(sig).name} while it was built")
            ptrace.resume(task.tid)

    def clone(self, task: Task, flags: int, pid: int, numbers: Numbers, near: int, loadavg: int) -> Task | None:
        """Let a task create a child or a thread, with a PID that the kernel assigns (torpor_clone in native/init.c).

        Args:
            task: the parent.
            flags: of clone(2).
            pid: the required PID.
            numbers: the range of PIDs that the kernel assigns here.
            near: how many PIDs may still come before `pid`.
            loadavg: a descriptor of /proc/loadavg in the task.

        Returns:
            The new task. None if another program was faster or `pid` is not near: then there is no new task.

        Raises:
            PidTaken: the task may not create others.
        """
        address = self.tables.start
        request = _CLONE_REQUEST.pack(loadavg, pid, near, numbers.first, numbers.end, flags, NOT_RUN)
        memory.write(task.tid, address, request)
        registers = array("Q", task.registers)
        registers[RIP], registers[RDI] = self._clone_code, address
        registers[RSP] = self.tables.start + TABLE_ROOM - 8  # as after a call instruction
        registers[ORIG_RAX], registers[RAX] = WORD, 0
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        born: list[Task] = []
        self._wait_trap(task, lambda tid: born.append(self._born(task, tid)))
        *_, result = _CLONE_REQUEST.unpack(memory.read(task.tid, address, _CLONE_REQUEST.size))
        if not born:
            if result not in (-errno.ERANGE, -errno.EFAULT, -errno.EMFILE):  # the latter two: a PID that went by
                raise PidTaken(f"{task.name} cannot create process or thread {pid}: {os.strerror(-result)}")
            return None
        if result == pid:
            return born[0]
        self._undo(task, born[0], flags)
        return None

    def _undo(self, parent: Task, newborn: Task, flags: int) -> None:
        """End a new task that did not get the required PID."""
        if flags & CLONE_THREAD:
            self.end(newborn, [Call(NR.exit, (0,), None, "ending")], 0)
            return
        self.end(newborn, [], signal.SIGKILL)
        reaping = Call(NR.wait4, (newborn.tid, 0, ptrace.WALL, 0), newborn.tid, "reaping a process with the wrong PID")
        self.run([Work(parent, [reaping], self.tables.start)])

    def touch_tiles(self, task: Task) -> None:
        """Let a thread use an AMX tile, so that the kernel allocates room for the tile data that it will get."""
        memory.write(task.tid, self.tables.start, TILE_CONFIGURATION)
        registers = array("Q", task.registers)
        registers[RIP], registers[R14] = self.scratch.start + _TOUCH_TILES, self.tables.start
        registers[ORIG_RAX] = WORD
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid)
        self._wait_trap(task, lambda _: None)

    def end(self, task: Task, calls: Sequence[Call], sig: int) -> None:
        """End a blank: by the signal `sig`, or if that is 0 by the last of `calls`."""
        if sig:
            self.run([Work(task, calls, self.tables.start)])
            ptrace.set_sigmask(task.tid, 0)
            os.kill(task.tid, sig)
            if sig != signal.SIGKILL:
                ptrace.resume(task.tid)
        else:
            self._start(_table(Work(task, calls, self.tables.start), calls))
        while os.WIFSTOPPED(status := os.waitpid(task.tid, ptrace.WALL)[1]):
            ptrace.resume(task.tid, ptrace.CONT, 0 if ptrace.event(status) else ptrace.stop_signal(status))
        del self._tasks[task.tid]

    def forget(self) -> None:
        """Forget all tasks: they have been detached."""
        self._tasks.clear()

    def kill(self) -> None:
        """Kill all tasks and wait until they are gone."""
        tids = dict.fromkeys([self._init, *self._tasks])
        for tid in list(tids):
            with suppress(FileNotFoundError, ProcessLookupError):
                # Include tasks that were created, but not yet reported, when something failed.
                there = procfs.threads(tid)
                tids |= dict.fromkeys([*there, *procfs.children(tid, there)])
        for tid in tids:
            with suppress(ProcessLookupError):
                os.kill(tid, signal.SIGKILL)
        # The init of a PID namespace ends after all its processes, and a main thread after the others: youngest first.
        for tid in reversed(tids):
            with suppress(ChildProcessError):
                while os.WIFSTOPPED(os.waitpid(tid, ptrace.WALL)[1]):
                    pass
        self._tasks.clear()


def killed(name: str) -> RestoreFailed:
    """The error for a task that ended unexpectedly."""
    return RestoreFailed(f"{name} was killed while it was built", advice="see the kernel's log: `dmesg`")


def table_size(calls: Iterable[Call]) -> int:
    """An upper bound for the size of a table with its data, in bytes."""
    return 2 * ENTRY_SIZE + sum(map(_call_size, calls))


def _call_size(call: Call) -> int:
    size = ENTRY_SIZE
    for arg in call.args:
        if type(arg) is int:  # nearly all are
            continue
        if isinstance(arg, bytes):
            size += len(arg) + 16
        elif isinstance(arg, Struct):
            size += len(arg.content) + 16
        elif isinstance(arg, Out):
            size += arg.size + 16
    return size


def _tables(work: Work) -> Iterator[_Table]:
    """The tables of a list of calls, each encoded when it is asked for."""
    return (_table(work, calls) for calls in _parts(work))


def _table(work: Work, calls: Sequence[Call]) -> _Table:
    batch = Batch()
    for call in calls:
        # A failed call stops the table, unless its predicate may accept the error.
        batch.add(call.nr, *call.args, on_error=None if callable(call.expect) else len(calls))
    batch.add(NR.getpid, stop=True)
    return _Table(work, calls, batch, batch.encode(work.address))


def _parts(work: Work) -> Iterator[Sequence[Call]]:
    """Split the calls into parts that fit into `work.room`."""
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
    """The error for a call of a plan that did not give the required result."""
    if result == NOT_RUN:
        why = "was not reached"
    elif -4096 < result < 0:
        why = os.strerror(-result)
    else:
        why = f"gave {result:#x}"
    kind = PidTaken if (call.nr, result) == (NR.clone3, -errno.EEXIST) else RestoreFailed
    return kind(f"{task.name}: {call.words}: {why}", details=f"{NR(call.nr).name}{tuple(call.args)!r:.400}")
