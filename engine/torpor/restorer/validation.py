"""Validate an image for this host: find all reasons against a restore before anything is touched.

An image is untrusted input. Checked here is whatever the kernel would not refuse with a clear error.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from torpor.arch.x86_64 import NR
from torpor.errors import ImageDamaged, Reason, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import is_whole
from torpor.objects.fds import descriptors
from torpor.objects.memory import address_space, mapped_files, shared_memory, vdso
from torpor.objects.memory.mapped_code import MappedCode
from torpor.objects.paths import directories, own_places
from torpor.objects.paths.opener import Openers
from torpor.objects.paths.rollback import Rollback
from torpor.objects.process import (
    birth_order,
    host_requirements,
    seccomp,
    sharing,
)
from torpor.objects.registry import PROCESS_PARTS, THREAD_PARTS, TREE_PARTS
from torpor.probe import Probe
from torpor.procfs import PAGE
from torpor.remote.sys import try_syscall

T = TypeVar("T")
_LONGEST_PATH = 4096 + len(" (deleted)")
"""Bytes: PATH_MAX; the kernel reports no longer path."""
_LARGEST_FILE = (1 << 63) - 1
PR_GET_MDWE = 66
_REFUSE_EXEC_GAIN = 1
"""Alone, without PR_MDWE_NO_INHERIT: it is denied to children, too."""

_PATIENCE = 130.0
"""Seconds to wait for causes that pass. The kernel keeps a connection that has ended for 60 s (TCP_TIMEWAIT_LEN)."""
_CLOCK_SET_NS = 2_000_000_000
"""By how much the time at which a process began may seem to differ, as the clock is adjusted."""


def of_one_job(one: pb.Tree, other: pb.Tree) -> bool:
    """Whether two images are of one job, by its root's PID and beginning. Both are kept by a wake."""
    alike = abs(one.host.began_ns - other.host.began_ns) < _CLOCK_SET_NS
    return alike and one.processes[0].pid == other.processes[0].pid


def patiently(attempt: Callable[[], T], tell: Callable[[str], object] | None) -> T:
    """Validate an image. If all reasons against it pass by themselves, wait for that, and validate it again.

    Args:
        attempt: validates it; raises RestoreRefused.
        tell: called with a message before it waits.

    Raises:
        RestoreRefused: something does not pass.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return attempt()
        except RestoreRefused as error:
            if not error.passes_in or time.monotonic() + error.passes_in > end:
                raise
            first = error.reasons[0]
            if tell is not None:
                tell(f"waiting for up to {error.passes_in} s: {first.subject}: {first.why}")
            time.sleep(error.passes_in)


def living(image: pb.Tree) -> Iterator[pb.Process]:
    """Return the processes that were not zombies."""
    return (process for process in image.processes if not process.zombie)


def name_of(process: pb.Process) -> str:
    """Name a process of an image in messages."""
    comm = process.threads[0].name.decode(errors="replace") if process.threads else "?"
    return f"process {process.pid} ({comm})"


def validate(
    image: pb.Tree,
    snapshot: str,
    host: Probe,
    stdio: Sequence[int],
    *,
    files_as_they_are: bool = False,
    behind: Rollback | None = None,
    standing: bool = False,
    cpu: host_requirements.Cpu = "check",
) -> None:
    """Find what prevents a restore of an image on this host.

    Args:
        image: the image, which is not trusted.
        snapshot: the id of its snapshot.
        host: what this host can do.
        stdio: the descriptors that replace 0, 1 and 2.
        files_as_they_are: accept files that have changed since the checkpoint.
        behind: if files are to be rolled back, notes them, and accepts that they have changed.
        standing: the tree itself still lives; conflicts with it do not count.
        cpu: whether to refuse a processor without features by which programs may have chosen their code.

    Raises:
        RestoreRefused: this host cannot restore the image; the error lists every reason.
        ImageDamaged: the image contradicts itself.
    """
    _validate_names(image)
    _validate_ended(image)
    for process in living(image):
        _validate_process(process, image)
    openers = Openers(image)
    code = MappedCode(image, openers)
    reasons = list(host_requirements.validate(image, host, code, cpu))
    if not reasons:
        for process in living(image):
            for part in PROCESS_PARTS:
                reasons += part.validate(name_of(process), process)
            reasons += vdso.validate(
                name_of(process), process, vdso.host(), lambda one, name: code.with_word(one, name.encode() + b"\0")
            )
            reasons += address_space.validate_limits(name_of(process), process.memory)
        reasons += address_space.validate_commitment(image)
        reasons += _validate_file_size(image)
        reasons += seccomp.validate(image)
        for tree_part in TREE_PARTS:
            reasons += tree_part.validate(image)
        reasons += mapped_files.validate(image, openers)
        reasons += shared_memory.validate(image, openers)
        reasons += descriptors.validate(image, stdio, standing=standing)
        reasons += behind.look(image, openers) if behind else ()
        reasons += _validate_directories(image, openers)
        reasons += validate_abilities(host)
        birth_order.arrange(image, birth_order.UNKNOWN_PID)
    if files_as_they_are:
        reasons = [reason for reason in reasons if not reason.changed]
    if behind:
        reasons = [reason for reason in reasons if os.fsencode(reason.changed) not in behind.paths]
    if reasons:
        raise RestoreRefused(f"snapshot {snapshot} cannot be restored here", map(_with_choice, reasons))


def _validate_file_size(image: pb.Tree) -> Iterator[Reason]:
    """Check that RLIMIT_FSIZE allows the largest file that the restore has to make."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    sizes = [one.size for one in image.shared] + [one.size for one in image.bundles]
    largest = max(sizes, default=0)
    if limit != resource.RLIM_INFINITY and largest > limit:
        why = f"files may have at most {limit} bytes here, but shared memory or a file of the tree has {largest}"
        yield Reason("your limits", why, "raise the limit of the size of files (ulimit -f)")


