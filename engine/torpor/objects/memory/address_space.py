"""Restore of a process's address space: mappings, pages, layout, vDSO. vmas.py and process_memory.py dump it.

Documented in: mmap(2), prctl(2) on PR_SET_MM_MAP, vdso(7); ARCH_MAP_VDSO_64 is in arch/x86/include/uapi/asm/prctl.h.
"""

from __future__ import annotations

import errno
import mmap
import resource
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter

from torpor import procfs
from torpor.arch.x86_64 import NR, TASK_SIZE
from torpor.errors import ImageDamaged, Reason, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece, is_whole
from torpor.objects.memory import vdso, vmas
from torpor.objects.memory.mapped_files import Mapped
from torpor.objects.memory.vm_flags import MADV_HUGEPAGE, MLOCK_ONFAULT
from torpor.objects.sysv import segments
from torpor.procfs import PAGE
from torpor.remote.batch import Call, Struct
from torpor.remote.sys import syscall, try_syscall
from torpor.store import BlockTable
from torpor.util.ranges import Range, subtract, union

MAP_DROPPABLE = 0x8
MAP_GROWSDOWN = 0x100
MAP_NORESERVE = 0x4000
MAP_HUGETLB = 0x40000
MAP_HUGE_SHIFT = 26
MAP_FIXED_NOREPLACE = 0x100000
MADV_DONTNEED, MADV_DONTFORK, MADV_DOFORK = 4, 10, 11
MADV_GUARD_INSTALL = 102
PR_SET_MM, PR_SET_MM_MAP = 35, 14
PR_SET_VMA, PR_SET_VMA_ANON_NAME = 0x53564D41, 0

_NO_FILE = 0xFFFFFFFF
_MM_MAP = struct.Struct("<11QQII")  # struct prctl_mm_map (include/uapi/linux/prctl.h)
_AUXV_POINTER = 88  # offset in it
IOV_MAX = 1024
MAX_READ = 32 << 20
"""Approximate bytes per read: small enough that results come regularly and several threads share the work."""
AT_ONCE = 256 << 20
"""Bytes of committed memory per mmap call. The kernel refuses a single call for more than the host's total memory, but
not several calls (vm.overcommit_memory=0; mm/util.c, __vm_enough_memory). It merges the parts into one mapping.
"""
MOST_PIECES = 4096
"""The most parts for one mapping: 4096 parts of `AT_ONCE` are a terabyte."""
GAP = 16 * PAGE
"""The largest gap between two blocks that one read spans, in bytes: reading more would take longer than another call.
"""


@dataclass(frozen=True)
class Sources:
    """The descriptors of everything that is mapped, and the locations of blocks."""

    files: Mapping[int, int]
    shared: Mapping[int, int]
    packs: Mapping[int, int]
    blocks: BlockTable
    for_reading: Mapping[Mapped, int] = field(default_factory=dict)
    """Read-only descriptors, for files and memory that are also mapped writable."""


def validate_form(name: str, space: pb.AddressSpace) -> None:
    """Check what the kernel would not refuse by itself.

    Raises:
        ImageDamaged: mappings overlap or lie outside of the address space, or pages lie outside of mappings.
    """
    end = 0
    for vma in space.vmas:
        if vma.start < max(end, PAGE) or vma.end <= vma.start or vma.end > TASK_SIZE or (vma.start | vma.end) % PAGE:
            raise ImageDamaged(f"{name}: the mapping {vma.start:#x}-{vma.end:#x} is not possible")
        end = vma.end
    table = space.pages
    if len(space.guards.starts) != len(space.guards.counts):
        raise ImageDamaged(f"{name}: its list of guard regions has columns that differ in length")
    if any((start + count) * PAGE > TASK_SIZE for start, count in _runs(space.guards)):
        raise ImageDamaged(f"{name}: it has a guard region outside of its address space")
    if not is_whole(table):
        raise ImageDamaged(f"{name}: its page table's columns differ in length")
    holes = space.vdso_holes
    if len(holes.starts) != len(holes.counts):
        raise ImageDamaged(f"{name}: its list of unmapped parts of the vDSO has columns that differ in length")


