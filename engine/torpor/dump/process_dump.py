"""One process as it is taken under the freeze, and told to the image when the tree runs again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torpor import procfs
from torpor.arch.x86_64 import NR, ORIG_RAX, RDI, in_system_call
from torpor.dump.series import Key
from torpor.errors import CheckpointFailed, Reason, Refused
from torpor.image import image_pb2 as pb
from torpor.objects.memory import process_memory, vmas
from torpor.objects.memory.mapped_files import MappedFiles
from torpor.objects.memory.own_pages import Ranges, Walk
from torpor.objects.memory.shared_memory import SharedMemory
from torpor.objects.part import Answers, ProcessPart, ThreadAnswers, ThreadPart
from torpor.objects.process import keyrings, seccomp, signals, texts, threads, tree
from torpor.objects.registry import ATTRIBUTES, PROCESS_PARTS, THREAD_PARTS
from torpor.objects.sysv import segments
from torpor.remote import ptrace
from torpor.remote.batch import Batch, Out, Replies
from torpor.remote.calls import MADE
from torpor.remote.code_stubs import CodeStubs
from torpor.remote.freeze import Process
from torpor.remote.injection import Injection, leave_critical_sections
from torpor.remote.snapshot import Snapshot, Watch
from torpor.remote.waits import Waits
from torpor.remote.written import Private
from torpor.util.ranges import Range

P = ParamSpec("P")
T = TypeVar("T")

_TABLE_ROOM = 64 << 10
"""Bytes in the window for one thread's table: a process with every signal caught needs 20 KiB for its host."""
_CLOCK_MONOTONIC, _CLOCK_BOOTTIME = 1, 7


@dataclass
class _HostQuestions:
    """The entries in the batch of the thread that speaks for its process."""

    parts: dict[ProcessPart[Any, Any], Any]
    brk: int
    monotonic: int
    boottime: int
    sysv: dict[int, int]
    stops: dict[int, int]
    """For each child that is stopped by job control, by its own PID: whether wait() has told of that."""


class HiddenFromFork(CheckpointFailed):
    """A process has memory that a snapshot of it does not show: it must stand still while it is read."""


class SnapshotLost(CheckpointFailed):
    """A snapshot of a process's memory was killed."""


class _State(Enum):
    """How far a process dump has come."""

    GRABBED = auto()
    """It has the texts, registers and queued signals; nothing is injected."""
    CALLING = auto()
    """Its threads make the calls that tell of them."""
    ENTERED = auto()
    """They have told; more may be asked."""
    FORKING = auto()
    """It forks its snapshot, or makes a userfaultfd."""
    LEFT = auto()
    """The window is out of the process again."""


def _step(
    before: _State, after: _State
) -> Callable[[Callable[Concatenate[ProcessDump, P], T]], Callable[Concatenate[ProcessDump, P], T]]:
    """A step that leads from one state to another, and cannot be taken in any other."""

    def guarded(step: Callable[Concatenate[ProcessDump, P], T]) -> Callable[Concatenate[ProcessDump, P], T]:
        @wraps(step)
        def take(dump: ProcessDump, /, *args: P.args, **kwargs: P.kwargs) -> T:
            if dump.state is not before:
                raise RuntimeError(f"{step.__name__}() of a process dump that is {dump.state.name}, not {before.name}")
            result = step(dump, *args, **kwargs)
            dump.state = after
            return result

        return take

    return guarded