def _with_choice(reason: Reason) -> Reason:
    """Add the option --files=as-they-are to the advice of a reason that is only a changed file."""
    if not reason.changed:
        return reason
    return replace(reason, advice=f"{reason.advice}, or take it as it is with --files=as-they-are")


def validate_abilities(host: Probe) -> Iterator[Reason]:
    """Yield what every restore needs, but the kernel or its administrator does not allow."""
    if host.sealed_mappings:
        yield Reason(
            "this kernel", "it seals the vDSO, so that it cannot be moved to its old address", "see `torpor doctor`"
        )
    elif not host.map_vdso:
        yield Reason("this kernel", "it cannot map a vDSO at a chosen address", "see `torpor doctor`")
    if try_syscall(NR.prctl, PR_GET_MDWE, 0, 0, 0, 0) == _REFUSE_EXEC_GAIN:
        why = "it may not have memory that is writable and executable (prctl PR_SET_MDWE), nor may what it wakes"
        yield Reason("this process", why, "wake it from a process without this restriction: execve does not end it")
    if host.cannot_wake and not (host.can_choose_pids or host.can_walk):
        yield Reason("this host", f"no capsule can be made here: {host.cannot_wake}", "see `torpor doctor`")


def _validate_names(image: pb.Tree) -> None:
    """Raise ImageDamaged if names, System V objects, filters, keys or page tables are not as in any checkpoint."""
    for file in image.files:
        if not _is_path(file.path):
            raise ImageDamaged(f"the image contradicts itself: the mapped file {file.path!r} has no path")
    objects = (
        *(part.validate_form(image) for part in TREE_PARTS),
        seccomp.validate_form(image),
        host_requirements.validate_form(image),
        _table_contradictions(image),
    )
    for why in chain.from_iterable(objects):
        raise ImageDamaged(f"the image contradicts itself: {why}")
    for shared in image.shared:
        outside = shared.kind == pb.SharedMemory.TMPFS and os.path.normpath(shared.name) != shared.name
        if b"\0" in shared.name or outside:
            raise ImageDamaged(f"the image contradicts itself: {shared.name!r} is not a name of shared memory")


