"""Attributes of a thread: those of prctl and similar calls, and those of the scheduler.

Kept: nice value, scheduling policy and CPU affinity, real-time priority (if the restorer may set it: RLIMIT_RTPRIO, or
root), time slice and utilization clamps, I/O priority, personality, memory policy (numactl), whether reading the time
stamp counter or CPUID faults, the memory failure policy (PR_MCE_KILL), the speculation mitigations that it asked for.

Refused: deadline and BPF policies. Refused only under the freeze, since only the thread can query them: linear address
masking, a core-scheduling cookie, PR_SET_IO_FLUSHER.

Documented in: prctl(2), sched(7), ioprio_set(2), personality(2), set_mempolicy(2), arch_prctl(2), and
Documentation/userspace-api/spec_ctrl.rst.
"""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage, Step, ThreadAnswers, ThreadPart
from torpor.remote.batch import Batch, Call, Out, Replies
from torpor.remote.sys import try_syscall
from torpor.util.workers import Thread

PR_GET_TSC, PR_SET_TSC = 25, 26
PR_MCE_KILL, PR_MCE_KILL_GET = 33, 34
PR_GET_SPECULATION_CTRL, PR_SET_SPECULATION_CTRL = 52, 53
PR_GET_IO_FLUSHER = 58
PR_SCHED_CORE = 62
ARCH_GET_CPUID, ARCH_SET_CPUID = 0x1011, 0x1012
ARCH_GET_UNTAG_MASK = 0x4001

_PR_TSC_SIGSEGV = 2
_PR_MCE_KILL_CLEAR, _PR_MCE_KILL_SET = 0, 1
MITIGATIONS = {0: "store bypass", 1: "indirect branches", 2: "flushing of the L1 data cache"}
"""Names of PR_SPEC_*, by number."""
_PER_THREAD, _SETTINGS = 1, 0b11110
"""PR_SPEC_PRCTL: a thread may choose; and the bits of its choice."""
_QUERY_PERSONALITY = 0xFFFFFFFF
_IOPRIO_WHO_PROCESS = 1
_IO_CLASS_SHIFT, _IO_REAL_TIME = 13, 1
_KEPT_POLICIES = {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE, os.SCHED_FIFO, os.SCHED_RR}
_OTHER_POLICIES = {6: "SCHED_DEADLINE", 7: "SCHED_EXT, of a BPF program"}
_AFFINITY_BYTES = 1024
"""Bytes for 8192 processors, the most for which distributions build their kernels."""
_NODES = 1024
"""The most NUMA nodes for which distributions build their kernels."""
_ALL_BITS = b"\xff" * 8
REAL_TIME = {os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}

FAIR = (os.SCHED_OTHER, os.SCHED_BATCH)
ATTRIBUTES = struct.Struct("=IIQiIQQQII")
"""struct sched_attr."""
FULL = 1024
"""The full utilization: SCHED_CAPACITY_SCALE."""
_LOWEST_NICE = -20
_KEEP_POLICY, _KEEP_PARAMETERS, _CLAMP_BOTH = 0x08, 0x10, 0x60


class Attributes(NamedTuple):
    """The fields of `ATTRIBUTES`."""

    size: int
    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    """The time slice in nanoseconds, except for a deadline thread; 0 for a real-time thread, and before Linux 6.12."""
    deadline: int
    period: int
    least: int
    most: int
    """0 if this kernel does not clamp utilization."""


class Asked(NamedTuple):
    """The entries of a thread's batch."""

    nice: int
    scheduler: int
    affinity: int
    parameters: int
    attributes: int
    io_priority: int
    personality: int
    memory_policy: int
    tsc: int
    cpuid: int
    memory_failure: int
    speculation: list[int]
    io_flusher: int
    core: int
    untag_mask: int


