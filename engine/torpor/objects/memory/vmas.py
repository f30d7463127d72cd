"""The mappings (VMAs) of a process, and which of them are unsupported. Pages: process_memory.py and shared_memory.py.

Kept: private anonymous memory, heap and stacks, private and shared file mappings, shared memory, protections, growing
stacks, MADV flags, guard regions, locks (mlock, MLOCK_ONFAULT, MCL_FUTURE), NORESERVE, names of anonymous areas,
private huge pages of hugetlbfs, the vDSO. Droppable memory comes back empty: the kernel may empty it at any time.

Refused by name: every VmFlag that is not in the tables of vm_flags.py and every special mapping that is not in those
below: device memory, shared huge pages of hugetlbfs, userfaultfd ranges, shadow stacks, sealed mappings, secret memory,
protection keys, guard regions in shared memory, io_uring rings.

Documented in: Documentation/filesystems/proc.rst (VmFlags), madvise(2), vdso(7).
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence

from torpor.arch.x86_64 import TASK_SIZE
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.memory import vdso, vm_flags
from torpor.objects.memory.vm_flags import DROPPABLE, HIDDEN_FROM_FORK, HUGETLB, WRITE_PROTECTED
from torpor.objects.paths import file_names
from torpor.objects.sysv import segments
from torpor.procfs import PAGE, FlaggedMapping, Mapping, flagged_mappings
from torpor.remote.memory import PageMap

DELETED = file_names.DELETED.encode()
PRIVATE = (pb.Vma.ANONYMOUS, pb.Vma.FILE_PRIVATE, pb.Vma.MEMORY_PRIVATE)
"""The kinds of mappings that can have pages of the process's own."""
_KERNEL_OWN = frozenset((*vdso.NAMES, b"[vsyscall]"))
_DEV_ZERO = b"/dev/zero"
_ANONYMOUS_NAMES = (b"", b"[heap]", b"[stack]", _DEV_ZERO)
_NAMED_ANONYMOUS = (b"[anon:", b"[anon_shmem:")
_ANONYMOUS_HUGE = b"/anon_hugepage" + DELETED


def is_special(mapping: Mapping) -> bool:
    """Whether the kernel itself made it: the vDSO and its data."""
    return mapping.name in _KERNEL_OWN


def is_anonymous(mapping: Mapping) -> bool:
    """Whether it is private memory without a file. A mapping of /dev/zero is, despite its name (mmap_zero)."""
    if mapping.shared or (mapping.inode and mapping.name != _DEV_ZERO):
        return False
    return mapping.name in _ANONYMOUS_NAMES or mapping.name.startswith(b"[anon:")


def is_huge(mapping: Mapping) -> bool:
    """Whether it is private memory of huge pages of hugetlbfs."""
    return mapping.name == _ANONYMOUS_HUGE


def was_file(vma: FlaggedMapping) -> bool:
    """Whether the file of a private mapping is gone, so that also its unwritten pages must be kept."""
    return not is_anonymous(vma.mapping) and HUGETLB not in vma.flags


def hides_from_fork(vma: FlaggedMapping) -> bool:
    """Whether a forked child would lack a mapping, its content or one of its flags."""
    return DROPPABLE not in vma.flags and not HIDDEN_FROM_FORK.isdisjoint(vma.flags)


def is_deleted(mapping: Mapping) -> bool:
    """Whether its file has no name any more."""
    return file_names.is_gone(mapping.name, mapping.inode)


def anonymous_name(mapping: Mapping) -> bytes:
    """The name set by PR_SET_VMA_ANON_NAME; empty if there is none."""
    for prefix in _NAMED_ANONYMOUS:
        if mapping.name.startswith(prefix):
            return mapping.name[len(prefix) : -1]
    return b""


def protection(mapping: Mapping) -> int:
    """The PROT_* flags of a mapping."""
    perms = mapping.perms
    return (
        mmap.PROT_READ * (perms[:1] == b"r")
        | mmap.PROT_WRITE * mapping.writable
        | mmap.PROT_EXEC * (perms[2:3] == b"x")
    )


