"""Seccomp filters.

Kept: filters that the tree shares with Torpor, as in a container or a systemd unit. Processes inside cannot read them,
so only their number is stored and compared at the restore. They are taken to be the same if every process between the
tree, Torpor and their nearest common ancestor has the same number: a child inherits its parent's filters, no filter is
ever removed, and adding one raises the number.

Kept, if root saves outside of any filter: a program's own filters. The calls that a checkpoint makes in a process are
subject to them once the dumper is gone. So the filters are read (PTRACE_SECCOMP_GET_FILTER) and evaluated for each of
those calls: none may raise a signal, and the calls without which the process would not be left as it was must be
allowed.

Refused: the strict mode, filters of an ordinary user's program, filters with a supervisor (SECCOMP_RET_USER_NOTIF).

Documented in: seccomp(2), Documentation/userspace-api/seccomp_filter.rst, ptrace(2).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.part import Filter, ThreadAnswers, ThreadPart
from torpor.probe import probe
from torpor.remote import bpf, ptrace
from torpor.remote.batch import Batch, Call, Struct
from torpor.remote.calls import MADE, REPORTING, VITAL
from torpor.remote.freeze import Process
from torpor.remote.naming import describe_process

_STRICT, _FILTERS = 1, 2
_MODE, _COUNT = b"Seccomp", b"Seccomp_filters"
_FROM_JOB = "start Torpor from the shell or the supervisor that has started the job"


class State(NamedTuple):
    """A thread's seccomp state in /proc."""

    mode: int
    filters: int


def of_thread(pid: int, tid: int) -> State:
    """The state of a thread."""
    return _state(procfs.read(f"/proc/{pid}/task/{tid}/status"))


def _state(text: bytes) -> State:
    if b"\nSeccomp:\t0\n" in text:  # true for nearly all threads, of which there may be hundreds under the freeze
        return State(0, 0)
    status = procfs.status(text)
    mode = int(status.get(_MODE, 0))
    return State(mode, int(status[_COUNT]) if mode == _FILTERS else 0)


def own() -> int:
    """The number of filters of this process."""
    return of_thread(os.getpid(), os.getpid()).filters