def validate_limits(name: str, space: pb.AddressSpace) -> Iterator[Reason]:
    """Say which limits of this process and of the host the mappings of an image exceed."""
    data = [v for v in space.vmas if v.kind in vmas.PRIVATE and v.prot & mmap.PROT_WRITE and not v.grows_down]
    locked = [vma for vma in space.vmas if vma.locked and not procfs.is_root()]
    for number, option, what, found in (
        (resource.RLIMIT_AS, "v", "all of its memory", space.vmas),
        (resource.RLIMIT_DATA, "d", "its private memory", data),
        (resource.RLIMIT_MEMLOCK, "l", "its locked memory", locked),
    ):
        hard = resource.getrlimit(number)[1]
        size = sum(vma.end - vma.start for vma in found)
        if size > hard != resource.RLIM_INFINITY:
            why = f"{what} is {size >> 10} KiB, and this process may have {hard >> 10} KiB"
            yield Reason(name, why, f"raise the hard limit (ulimit -H{option})")
    most = int(procfs.read("/proc/sys/vm/max_map_count"))
    if len(space.vmas) > most:
        why = f"it has {len(space.vmas)} mappings, and this host allows {most}"
        yield Reason(name, why, "raise vm.max_map_count there")


def validate_commitment(image: pb.Tree) -> Iterator[Reason]:
    """Say whether a host that does not overcommit memory (vm.overcommit_memory=2) has too little memory for a tree.

    Such a host counts what is mapped, touched or not.
    """
    if procfs.read("/proc/sys/vm/overcommit_memory").strip() != b"2":
        return
    host = procfs.status(procfs.read("/proc/meminfo"))
    free = (int(host[b"CommitLimit"].split()[0]) - int(host[b"Committed_AS"].split()[0])) << 10
    private = (vma for process in image.processes for vma in process.memory.vmas if vma.kind in vmas.PRIVATE)
    promised = (vma for vma in private if vma.prot & mmap.PROT_WRITE and not (vma.droppable or vma.huge_page))
    needed = sum(vma.end - vma.start for vma in promised)
    if needed > free:
        why = f"it does not overcommit memory (vm.overcommit_memory=2) and can still commit {max(free, 0) >> 20} MiB"
        yield Reason("this host", f"{why}; the tree has mapped {needed >> 20} MiB", "wake it where there is more")


def map_for_children(hulls: Iterable[pb.Vma], image: pb.Tree, sources: Sources, scratch: range) -> Iterator[Call]:
    """Give a blank process mappings that its descendants will inherit. Besides them it keeps only torpor-init."""
    yield from clear(scratch, [INIT])
    for hull in hulls:
        yield from _map(hull, image, sources, writable=True)


def exclude_from_fork(hulls: Iterable[pb.Vma], *, hidden: bool) -> Iterator[Call]:
    """Exclude these mappings from the next forks, or include them again."""
    for hull in hulls:
        words = f"{'excluding' if hidden else 'including'} {_where(hull)} {'from' if hidden else 'in'} the next forks"
        advice = MADV_DONTFORK if hidden else MADV_DOFORK
        yield Call(NR.madvise, (hull.start, hull.end - hull.start, advice), 0, words)


def restore_calls(
    process: pb.Process,
    image: pb.Tree,
    sources: Sources,
    here: vdso.Vdso,
    scratch: range,
    written: Sequence[bool],
    kept: Sequence[Range] = (),
    stale: Iterable[Range] = (),
) -> Iterator[Call]:
    """Give a process the mappings of its image, except inherited ones. Those that get pages are writable for now.

    Args:
        process: of the image.
        image: the tree.
        sources: of what is mapped.
        here: this host's vDSO.
        scratch: the blank process's scratch mapping.
        written: for each mapping, whether it gets pages.
        kept: inherited mappings that stay, which are readable and writable.
        stale: ranges of the `kept` mappings with inherited pages that this process does not have.
    """
    space = process.memory
    yield from clear(scratch, kept)
    for start, end in stale:
        words = f"dropping inherited pages at {start:#x}-{end:#x}"
        yield Call(NR.madvise, (start, end - start, MADV_DONTNEED), 0, words)
    yield from vdso.restore_calls(process, here)
    yield from segments.attach(space, image, scratch.stop)
    there = set(kept)
    for vma, has_pages in zip(space.vmas, written, strict=True):
        if (vma.start, vma.end) in there:
            prot = vma.prot | mmap.PROT_WRITE
            if prot != mmap.PROT_READ | mmap.PROT_WRITE:
                yield Call(NR.mprotect, (vma.start, vma.end - vma.start, prot), 0, f"protecting {_where(vma)}")
        elif not segments.is_attached(vma, image):
            yield from _map(vma, image, sources, writable=has_pages)