@dataclass(frozen=True)
class Allowed:
    """What this host lets the restorer set for threads."""

    real_time: int
    """The highest real-time priority."""
    io_real_time: bool
    speculation: tuple[int, ...]
    """The result of PR_GET_SPECULATION_CTRL for each mitigation."""
    may_leave_idle: int
    """The lowest nice value with which a thread may leave SCHED_IDLE for another policy."""
    clamps: bool
    """Whether the kernel can clamp utilization."""
    processors: frozenset[int]
    """The processors that the restorer may use."""
    nice: int
    """The restorer's own nice value."""
    may_lower_nice: bool
    scheduler: int
    """The restorer's own policy. Threads inherit it, and what the next fields say."""
    slice_chosen: bool
    """Whether it has, or may have, a time slice other than the usual one."""
    clamped: bool
    io_priority: int
    personality: int
    memory_policy: int
    memory_failure: int
    """As in the image."""


def allowed() -> Allowed:
    """What this process may set."""
    root = procfs.is_root()
    own = own_attributes()
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    scheduler, nice = _after_fork(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
    policy = bytearray(4)
    try_syscall(NR.get_mempolicy, policy, 0, 0, 0, 0)
    return Allowed(
        real_time=99 if root else resource.getrlimit(resource.RLIMIT_RTPRIO)[0],
        io_real_time=root,
        speculation=tuple(
            max(try_syscall(NR.prctl, PR_GET_SPECULATION_CTRL, which, 0, 0, 0), 0) for which in MITIGATIONS
        ),
        may_leave_idle=_LOWEST_NICE if root or limit == resource.RLIM_INFINITY else 20 - limit,
        clamps=own.most > 0,
        processors=frozenset(os.sched_getaffinity(0)),
        nice=nice,
        may_lower_nice=root,
        scheduler=scheduler,
        slice_chosen=own.runtime != usual_slice(),
        clamped=_is_clamped(own),
        io_priority=max(try_syscall(NR.ioprio_get, _IOPRIO_WHO_PROCESS, 0), 0),
        personality=try_syscall(NR.personality, _QUERY_PERSONALITY),
        memory_policy=int.from_bytes(policy, "little"),
        memory_failure=_memory_failure(try_syscall(NR.prctl, PR_MCE_KILL_GET, 0, 0, 0, 0)),
    )


class ThreadAttributes(ThreadPart[Asked, Allowed]):
    """The attributes of a thread."""

    def preflight(self, tid: int) -> Iterator[str]:
        """A scheduling policy that cannot be kept."""
        policy = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
        if policy not in _KEPT_POLICIES:
            yield f"it has {_OTHER_POLICIES.get(policy, f'scheduling policy {policy}')}, which is not kept"

    def ask(self, batch: Batch) -> Asked:
        """Query what only the thread itself can. The result is an error if this kernel lacks a request."""
        return Asked(
            nice=batch.add(NR.getpriority, 0, 0),
            scheduler=batch.add(NR.sched_getscheduler, 0),
            affinity=batch.add(NR.sched_getaffinity, 0, _AFFINITY_BYTES, Out(_AFFINITY_BYTES)),
            parameters=batch.add(NR.sched_getparam, 0, Out(4)),
            attributes=batch.add(NR.sched_getattr, 0, Out(ATTRIBUTES.size), ATTRIBUTES.size, 0),
            io_priority=batch.add(NR.ioprio_get, _IOPRIO_WHO_PROCESS, 0),
            personality=batch.add(NR.personality, _QUERY_PERSONALITY),
            memory_policy=batch.add(NR.get_mempolicy, Out(4), Out(_NODES // 8), _NODES, 0, 0),
            tsc=batch.add(NR.prctl, PR_GET_TSC, Out(4)),
            cpuid=batch.add(NR.arch_prctl, ARCH_GET_CPUID, 0),
            memory_failure=batch.add(NR.prctl, PR_MCE_KILL_GET, 0, 0, 0, 0),
            speculation=[batch.add(NR.prctl, PR_GET_SPECULATION_CTRL, which, 0, 0, 0) for which in MITIGATIONS],
            io_flusher=batch.add(NR.prctl, PR_GET_IO_FLUSHER, 0, 0, 0, 0),
            core=batch.add(NR.prctl, PR_SCHED_CORE, 0, 0, 0, Out(8)),
            untag_mask=batch.add(NR.arch_prctl, ARCH_GET_UNTAG_MASK, Out(8)),
        )

    def unsupported(self, asked: Asked, replies: Replies) -> Iterator[str]:
        """Attributes that cannot be kept."""
        if replies.result(asked.io_flusher) == 1:
            yield "it serves a file system or a block device (prctl PR_SET_IO_FLUSHER), which is not kept"
        if replies.result(asked.core) == 0 and any(replies.output(asked.core, 4)):
            yield "it has a core-scheduling cookie (prctl PR_SCHED_CORE), which is not kept"
        if replies.result(asked.untag_mask) == 0 and replies.output(asked.untag_mask, 1) != _ALL_BITS:
            yield "it uses linear address masking (arch_prctl ARCH_ENABLE_TAGGED_ADDR), which is not kept"

    def describe(
        self, asked: Asked, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree
    ) -> None:
        """A result is an error if this kernel lacks the attribute."""
        replies = answers.replies
        out.nice = 20 - replies.result(asked.nice)  # the raw call gives 20 - nice
        out.scheduler = replies.result(asked.scheduler)
        mask = int.from_bytes(replies.output(asked.affinity, 2), "little")
        bound = {cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1}
        # Nothing if it may use all processors that we may, such as a job's allocation: elsewhere these are others.
        out.affinity.extend(sorted(bound) if bound != os.sched_getaffinity(0) else ())
        out.rt_priority = int.from_bytes(replies.output(asked.parameters, 1), "little")
        if replies.result(asked.attributes) == 0:
            _describe_attributes(replies.output(asked.attributes, 1), out)
        out.io_priority = max(replies.result(asked.io_priority), 0)
        out.personality = replies.result(asked.personality)
        if replies.result(asked.memory_policy) == 0:  # ENOSYS if there is only one node
            out.memory_policy = int.from_bytes(replies.output(asked.memory_policy, 0), "little")
            out.memory_nodes = replies.output(asked.memory_policy, 1).rstrip(b"\0")
        out.tsc_faults = int.from_bytes(replies.output(asked.tsc, 1), "little") == _PR_TSC_SIGSEGV
        out.cpuid_faults = replies.result(asked.cpuid) == 0
        out.memory_failure = _memory_failure(replies.result(asked.memory_failure))
        for which, entry in zip(MITIGATIONS, asked.speculation, strict=True):
            control = replies.result(entry)
            if control > 0 and control & _PER_THREAD:
                out.speculation.add(which=which, control=control & _SETTINGS)

    def validate_form(self, thread: pb.Thread) -> Iterator[str]:
        """Numbers that this version does not know."""
        if any(one.which not in MITIGATIONS for one in thread.speculation):
            yield "it has a mitigation that this version does not know"
        if not thread.clamp_least <= thread.clamp_most <= FULL:
            yield "it has invalid utilization clamps"

    def host(self) -> Allowed:
        """What the restorer may set."""
        return allowed()

    def calls(self, thread: pb.Thread, process: pb.Process, image: pb.Tree, host: Allowed) -> Iterator[Step]:
        """Calls that need the restorer's credentials; and at the end those that would disturb other calls."""
        yield from (Step(Stage.THREAD, call) for call in _settings(thread, host))
        yield from (Step(Stage.AFTER_CREDENTIALS, call) for call in _last(thread, host))

    def warnings(self, thread: pb.Thread, host: Allowed) -> Iterator[str]:
        """Attributes that need a privilege, or another kernel or machine."""
        if thread.nice < host.nice and not host.may_lower_nice:
            yield f"its nice value is {host.nice}, was {thread.nice}: lowering it needs a privilege"
        if thread.affinity and not host.processors.intersection(thread.affinity):
            yield "none of the processors that it was bound to is allowed here"
        if not _may_leave_idle(thread, host):
            yield "it has SCHED_IDLE, like the process that wakes it: leaving it needs a privilege (RLIMIT_NICE)"
        elif not _may_schedule(thread, host):
            what = REAL_TIME.get(thread.scheduler, "its scheduling policy")
            yield f"it has lost {what} with priority {thread.rt_priority}, which needs a privilege (RLIMIT_RTPRIO)"
        if not _may_have_io_priority(thread, host):
            yield "its real-time I/O priority needs a privilege: it has the usual one now"
        if thread.clamp_most and not host.clamps:
            yield "this kernel does not clamp utilization (sched_setattr)"
        for one in thread.speculation:
            if one.control != host.speculation[one.which] & _SETTINGS and not _may_choose(one, host):
                yield f"this host does not let threads choose the mitigation of {MITIGATIONS[one.which]}"


def _settings(thread: pb.Thread, host: Allowed) -> Iterator[Call]:
    processors = host.processors.intersection(thread.affinity)
    if processors and processors != host.processors:
        mask = sum(1 << cpu for cpu in processors).to_bytes(_AFFINITY_BYTES, "little")
        yield Call(NR.sched_setaffinity, (0, len(mask), mask), 0, "binding it to its processors")
    if host.slice_chosen and _policy(host.scheduler) in FAIR:  # a later change of the policy leaves it as it is
        yield _set_slice(host.nice, 0)
    if thread.scheduler != host.scheduler and _may_schedule(thread, host):
        parameters = thread.rt_priority.to_bytes(4, "little")
        yield Call(NR.sched_setscheduler, (0, thread.scheduler, parameters), 0, "setting its scheduling policy")
    io_priority = _set_io_priority(thread.io_priority) if _may_have_io_priority(thread, host) else 0
    if io_priority != _set_io_priority(host.io_priority):
        words = f"setting its I/O priority {io_priority:#x}"
        yield Call(NR.ioprio_set, (_IOPRIO_WHO_PROCESS, 0, io_priority), 0, words)
    if thread.memory_policy or host.memory_policy:
        nodes = thread.memory_nodes.ljust(_NODES // 8, b"\0")
        yield Call(NR.set_mempolicy, (thread.memory_policy, nodes, _NODES), 0, "setting its memory policy")
    if thread.memory_failure != host.memory_failure:
        choice = (_PR_MCE_KILL_SET, thread.memory_failure - 1) if thread.memory_failure else (_PR_MCE_KILL_CLEAR, 0)
        yield Call(NR.prctl, (PR_MCE_KILL, *choice, 0, 0), 0, "setting its memory failure policy")
    for one in thread.speculation:
        if one.control != host.speculation[one.which] & _SETTINGS and _may_choose(one, host):
            words = f"setting the mitigation of {MITIGATIONS[one.which]}"
            yield Call(NR.prctl, (PR_SET_SPECULATION_CTRL, one.which, one.control, 0, 0), 0, words)
    nice = thread.nice if thread.nice > host.nice or host.may_lower_nice else host.nice
    if nice != host.nice:
        yield Call(NR.setpriority, (0, 0, thread.nice), 0, f"setting its nice value {thread.nice}")
    if thread.slice_ns and _may_leave_idle(thread, host):  # kernels before 6.12 accept it and do nothing
        yield _set_slice(nice, thread.slice_ns)
    if host.clamps and (thread.clamp_most or host.clamped):
        flags = _KEEP_POLICY | _KEEP_PARAMETERS | _CLAMP_BOTH
        usual = (_usual_least(_policy(thread.scheduler)), FULL)
        least, most = (thread.clamp_least, thread.clamp_most) if thread.clamp_most else usual
        content = ATTRIBUTES.pack(ATTRIBUTES.size, 0, flags, 0, 0, 0, 0, 0, least, most)
        yield Call(NR.sched_setattr, (0, content, 0), 0, f"clamping its utilization to {least} to {most}")


def _set_slice(nice: int, length: int) -> Call:
    """Set a fair thread's time slice in nanoseconds; 0: the usual one."""
    words = f"setting its slice of time to {length or usual_slice()} ns"
    return Call(NR.sched_setattr, (0, _slice(nice, length), 0), 0, words)


def _slice(nice: int, length: int) -> bytes:
    """The struct sched_attr that sets a time slice. sched_setattr(2) sets the nice value with it."""
    return ATTRIBUTES.pack(ATTRIBUTES.size, 0, _KEEP_POLICY, nice, 0, length, 0, 0, 0, 0)


def _last(thread: pb.Thread, host: Allowed) -> Iterator[Call]:
    if thread.personality or host.personality:
        yield Call(NR.personality, (thread.personality,), None, f"setting its personality {thread.personality:#x}")
    if thread.tsc_faults:
        yield Call(NR.prctl, (PR_SET_TSC, _PR_TSC_SIGSEGV), 0, "making the time stamp counter fault")
    if thread.cpuid_faults:
        yield Call(NR.arch_prctl, (ARCH_SET_CPUID, 0), 0, "making CPUID fault")


def _after_fork(scheduler: int, nice: int) -> tuple[int, int]:
    """The policy and nice value of a new thread of ours (sched_fork() in kernel/sched/core.c)."""
    policy = _policy(scheduler)
    if policy == scheduler:
        return scheduler, nice
    return (policy, max(nice, 0)) if policy in FAIR or policy == os.SCHED_IDLE else (os.SCHED_OTHER, 0)


def _policy(scheduler: int) -> int:
    return scheduler & ~os.SCHED_RESET_ON_FORK


def _may_leave_idle(thread: pb.Thread, host: Allowed) -> bool:
    stays = _policy(host.scheduler) != os.SCHED_IDLE or _policy(thread.scheduler) == os.SCHED_IDLE
    return stays or host.may_leave_idle <= host.nice


def _may_schedule(thread: pb.Thread, host: Allowed) -> bool:
    return thread.rt_priority <= host.real_time and _may_leave_idle(thread, host)


def _set_io_priority(value: int) -> int:
    """An I/O priority as it was set; 0 if none was: the kernel may then give one that follows from the nice value."""
    return value if value >> _IO_CLASS_SHIFT else 0


def _memory_failure(policy: int) -> int:
    """What PR_MCE_KILL_GET returns, as it is in the image."""
    return policy + 1 if policy in (0, 1) else 0


def _may_have_io_priority(thread: pb.Thread, host: Allowed) -> bool:
    return thread.io_priority >> _IO_CLASS_SHIFT != _IO_REAL_TIME or host.io_real_time


def _may_choose(speculation: pb.Speculation, host: Allowed) -> bool:
    return bool(host.speculation[speculation.which] & _PER_THREAD)


def _describe_attributes(content: bytes, image: pb.Thread) -> None:
    """Write what sched_getattr(2) returns, if it differs from the default."""
    found = Attributes(*ATTRIBUTES.unpack(content))
    if found.policy in FAIR and found.runtime != usual_slice():
        image.slice_ns = found.runtime  # Linux 6.12 returns it and allows to set it
    if _is_clamped(found):
        image.clamp_least, image.clamp_most = found.least, found.most


def _is_clamped(found: Attributes) -> bool:
    return found.most > 0 and (found.most != FULL or found.least not in (0, _usual_least(found.policy)))


def _usual_least(policy: int) -> int:
    return FULL if policy in REAL_TIME else 0


def own_attributes() -> Attributes:
    """What sched_getattr(2) returns for this thread."""
    content = bytearray(ATTRIBUTES.size)
    try_syscall(NR.sched_getattr, 0, content, len(content), 0)
    return Attributes(*ATTRIBUTES.unpack(content))


@cache
def usual_slice() -> int:
    """The time slice of threads that have chosen none, in nanoseconds; 0 before Linux 6.12.

    This process may have chosen one itself. So a new thread resets its slice and reads what it gets. If no thread can
    be started, this thread's slice is taken for the usual one.
    """
    own = own_attributes()
    found = [own.runtime]

    def look() -> None:
        try_syscall(NR.sched_setattr, 0, _slice(own.nice, 0), 0)
        found.append(own_attributes().runtime)

    thread = Thread(look)
    if thread.start():
        thread.join()
    return found[-1]
