"""The plan of a restore, as data: the system calls of every process, each with its required result and a description.

Making a plan has no side effects, so a plan can be printed (`torpor restore --explain`) and tested without any
privilege. `torpor.restorer.execution` runs it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece, pieces
from torpor.objects.fds import descriptors, placement, posix_queues, ptys, signal_owners
from torpor.objects.fds.descriptors import Opened
from torpor.objects.fds.made_in_process import MadeInProcess
from torpor.objects.memory import address_space, copy_on_write, filling
from torpor.objects.memory.address_space import Sources
from torpor.objects.memory.copy_on_write import Peek, Room, Share
from torpor.objects.memory.vdso import Vdso
from torpor.objects.part import Stage, Step
from torpor.objects.process import (
    birth_order,
    credentials,
    limits,
    seccomp,
    security_labels,
    sharing,
    signals,
    threads,
    tree,
)
from torpor.objects.process.credentials import Rights
from torpor.objects.registry import CREDENTIALS, FILES, LIMITS, PROCESS_PARTS, THREAD_PARTS, TREE_PARTS, Part
from torpor.objects.sockets import buffers
from torpor.objects.sysv import segments
from torpor.procfs import PAGE
from torpor.remote.batch import Call
from torpor.store import BlockTable

SIGCHLD = 17
WALL = 0x40000000
WNOHANG, WUNTRACED = 1, 2
RLIMIT_CORE = 4
SCRATCH_SIZE = 8 << 20
"""Bytes of the scratch mapping: the interpreter, room for tables, and at its end what filling memory needs. Unused
pages cost nothing."""


@dataclass(frozen=True)
class Here:
    """What the plan must know of the host and namespaces where the tree will live."""

    init: int
    """The PID of init in the tree's PID namespace: 1 in a capsule."""
    vdso: Vdso
    hosts: Mapping[Part, Any]
    """For each part of processes, threads and trees, what its `host` returned."""
    room: Room
    """The room for memory that processes share copy-on-write."""
    init_program: bytes = b""
    """The path of the torpor-init that becomes each process."""
    joined: frozenset[int] = frozenset()
    """See `capsule.Setting`."""
    walk: bool = False
    """Whether the kernel assigns PIDs in order, since this user cannot choose them (`torpor.restorer.walk`)."""
    executes: bool = False
    """Whether each process executes its program while it is blank: this user cannot set its link /proc/PID/exe."""
    is_taken: Callable[[int], bool] = lambda _: False
    """Says whether a PID is not available where the tree will live."""

    @property
    def rights(self) -> Rights:
        """What the restorer may give to processes."""
        found: Rights = self.hosts[CREDENTIALS]
        return found


@dataclass(frozen=True)
class RestorerFds:
    """The numbers of the descriptors that the restoring process has opened for the tree, which inherits them."""

    opened: Opened
    sources: Sources
    directories: Mapping[int, int]
    """Current directories, by PID in the image."""
    roots: Mapping[int, int]
    """Root directories, by PID in the image, of processes that have changed theirs."""
    peek: Peek | None = None
    """Reads blocks, to find more memory that processes share."""

    @classmethod
    def imagined(cls, image: pb.Tree, blocks: BlockTable) -> RestorerFds:
        """Return a placeholder for each descriptor that a restore would open, for a plan that is not run."""
        number = descriptors.first_slot(image)
        anything: defaultdict[Any, int] = defaultdict(lambda: number)
        return cls(Opened(anything, anything), Sources(anything, anything, anything, blocks), anything, anything)


@dataclass
class ThreadPlan:
    """The calls of a thread, and its state when it begins to run."""

    image: pb.Thread
    calls: list[Call]
    last: list[Call]
    """Calls made after all others, by the `syscall` instruction in the vDSO, since no int3 may follow them."""