def advise_huge(mappings: Iterable[Range]) -> Iterator[Call]:
    """Ask for huge pages before mappings are filled; a kernel without them is asked in vain."""
    for start, end in mappings:
        words = f"asking for huge pages at {start:#x}-{end:#x}"
        yield Call(NR.madvise, (start, end - start, MADV_HUGEPAGE), 0, words)


def last_calls(space: pb.AddressSpace, written: Sequence[bool]) -> Iterator[Call]:
    """The calls when all pages are restored: protections, advice, guard regions, locks."""
    for vma, has_pages in zip(space.vmas, written, strict=True):
        yield from _finish(vma, has_pages)
    for start, count in _runs(space.guards):
        words = f"guarding {start * PAGE:#x}-{(start + count) * PAGE:#x}"
        yield Call(NR.madvise, (start * PAGE, count * PAGE, MADV_GUARD_INSTALL), 0, words)
    guards = [(start * PAGE, (start + count) * PAGE) for start, count in _runs(space.guards)]
    for vma in filter(lambda vma: vma.locked, space.vmas):
        guarded = [guard for guard in guards if vma.start < guard[1] and guard[0] < vma.end]
        flags = MLOCK_ONFAULT if vma.locked_on_fault else 0
        yield _lock(vma, (vma.start, vma.end), flags, whole=not guarded)
        if guarded and not flags:  # the kernel stopped touching pages at the first guard region
            yield from (_lock(vma, piece, 0) for piece in subtract([(vma.start, vma.end)], guarded))
    if space.lock_future:
        yield Call(NR.mlockall, (space.lock_future,), 0, "locking what will be mapped in memory")


def clear(scratch: range, kept: Iterable[Range]) -> Iterator[Call]:
    """Unmap everything but the scratch mapping and `kept`.

    First set the addresses of its arguments and its environment, which were on torpor-init's stack, to the scratch
    mapping. Otherwise, if ps(1) reads them while the process's own stack lies above them by less than the stack limit,
    the kernel lets that stack grow down to them (mm/memory.c, __access_remote_vm(), 6.5).
    """
    at = scratch.start
    content = _MM_MAP.pack(at, at + PAGE, at, at, at + PAGE, at + PAGE, *[at] * 5, 0, 0, _NO_FILE)
    arguments = (PR_SET_MM, PR_SET_MM_MAP, content, _MM_MAP.size, 0)
    yield Call(NR.prctl, arguments, 0, "dropping torpor-init's arguments")
    for start, end in subtract([(0, TASK_SIZE)], union([(scratch.start, scratch.stop), *kept])):
        yield Call(NR.munmap, (start, end - start), 0, "unmapping what is not the process's own")