def _is_path(path: bytes) -> bool:
    return path.startswith(b"/") and b"\0" not in path and len(path) <= _LONGEST_PATH


def _table_contradictions(image: pb.Tree) -> Iterator[str]:
    """Yield the errors in the page tables of shared memory and bundled files."""
    found = [(one.name, one.size, one.pages) for one in image.shared]
    found += [(one.path, one.size, one.pages) for one in image.bundles]
    for name, size, pages in found:
        if not is_whole(pages):
            yield f"the page table of {os.fsdecode(name)} has columns that differ in length"
        elif size > _LARGEST_FILE:
            yield f"{os.fsdecode(name)} has {size} bytes"
        elif any(start * PAGE >= size for start in pages.starts):
            yield f"{os.fsdecode(name)} has pages behind its end"


def _validate_process(process: pb.Process, image: pb.Tree) -> None:
    """Raise ImageDamaged if a process is not as a checkpoint writes it."""
    if why := next(_contradictions(process, image), ""):
        raise ImageDamaged(f"the image contradicts itself: {name_of(process)}: {why}")
    address_space.validate_form(name_of(process), process.memory)


def _validate_ended(image: pb.Tree) -> None:
    """Raise ImageDamaged if a zombie has what only a living process can have."""
    first = image.processes[0]
    if first.zombie:
        raise ImageDamaged("the image contradicts itself: the first process of the tree had ended")
    if first.shares_fds or first.shares_fs:
        raise ImageDamaged(
            "the image contradicts itself: the first process of the tree shares with a parent that is not in it"
        )
    for process in image.processes:
        if process.zombie and (process.HasField("memory") or process.fds or len(process.threads) != 1):
            raise ImageDamaged(
                f"the image contradicts itself: {name_of(process)}: it had ended, and has more than a name"
            )
        for contradiction in sharing.validate_form(process):
            raise ImageDamaged(f"the image contradicts itself: {name_of(process)}: {contradiction}")


def _contradictions(process: pb.Process, image: pb.Tree) -> Iterator[str]:
    if process.memory.exe >= len(image.files):
        yield f"its program is file {process.memory.exe}: there is none"
    for vma in process.memory.vmas:
        if vma.kind in (pb.Vma.FILE_PRIVATE, pb.Vma.FILE_SHARED) and vma.file >= len(image.files):
            yield f"the mapping at {vma.start:#x} is of file {vma.file}: there is none"
        if vma.kind in (pb.Vma.SHARED, pb.Vma.MEMORY_PRIVATE) and vma.shared >= len(image.shared):
            yield f"the mapping at {vma.start:#x} is of shared memory {vma.shared}: there is none"
    if process.root and not _is_path(process.root):
        yield "its root directory is not a path"
    if not _is_path(process.cwd):
        yield "its current directory is not a path"
    for part in PROCESS_PARTS:
        yield from part.validate_form(process)
    for thread in process.threads:
        if not 0 < thread.tid < birth_order.MAX_PID:
            yield f"it has a thread {thread.tid}"
        for thread_part in THREAD_PARTS:
            yield from (f"thread {thread.tid}: {why}" for why in thread_part.validate_form(thread))


def _validate_directories(image: pb.Tree, openers: Openers) -> Iterator[Reason]:
    known = set()
    for process in living(image):
        opener = openers.process(process)
        places = [("current", process.cwd, process.cwd_inode)]
        if process.root:
            places.append(("root", process.root, process.root_inode))
        for what, path, inode in places:
            if (path, opener) in known:
                continue
            known.add((path, opener))
            try:
                os.close(directories.enter(path, inode, opener))
            except OSError as error:
                if not (cause := own_places.why_missing(image, path, error, opener)):
                    continue
                why = f"it is the {what} directory of {name_of(process)}, and cannot be entered: {cause}"
                yield Reason(f"the directory {os.fsdecode(path)}", why, "create it again, and let this user enter it")
