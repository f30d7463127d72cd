"""The flags of a mapping as smaps prints them (VmFlags): what each means, and what Torpor does with it.

A flag that is in no table here is unknown, and is refused by its letters.

Documented in: Documentation/filesystems/proc.rst; the letters are in fs/proc/task_mmu.c, show_smap_vma_flags, here as
of Linux 5.10 to 7.0.
"""

from __future__ import annotations

import mmap
import os
from functools import cache
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.remote.sys import syscall, try_syscall

READ, WRITE, EXECUTE, SHARED = b"rd", b"wr", b"ex", b"sh"
MAY_WRITE = b"mw"
GROWS_DOWN = b"gd"
ACCOUNTED = b"ac"
NORESERVE = b"nr"
LOCKED = b"lo"
LOCKED_ON_FAULT = b"lf"
DROPPABLE = b"dp"
HUGETLB = b"ht"
DONTFORK = b"dc"
DONTEXPAND = b"de"
WIPEONFORK = b"wf"
WRITE_PROTECTED = b"uw"
MLOCK_ONFAULT = 1
MADV_HUGEPAGE, MADV_NOHUGEPAGE = 14, 15
NAMELESS = b"??"
"""Printed for each flag for which the kernel has no letters."""


class VmFlag(NamedTuple):
    """What a flag says about a mapping. Every kernel from 5.10 on prints it, unless `since` or `until` is set."""

    meaning: str
    advice: int = 0
    """The madvise(2) advice by which a restore sets it."""
    refused: bool = False
    since: str = ""
    """The first Linux that prints it."""
    until: str = ""
    """The last Linux that prints it."""


FLAGS = {
    READ: VmFlag("may be read"),
    WRITE: VmFlag("may be written"),
    EXECUTE: VmFlag("may be executed"),
    SHARED: VmFlag("shared"),
    b"mr": VmFlag("mprotect may make it readable"),
    MAY_WRITE: VmFlag("mprotect may make it writable"),
    b"me": VmFlag("mprotect may make it executable"),
    b"ms": VmFlag("its file may be written through it"),
    GROWS_DOWN: VmFlag("grows down, as a stack"),
    b"dw": VmFlag("its file may not be written (the kernel's own doing)", until="5.14"),
    LOCKED: VmFlag("locked in memory"),
    LOCKED_ON_FAULT: VmFlag("locked in memory when it is touched", since="6.2"),
    ACCOUNTED: VmFlag("counted as committed memory"),
    NORESERVE: VmFlag("made without a reservation of memory"),
    HUGETLB: VmFlag("huge pages of hugetlbfs"),
    b"sd": VmFlag("new since the dirty bits were cleared, as nearly every mapping is (CONFIG_MEM_SOFT_DIRTY)"),
    DROPPABLE: VmFlag("droppable", since="6.11"),
    b"gu": VmFlag("may have guard regions", since="6.19"),
    b"sr": VmFlag("read in sequence", advice=2),  # MADV_SEQUENTIAL
    b"rr": VmFlag("read at random", advice=1),  # MADV_RANDOM
    DONTFORK: VmFlag("not for children", advice=10),  # MADV_DONTFORK
    b"mg": VmFlag("equal pages may be merged", advice=12),  # MADV_MERGEABLE
    b"hg": VmFlag("huge pages are welcome", advice=MADV_HUGEPAGE),
    b"nh": VmFlag("no huge pages", advice=MADV_NOHUGEPAGE),
    b"dd": VmFlag("not in core dumps", advice=16),  # MADV_DONTDUMP
    WIPEONFORK: VmFlag("zero in children", advice=18),  # MADV_WIPEONFORK
    b"io": VmFlag("memory of a device", refused=True),
    b"pf": VmFlag("memory of a device", refused=True),
    b"mm": VmFlag("a mapping with pages of a device", refused=True),
    DONTEXPAND: VmFlag("a mapping that a driver has made", refused=True),
    b"ar": VmFlag("memory of a device whose caching is the driver's choice (VM_PAT)", refused=True),
    b"sf": VmFlag("a synchronous mapping of persistent memory (DAX)", refused=True),
    b"um": VmFlag("watched by a userfaultfd", refused=True),
    WRITE_PROTECTED: VmFlag("write-protected by a userfaultfd", refused=True),
    b"ui": VmFlag("watched by a userfaultfd", refused=True, since="5.13"),
    b"ss": VmFlag("a shadow stack", refused=True, since="6.6"),
    b"sl": VmFlag("sealed by mseal", refused=True, since="6.10"),
}
"""The flags of x86-64. Before Linux 5.6 there was also mp, before 4.0 nl."""

OTHER_PROCESSORS = {
    b"bt": "guarded against jumps into it (arm64's BTI)",
    b"mt": "memory with tags (arm64's MTE)",
}
"""Flags that only other processors have: refused."""

KEPT_FLAGS = frozenset(letters for letters, flag in FLAGS.items() if not flag.refused)
REFUSED_FLAGS = {letters: flag.meaning for letters, flag in FLAGS.items() if flag.refused}
ADVICE = {letters: flag.advice for letters, flag in FLAGS.items() if flag.advice}
HIDDEN_FROM_FORK = frozenset((DONTFORK, WIPEONFORK, LOCKED, HUGETLB))
"""Flags of mappings that are missing or different in a forked child (kernel/fork.c, dup_mmap). Huge pages are on the
list because the kernel takes them from a child when its parent writes to them and the pool is empty (mm/hugetlb.c,
unmap_ref_private).
"""


def is_locked_on_fault(flags: tuple[bytes, ...]) -> bool:
    """Whether pages of a locked mapping are locked only when they are touched (MLOCK_ONFAULT)."""
    return LOCKED_ON_FAULT in flags or (LOCKED in flags and NAMELESS in flags and _on_fault_is_nameless())


def reason(flags: tuple[bytes, ...]) -> str:
    """Why a mapping with these flags is not kept; empty if it is."""
    for flag in flags:
        if flag in KEPT_FLAGS or (flag == DONTEXPAND and HUGETLB in flags):
            continue
        if meaning := REFUSED_FLAGS.get(flag) or OTHER_PROCESSORS.get(flag):
            return f"it is {meaning}, which is not kept"
        if flag != NAMELESS:
            return f"it has the flag {flag.decode(errors='replace')!r} in smaps, which this version does not know"
        if not is_locked_on_fault(flags):
            return "it has a flag that this kernel has no letters for ('??' in smaps), so nobody can tell what it is"
    return ""


@cache
def _on_fault_is_nameless() -> bool:
    """Whether this kernel has no letters for MLOCK_ONFAULT (before Linux 6.2): tried on a page of our own."""
    address = syscall(NR.mmap, 0, procfs.PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    try:
        if try_syscall(NR.mlock2, address, procfs.PAGE, MLOCK_ONFAULT) != 0:
            return False
        found = procfs.flagged_mappings(os.getpid())
    finally:
        syscall(NR.munmap, address, procfs.PAGE)
    flags = next(vma.flags for vma in found if vma.mapping.start <= address < vma.mapping.end)
    return LOCKED in flags and NAMELESS in flags