def with_pages(space: pb.AddressSpace) -> list[bool]:
    """For each mapping, whether it gets pages of the image."""
    starts = [vma.start // PAGE for vma in space.vmas]
    ends = [vma.end // PAGE for vma in space.vmas]
    found = [False] * len(starts)
    at = -1
    for start, count in zip(space.pages.starts, space.pages.counts, strict=True):
        page, stop = start, start + count
        if at < 0 or not starts[at] <= page < ends[at]:  # usually the same mapping as before
            at = bisect_right(starts, page) - 1
        while page < stop:
            if not 0 <= at < len(starts) or not starts[at] <= page < ends[at]:
                raise ImageDamaged(f"the page at {page * PAGE:#x} lies in no mapping")
            found[at] = True
            page = ends[at]
            at += page < stop
    return found


def _where(vma: pb.Vma) -> str:
    return f"{vma.start:#x}-{vma.end:#x}"


def _runs(table: pb.PageRuns) -> Iterator[tuple[int, int]]:
    return zip(table.starts, table.counts, strict=True)


def _lock(vma: pb.Vma, piece: Range, flags: int, *, whole: bool = True) -> Call:
    """Lock a range, which also touches its pages.

    Pages that may not be touched, such as guard regions and pages behind the end of a file, do not prevent the lock,
    but the call returns ENOMEM (mm/mlock.c, do_mlock and __mlock_posix_error_return).

    Args:
        vma: the mapping.
        piece: the range in it.
        flags: of mlock2(2).
        whole: the range has no guard region.
    """
    start, end = piece
    touchable = whole and vma.prot and vma.kind == pb.Vma.ANONYMOUS
    result = 0 if touchable else (lambda got: got in (0, -errno.ENOMEM))
    return Call(NR.mlock2, (start, end - start, flags), result, f"locking {start:#x}-{end:#x} in memory")


def _map(vma: pb.Vma, image: pb.Tree, sources: Sources, *, writable: bool) -> Iterator[Call]:
    flags = MAP_FIXED_NOREPLACE
    if vma.grows_down:
        flags |= MAP_GROWSDOWN
    if vma.noreserve:
        flags |= MAP_NORESERVE
    fd, offset = -1, vma.offset
    if vma.kind == pb.Vma.ANONYMOUS:
        flags |= mmap.MAP_ANONYMOUS | (MAP_DROPPABLE if vma.droppable and _has_droppable() else mmap.MAP_PRIVATE)
        what, offset = "memory", 0
        if vma.huge_page:
            flags |= MAP_HUGETLB | (vma.huge_page.bit_length() - 1) << MAP_HUGE_SHIFT
    elif vma.kind in (pb.Vma.FILE_PRIVATE, pb.Vma.FILE_SHARED):
        flags |= mmap.MAP_PRIVATE if vma.kind == pb.Vma.FILE_PRIVATE else mmap.MAP_SHARED
        fd = sources.files[vma.file]
        if not vma.may_write:
            fd = sources.for_reading.get((vma.kind, vma.file), fd)
        what = image.files[vma.file].path.decode(errors="replace")
    elif vma.kind in (pb.Vma.SHARED, pb.Vma.MEMORY_PRIVATE):
        flags |= mmap.MAP_SHARED if vma.kind == pb.Vma.SHARED else mmap.MAP_PRIVATE
        fd = sources.shared[vma.shared]
        if not vma.may_write:
            fd = sources.for_reading.get((vma.kind, vma.shared), fd)
        what = "shared memory"
    else:
        raise ImageDamaged(f"the mapping {_where(vma)} is of a kind that this version does not know")
    prot = vma.prot | (mmap.PROT_WRITE if writable else 0)
    words = f"mapping {what} at {_where(vma)}"
    step = vma.end - vma.start
    if not flags & (MAP_NORESERVE | MAP_GROWSDOWN | MAP_HUGETLB | mmap.MAP_SHARED) and prot & mmap.PROT_WRITE:
        step = max(AT_ONCE, procfs.page_up(step // MOST_PIECES))
    for start in range(vma.start, vma.end, step):
        size = min(step, vma.end - start)
        yield Call(NR.mmap, (start, size, prot, flags, fd, offset + start - vma.start), start, words)


@cache
def _has_droppable() -> bool:
    """Whether this kernel knows MAP_DROPPABLE (6.11). If not, what it could drop becomes memory that it never drops:
    the mapping's advice says that children see zeros, and that core dumps do not have it.
    """
    address = try_syscall(NR.mmap, 0, PAGE, mmap.PROT_READ, MAP_DROPPABLE | mmap.MAP_ANONYMOUS, -1, 0)
    if address < 0:
        return False
    syscall(NR.munmap, address, PAGE)
    return True


def _finish(vma: pb.Vma, has_pages: bool) -> Iterator[Call]:
    size = vma.end - vma.start
    if has_pages and not vma.prot & mmap.PROT_WRITE:
        yield Call(NR.mprotect, (vma.start, size, vma.prot), 0, f"protecting {_where(vma)}")
    for advice in vma.advice:
        yield Call(NR.madvise, (vma.start, size, advice), 0, f"giving {_where(vma)} the advice {advice}")
    if vma.name:
        yield Call(
            NR.prctl,
            (PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma.start, size, vma.name + b"\0"),
            0,
            f"naming {_where(vma)}",
        )


def fill(wanted: Iterable[Piece], sources: Sources, spare: int) -> Iterator[Call]:
    """Read pages from the packs to their addresses, with as few calls as possible.

    They are read in the order of the packs: pages written in one checkpoint of a series are scattered in memory, but
    adjacent in a pack.

    Args:
        wanted: the addresses of pages, and their blocks.
        sources: the packs.
        spare: the address of `GAP` bytes, into which gaps between blocks are read.
    """
    blocks = sources.blocks
    packs, offsets, lengths = blocks.packs, blocks.offsets, blocks.lengths
    rows: list[tuple[int, int, int, int]] = []
    for page, count, block, skip in wanted:
        if block >= len(offsets) or (skip + count) * PAGE > lengths[block]:
            raise ImageDamaged(f"the pages at {page * PAGE:#x} lie in no block of the snapshot")
        rows.append((packs[block], offsets[block] + skip * PAGE, page * PAGE, count * PAGE))
    rows.sort(key=itemgetter(0, 1))
    vector = array("Q")  # struct iovec[]
    pack = begin = at = -1
    for in_pack, offset, address, size in rows:
        gap = offset - at
        too_far = in_pack != pack or not 0 <= gap <= GAP
        if too_far or at - begin >= MAX_READ or len(vector) >= 2 * IOV_MAX - 2:
            if vector:
                yield _read(sources.packs[pack], vector, begin, at)
            pack, begin, gap = in_pack, offset, 0
            vector = array("Q")
        if gap:
            vector.extend((spare, gap))
        if vector and address == vector[-2] + vector[-1]:
            vector[-1] += size
        else:
            vector.extend((address, size))
        at = offset + size
    if vector:
        yield _read(sources.packs[pack], vector, begin, at)


def _read(fd: int, vector: array[int], begin: int, end: int) -> Call:
    words = f"filling {end - begin >> 10} KiB from {vector[0]:#x} on from the snapshot"
    if len(vector) == 2:
        return Call(NR.pread64, (fd, vector[0], vector[1], begin), end - begin, words)
    return Call(NR.preadv, (fd, vector.tobytes(), len(vector) // 2, begin, 0), end - begin, words)


def layout(space: pb.AddressSpace, sources: Sources, *, keeps_link: bool) -> Call:
    """Set the addresses of code, heap, stack, arguments and environment, the auxiliary vector, and the exe link.

    Args:
        space: the address space.
        sources: the descriptors of what is mapped.
        keeps_link: whether the link leads to its program already: it has executed that, or it is the torpor-init that
            builds it, whose link cannot be set while that file is mapped (EBUSY).
    """
    content = _MM_MAP.pack(
        space.start_code, space.end_code, space.start_data, space.end_data, space.start_brk, space.brk,
        space.start_stack, space.arg_start, space.arg_end, space.env_start, space.env_end,
        _MM_MAP.size, len(space.auxv), _NO_FILE if keeps_link else sources.files[space.exe],
    )  # fmt: skip
    return Call(
        NR.prctl,
        (PR_SET_MM, PR_SET_MM_MAP, Struct(content + space.auxv, (_AUXV_POINTER,)), _MM_MAP.size, 0),
        0,
        "setting the memory layout and the exe link",
    )


_CALM = [(0x1000_0000_0000, 0x5000_0000_0000)]
"""Above a program linked to a fixed address and its heap, below the addresses that the kernel randomizes."""
INIT = (4 << 20, (4 << 20) + 16 * PAGE)
"""The addresses of torpor-init, fixed by its link."""
_NOT_INIT = [(16 << 20, TASK_SIZE - (64 << 30))]
"""Addresses without torpor-init, which is linked to 4 MiB and has its stack and vDSO at the top."""


def free_range(spaces: Sequence[pb.AddressSpace], here: vdso.Vdso, size: int) -> range:
    """An address range that no mapping of these spaces and of torpor-init uses.

    It lies where no kernel maps anything by itself or, if programs use all of that, in the middle of the largest gap.

    Raises:
        RestoreFailed: there is none.
    """
    used = union(
        [(vma.start, vma.end) for space in spaces for vma in space.vmas]
        + [place for space in spaces for place in vdso.places(space, here)]
    )
    for start, end in subtract(_CALM, used):
        if end - start >= size:
            return range(start, start + size)
    start, end = max(subtract(_NOT_INIT, used), key=lambda gap: gap[1] - gap[0], default=(0, 0))
    if end - start < size:
        raise RestoreFailed(f"a restore needs {size >> 20} MiB of addresses that all processes of the tree leave free")
    start += (end - start - size) // 2 // PAGE * PAGE
    return range(start, start + size)