@dataclass
class ProcessPlan:
    """The calls of a process, in the order of the fields."""

    member: birth_order.Member
    program: int = 0
    """If it is to execute a program while it is blank, the descriptor of that; 0: no program, or that of its parent."""
    birth: list[Call] = field(default_factory=list)
    """In the blank process: the memory that its children inherit, its session and group, and the creation of its
    children in the order of `births`."""
    clones: list[Call] = field(default_factory=list)
    """On a walk (`torpor.restorer.walk`): the creation of its other threads, each when its id is the kernel's next."""
    build: list[Call] = field(default_factory=list)
    """The main thread makes the mappings, still empty, then the other threads unless a walk has made them."""
    fill: list[Call] = field(default_factory=list)
    """It fills memory, except for what was filled before the children were created."""
    content: list[Piece] = field(default_factory=list)
    """If that is much, the restorer fills it instead (`torpor.objects.memory.filling`)."""
    given_size: int = 0
    """Bytes that it fills before it creates its children."""
    fill_size: int = 0
    """Bytes that it fills after that."""
    layout: list[Call] = field(default_factory=list)
    """A helper that shares its memory, and has a capability that the process lacks, sets the memory layout."""
    process_state: list[Call] = field(default_factory=list)
    """The main thread restores all other process-wide state."""
    place: list[Call] = field(default_factory=list)
    """After `process_state` in all processes, the main thread gets the descriptors that it shares with its children.
    Other processes get theirs at the end of `process_state`."""
    share: list[Call] = field(default_factory=list)
    """After `process_state` and `place` in all processes, the main thread gets what others have opened, and sets
    descriptors up."""
    proc: list[tuple[str, str]] = field(default_factory=list)
    """Files of its /proc/PID that the restorer then writes, with their content."""
    end: list[Call] = field(default_factory=list)
    """A zombie makes these calls at its end, after the processes that are not of the tree have ended."""
    threads: list[ThreadPlan] = field(default_factory=list)
    """Each thread makes its own calls once all threads exist; main thread first."""

    @property
    def name(self) -> str:
        """The process's name in messages."""
        image = self.member.image
        if image is None:
            return f"the stand-in for process {self.member.pid}"
        return f"process {self.member.pid} ({image.threads[0].name.decode(errors='replace')})"


@dataclass
class Plan:
    """The plan of a whole tree. Init is the first process, parents come before their children."""

    processes: list[ProcessPlan]
    scratch: range
    warnings: list[str]
    by_init: list[list[Call]]
    """Init makes these calls before it creates any process, each list in its own table: objects of IPC namespaces."""
    last: list[Call]
    """Init and the stand-ins make these calls when all is built, to drop the restorer's privileges."""

    @property
    def size(self) -> int:
        """Bytes of memory that the plan fills."""
        return sum(process.given_size + process.fill_size for process in self.processes)

    def compared_blocks(self) -> set[int]:
        """The blocks that are compared with their hashes by whoever fills memory with them."""
        return {piece.block for process in self.processes for piece in process.content}

    def explain(self) -> str:
        """Return the plan as text, a line for each call: a newline in a name is written as ``\\n``."""
        return "\n".join(line.replace("\n", "\\n") for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"warning: {warning}" for warning in self.warnings)
        for calls in self.by_init:
            yield from _explain("init, first", calls)
        for process in self.processes:
            yield f"{process.name}:"
            if process.program:
                yield "  executes its program, and goes on as a blank process of it"
            yield from _explain("when it is created", process.birth)
            yield from _explain("when the kernel reaches the ids of its threads", process.clones)
            if process.member.adopter:
                adopter = process.member.adopter
                by = f"process {adopter.pid}" if adopter.image else "torpor-init"
                yield f"  ends once all processes exist: {by} adopts its children"
            lists = process.build, process.fill, process.layout, process.process_state, process.place, process.share
            built = [call for calls in lists for call in calls]
            yield from _explain("once all processes exist", built)
            if process.content:
                yield f"  the restorer fills {process.fill_size >> 20} MiB of its memory from the snapshot"
            yield from _explain("at its end", process.end)
            for thread in process.threads:
                yield from _explain(f"thread {thread.image.tid}", [*thread.calls, *thread.last])


def _explain(title: str, calls: list[Call]) -> Iterator[str]:
    if calls:
        yield f"  {title}:"
    for call in calls:
        yield f"    {NR(call.nr).name:<18} {call.words}"


