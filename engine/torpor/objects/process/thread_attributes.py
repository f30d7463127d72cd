"""What a thread was told about itself by prctl and its kin, and what only the scheduler knows of it.

Kept: real-time priority (where the restorer may give it: RLIMIT_RTPRIO, or root), the length of its time slices and the
clamps of its utilization, I/O priority, personality, memory
policy (numactl), whether reading the time stamp counter or CPUID faults, what becomes of it when memory fails, the
mitigations of speculation that it asked for.

Refused: linear address masking, a core-scheduling cookie, the exemption of those that serve file systems
(PR_SET_IO_FLUSHER). They are known to the thread only, so they are refused under the freeze.

Documented in: prctl(2), sched(7), ioprio_set(2), personality(2), set_mempolicy(2), arch_prctl(2), and
Documentation/userspace-api/spec_ctrl.rst.
"""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.remote.batch import Batch, Call, Out, Replies
from torpor.remote.sys import try_syscall

PR_GET_TSC, PR_SET_TSC = 25, 26
PR_MCE_KILL, PR_MCE_KILL_GET = 33, 34
PR_GET_SPECULATION_CTRL, PR_SET_SPECULATION_CTRL = 52, 53
PR_GET_IO_FLUSHER = 58
PR_SCHED_CORE = 62
ARCH_GET_CPUID, ARCH_SET_CPUID = 0x1011, 0x1012
ARCH_GET_UNTAG_MASK = 0x4001

_PR_TSC_SIGSEGV = 2
_PR_MCE_KILL_SET, _PR_MCE_KILL_DEFAULT = 1, 2
MITIGATIONS = {0: "store bypass", 1: "indirect branches", 2: "flushing of the L1 data cache"}
"""PR_SPEC_* by number."""
_PER_THREAD, _SETTINGS = 1, 0b11110
"""PR_SPEC_PRCTL: a thread may choose; then what it has chosen."""
_QUERY_PERSONALITY = 0xFFFFFFFF
_IOPRIO_WHO_PROCESS = 1
_IO_CLASS_SHIFT, _IO_REAL_TIME = 13, 1
_NODES = 1024
"""The most that a distribution's kernel is built for."""
_ALL_BITS = b"\xff" * 8
REAL_TIME = {os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}

FAIR = (os.SCHED_OTHER, os.SCHED_BATCH)
ATTRIBUTES = struct.Struct("=IIQiIQQQII")
"""struct sched_attr."""
FULL = 1024
"""Of utilization: SCHED_CAPACITY_SCALE."""
_KEEP_POLICY, _KEEP_PARAMETERS, _CLAMP_BOTH = 0x08, 0x10, 0x60


class Attributes(NamedTuple):
    """What `ATTRIBUTES` holds."""

    size: int
    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    """Of one that is no deadline thread: its slice, nanoseconds."""
    deadline: int
    period: int
    least: int
    most: int
    """0: this kernel does not clamp utilization."""


class Questions(NamedTuple):
    """The entries of a thread's batch that `describe` reads."""

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


