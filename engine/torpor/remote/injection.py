"""System calls inside a frozen process, made so that the process survives the death of the dumper at any instant.

The first call, mmap, runs on the stack of a thread, below the red zone. The thread's registers are set to a ``syscall;
ret`` in its own libraries. The word at rsp is the address of their rt_sigreturn stub, and above it lies a signal frame
with the thread's whole context. If the tracer is gone, the call returns into the stub, and the thread is back where it
was, with its signal mask. If a program lacks these instructions, code_stubs.py adds them.

This mapping, the *scratch mapping*, then holds the batch interpreter and a table of calls for each thread, which ends
with rt_sigreturn from a frame of its own. The entry before that sends the thread a signal that is ignored by default. A
tracer sees a stop, and takes the thread back by setting its registers; without a tracer the kernel drops the signal. If
a program catches all such signals, or has one blocked and pending, the thread is stepped from call to call instead.

The order in which registers and mask are set matters at each step. If the dumper dies between the two, the thread has
either its own registers and mask, or it runs on its frame, where a handler finds room below rsp.

If a dumper dies, only the scratch mapping may stay behind: anonymous memory that is unused, which the next checkpoint
removes.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.arch import x86_64
from torpor.arch.x86_64 import NR, RED_ZONE, WORD
from torpor.errors import CheckpointFailed, Reason, Refused, in_words
from torpor.remote import memory, ptrace
from torpor.remote.batch import CODE, ENTRY_SIZE, Batch, Replies, Result
from torpor.remote.code_stubs import CodeStubs, VdsoStubs
from torpor.remote.freeze import Process, Thread
from torpor.util.ranges import subtract, union

PROT_READ_WRITE_EXEC = 7
MAP_PRIVATE_ANONYMOUS = 0x22
MAP_FIXED_NOREPLACE = 0x100000  # 4.17; an older kernel takes the address as a hint, which is good enough
USER_CS = 0x33
"""The code segment of 64-bit programs."""

_HANDLER_ROOM = 64 << 10
"""Bytes below each frame in the scratch mapping. A signal handler runs there if the dumper dies while the thread is in
its batch. Otherwise its pages are never touched: it takes address space only.
"""
_QUIET_SIGNALS = (signal.SIGURG, signal.SIGWINCH)
"""Signals that are ignored by default (signal(7)): a thread that does not catch them does not notice them. One that is
already blocked and pending cannot be used: it would be mistaken for that of the batch, and be lost.
"""
_RFLAGS_TRAP_DIRECTION = 0x100 | 0x400
_HEADER = CODE.ljust(256, b"\0") + b"torpor's window\0"
"""A scratch mapping begins with these bytes; its size in bytes follows."""
_SIZE = struct.Struct("<Q")
_MASK = struct.Struct("<Q")  # the kernel's sigset_t
_DISTANCE = 1 << 20
"""Minimal distance in bytes between a scratch mapping and the program's mappings. The program may place its next
mapping there, and a stack stops growing 256 pages below the next mapping
(Documentation/admin-guide/kernel-parameters.txt, stack_guard_gap).
"""
_PLACES = range(0x1074_7270_0000, 0x1074_7270_0000 + (1 << 41), 1 << 36)
"""Addresses for scratch mappings, where no system maps anything by itself. There is room for a hundred thousand threads
in each.
"""
_RSEQ_CS = struct.Struct("<IIQQQ")


@dataclass
class _Slot:
    """The part of the scratch mapping that belongs to one thread."""

    frame: int
    table: int
    size: int
    """The size of the table with its data, in bytes."""


class Injection:
    """System calls in one frozen process, by its scratch mapping.

    `open` maps it. `start` and `finish` run one batch in each thread. `close` removes it and restores every thread's
    registers and mask. With several processes, `start` all and then `finish` all: they run at the same time.
    """

    def __init__(self, process: Process, stubs: CodeStubs, noticed: int) -> None:
        """
        Args:
            process: the frozen process.
            stubs: one object for all processes of a checkpoint.
            noticed: the signals that the process catches or has pending, as a mask (bit 0 is signal 1): it would notice
                if the dumper sent it one of them.
        """
        self.process = process
        self.maps = procfs.mappings(process.pid)
        self.xstates: dict[int, bytes] = {}
        self.scratch = (0, 0)
        self.on_clone: Callable[[int], None] | None = None
        """Called with the ID of a thread that has stopped because its batch has created a child (needs
        ptrace.O_TRACECLONE). It must resume the thread, and must not raise after that: the thread has to be waited for,
        whatever happens to the child.
        """
        self._stubs = stubs
        self._quiet = next((s for s in _QUIET_SIGNALS if not noticed >> (s - 1) & 1), None)
        self._vdso_stubs: VdsoStubs | None = None
        self._host: Thread | None = None
        self._host_frame = 0
        self._stale: list[tuple[int, int]] = []
        self._slots: dict[int, _Slot] = {}
        self._batches: dict[int, Batch] = {}
        self._entered: set[int] = set()
        self._running: dict[int, None] = {}
        """The threads that are in their batches, in the order in which they were started."""
        for thread in process.threads.values():
            self.xstates[thread.tid] = ptrace.get_xstate(thread.tid)
            if thread.registers[x86_64.CS] != USER_CS:
                raise CheckpointFailed(f"thread {thread.tid} of {process.name} runs 32-bit code")

    def open(self, room: int) -> None:
        """Map the scratch mapping, with `room` bytes for each thread's table.

        Raises:
            Refused: the process has forbidden itself writable and executable memory.
            CheckpointFailed: no thread's stack has room for the frame, or the process may not map memory.
        """
        host, top = self._choose_host()
        found = self._stubs.find(self.process.pid, self.maps)
        if not found:
            self._vdso_stubs = VdsoStubs(host.tid, self.maps)
            found = self._vdso_stubs.places
        call, stub = found
        frame_size = x86_64.signal_frame_size(len(self.xstates[host.tid]))
        frame = (top - frame_size) & ~63
        content = x86_64.signal_frame(frame, host.named, self.xstates[host.tid], host.sigmask)
        memory.write_stack(self.process.pid, frame - 8, struct.pack("<Q", stub) + content)
        if not any(mapping.start <= frame - 8 < mapping.end for mapping in self.maps):
            self.maps = procfs.mappings(self.process.pid)  # a stack has grown
        self._host, self._host_frame, self._call = host, frame, call

        slot = procfs.page_up(_HANDLER_ROOM + frame_size + room)
        size = procfs.PAGE + slot * len(self.process.threads)
        place = self._free_place(size)
        flags = MAP_PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE
        address = self._call_on_stack(NR.mmap, place, size, PROT_READ_WRITE_EXEC, flags, WORD, 0)
        if x86_64.signed(address) == -errno.EACCES:
            why = "it may not have memory that is writable and executable (prctl PR_SET_MDWE, or a security module)"
            raise Refused(f"{self.process.name} cannot be kept", [Reason(self.process.name, why)])
        if address > x86_64.TASK_SIZE:
            why = os.strerror(-x86_64.signed(address))
            raise CheckpointFailed(f"{self.process.name} may not map {size} bytes of memory: {why}")
        self.scratch = (address, address + size)
        base = address + procfs.PAGE
        for thread in self.process.threads.values():
            frame = (base + _HANDLER_ROOM + 63) & ~63
            self._slots[thread.tid] = _Slot(frame, frame + frame_size, 0)
            base += slot
        memory.write(self.process.pid, address, _HEADER + _SIZE.pack(size))
        self._stale = list(self._find_stale())

    def _free_place(self, size: int) -> int:
        """Choose the address of the scratch mapping: one where no system maps anything, else the middle of the largest
        gap.

        The second is for programs that use those addresses (the shadow memory of sanitizers, the heap of a Java virtual
        machine).
        """
        for place in _PLACES:
            if not any(place < mapping.end and mapping.start < place + _PLACES.step for mapping in self.maps):
                return place
        lowest = int(procfs.read("/proc/sys/vm/mmap_min_addr"))
        mapped = union((mapping.start, mapping.end) for mapping in self.maps)
        gaps = subtract([(procfs.page_up(lowest), x86_64.TASK_SIZE)], mapped)
        start, end = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
        if end - start < size + 2 * _DISTANCE:
            raise CheckpointFailed(
                f"{self.process.name} has no free range of {(size + 2 * _DISTANCE) >> 10} KiB in its address space"
            )
        return start + (end - start - size) // 2 // procfs.PAGE * procfs.PAGE

    def _find_stale(self) -> Iterator[tuple[int, int]]:
        """Find scratch mappings that dead dumpers left (address, size), without those that a thread is still in."""
        for mapping in self.maps:
            if mapping.perms != b"rwxp" or mapping.inode:
                continue
            head = memory.read(self.process.pid, mapping.start, procfs.PAGE)
            if head.startswith(_HEADER):
                (size,) = _SIZE.unpack_from(head, len(_HEADER))
            elif mapping.start in _PLACES and not any(head):
                size = mapping.end - mapping.start  # its dumper died between mapping and marking it
            else:
                continue
            if size <= mapping.end - mapping.start and not self._is_inside(mapping.start, size):
                yield mapping.start, size

    def _is_inside(self, start: int, size: int) -> bool:
        """Whether a thread has its instruction pointer or its stack pointer there."""
        return any(
            start <= thread.registers[register] < start + size
            for thread in self.process.threads.values()
            for register in (x86_64.RIP, x86_64.RSP)
        )

    @property
    def host(self) -> Thread:
        """The thread that makes the calls for the whole process."""
        assert self._host is not None
        return self._host

    def table(self) -> int:
        """The address of the host's table of calls."""
        return self._slots[self.host.tid].table

    def start(self, batches: dict[int, Batch]) -> None:
        """Start threads, each with its batch; many may have the same one.

        The entries that bring a thread back are appended here.
        """
        self._batches = batches
        threads: dict[int, list[Thread]] = {}
        for tid, batch in batches.items():
            threads.setdefault(id(batch), []).append(self.process.threads[tid])
        for batch in {id(batch): batch for batch in batches.values()}.values():
            self._end(batch, threads[id(batch)])
        ranges: list[tuple[int, int]] = []
        content = bytearray()
        for tid, batch in batches.items():
            slot, thread = self._slots[tid], self.process.threads[tid]
            table = batch.encode(slot.table)
            slot.size = len(table)
            frame = x86_64.signal_frame(slot.frame, thread.named, self.xstates[tid], thread.sigmask)
            ranges.append((slot.frame, slot.table - slot.frame + slot.size))
            content += frame.ljust(slot.table - slot.frame, b"\0") + table
        memory.write_ranges(self.process.pid, ranges, content)
        for tid in batches:
            self._entered.add(tid)
            self._enter(tid)

    def _end(self, batch: Batch, threads: Iterable[Thread]) -> None:
        """Append the entries by which the threads return from the batch."""
        if self._quiet is not None:
            if any(thread.sigmask >> (self._quiet - 1) & 1 for thread in threads):
                # Only _enter() has unblocked it: if the dumper dies before, the signal would stay pending.
                batch.add(NR.rt_sigprocmask, signal.SIG_UNBLOCK, _MASK.pack(1 << (self._quiet - 1)), 0, _MASK.size)
            # The signal needs the ids in the thread's own PID namespace: let the thread ask for them.
            batch.add(NR.tgkill, Result(batch.add(NR.getpid)), Result(batch.add(NR.gettid)), self._quiet)
        batch.add(NR.rt_sigreturn)
        batch.add(NR.rt_sigreturn)  # if a step ends at the first one (see _step), the thread continues at this one

    def _enter(self, tid: int) -> None:
        slot = self._slots[tid]
        registers = array("Q", self.process.threads[tid].registers)
        registers[x86_64.RIP] = self.scratch[0]
        registers[x86_64.RSP] = slot.frame
        registers[x86_64.R14] = slot.table
        registers[x86_64.R12] = slot.table + self._batches[tid].first * ENTRY_SIZE
        registers[x86_64.ORIG_RAX] = WORD
        registers[x86_64.EFLAGS] &= ~_RFLAGS_TRAP_DIRECTION
        ptrace.set_registers(tid, registers)
        unblocked = 1 << (self._quiet - 1) if self._quiet is not None else 0
        ptrace.set_sigmask(tid, WORD & ~unblocked)
        ptrace.resume(tid, self.how)
        self._running[tid] = None

    def finish(self) -> dict[int, Replies]:
        """Wait until every started thread has stopped again, and read the results of its calls.

        Raises:
            CheckpointFailed: a thread was lost, or got a signal.
        """
        self.recall()
        slots = [self._slots[tid] for tid in self._batches]
        content = memoryview(bytearray(sum(slot.size for slot in slots)))
        memory.read_ranges(self.process.pid, [(slot.table, slot.size) for slot in slots], content)
        replies: dict[int, Replies] = {}
        for (tid, batch), slot in zip(self._batches.items(), slots, strict=True):
            replies[tid] = Replies(batch, bytes(content[: slot.size]))
            content = content[slot.size :]
        return replies

    def recall(self) -> None:
        """Wait until no thread is in its batch any more. Then each has stopped or is gone.

        Raises:
            CheckpointFailed: a thread was lost, or got a signal. The others have been waited for.
        """
        failure: CheckpointFailed | None = None
        missed: set[int] = set()
        while self._running:
            thread = self.process.threads[next(iter(self._running))]
            try:
                status = self.wait(thread)
            except (CheckpointFailed, OSError) as error:
                failure = failure or self._failure(thread, error)
                if thread.tid not in missed:  # try once more: if the thread lives, it will reach the end of its batch
                    missed.add(thread.tid)
                    continue
                self._catch(thread)
                del self._running[thread.tid]
                continue
            try:
                if not self._is_back(thread, status):
                    continue
            except CheckpointFailed as error:
                failure = failure or error
            except OSError as error:
                if isinstance(error, ProcessLookupError) and procfs.is_ending(self.process.pid, thread.tid):
                    continue  # it was killed: the next wait reports its exit
                failure = failure or self._failure(thread, error)
                self._catch(thread)
            del self._running[thread.tid]
        if failure:
            raise failure

    def _failure(self, thread: Thread, error: CheckpointFailed | OSError) -> CheckpointFailed:
        if isinstance(error, CheckpointFailed):
            return error
        return CheckpointFailed(f"thread {thread.tid} of {self.process.name}: {in_words(error)}")

    def _is_back(self, thread: Thread, status: int) -> bool:
        """Whether this stop is the end of the thread's batch. If not, the thread is resumed."""
        sig = ptrace.stop_signal(status)
        if ptrace.event(status) == ptrace.EVENT_STOP:  # a group stop: the batch must go on
            ptrace.resume(thread.tid, self.how)
        elif sig == ptrace.SYSCALL_STOP:
            return self._step(thread)
        elif sig == self._quiet:
            return True
        elif sig == signal.SIGSTOP:
            thread.deliver = sig
            ptrace.resume(thread.tid, self.how)
        elif ptrace.event(status) == ptrace.EVENT_CLONE and self.on_clone:
            self.on_clone(thread.tid)
        else:
            raise CheckpointFailed(
                f"thread {thread.tid} of {self.process.name} got {signal.Signals(sig).name} in a call made for torpor"
            )
        return False

    @property
    def how(self) -> int:
        """The ptrace request by which a thread that runs a batch is resumed."""
        return ptrace.CONT if self._quiet is not None else ptrace.SYSCALL

    def _step(self, thread: Thread) -> bool:
        registers = ptrace.get_registers(thread.tid)
        entering_return = registers[x86_64.ORIG_RAX] == NR.rt_sigreturn and x86_64.signed(registers[x86_64.RAX]) == -38
        if not entering_return:
            ptrace.resume(thread.tid, ptrace.SYSCALL)
            return False
        registers[x86_64.ORIG_RAX] = WORD  # skip this call; the second rt_sigreturn follows
        ptrace.set_registers(thread.tid, registers)
        self._to_event_stop(thread)
        return True

    def wait(self, thread: Thread) -> int:
        """Wait for the next stop of a thread of this process.

        Raises:
            CheckpointFailed: the process ended.
        """
        try:
            status = ptrace.wait_surely(thread.tid)
        except ChildProcessError as error:
            raise CheckpointFailed(f"thread {thread.tid} of {self.process.name} was lost: {error}") from None
        if not os.WIFSTOPPED(status):
            raise CheckpointFailed(f"{self.process.name} ended during the checkpoint")
        return status

    def close(self) -> None:
        """Restore every thread's mask and registers, and remove the scratch mapping. The process stays frozen."""
        for tid in [*self._entered]:
            self._give_back(self.process.threads[tid])
        if self.scratch[0]:
            for start, size in (*self._stale, (self.scratch[0], self.scratch[1] - self.scratch[0])):
                self._call_on_stack(NR.munmap, start, size)
            self.scratch = (0, 0)
        if self._vdso_stubs:
            self._vdso_stubs.remove(thread.registers[x86_64.RIP] for thread in self.process.threads.values())
            self._vdso_stubs = None

    def _choose_host(self) -> tuple[Thread, int]:
        """Choose a thread, and an address with enough unused room below it that certainly belongs to a stack."""
        need = RED_ZONE + 256 + max(map(len, self.xstates.values())) + 1024
        guarded = {
            after.start
            for before, after in zip(self.maps, self.maps[1:], strict=False)
            if before.end == after.start and before.perms[:3] == b"---"
        }
        for thread in self.process.threads.values():
            rsp = thread.registers[x86_64.RSP]
            for mapping in self.maps:
                if not mapping.start < rsp <= mapping.end:
                    continue
                # The main stack grows when it is written to; a thread's stack has a guard below it (pthread_attr(3)).
                # Anything else may be a small stack on the heap with other data right below it.
                if mapping.name == b"[stack]" or (mapping.start in guarded and rsp - mapping.start > need):
                    return thread, rsp - RED_ZONE
        # All threads run handlers on alternate stacks, or coroutines. The main stack is unused below its mapping.
        for mapping in self.maps:
            if mapping.name == b"[stack]":
                return next(iter(self.process.threads.values())), mapping.start
        raise CheckpointFailed(
            f"no thread of {self.process.name} is on a stack that certainly has room for a signal frame",
            advice="try again: it may be on another stack a moment later",
        )

    def _call_on_stack(self, nr: int, *args: int) -> int:
        """Make one call on the stack of the host thread, and restore the thread."""
        thread = self.host
        registers = array("Q", thread.registers)
        registers[x86_64.RAX] = nr
        registers[x86_64.ORIG_RAX] = WORD
        registers[x86_64.RIP] = self._call
        registers[x86_64.RSP] = self._host_frame - 8
        registers[x86_64.EFLAGS] &= ~_RFLAGS_TRAP_DIRECTION
        for index, value in zip(x86_64.ARGUMENTS, args, strict=False):
            registers[index] = value
        self._entered.add(thread.tid)  # until its mask and registers are restored
        try:
            result = self._call_by(thread, registers)
            self._to_event_stop(thread)
        except OSError:
            self._catch(thread)
            raise
        self._give_back(thread)
        return result

    def _call_by(self, thread: Thread, registers: array[int]) -> int:
        """Let a thread run one system call, from the syscall instruction to the exit stop."""
        ptrace.set_registers(thread.tid, registers)
        ptrace.set_sigmask(thread.tid, WORD)
        for _ in ("entry", "exit"):
            while True:
                ptrace.resume(thread.tid, ptrace.SYSCALL)
                status = self.wait(thread)
                if ptrace.stop_signal(status) == ptrace.SYSCALL_STOP:
                    break
                _keep_stop(thread, status)
        return ptrace.get_registers(thread.tid)[x86_64.RAX]

    def _give_back(self, thread: Thread) -> None:
        ptrace.set_sigmask(thread.tid, thread.sigmask)
        ptrace.set_registers(thread.tid, thread.registers)
        self._entered.discard(thread.tid)

    def _to_event_stop(self, thread: Thread) -> None:
        """Move a thread from a system-call stop to one after which the kernel restarts the call in the registers.

        The kernel checks for calls to restart only on its way out of get_signal (arch_do_signal_or_restart). A thread
        that is released from a system-call stop with -ERESTARTSYS in rax would see that number.
        """
        while True:
            # Each time: any other stop clears the one that was asked for (ptrace_stop(), kernel/signal.c).
            ptrace.interrupt(thread.tid)
            ptrace.resume(thread.tid)
            status = self.wait(thread)
            if ptrace.event(status) == ptrace.EVENT_STOP:
                return
            _keep_stop(thread, status)

    def _catch(self, thread: Thread) -> None:
        """After an error, bring a thread in any state to a stop from which it can be detached."""
        with suppress(OSError, CheckpointFailed):
            ptrace.interrupt(thread.tid)
            ptrace.wait_trapped(thread.tid)  # any stop will do; its status may have been read already
            if (status := ptrace.poll(thread.tid)) is not None:
                _keep_stop(thread, status)
            self._to_event_stop(thread)


