"""The last system calls of a built tree, by a `syscall` instruction in each process's own code.

The last call unmaps the scratch mapping. After that, no code of the restorer is left in the process. So these calls
cannot use the interpreter in that mapping.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Sequence

from torpor.arch.x86_64 import NR, ORIG_RAX, R10, RAX, RDI, RDX, RIP, RSI, RSP, SYSCALL, WORD, signed
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory import vdso
from torpor.remote import memory, ptrace
from torpor.remote.batch import Call
from torpor.remote.blank import Task, failure, killed
from torpor.restorer.built import Built, image_of


def unmap_scratch(processes: Sequence[Built], scratch: range, tables: int) -> None:
    """Unmap the scratch mappings, by a `syscall` instruction of each process's own code.

    Then bring the threads to a stop inside the kernel's signal handling, from which it restarts interrupted calls;
    a system-call stop is not one.

    Args:
        processes: the processes of the tree.
        scratch: the addresses of the scratch mapping.
        tables: the address in it where the arguments of calls may be placed.
    """
    called = _make_last_calls(processes, tables)
    unmap = Call(NR.munmap, (scratch.start, len(scratch)), 0, "unmapping the scratch mapping")
    _by_own_code([(process, process.threads[0], unmap) for process in processes])
    called |= {process.threads[0].tid: process.threads[0] for process in processes}
    for tid in called:
        ptrace.interrupt(tid)
        ptrace.resume(tid)
    for task in called.values():
        _, status = os.waitpid(task.tid, ptrace.WALL)
        if not os.WIFSTOPPED(status) or ptrace.event(status) != ptrace.EVENT_STOP:
            raise killed(task.name)


def _make_last_calls(processes: Sequence[Built], tables: int) -> dict[int, Task]:
    """Let threads make the calls after which they must not execute int3, with all signals blocked.

    Returns:
        The threads that had such calls, by thread id.
    """
    left = [
        (process, task, thread.last)
        for process in processes
        for task, thread in zip(process.threads, process.plan.threads, strict=False)
        if thread.last
    ]
    called = {task.tid: task for _, task, _ in left}
    for tid in called:
        ptrace.set_sigmask(tid, WORD)
    for number in range(max((len(calls) for *_, calls in left), default=0)):
        turn = [(process, task, calls[number]) for process, task, calls in left if number < len(calls)]
        address = tables
        for k, (process, task, call) in enumerate(turn):
            args: list[int] = []
            for arg in call.args:
                if isinstance(arg, bytes):
                    memory.write(task.tid, address, arg)
                    args.append(address)
                    address += len(arg)
                else:
                    assert isinstance(arg, int)
                    args.append(arg)
            turn[k] = process, task, call._replace(args=args)
        _by_own_code(turn)
    return called


def _by_own_code(works: Sequence[tuple[Built, Task, Call]]) -> None:
    """Let threads make one call each, by a `syscall` in the process's own code. They stay in the syscall-exit stop."""
    for process, task, call in works:
        registers = array("Q", task.registers)
        registers[RIP] = _syscall_instruction(task, image_of(process).memory)
        registers[RAX], registers[ORIG_RAX], registers[RSP] = call.nr, WORD, 0
        for register, value in zip((RDI, RSI, RDX, R10), call.args, strict=False):
            assert isinstance(value, int)
            registers[register] = value
        ptrace.set_registers(task.tid, registers)
        ptrace.resume(task.tid, ptrace.SYSCALL)
    for stage in ("entry", "exit"):
        for _, task, _ in works:
            _wait_syscall(task)
            if stage == "entry":
                ptrace.resume(task.tid, ptrace.SYSCALL)
    for _, task, call in works:
        result = signed(ptrace.get_registers(task.tid)[RAX])
        if not call.ok(result):
            raise failure(task, call, result)


def _wait_syscall(task: Task) -> None:
    _, status = os.waitpid(task.tid, ptrace.WALL)
    if not os.WIFSTOPPED(status) or ptrace.stop_signal(status) != ptrace.SYSCALL_STOP:
        raise RestoreFailed(f"{task.name} did not reach its last system call (status {status:#x})")


def _syscall_instruction(task: Task, space: pb.AddressSpace) -> int:
    """Find a `syscall` instruction: in the vDSO, or if there is none, in the program or a library."""
    if vdso.has_code(space):
        code = memory.read(task.tid, space.vdso, space.vdso_end - space.vdso)
        return space.vdso + code.index(SYSCALL)
    for vma in sorted(space.vmas, key=lambda vma: vma.kind != pb.Vma.FILE_PRIVATE):
        if vma.prot & mmap.PROT_EXEC:
            end = memory.readable_end(task.tid, vma.start, vma.end)
            if (at := memory.read(task.tid, vma.start, end - vma.start).find(SYSCALL)) >= 0:
                return vma.start + at
    raise RestoreFailed(f"{task.name} has no code that makes a system call")