def unsupported(pids: Sequence[int]) -> list[Reason]:
    """Why a tree's filters cannot be kept. `pids` are its living processes, the root first."""
    mine = own()
    reasons: list[Reason] = []
    under = False
    for pid in pids:
        try:
            states = set(_states(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        under = under or any(state.filters for state in states)
        if why := next(filter(None, (_unsupported(state, mine) for state in sorted(states))), None):
            reasons.append(Reason(describe_process(pid), *why))
    if not reasons and mine and under and (why := _apart(pids, mine)):
        reasons.append(Reason(describe_process(pids[0]), *why))
    return reasons


def _states(pid: int) -> Iterator[State]:
    return (of_thread(pid, tid) for tid in procfs.threads(pid))


def _unsupported(state: State, mine: int) -> tuple[str, str] | None:
    """Why this many filters cannot be kept, and what to do; None if the number allows it."""
    if state.mode == _STRICT:
        return "it is in seccomp's strict mode, in which it can make no other system calls", "checkpoint it before"
    if state.filters in (0, mine) or probe().read_filters:
        return None
    its = f"it is under {_filters(state.filters)} (seccomp)"
    if mine:
        return f"{its}, and Torpor under {mine}: those that are not shared cannot be read from here", _FROM_JOB
    return f"{its}, which only root may read, outside of a container", "start it without the sandbox"


def _filters(count: int) -> str:
    return "a system-call filter" if count == 1 else f"{count} system-call filters"


def _apart(pids: Sequence[int], count: int) -> tuple[str, str] | None:
    """Why the filters of a tree, as many as ours, may be different ones, and what to do; None if they are ours."""
    here, there = list(procfs.ancestry(os.getpid())), list(procfs.ancestry(pids[0]))
    common = next((pid for pid in there if pid in here), 0)
    its = f"it is under {_filters(count)} (seccomp), and so is Torpor"
    if not common:
        return f"{its}, but they have no ancestor in common that could have given the same to both", _FROM_JOB
    for pid in (*here[: here.index(common) + 1], *there[: there.index(common)], *pids):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended
            if any(state.filters != count for state in _states(pid)):
                return f"{its}, but they may be others: {describe_process(pid)} is not under as many", _FROM_JOB
    return None


# Under the freeze


def grab(process: Process, statuses: Mapping[int, bytes]) -> tuple[dict[int, list[Filter]], list[Reason]]:
    """Read a frozen process's filters and suspend them, before any call is made in it; or say why that fails.

    The filters may have changed since the preflight.

    Args:
        process: the frozen process.
        statuses: the text of each thread's status.

    Returns:
        For each thread id its own filters, the oldest first; and the reasons why filters cannot be kept.
    """
    mine = own()
    found: dict[int, list[Filter]] = {}
    reasons: list[Reason] = []
    for tid in process.threads:
        state = _state(statuses[tid])
        if not state.mode or (mine and state.filters == mine):
            continue
        name = f"{process.name}, thread {tid}"
        if (why := _unsupported(state, mine)) or not probe().read_filters:
            reasons.append(Reason(name, *(why or ("it has just set up a system-call filter (seccomp)", "try again"))))
            continue
        try:
            read = [ptrace.get_seccomp_filter(tid, number) for number in range(state.filters)]
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES, errno.EPERM):
                raise
            reasons.append(Reason(name, f"its system-call filters (seccomp) cannot be read: {error.strerror}"))
            continue
        found[tid] = [Filter(*one) for one in read]
        if harm := next(filter(None, (_harm(one.code) for one in found[tid])), ""):
            reasons.append(Reason(name, harm, "start it without the sandbox"))
    if found and not reasons:
        process.options |= ptrace.O_SUSPEND_SECCOMP
        for tid in process.threads:
            ptrace.request(ptrace.SETOPTIONS, tid, 0, process.options)
    return found, reasons


_FATAL = {
    bpf.KILL_PROCESS: "kills it",
    bpf.KILL_THREAD: "kills its thread",
    bpf.TRAP: "sends it SIGSYS",
    bpf.USER_NOTIF: "asks a supervisor",
}
_FAILING = {bpf.ERRNO: "gives an error", bpf.TRACE: "asks a tracer"}
_PASSING = (bpf.ALLOW, bpf.LOG)


def made() -> frozenset[NR]:
    """All calls that are made in a frozen process on this host."""
    return MADE if probe().kcmp and probe().pidfd_getfd else MADE | REPORTING


@lru_cache
def _harm(code: bytes) -> str:
    """How our calls could harm a process with this filter; empty if they cannot."""
    if bpf.may_notify(code):
        return "it has a system-call filter (seccomp) with a supervisor (SECCOMP_RET_USER_NOTIF), which is not kept"
    try:
        for nr in sorted(made()):
            for action in sorted(bpf.actions(code, nr).difference(_PASSING)):
                if action in _FAILING and nr not in VITAL:
                    continue
                does = _FATAL.get(action) or _FAILING.get(action, f"does {action:#x}")
                return f"its system-call filter (seccomp) {does} at {NR(nr).name}, which Torpor must call in it"
    except bpf.Unreadable as unreadable:
        return f"it has a system-call filter (seccomp) that Torpor cannot evaluate: {unreadable}"
    return ""


# Restore

_SET_MODE_FILTER = 1
_FLAG_LOG, _FLAG_SPEC_ALLOW = 1 << 1, 1 << 2
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_FPROG = struct.Struct("<H6xQ")


def common(process: pb.Process) -> list[int]:
    """The filters that all threads of a process share, the oldest first.

    They must be the same objects after a restore: otherwise no thread can add a filter to all
    (SECCOMP_FILTER_FLAG_TSYNC).
    """
    chains = zip(*(thread.filters for thread in process.threads), strict=False)
    return [one[0] for one in takewhile(lambda numbers: len(set(numbers)) == 1, chains)]


def install(numbers: Sequence[int], filters: Sequence[pb.Filter]) -> Iterator[Call]:
    """Install filters, while the caller still has the privilege. Its tracer suspends them until the detach.

    What they once implied for speculation is not repeated: each thread's choices are restored (thread_attributes.py).
    """
    for number in numbers:
        code = filters[number].code
        content = _FPROG.pack(len(code) // bpf.INSTRUCTION.size, _FPROG.size) + code
        flags = _FLAG_SPEC_ALLOW | filters[number].flags & _FLAG_LOG
        words = f"installing a system-call filter of {len(code) // bpf.INSTRUCTION.size} instructions"
        yield Call(NR.seccomp, (_SET_MODE_FILTER, flags, Struct(content, (8,))), 0, words)


class Filters(ThreadPart[None, None]):
    """A thread's own filters. The plan installs them: first those that all threads have (`common`), which it determines
    once for a process.
    """

    def ask(self, batch: Batch) -> None:
        """No calls: a tracer reads them (see `grab`)."""

    def describe(
        self, asked: None, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree
    ) -> None:
        """As indexes into the filters of the tree."""
        for one in answers.filters:
            message = pb.Filter(code=one.code, flags=one.flags)
            known = list(image.filters)
            if message not in known:
                image.filters.append(message)
                known.append(message)
            out.filters.append(known.index(message))

    def host(self) -> None:
        """The calls depend on nothing."""


def has_own(image: pb.Tree) -> bool:
    """Whether a thread has filters of its own: then the restorer must suspend them."""
    return bool(image.filters)


def validate_form(image: pb.Tree) -> Iterator[str]:
    """What in an image no checkpoint would have written."""
    for one in image.filters:
        count, rest = divmod(len(one.code), bpf.INSTRUCTION.size)
        if rest or not 0 < count <= _MAX_INSTRUCTIONS:
            yield f"a system-call filter has {len(one.code)} bytes"
    for process in image.processes:
        if any(number >= len(image.filters) for thread in process.threads for number in thread.filters):
            yield f"process {process.pid} has a system-call filter that is not there"


def validate(image: pb.Tree) -> Iterator[Reason]:
    """Only a restorer that can suspend filters can restore a tree's own."""
    if has_own(image) and not probe().read_filters:
        why = "it has system-call filters (seccomp) of its own, which only root outside of a container can restore"
        yield Reason("the tree", why, "restore it as root")


def warnings(image: pb.Tree) -> Iterator[str]:
    """How the filters around the tree differ from before, for the user."""
    before, here = image.host.filters, own()
    if before > here:
        yield f"the job was under {_filters(before)} (seccomp), and is under {here} here: it may do more than before"
    elif before < here:
        yield f"the job is under {_filters(here)} (seccomp) here, and was under {before}: calls that it makes may fail"