def _keep_stop(thread: Thread, status: int) -> None:
    """If a thread was about to get SIGSTOP, have the detach deliver it."""
    if ptrace.stop_signal(status) == signal.SIGSTOP and not ptrace.event(status):
        thread.deliver = signal.SIGSTOP


def leave_critical_sections(process: Process, rseqs: dict[int, int]) -> None:
    """Move threads that are in a restartable sequence (rseq) to its abort handler, as a preemption would.

    A thread that returned from our calls into the middle of a sequence would finish it, and the kernel would not abort
    it.

    Args:
        process: the frozen process.
        rseqs: for each thread id the address of its struct rseq (include/uapi/linux/rseq.h).
    """
    tids = [tid for tid, pointer in rseqs.items() if pointer]
    if not tids:
        return
    words = bytearray(8 * len(tids))
    memory.read_ranges(process.pid, [(rseqs[tid] + 8, 8) for tid in tids], memoryview(words))
    for tid, (descriptor,) in zip(tids, struct.iter_unpack("<Q", words), strict=True):
        if descriptor:
            _, _, start, length, abort = _RSEQ_CS.unpack(memory.read(process.pid, descriptor, _RSEQ_CS.size))
            registers = process.threads[tid].registers
            if start <= registers[x86_64.RIP] < start + length:
                registers[x86_64.RIP] = process.threads[tid].named[x86_64.RIP] = abort
