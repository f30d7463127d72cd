"""Dump one process: grab its state under the freeze, describe it in the image once the tree runs again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property, wraps
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
from torpor.objects.part import A, Answers, ProcessPart, ThreadAnswers, ThreadPart, TreePart
from torpor.objects.paths.mapped_names import MappedNames
from torpor.objects.process import seccomp, signals, texts, threads, tree
from torpor.objects.registry import ATTRIBUTES, PROCESS_PARTS, THREAD_PARTS, THREAD_STATE, TREE_PARTS
from torpor.objects.sysv import segments
from torpor.remote import ptrace
from torpor.remote.batch import Batch, Out, Replies
from torpor.remote.code_stubs import CodeStubs
from torpor.remote.freeze import Process
from torpor.remote.injection import Injection, leave_critical_sections
from torpor.remote.snapshot import Snapshot, Watch
from torpor.remote.waits import Waits
from torpor.remote.written import Private

P = ParamSpec("P")
T = TypeVar("T")

_TABLE_ROOM = 64 << 10
"""Bytes in the scratch mapping for one thread's table. The host's (see `_HostQuestions`) is the largest: it takes 20
KiB if the process catches all signals.
"""
_CLOCK_MONOTONIC, _CLOCK_BOOTTIME = 1, 7


@dataclass
class _HostQuestions:
    """Positions of the process-wide calls in the batch of the *host*: the thread that makes them for its process."""

    parts: dict[ProcessPart[Any, Any], Any]
    brk: int
    monotonic: int
    boottime: int
    sysv: dict[int, int]
    stops: dict[int, int]
    """For each child that job control has stopped, by PID in the tree's namespace: whether wait() has reported it."""


class HiddenFromFork(CheckpointFailed):
    """A process has memory that its fork would not show: it must stay frozen while its memory is read."""


class SnapshotLost(CheckpointFailed):
    """A snapshot of a process's memory was killed."""


class _State(Enum):
    """How far a process dump has come."""

    GRABBED = auto()
    """The texts of /proc, registers and queued signals are read; nothing is injected."""
    CALLING = auto()
    """Its threads are making the system calls whose results describe them."""
    ENTERED = auto()
    """The results are there; more calls may be made."""
    FORKING = auto()
    """It is forking its snapshot, or making a userfaultfd."""
    LEFT = auto()
    """The scratch mapping is unmapped from the process again."""