class ProcessDump:
    """Grabbed in steps, so that all processes of a tree make their calls at the same time:

    GRABBED - begin -> CALLING - listen -> ENTERED - leave -> LEFT

    Between `listen` and `leave` it can be asked more, and `begin_snapshot` and `finish_snapshot` fork its memory. In
    any state it can be abandoned.
    """

    def __init__(self, process: Process, stubs: CodeStubs, waits: Waits) -> None:
        """Take the texts of /proc, registers and queued signals; nothing is injected yet.

        Raises:
            Refused: a thread has a state that is not kept, and that cannot be asked for before the freeze.
        """
        self.state = _State.GRABBED
        self.process = process
        self.pid = process.pid
        self.texts = texts.grab(self.pid)
        statuses = {tid: procfs.read(f"/proc/{self.pid}/task/{tid}/status") for tid in process.threads}
        self.pending = signals.pending(statuses[self.pid], self.pid, shared=True)
        noticed = int(self.texts.status[b"SigCgt"], 16) | signals.waiting(statuses.values())
        self.injection = Injection(process, stubs, noticed)
        self.snapshot: Snapshot | None = None
        self._walk: Walk | None = None
        self._rseqs = {tid: ptrace.get_rseq(tid) for tid in process.threads}
        # First of all: what follows takes the registers as they are to be when the threads run on, here or restored.
        leave_critical_sections(process, {tid: rseq[0] for tid, rseq in self._rseqs.items()})
        self._registers = {t.tid: threads.portable(self.pid, t, waits) for t in process.threads.values()}
        for tid in process.threads:
            if ptrace.dispatches_calls(tid):
                why = "it has system calls dispatched to itself (prctl PR_SET_SYSCALL_USER_DISPATCH), which is not kept"
                raise Refused(f"{process.name} cannot be kept", [Reason(f"{process.name}, thread {tid}", why)])
        self._filters, reasons = seccomp.grab(process, statuses)
        if reasons:
            raise Refused(f"{process.name} cannot be kept", reasons)
        self._thread_pending = {tid: signals.pending(status, tid, shared=False) for tid, status in statuses.items()}
        self._replies: dict[int, Replies] = {}
        self._asked_threads: dict[ThreadPart[Any, Any], Any] = {}
        self._asked_keys: keyrings.Questions | None = None
        self._host: _HostQuestions
        self._window = (0, 0)
        self._lock_future = 0

    @property
    def memory_pid(self) -> int:
        """Whose memory to read: the snapshot's, or the frozen process's own."""
        return self.snapshot.pid if self.snapshot else self.pid

    @property
    def own_pid(self) -> int:
        """The PID in the tree's own PID namespace."""
        return self.texts.own_pid

    @_step(_State.GRABBED, _State.CALLING)
    def begin(self, stopped_children: Iterable[int], *, keyed: bool = True) -> None:
        """Enter the process and let every thread make its calls.

        Args:
            stopped_children: the children that are stopped by job control, by their PIDs in the tree's PID namespace.
            keyed: its user has keys, so it may have some.
        """
        self.injection.open(_TABLE_ROOM)
        self._lock_future = process_memory.future_lock(self.pid, self.texts.status, self.injection.window[0])
        common = Batch()
        self._asked_keys = keyrings.ask(common) if keyed else None
        self._asked_threads = {part: part.ask(common) for part in THREAD_PARTS}
        self._asked_tid = common.add(NR.gettid)
        batches = {tid: common.copy() for tid in self.process.threads}
        host = batches[self.injection.host.tid]
        self._host = _HostQuestions(
            parts={part: part.ask(host, self.texts) for part in PROCESS_PARTS},
            brk=host.add(NR.brk, 0),
            monotonic=host.add(NR.clock_gettime, _CLOCK_MONOTONIC, Out(16)),
            boottime=host.add(NR.clock_gettime, _CLOCK_BOOTTIME, Out(16)),
            sysv=segments.ask(host, self.injection.maps),
            stops={pid: signals.ask_stop(host, pid) for pid in stopped_children},
        )
        self._start(batches)

    def _start(self, batches: dict[int, Batch]) -> None:
        for batch in batches.values():
            assert MADE.issuperset(batch.numbers()), "a call by which filters are not judged"
        self.injection.start(batches)

    @_step(_State.CALLING, _State.ENTERED)
    def listen(self) -> None:
        """Collect the answers."""
        self._replies = self.injection.finish()

    @_step(_State.ENTERED, _State.ENTERED)
    def ask(self, batch: Batch) -> Replies:
        """Have it make calls, and wait for what they give."""
        return self._ask(self.injection.host.tid, batch)

    def _ask(self, tid: int, batch: Batch) -> Replies:
        self._start({tid: batch})
        return self.injection.finish()[tid]

    def calls(self) -> Iterator[tuple[int, int]]:
        """The system calls in which its threads were stopped, each with its first argument."""
        for portable in self._registers.values():
            if in_system_call(portable.registers):
                yield portable.registers[ORIG_RAX], portable.registers[RDI]

    @property
    def _answers(self) -> Answers:
        own_tids = {tid: replies.result(self._asked_tid) for tid, replies in self._replies.items()}
        return Answers(self.texts, self._replies[self.injection.host.tid], self.pending, own_tids)

    def told(self) -> list[segments.Segment]:
        """Its System V segments, of which only itself can tell.

        Raises:
            Refused: it has what cannot be kept, of which only itself or its threads can tell.
        """
        name, answers = self.process.name, self._answers
        found, problems = segments.answer(self._host.sysv, answers.replies)
        for part, asked in self._host.parts.items():
            problems += part.unsupported(asked, answers)
        reasons = [Reason(name, why) for why in problems]
        for thread_part, asked in self._asked_threads.items():
            for tid, replies in self._replies.items():
                whys = thread_part.unsupported(asked, replies)
                reasons += (Reason(f"{name}, thread {tid}", why) for why in whys)
        if reasons:
            raise Refused(f"{name} cannot be kept", reasons)
        return found

    @_step(_State.ENTERED, _State.ENTERED)
    def keyrings(self) -> list[keyrings.Rings]:
        """Those of its threads, the first one's first."""
        asked = self._asked_keys
        if asked is None:
            return []
        return [keyrings.told(asked, self._replies[tid], partial(self._ask, tid)) for tid in self.process.threads]

    def failed_calls(self) -> set[int]:
        """The system calls that gave nothing but errors."""
        return set().union(*(replies.failed_calls() for replies in self._replies.values()))

    @property
    def uids(self) -> set[int]:
        """Its user ids."""
        return {int(word) for word in self.texts.status[b"Uid"].split()}

    @property
    def adopts_orphans(self) -> bool:
        """Whether the process is a child subreaper."""
        return ATTRIBUTES.adopts_orphans(self._host.parts[ATTRIBUTES], self._answers)

    @property
    def locks_memory(self) -> bool:
        """Whether some of its memory is locked, of which a forked child does not know (kernel/fork.c, dup_mmap)."""
        return self.texts.status[b"VmLck"] != b"0 kB"

    @property
    def key(self) -> Key:
        """Which process it is, in a series of checkpoints."""
        return Key(self.pid, self.texts.stat.start_time)

    @property
    def watchable(self) -> list[Private]:
        """Its private mappings, by address, without any of ours."""
        private = (m for m in self.injection.maps if not m.shared and not vmas.is_special(m))
        return [Private(m.start, m.end, backed=m.inode != 0) for m in private]

    @property
    def private(self) -> list[Range]:
        """Where they are."""
        return [(start, end) for start, end, _ in self.watchable]

    @_step(_State.ENTERED, _State.FORKING)
    def begin_snapshot(self, *, fork: bool = True, watch: Watch | None = None) -> None:
        """Let the process fork a snapshot of its memory.

        Args:
            fork: if not, nothing but a userfaultfd is made.
            watch: what to do with a userfaultfd of its memory, if one is wanted; it is told before the fork.
        """
        self.snapshot = Snapshot(self.injection, fork=fork, watch=watch)
        batch = Batch()
        self.snapshot.ask(batch)
        self._start({self.injection.host.tid: batch})

    @_step(_State.FORKING, _State.ENTERED)
    def finish_snapshot(self) -> bool:
        """Wait for the fork; whether it was asked for, and the kernel let it happen."""
        assert self.snapshot
        self.injection.finish()
        self.snapshot.settle()
        if not self.snapshot.pid:
            self.snapshot = None
        return self.snapshot is not None

    def walk(self, pool: Executor) -> None:
        """Let another thread look into the snapshot, for `describe`."""
        assert self.snapshot
        self._walk = Walk(
            pool, self.snapshot.pid, self.private, [(start, end) for start, end, backed in self.watchable if backed]
        )

    @_step(_State.ENTERED, _State.LEFT)
    def leave(self) -> None:
        """Take the window out of the process: it is as it was, and still frozen."""
        self._window = self.injection.window
        self.injection.close()

    def abandon(self) -> None:
        """Give up what is still held of the process, whatever has failed. It is as it was, and still frozen."""
        with suppress(OSError, CheckpointFailed):  # it was killed, or the failure itself is that it does not answer
            self.injection.recall()
        with suppress(OSError, CheckpointFailed):
            self.injection.close()
        self.end_snapshot()

    def end_snapshot(self) -> None:
        """Give the snapshot up. May be called again."""
        self._walk = None
        if self.snapshot:
            self.snapshot.end()
            self.snapshot = None

    def told_stops(self) -> Iterator[int]:
        """The stopped children whose stop it has been told of, by their PIDs in the tree's PID namespace."""
        host = self._replies[self.injection.host.tid]
        return (pid for pid, entry in self._host.stops.items() if signals.stop_was_told(host, entry))

    def clocks(self) -> tuple[int, int]:
        """CLOCK_MONOTONIC and CLOCK_BOOTTIME as the process saw them, in nanoseconds."""
        host = self._replies[self.injection.host.tid]
        times = []
        for entry in (self._host.monotonic, self._host.boottime):
            seconds, nanoseconds = struct.unpack("<qq", host.output(entry, 1))
            times.append(seconds * 1_000_000_000 + nanoseconds)
        return times[0], times[1]

    @_step(_State.LEFT, _State.LEFT)
    def describe(self, parent: int, image: pb.Tree, files: MappedFiles, shared: SharedMemory) -> Ranges:
        """Add the process to the image, but for its descriptors; the ranges whose pages are to be stored.

        Args:
            parent: the parent's PID in the tree's PID namespace; 0 when it is outside of it.
            image: the tree.
            files: its mapped files.
            shared: its shared memory, described already.

        Raises:
            Refused: it has a mapping that cannot be kept.
        """
        out = image.processes.add()
        tree.describe(self.texts, parent, out)
        out.stopped, out.stop_signal = self.process.stopped, self.process.stop_signal
        answers = self._answers
        for part, asked in self._host.parts.items():
            part.describe(asked, answers, out)
        for tid, thread in self.process.threads.items():
            of_thread = ThreadAnswers(
                thread,
                self._registers[tid],
                self.injection.xstates[tid],
                self._rseqs[tid],
                self._thread_pending[tid],
                self._filters.get(tid, []),
                self._replies[tid],
            )
            described = out.threads.add()
            for thread_part, asked in self._asked_threads.items():
                thread_part.describe(asked, of_thread, described, out, image)
        out.memory.brk = answers.replies.result(self._host.brk)
        out.memory.lock_future = self._lock_future
        mappings = self._mappings()
        name, pid = self.process.name, self.memory_pid
        if reasons := [
            *vmas.refuse(name, pid, mappings),
            *process_memory.refuse(name, pid, mappings),
        ]:  # since the preflight
            raise Refused(f"{name} cannot be kept", reasons)
        return process_memory.describe(self.memory_pid, mappings, out, files, shared, self._walk)

    def _mappings(self) -> list[procfs.FlaggedMapping]:
        """The address space with its flags, from the snapshot where there is one, without our window."""
        if not self._walk:
            return procfs.flagged_mappings(self.pid)
        found = without(self._walk.mappings(), *self._window)
        seen = [(vma.mapping.start, vma.mapping.end, vma.mapping.perms) for vma in found]
        if seen != [(m.start, m.end, m.perms) for m in self.injection.maps] or any(map(vmas.hides_from_fork, found)):
            raise HiddenFromFork(f"the memory of {self.process.name} was not all in its snapshot", advice="try again")
        return found


class ZombieDump:
    """A process of the tree that has ended."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self.texts = texts.grab(self.pid, zombie=True)
        self.own_pid = self.texts.own_pid


def without(found: list[procfs.FlaggedMapping], start: int, end: int) -> list[procfs.FlaggedMapping]:
    """The mappings less a range: the kernel may have merged it with a neighbour of the same kind."""
    kept: list[procfs.FlaggedMapping] = []
    for vma in found:
        mapping = vma.mapping
        if mapping.end <= start or end <= mapping.start:
            kept.append(vma)
            continue
        if mapping.start < start:
            kept.append(vma._replace(mapping=mapping._replace(end=start)))
        if end < mapping.end:
            kept.append(vma._replace(mapping=mapping._replace(start=end)))
    return kept