def ask(batch: Batch) -> Questions:
    """What only the thread itself can be asked. A request that this kernel does not have gives an error."""
    return Questions(
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


def refuse(asked: Questions, replies: Replies) -> Iterator[str]:
    """What of it cannot be kept."""
    if replies.result(asked.io_flusher) == 1:
        yield "it serves a file system or a block device (prctl PR_SET_IO_FLUSHER), which is not kept"
    if replies.result(asked.core) == 0 and any(replies.output(asked.core, 4)):
        yield "it has a core-scheduling cookie (prctl PR_SCHED_CORE), which is not kept"
    if replies.result(asked.untag_mask) == 0 and replies.output(asked.untag_mask, 1) != _ALL_BITS:
        yield "it uses linear address masking (arch_prctl ARCH_ENABLE_TAGGED_ADDR), which is not kept"


def describe(asked: Questions, replies: Replies, image: pb.Thread) -> None:
    """Fill a thread's part of the image."""
    image.rt_priority = int.from_bytes(replies.output(asked.parameters, 1), "little")
    if replies.result(asked.attributes) == 0:
        _describe_attributes(replies.output(asked.attributes, 1), image)
    image.io_priority = max(replies.result(asked.io_priority), 0)
    image.personality = replies.result(asked.personality)
    if replies.result(asked.memory_policy) == 0:  # ENOSYS where there is but one node
        image.memory_policy = int.from_bytes(replies.output(asked.memory_policy, 0), "little")
        image.memory_nodes = replies.output(asked.memory_policy, 1).rstrip(b"\0")
    image.tsc_faults = int.from_bytes(replies.output(asked.tsc, 1), "little") == _PR_TSC_SIGSEGV
    image.cpuid_faults = replies.result(asked.cpuid) == 0
    policy = replies.result(asked.memory_failure)
    image.memory_failure = policy + 1 if policy in (0, 1) else 0
    for which, entry in zip(MITIGATIONS, asked.speculation, strict=True):
        control = replies.result(entry)
        if control > 0 and control & _PER_THREAD:
            image.speculation.add(which=which, control=control & _SETTINGS)


def _describe_attributes(content: bytes, image: pb.Thread) -> None:
    """What sched_getattr(2) tells of a thread, where it is not as usual."""
    found = Attributes(*ATTRIBUTES.unpack(content))
    if found.policy in FAIR and found.runtime != own_attributes().runtime:
        image.slice_ns = found.runtime  # Linux 6.12 tells it, and lets it be chosen
    if found.most and (found.most != FULL or found.least not in (0, FULL if found.policy in REAL_TIME else 0)):
        image.clamp_least, image.clamp_most = found.least, found.most


def own_attributes() -> Attributes:
    """What sched_getattr(2) tells of this thread."""
    content = bytearray(ATTRIBUTES.size)
    try_syscall(NR.sched_getattr, 0, content, len(content), 0)
    return Attributes(*ATTRIBUTES.unpack(content))


# Restore


@dataclass(frozen=True)
class Allowed:
    """What this host lets the restorer give to threads."""

    real_time: int
    """The highest real-time priority."""
    io_real_time: bool
    speculation: tuple[int, ...]
    """PR_GET_SPECULATION_CTRL of each mitigation."""
    clamps: bool
    """Whether the kernel clamps utilization."""


def allowed() -> Allowed:
    """That of this process."""
    root = procfs.is_root()
    return Allowed(
        real_time=99 if root else resource.getrlimit(resource.RLIMIT_RTPRIO)[0],
        io_real_time=root,
        speculation=tuple(
            max(try_syscall(NR.prctl, PR_GET_SPECULATION_CTRL, which, 0, 0, 0), 0) for which in MITIGATIONS
        ),
        clamps=own_attributes().most > 0,
    )


def _may_schedule(thread: pb.Thread, here: Allowed) -> bool:
    return thread.rt_priority <= here.real_time


def _may_have_io_priority(thread: pb.Thread, here: Allowed) -> bool:
    return thread.io_priority >> _IO_CLASS_SHIFT != _IO_REAL_TIME or here.io_real_time


def _may_choose(speculation: pb.Speculation, here: Allowed) -> bool:
    return bool(here.speculation[speculation.which] & _PER_THREAD)


def steps(thread: pb.Thread, inherited_policy: int, here: Allowed) -> Iterator[Call]:
    """What needs the restorer's rights.

    Args:
        thread: of the image.
        inherited_policy: the scheduling policy that it has from the restorer.
        here: what it may be given.
    """
    if thread.scheduler != inherited_policy and _may_schedule(thread, here):
        parameters = thread.rt_priority.to_bytes(4, "little")
        yield Call(NR.sched_setscheduler, (0, thread.scheduler, parameters), 0, "setting its scheduling policy")
    if thread.io_priority >> _IO_CLASS_SHIFT and _may_have_io_priority(thread, here):
        words = f"setting its I/O priority {thread.io_priority:#x}"
        yield Call(NR.ioprio_set, (_IOPRIO_WHO_PROCESS, 0, thread.io_priority), 0, words)
    if thread.memory_policy:
        nodes = thread.memory_nodes.ljust(_NODES // 8, b"\0")
        yield Call(NR.set_mempolicy, (thread.memory_policy, nodes, _NODES), 0, "setting its memory policy")
    if thread.memory_failure:
        words = "setting what becomes of it when memory fails"
        yield Call(NR.prctl, (PR_MCE_KILL, _PR_MCE_KILL_SET, thread.memory_failure - 1, 0, 0), 0, words)
    for one in thread.speculation:
        if one.control != here.speculation[one.which] & _SETTINGS and _may_choose(one, here):
            words = f"setting the mitigation of {MITIGATIONS[one.which]}"
            yield Call(NR.prctl, (PR_SET_SPECULATION_CTRL, one.which, one.control, 0, 0), 0, words)


def attributes(thread: pb.Thread, nice: int, here: Allowed) -> Iterator[Call]:
    """What sched_setattr(2) sets; `nice` is the nice value that it has by now."""
    if thread.slice_ns:
        content = ATTRIBUTES.pack(ATTRIBUTES.size, 0, _KEEP_POLICY, nice, 0, thread.slice_ns, 0, 0, 0, 0)
        # Kernels before 6.12 take it and do nothing.
        yield Call(NR.sched_setattr, (0, content, 0), 0, f"setting its slice of time to {thread.slice_ns} ns")
    if thread.clamp_most and here.clamps:
        flags = _KEEP_POLICY | _KEEP_PARAMETERS | _CLAMP_BOTH
        least, most = thread.clamp_least, thread.clamp_most
        content = ATTRIBUTES.pack(ATTRIBUTES.size, 0, flags, 0, 0, 0, 0, 0, least, most)
        yield Call(NR.sched_setattr, (0, content, 0), 0, f"clamping its utilization to {least} to {most}")


def last_steps(thread: pb.Thread) -> Iterator[Call]:
    """What would disturb the rest."""
    if thread.personality:
        yield Call(NR.personality, (thread.personality,), None, f"setting its personality {thread.personality:#x}")
    if thread.tsc_faults:
        yield Call(NR.prctl, (PR_SET_TSC, _PR_TSC_SIGSEGV), 0, "making the time stamp counter fault")
    if thread.cpuid_faults:
        yield Call(NR.arch_prctl, (ARCH_SET_CPUID, 0), 0, "making CPUID fault")


def warnings(name: str, thread: pb.Thread, here: Allowed) -> Iterator[str]:
    """What is not as before, in words."""
    if not _may_schedule(thread, here):
        what = REAL_TIME.get(thread.scheduler, "its scheduling policy")
        yield f"{name}: {what} with priority {thread.rt_priority} needs a privilege (RLIMIT_RTPRIO): it has none now"
    if not _may_have_io_priority(thread, here):
        yield f"{name}: its real-time I/O priority needs a privilege: it has the usual one now"
    if thread.clamp_most and not here.clamps:
        yield f"{name}: this kernel does not clamp utilization (sched_setattr)"
    for one in thread.speculation:
        if one.control != here.speculation[one.which] & _SETTINGS and not _may_choose(one, here):
            yield f"{name}: this host lets nobody choose the mitigation of {MITIGATIONS[one.which]}"