def _step(
    before: _State, after: _State
) -> Callable[[Callable[Concatenate[ProcessDump, P], T]], Callable[Concatenate[ProcessDump, P], T]]:
    """Decorate a method that leads from one state to another: it raises in any other state."""

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
    """The dump of a process, in steps, so that all processes of a tree make their system calls at the same time:

    GRABBED - begin -> CALLING - listen -> ENTERED - leave -> LEFT

    Between `listen` and `leave` it can make more calls, and `begin_snapshot` and `finish_snapshot` fork its memory. It
    can be abandoned in any state.
    """

    def __init__(self, process: Process, stubs: CodeStubs, waits: Waits) -> None:
        """Read the texts of /proc, the registers and the queued signals; inject nothing yet.

        Raises:
            Refused: a thread has state that cannot be kept, and that cannot be seen before the freeze.
        """
        self.state = _State.GRABBED
        self.process = process
        self.pid = process.pid
        self.texts = texts.grab(self.pid)
        statuses = {tid: procfs.read(f"/proc/{self.pid}/task/{tid}/status") for tid in process.threads}
        self.pending = signals.pending(statuses[self.pid], self.pid, process.name, shared=True)
        noticed = int(self.texts.status[b"SigCgt"], 16) | signals.waiting(statuses.values())
        self.injection = Injection(process, stubs, noticed)
        self.snapshot: Snapshot | None = None
        self._walk: Walk | None = None
        self._rseqs = {tid: ptrace.get_rseq(tid) for tid in process.threads}
        # First, since it changes registers: the code below reads them as the threads will resume with them.
        leave_critical_sections(process, {tid: rseq[0] for tid, rseq in self._rseqs.items()})
        self._registers = {t.tid: threads.portable(self.pid, t, waits) for t in process.threads.values()}
        for tid in process.threads:
            if ptrace.dispatches_calls(tid):
                why = "it uses system call user dispatch (prctl PR_SET_SYSCALL_USER_DISPATCH), which is not kept"
                raise Refused(f"{process.name} cannot be kept", [Reason(f"{process.name}, thread {tid}", why)])
        self._filters, reasons = seccomp.grab(process, statuses)
        if reasons:
            raise Refused(f"{process.name} cannot be kept", reasons)
        self._thread_pending = {
            tid: signals.pending(status, tid, f"{process.name}, thread {tid}", shared=False)
            for tid, status in statuses.items()
        }
        self._replies: dict[int, Replies] = {}
        self._asked_threads: dict[ThreadPart[Any, Any], Any] = {}
        self._asked_tree: dict[TreePart[Any, Any, Any], Any] = {}
        self._host: _HostQuestions
        self._scratch = (0, 0)
        self._lock_future = 0

    @property
    def memory_pid(self) -> int:
        """The PID whose memory to read: the snapshot, or the frozen process itself."""
        return self.snapshot.pid if self.snapshot else self.pid

    @property
    def own_pid(self) -> int:
        """The PID in the tree's PID namespace."""
        return self.texts.own_pid

    @_step(_State.GRABBED, _State.CALLING)
    def begin(
        self, stopped_children: Iterable[int], tree_parts: Iterable[TreePart[Any, Any, Any]] = TREE_PARTS
    ) -> None:
        """Map the scratch mapping into the process and let every thread start its calls.

        Args:
            stopped_children: the children that are stopped by job control, by their PIDs in the tree's PID namespace.
            tree_parts: the parts of the tree that it is asked for.
        """
        self.injection.open(_TABLE_ROOM)
        self._lock_future = process_memory.future_lock(self.pid, self.texts.status, self.injection.scratch[0])
        common = Batch()
        self._asked_tree = {part: part.ask(common) for part in tree_parts}
        self._asked_threads = {part: part.ask(common) for part in THREAD_PARTS}
        host = common.copy()  # all other threads share `common`, so it is encoded only once
        batches = {tid: host if tid == self.injection.host.tid else common for tid in self.process.threads}
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
        for batch in {id(batch): batch for batch in batches.values()}.values():
            assert seccomp.made().issuperset(batch.numbers()), "a call that is not checked against seccomp filters"
        self.injection.start(batches)

    @_step(_State.CALLING, _State.ENTERED)
    def listen(self) -> None:
        """Wait for the calls and collect their results."""
        self._replies = self.injection.finish()

    @_step(_State.ENTERED, _State.CALLING)
    def begin_report(self, batch: Batch) -> None:
        """Let it make calls that wait for us (torpor.dump.self_report)."""
        self._start({self.injection.host.tid: batch})

    @_step(_State.CALLING, _State.ENTERED)
    def finish_report(self) -> None:
        """Wait for the end of these calls."""
        self.injection.finish()

    @_step(_State.ENTERED, _State.ENTERED)
    def ask(self, batch: Batch, tid: int | None = None) -> Replies:
        """Let a thread make calls; return their results. Without `tid` any thread, for its process."""
        tid = tid or self.injection.host.tid
        self._start({tid: batch})
        return self.injection.finish()[tid]

    def asked(self, part: TreePart[A, Any, Any]) -> A | None:
        """What a part of the tree has asked all threads; None if nothing."""
        found: A | None = self._asked_tree.get(part)
        return found

    def replies(self, tid: int) -> Replies:
        """The results of the first calls of a thread."""
        return self._replies[tid]

    @property
    def name(self) -> str:
        """The process's name for messages."""
        return self.process.name

    @property
    def tids(self) -> list[int]:
        """Its threads' ids in our PID namespace, the main thread first."""
        return list(self.process.threads)

    def calls(self) -> Iterator[tuple[int, int]]:
        """Yield the system call in which each thread was stopped, with its first argument."""
        for portable in self._registers.values():
            if in_system_call(portable.registers):
                yield portable.registers[ORIG_RAX], portable.registers[RDI]

    @cached_property
    def _answers(self) -> Answers:
        number = self._asked_threads[THREAD_STATE].tid
        own_tids = {tid: replies.result(number) for tid, replies in self._replies.items()}
        return Answers(self.texts, self._replies[self.injection.host.tid], self.pending, own_tids)

    def segments(self) -> list[segments.Segment]:
        """Return its System V segments, which only the process itself can list.

        Raises:
            Refused: the answers of the process or its threads show something that cannot be kept.
        """
        name, answers = self.process.name, self._answers
        found, whys = segments.answer(self._host.sysv, answers.replies)
        for part, asked in self._host.parts.items():
            whys += part.unsupported(asked, answers)
        reasons = [Reason(name, why) for why in whys]
        for thread_part, asked in self._asked_threads.items():
            for tid, replies in self._replies.items():
                whys = [*thread_part.unsupported(asked, replies)]
                reasons += (Reason(f"{name}, thread {tid}", why) for why in whys)
        if reasons:
            raise Refused(f"{name} cannot be kept", reasons)
        return found

    def failed_calls(self) -> set[int]:
        """Return the system calls that never succeeded."""
        return set().union(*(replies.failed_calls() for replies in self._replies.values()))

    @property
    def uids(self) -> frozenset[int]:
        """Its real, effective, saved and filesystem user ids."""
        return frozenset(map(int, self.texts.status[b"Uid"].split()))

    @property
    def adopts_orphans(self) -> bool:
        """Whether the process is a child subreaper."""
        return ATTRIBUTES.adopts_orphans(self._host.parts[ATTRIBUTES], self._replies[self.injection.host.tid])

    @property
    def locks_memory(self) -> bool:
        """Whether some of its memory is locked; a forked child does not inherit locks (kernel/fork.c, dup_mmap)."""
        return self.texts.status[b"VmLck"] != b"0 kB"

    @property
    def key(self) -> Key:
        """The identity of the process in a series of checkpoints."""
        return Key(self.pid, self.texts.stat.start_time)

    @property
    def watchable(self) -> list[Private]:
        """Its private mappings by address, without Torpor's scratch mapping."""
        private = (m for m in self.injection.maps if not m.shared and not vmas.is_special(m))
        return [Private(m.start, m.end, not vmas.is_anonymous(m), huge=vmas.is_huge(m)) for m in private]

    @_step(_State.ENTERED, _State.FORKING)
    def begin_snapshot(self, *, fork: bool = True, watch: Watch | None = None) -> None:
        """Let the process fork a snapshot of its memory.

        Args:
            fork: if false, only make a userfaultfd.
            watch: called with a userfaultfd of its memory before the fork; None if no userfaultfd is wanted.
        """
        self.snapshot = Snapshot(self.injection, fork=fork, watch=watch)
        batch = Batch()
        self.snapshot.ask(batch)
        self._start({self.injection.host.tid: batch})

    @_step(_State.FORKING, _State.ENTERED)
    def finish_snapshot(self) -> bool:
        """Wait for the fork; return whether a snapshot was wanted and the kernel made it."""
        assert self.snapshot
        self.injection.finish()
        self.snapshot.settle()
        if not self.snapshot.pid:
            self.snapshot = None
        return self.snapshot is not None

    def walk(self, pool: Executor) -> None:
        """Scan the snapshot in another thread; `describe` uses the result."""
        assert self.snapshot
        private = self.watchable
        backed = [(one.start, one.end) for one in private if one.backed]
        self._walk = Walk(pool, self.snapshot.pid, [(one.start, one.end) for one in private], backed)

    @_step(_State.ENTERED, _State.LEFT)
    def leave(self) -> None:
        """Unmap the scratch mapping: the process is as it was, and still frozen."""
        self._scratch = self.injection.scratch
        self.injection.close()

    def abandon(self) -> None:
        """Undo everything in the process, after any failure. The process is as it was, and still frozen."""
        with suppress(OSError, CheckpointFailed):  # the process was killed, or does not answer, which was the failure
            self.injection.recall()
        with suppress(OSError, CheckpointFailed):
            self.injection.close()
        self.end_snapshot()

    def end_snapshot(self) -> None:
        """Kill the snapshot. May be called again."""
        self._walk = None
        if self.snapshot:
            self.snapshot.end()
            self.snapshot = None

    def reported_stops(self) -> Iterator[int]:
        """Return the stopped children whose stop wait() has reported, by PID in the tree's PID namespace."""
        host = self._replies[self.injection.host.tid]
        return (pid for pid, entry in self._host.stops.items() if signals.stop_was_reported(host, entry))

    def clocks(self) -> tuple[int, int]:
        """Return CLOCK_MONOTONIC and CLOCK_BOOTTIME as the process saw them, in nanoseconds."""
        host = self._replies[self.injection.host.tid]
        times = []
        for entry in (self._host.monotonic, self._host.boottime):
            seconds, nanoseconds = struct.unpack("<qq", host.output(entry, 1))
            times.append(seconds * 1_000_000_000 + nanoseconds)
        return times[0], times[1]

    @_step(_State.LEFT, _State.LEFT)
    def describe(
        self, parent: int, image: pb.Tree, files: MappedFiles, shared: SharedMemory, names: MappedNames
    ) -> Ranges:
        """Add the process, without its descriptors, to the image; return the ranges whose pages must be stored.

        Args:
            parent: the parent's PID in the tree's PID namespace; 0 if the parent is outside of that namespace.
            image: the tree.
            files: the mapped files of the tree.
            shared: the shared memory of the tree, already described.
            names: the names of what the tree has mapped.

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
            *vmas.unsupported(name, pid, mappings),
            *process_memory.unsupported(name, pid, mappings),
        ]:  # since the preflight
            raise Refused(f"{name} cannot be kept", reasons)
        return process_memory.describe(self.memory_pid, mappings, out, files, shared, names, self._walk)

    def _mappings(self) -> list[procfs.FlaggedMapping]:
        """Return the mappings with their flags, from the snapshot if there is one, without Torpor's scratch mapping."""
        if not self._walk:
            return procfs.flagged_mappings(self.pid)
        found = without(self._walk.mappings(), *self._scratch)
        seen = [(vma.mapping.start, vma.mapping.end, vma.mapping.perms) for vma in found]
        if seen != [(m.start, m.end, m.perms) for m in self.injection.maps] or any(map(vmas.hides_from_fork, found)):
            raise HiddenFromFork(f"the snapshot of {self.process.name}'s memory is incomplete", advice="try again")
        return found


class ZombieDump:
    """The dump of a process of the tree that is a zombie."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self.texts = texts.grab(self.pid, zombie=True)
        self.own_pid = self.texts.own_pid


def without(found: list[procfs.FlaggedMapping], start: int, end: int) -> list[procfs.FlaggedMapping]:
    """Cut a range out of the mappings; the kernel may have merged it with a neighbour of the same kind."""
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
