"""Attributes of a whole process: those of prctl(2) and similar calls, and of files in /proc/PID.

Kept: dumpable, child subreaper, the settings of huge pages and of same-page merging (KSM), the memory barriers that it
registered for, the permission to use AMX, oom score adjustment, core dump filter.

Refused: a local descriptor table (modify_ldt(2)).

Documented in: prctl(2), membarrier(2), arch_prctl(2), proc_pid_oom_score_adj(5), core(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR, levels
from torpor.image import image_pb2 as pb
from torpor.objects.memory import vmas
from torpor.objects.part import Answers, ProcessPart, Stage, Step
from torpor.objects.process.texts import Texts
from torpor.remote.batch import Batch, Call, Out, Replies
from torpor.remote.sys import try_syscall

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
PR_GET_CHILD_SUBREAPER, PR_SET_CHILD_SUBREAPER = 37, 36
PR_GET_THP_DISABLE, PR_SET_THP_DISABLE = 42, 41
PR_GET_MEMORY_MERGE, PR_SET_MEMORY_MERGE = 68, 67
MADV_MERGEABLE, MADV_UNMERGEABLE = 12, 13
MEMBARRIER_CMD_GET_REGISTRATIONS = 512
_BARRIERS = (8, 32, 128)
"""MEMBARRIER_CMD_PRIVATE_EXPEDITED and the like. A process must register first, by the command of twice the number."""
ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_XTILE_DATA = 18
"""The only xsave component that a process must request (Documentation/arch/x86/xstate.rst)."""
_READ_LDT = 0  # of modify_ldt(2)
_ERRORS = 1 << 31  # its errors are 32-bit values (arch/x86/kernel/ldt.c)
CAP_SYS_RESOURCE = 24


class Asked(NamedTuple):
    """The entries of a process's batch."""

    dumpable: int
    subreaper: int
    thp_disable: int
    memory_merge: int
    membarriers: int
    barriers: dict[int, int]
    """Where the kernel does not tell the registrations: the entry of each barrier, as a trial."""
    xstate_permitted: int
    segments: int


class Inherited(NamedTuple):
    """What processes inherit from the restorer."""

    thp_disable: bool
    memory_merge: bool