def unsupported(name: str, pid: int, vmas: Sequence[FlaggedMapping]) -> list[Reason]:
    """Why an address space cannot be kept.

    Args:
        name: the process, for messages.
        pid: the process.
        vmas: its mappings.
    """
    reasons = [Reason(name, f"{why}, which is not kept")] if (why := _vdso_reason(pid, vmas)) else []
    noted = _only_noted(pid, [vma.mapping for vma in vmas if WRITE_PROTECTED in vma.flags])
    for vma in vmas:
        mapping = vma.mapping
        if is_special(mapping):
            continue
        flags = vma.flags
        if WRITE_PROTECTED in flags and mapping in noted:
            flags = tuple(flag for flag in flags if flag != WRITE_PROTECTED)
        why = _special_reason(mapping) or vm_flags.reason(flags) or _page_reason(vma)
        if why:
            subject = f"{name}, mapping {mapping.start:#x}-{mapping.end:#x} {os.fsdecode(mapping.name)}".rstrip()
            reasons.append(Reason(subject, why))
    return reasons


def _vdso_reason(pid: int, found: Sequence[FlaggedMapping]) -> str:
    return vdso.unsupported(pid, [vma.mapping for vma in found if vma.mapping.name in vdso.NAMES], vdso.host())


def _only_noted(pid: int, watched: Sequence[Mapping]) -> set[Mapping]:
    """Write-protected mappings whose writes the kernel records without stopping the process: those of a series."""
    if not watched:
        return set()
    with PageMap(pid) as pages:
        noted = {m for m in watched if pages.written(m.start, m.start + PAGE, again=False) is not None}
    if len(noted) == len(watched):
        return noted
    # The process runs: another mapping may have this address since its flags were read.
    still = {vma.mapping for vma in flagged_mappings(pid) if WRITE_PROTECTED in vma.flags}
    return noted.union(set(watched).difference(still))


def _page_reason(vma: FlaggedMapping) -> str:
    if vma.mapping.end > TASK_SIZE + PAGE:
        return "it lies above 47 bits, which not every host has, and is not kept"
    if vma.protection_key:
        return f"it has the protection key {vma.protection_key} (pkey_mprotect, or memory for execution only), not kept"
    if HUGETLB in vma.flags and (vma.mapping.shared or vma.mapping.name != _ANONYMOUS_HUGE):
        return "it has huge pages of hugetlbfs that are shared or of a file, which are not kept: only private ones are"
    return ""


def _special_reason(mapping: Mapping) -> str:
    name = mapping.name
    if mapping.inode == 0 and not is_anonymous(mapping) and not segments.is_segment(mapping):  # the first one's id is 0
        return "the kernel's name for it is not one that this version knows"
    if name.startswith(b"anon_inode:"):
        return f"it belongs to {os.fsdecode(name[11:])}, which is not kept"
    if name == b"/secretmem" + DELETED:
        return "it is secret memory (memfd_secret), which nobody else may read"
    if name not in (_DEV_ZERO, _DEV_ZERO + DELETED) and (_lies_in_dev(name) or _is_device(name, mapping.inode)):
        return "it maps a device, which is not kept"
    if mapping.inode and not name.startswith(b"/"):
        return "it maps an object without a path, which this version does not know"
    return ""


def _lies_in_dev(name: bytes) -> bool:
    return name.startswith(b"/dev/") and not name.startswith((b"/dev/shm/", b"/dev/hugepages/"))


def _is_device(name: bytes, inode: int) -> bool:
    """Whether a mapped file is a device, which may have any name."""
    if not inode or not name.startswith(b"/"):
        return False
    try:
        status = os.stat(name)
    except (OSError, ValueError):  # it has no name, or not in our mount namespace
        return False
    return status.st_ino == inode and not stat.S_ISREG(status.st_mode)