def make(image: pb.Tree, here: Here, fds: RestorerFds) -> Plan:
    """Plan a restore.

    Raises:
        RestoreRefused: the processes cannot be created with their old relations.
        ImageDamaged: the image contradicts itself.
        RestoreFailed: the kernel has no way to restore something.
    """
    top = birth_order.arrange(image, here.init, here.joined, here.is_taken)
    room = SCRATCH_SIZE + segments.room(image)
    place = address_space.free_range([process.memory for process in image.processes], here.vdso, room)
    scratch = place[:SCRATCH_SIZE]  # System V segments are filled and attached behind it
    members = list(top.walk())
    own = MadeInProcess(image, next((member.pid for member in members if member.is_nobody), 0))
    sessions = {session.sid: session for session in image.sessions}
    shares = copy_on_write.find(top, image, fds.sources.blocks, here.vdso, here.room, fds.peek)
    if here.walk:
        # The order of creation is not known yet. A child unmaps what is not for it.
        shares = {pid: replace(share, heirs=frozenset()) for pid, share in shares.items()}
    if here.executes:
        _validate_inherited(members, image, shares)
    plans = [_plan_birth(member, shares.get(member.pid, Share()), sessions, image, fds, scratch) for member in members]
    for plan in plans:
        if plan.member.image is not None and not plan.member.image.zombie:
            plan.birth[:0] = _of_tree(plan.member.image, image, here)[Stage.BIRTH]
    warnings = [
        *fds.opened.warnings,
        *seccomp.warnings(image),
        *security_labels.warnings(image),
        *buffers.smaller(image),
    ]
    begun = {member.pid for member in members if member.leads_session}
    for plan in plans:
        if plan.member.image is not None and plan.member.image.zombie:
            _end(plan, plan.member, plan.member.image)
        elif plan.member.image is not None:
            share = shares.get(plan.member.pid, Share())
            _build(plan, plan.member.image, image, here, fds, scratch, own, share)
            if (nice := plan.member.image.autogroup_nice) and plan.member.image.sid in begun:
                begun.remove(plan.member.image.sid)
                if nice > 0 or here.rights.keep:
                    plan.proc.append(("autogroup", str(nice)))
                else:
                    warnings.append(f"{plan.name}: lowering the nice value of its session to {nice} needs a privilege")
            warnings += _warnings(plan.name, plan.member.image, here)
    by_init = [list(_segment(shared, scratch.stop, here, fds)) for shared in segments.segments(image)]
    for part in TREE_PARTS:
        by_init += part.by_init(image, here.hosts[part], owner=here.rights.keep)
    by_init += posix_queues.make(image, fds.opened.slots, here.rights.keep)
    last = [] if here.rights.keep else list(credentials.give_up())
    return Plan(plans, scratch, warnings, by_init, last)


def _validate_inherited(members: Iterable[birth_order.Member], image: pb.Tree, shares: Mapping[int, Share]) -> None:
    """Raise RestoreRefused if a process inherits memory from one of another program: what it executes would drop it."""
    programs: dict[int, int | None] = {}
    for member in members:
        above = programs.get(member.parent.pid) if member.parent else None
        lives = member.image is not None and not member.image.zombie
        programs[member.pid] = member.image.memory.exe if member.image and lives else above
        share = shares.get(member.pid, Share())
        if programs[member.pid] != above and share.hulls and not share.first:
            what = image.files[member.image.memory.exe].path if member.image else b""
            why = f"it shares memory with a process of another program than {os.fsdecode(what)}"
            raise RestoreRefused(
                "it cannot be woken here",
                [Reason(f"process {member.pid}", why, "see `torpor doctor`: user namespaces")],
            )