class ProcessAttributes(ProcessPart[Asked, Inherited]):
    """Attributes that prctl(2), membarrier(2) and arch_prctl(2) set."""

    def ask(self, batch: Batch, texts: Texts) -> Asked:
        """Query all of them: /proc shows none."""
        return Asked(
            batch.add(NR.prctl, PR_GET_DUMPABLE),
            batch.add(NR.prctl, PR_GET_CHILD_SUBREAPER, Out(4)),
            batch.add(NR.prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0),
            batch.add(NR.prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0),
            batch.add(NR.membarrier, MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0),
            {} if _tells_registrations() else {one: batch.add(NR.membarrier, one, 0, 0) for one in _BARRIERS},
            batch.add(NR.arch_prctl, ARCH_GET_XCOMP_PERM, Out(8)),
            batch.add(NR.modify_ldt, _READ_LDT, Out(8), 8),
        )

    def unsupported(self, asked: Asked, answers: Answers) -> Iterator[str]:
        """A local descriptor table."""
        if 0 < answers.replies.result(asked.segments) < _ERRORS:
            yield "it has segments of its own (modify_ldt), which are not kept"

    def adopts_orphans(self, asked: Asked, replies: Replies) -> bool:
        """Whether the process is a child subreaper."""
        return replies.output(asked.subreaper, 1) != bytes(4)

    def describe(self, asked: Asked, answers: Answers, out: pb.Process) -> None:
        """A result is an error if this kernel lacks the attribute."""
        replies = answers.replies
        out.dumpable = replies.result(asked.dumpable)
        out.child_subreaper = self.adopts_orphans(asked, replies)
        thp = replies.result(asked.thp_disable)
        out.thp_disable, out.thp_disable_flags = bool(thp & 1), thp & ~1
        out.membarriers = max(replies.result(asked.membarriers), 0)
        for barrier, entry in asked.barriers.items():
            out.membarriers |= barrier << 1 if replies.result(entry) == 0 else 0
        out.memory_merge = replies.result(asked.memory_merge) == 1  # an error: the kernel lacks it
        if replies.result(asked.xstate_permitted) == 0:  # an older kernel has no such request, and no such permission
            out.xstate_permitted = int.from_bytes(replies.output(asked.xstate_permitted, 1), "little")

    def host(self) -> Inherited:
        """What processes inherit from the restorer."""
        return Inherited(
            thp_disable=try_syscall(NR.prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0) > 0,
            memory_merge=try_syscall(NR.prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1,
        )

    def calls(self, process: pb.Process, host: Inherited) -> Iterator[Step]:
        """The process sets them; each thread sets dumpable, since its change of credentials resets it."""
        yield from (Step(Stage.PROCESS, call) for call in self._settings(process, host))
        # The kernel sets 2 (readable by root) after a change of ids; prctl cannot set it. A thread's change of
        # credentials sets it for the whole process (commit_creds(), kernel/cred.c).
        dumpable = int(process.dumpable == 1)
        words = "setting who may read it"
        yield Step(Stage.AFTER_CREDENTIALS, Call(NR.prctl, (PR_SET_DUMPABLE, dumpable, 0, 0, 0), 0, words))

    def _settings(self, process: pb.Process, host: Inherited) -> Iterator[Call]:
        if process.child_subreaper:
            yield Call(NR.prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0, "becoming a child subreaper")
        if process.thp_disable:
            args = (PR_SET_THP_DISABLE, 1, process.thp_disable_flags, 0, 0)
            yield Call(NR.prctl, args, 0, "turning huge pages off")
        elif host.thp_disable:
            yield Call(NR.prctl, (PR_SET_THP_DISABLE, 0, 0, 0, 0), 0, "allowing huge pages")
        for bit in range(process.membarriers.bit_length()):
            if process.membarriers >> bit & 1:
                yield Call(NR.membarrier, (1 << bit, 0, 0), 0, "registering for memory barriers")
        if host.memory_merge and not process.memory_merge:
            yield Call(NR.prctl, (PR_SET_MEMORY_MERGE, 0, 0, 0, 0), 0, "disabling KSM")
        if process.memory_merge:
            yield Call(NR.prctl, (PR_SET_MEMORY_MERGE, 1, 0, 0, 0), 0, "enabling KSM")
            # This also affects older mappings. Exclude those that it had excluded, and its stack since an execve.
            for vma in process.memory.vmas:
                if vma.kind in vmas.PRIVATE and MADV_MERGEABLE not in vma.advice:
                    words = f"excluding {vma.start:#x}-{vma.end:#x} from KSM"
                    yield Call(NR.madvise, (vma.start, vma.end - vma.start, MADV_UNMERGEABLE), 0, words)
        if process.xstate_permitted >> _XTILE_DATA & 1:
            yield Call(NR.arch_prctl, (ARCH_REQ_XCOMP_PERM, _XTILE_DATA), 0, "requesting AMX")


@dataclass(frozen=True)
class OomScores:
    """What the restorer may set."""

    own: int
    """The restorer's own adjustment, which the processes inherit."""
    may_lower: bool


class ProcFiles(ProcessPart[None, OomScores]):
    """Attributes that the restorer writes to files of /proc/PID."""

    def ask(self, batch: Batch, texts: Texts) -> None:
        """No calls: the texts have them."""

    def describe(self, asked: None, answers: Answers, out: pb.Process) -> None:
        """From the texts."""
        out.oom_score_adj = answers.texts.oom_score_adj
        out.coredump_filter = answers.texts.coredump_filter
        out.portable = levels.kept_to(answers.texts.environment)

    def host(self) -> OomScores:
        """Lowering it takes CAP_SYS_RESOURCE in the initial user namespace (fs/proc/base.c, __set_oom_adj)."""
        capabilities = int(procfs.status(procfs.read("/proc/self/status"))[b"CapEff"], 16)
        may_lower = procfs.in_initial_user_namespace() and bool(capabilities >> CAP_SYS_RESOURCE & 1)
        return OomScores(int(procfs.read("/proc/self/oom_score_adj")), may_lower)

    def files(self, process: pb.Process, host: OomScores) -> Iterator[tuple[str, str]]:
        """The names of the files, and what to write to them."""
        yield "coredump_filter", f"{process.coredump_filter:#x}"
        if process.oom_score_adj > host.own or host.may_lower:
            yield "oom_score_adj", str(process.oom_score_adj)

    def warnings(self, process: pb.Process, host: OomScores) -> Iterator[str]:
        """An oom_score_adj that cannot be as low as it was."""
        if process.oom_score_adj < host.own and not host.may_lower:
            yield f"its oom_score_adj is {host.own}: lowering it needs a privilege"


@cache
def _tells_registrations() -> bool:
    """Whether this kernel has MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3)."""
    return try_syscall(NR.membarrier, MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0) >= 0