def _segment(shared: pb.SharedMemory, address: int, here: Here, fds: RestorerFds) -> Iterator[Call]:
    pages = shared.pages
    starts = [start + address // PAGE for start in pages.starts]
    there = pb.PageTable(starts=starts, counts=pages.counts, blocks=pages.blocks, skips=pages.skips)
    filling = address_space.fill(pieces(there), fds.sources, address - address_space.GAP)
    return segments.make(shared, address, filling, here.rights.keep)


def _plan_birth(
    member: birth_order.Member,
    share: Share,
    sessions: Mapping[int, pb.Session],
    image: pb.Tree,
    fds: RestorerFds,
    scratch: range,
) -> ProcessPlan:
    """Plan the calls that a process makes until all processes exist."""
    plan = ProcessPlan(member)
    if share.first:
        plan.birth += address_space.map_for_children(share.hulls, image, fds.sources, scratch)
    plan.birth += address_space.fill(share.given, fds.sources, scratch.stop - address_space.GAP)
    plan.given_size = sum(piece.size for piece in share.given) * PAGE
    plan.birth += _birth(member, sessions, fds.opened, share)
    return plan


def _birth(
    member: birth_order.Member, sessions: Mapping[int, pb.Session], opened: Opened, share: Share
) -> Iterator[Call]:
    yield from _create_children(member.early, share)
    if member.leads_session:
        yield Call(NR.setsid, (), member.pid, "starting a session")
        if member.pid in sessions:
            yield from ptys.take(sessions[member.pid], opened.terminals)
    late = member.births[len(member.early) :]
    yield from _create_children([child for child in late if child is not member.holder], share)
    if member.starts_group and not member.leads_session:
        yield Call(NR.setpgid, (0, 0), 0, "starting a process group")
    if member.holder:
        yield from _create_children([member.holder], share)


def _create_children(children: Iterable[birth_order.Member], share: Share) -> Iterator[Call]:
    """Create children, each with or without the shared memory; leaving it out costs nothing."""
    hidden = False
    for child in children:
        if share.heirs and hidden != (hidden := child.pid not in share.heirs):
            yield from address_space.exclude_from_fork(share.hulls, hidden=hidden)
        # A stand-in that only holds a process group for a moment ends without a signal to its parent.
        exit_signal = 0 if child.only_group else _exit_signal(child)
        flags = sharing.clone_flags(child.image) if child.image else 0
        yield threads.clone(flags, exit_signal, child.pid, f"starting process {child.pid}")
    if hidden:
        yield from address_space.exclude_from_fork(share.hulls, hidden=False)


def _exit_signal(member: birth_order.Member) -> int:
    """The signal that a process's parent gets at its end."""
    return member.image.exit_signal - 1 if member.image and member.image.exit_signal else SIGCHLD


def _join(member: birth_order.Member) -> Iterator[Call]:
    if member.pgid and member.pgid != member.pid:
        yield Call(NR.setpgid, (0, member.pgid), 0, f"joining process group {member.pgid}")


def _wait_for_stop(pid: int) -> Call:
    return Call(NR.wait4, (pid, 0, WUNTRACED | WNOHANG | WALL, 0), pid, f"waiting for the stop of process {pid}")


def _reap(member: birth_order.Member) -> Iterator[Call]:
    """Reap those of its children that only held a process group."""
    for child in member.heirs:
        if child.only_group:
            yield Call(NR.wait4, (child.pid, 0, WALL, 0), child.pid, f"reaping the stand-in for {child.pid}")


def _end(plan: ProcessPlan, member: birth_order.Member, process: pb.Process) -> None:
    plan.build += _join(member)
    plan.end += _reap(member)
    name = process.threads[0].name[:15] + b"\0"
    plan.end.append(Call(NR.prctl, (threads.PR_SET_NAME, name), 0, "setting its name"))
    plan.end.append(Call(NR.prlimit64, (0, RLIMIT_CORE, bytes(16), 0), 0, "leaving no core dump"))
    if (status := process.exit_status) & 0x7F == 0:
        words = f"ending with the exit status {status >> 8}"
        plan.end.append(Call(NR.exit_group, (status >> 8,), 0, words))


def _build(
    plan: ProcessPlan,
    process: pb.Process,
    image: pb.Tree,
    here: Here,
    fds: RestorerFds,
    scratch: range,
    own: MadeInProcess,
    share: Share,
) -> None:
    build = plan.build
    member = plan.member
    plan.program = fds.sources.files[process.memory.exe] if here.executes else 0
    build += _join(member)
    build += limits.widening(here.hosts[LIMITS])
    written = address_space.with_pages(process.memory)
    build += address_space.restore_calls(
        process, image, fds.sources, here.vdso, scratch, written, share.kept, share.stale
    )
    shared = seccomp.common(process)
    build += seccomp.install(shared, image.filters)  # its threads inherit them
    (plan.clones if here.walk else build).extend(map(threads.birth, process.threads[1:]))
    pieces = list(copy_on_write.remaining_pages(share, process.memory.pages))
    plan.fill_size = sum(piece.size for piece in pieces) * PAGE
    if plan.fill_size < filling.LARGE:
        plan.fill += address_space.fill(pieces, fds.sources, scratch.stop - address_space.GAP)
    else:
        plan.content = pieces
    is_init = image.files[process.memory.exe].path == here.init_program
    layout = address_space.layout(process.memory, fds.sources, keeps_link=is_init or here.executes)
    (plan.layout if here.walk and not here.executes else plan.process_state).append(layout)
    plan.process_state += address_space.last_calls(process.memory, written)
    parts = _by_stage(step for part in PROCESS_PARTS for step in part.calls(process, here.hosts[part]))
    root = fds.roots[process.pid] if process.root else -1
    plan.process_state += tree.restore_calls(process, fds.directories[process.pid], root)
    plan.process_state += parts[Stage.PROCESS]
    plan.process_state += ptys.restore_calls(process, image, fds.opened.terminals)
    # Processes that share a table still use the restorer's descriptors in it until all have their process state.
    lends = any(child.image and child.image.shares_fds for child in member.heirs)
    place = plan.place if lends else plan.process_state
    if not process.shares_fds:
        place += placement.placing(process, own, fds.opened)
        place += placement.closing(process, own)
        place += own.opening(process)
    plan.share += own.restore_calls(process)
    plan.share += signal_owners.restore_calls(process, image)
    plan.proc += FILES.files(process, here.hosts[FILES])
    for thread in process.threads:
        each = _by_stage(step for part in THREAD_PARTS for step in part.calls(thread, process, image, here.hosts[part]))
        calls = each[Stage.THREAD]
        last = each[Stage.RELEASE]
        if thread.tid == process.pid:
            calls += _reap(member)
            calls += [_wait_for_stop(child.pid) for child in member.heirs if child.image and child.image.stop_told]
            calls += _of_tree(process, image, here)[Stage.ALL_THREADS]
            ended = {_exit_signal(child) for child in member.heirs if child.image and child.image.zombie}
            calls += [call for sent in sorted(ended - {0, SIGCHLD}) for call in signals.discard(sent)]
            calls += parts[Stage.ALL_THREADS]
            last = parts[Stage.RELEASE] + last
        calls += each[Stage.BEFORE_CREDENTIALS]
        calls += seccomp.install(thread.filters[len(shared) :], image.filters)
        calls += each[Stage.CREDENTIALS]
        calls += parts[Stage.AFTER_CREDENTIALS] + each[Stage.AFTER_CREDENTIALS]
        plan.threads.append(ThreadPlan(thread, calls, last))


def _of_tree(process: pb.Process, image: pb.Tree, here: Here) -> Mapping[Stage, list[Call]]:
    """The calls by which a process restores state that all processes of the tree share."""
    keep = here.rights.keep
    return _by_stage(step for part in TREE_PARTS for step in part.calls(process, image, here.hosts[part], owner=keep))


def _by_stage(steps: Iterable[Step]) -> Mapping[Stage, list[Call]]:
    found: defaultdict[Stage, list[Call]] = defaultdict(list)
    for stage, call in steps:
        found[stage].append(call)
    return found


def _warnings(name: str, process: pb.Process, here: Here) -> Iterator[str]:
    """Yield warnings of what will not be as before in a process and its threads."""
    for part in PROCESS_PARTS:
        yield from (f"{name}: {words}" for words in part.warnings(process, here.hosts[part]))
    for thread in process.threads:
        for thread_part in THREAD_PARTS:
            words_of_thread = thread_part.warnings(thread, here.hosts[thread_part])
            yield from (f"{name}, thread {thread.tid}: {words}" for words in words_of_thread)
