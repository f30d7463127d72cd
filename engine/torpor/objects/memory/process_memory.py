"""The memory of a process: its address space and its own pages.

Kept: every private page that was written, whatever its protection now (RELRO is read-only, but was written); guard
regions; the bounds of heap, stack, arguments and environment, the auxiliary vector, the exe link, the address and code
of the vDSO. Unwritten pages of files come from the file again. Written pages of zeros are left out if there would be
zeros without them, which is not so in a mapping of a file. A private mapping of a file that is gone or was replaced (an
upgraded library) is kept whole, and becomes anonymous; behind the file's end it becomes a mapping of an empty memfd, so
that a touch gives SIGBUS as before. Memory that is shared copy-on-write since a fork is stored once, and shared again
(copy_on_write.py).

Refused: guard regions in shared memory, which is read through its mappings.

Documented in: proc_pid_stat(5), proc_pid_maps(5), Documentation/admin-guide/mm/pagemap.rst, prctl(2) on PR_SET_MM.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torpor import procfs
from torpor.errors import CheckpointFailed, Reason
from torpor.image import image_pb2 as pb
from torpor.objects.memory import shared_mappings, shared_memory, vdso, vm_flags, vmas
from torpor.objects.memory.mapped_files import MappedFiles
from torpor.objects.memory.own_pages import Ranges, Walk
from torpor.objects.memory.shared_memory import SharedMemory
from torpor.objects.paths.mapped_names import MappedNames
from torpor.procfs import PAGE, FlaggedMapping
from torpor.remote import memory
from torpor.util.ranges import Range, subtract


def unsupported(name: str, pid: int, found: Sequence[FlaggedMapping]) -> list[Reason]:
    """Why a process's pages cannot be kept.

    Args:
        name: the process, for messages.
        pid: the process to read from.
        found: its mappings.
    """
    shared = [(vma.mapping.start, vma.mapping.end) for vma in found if shared_memory.is_memory(vma.mapping)]
    return shared_mappings.guarded(name, pid, shared) if shared else []


def describe(
    pid: int,
    found: Sequence[FlaggedMapping],
    image: pb.Process,
    files: MappedFiles,
    shared: SharedMemory,
    names: MappedNames,
    walk: Walk | None,
) -> Ranges:
    """Write the address space of a process, without its pages. Returns the ranges whose pages must be stored.

    Args:
        pid: whose /proc to read: the snapshot, or the frozen process itself.
        found: its mappings, without any of ours.
        image: the process's message.
        files: the mapped files of the tree.
        shared: the shared memory of the tree, described already.
        names: the names of what the tree has mapped.
        walk: of the snapshot, if there is one.
    """
    space = image.memory
    _describe_bounds(pid, space)
    space.exe = files.program(pid)
    guards = memory.guard_pages(pid, [(vma.mapping.start, vma.mapping.end) for vma in found])
    space.guards.starts.extend(start // PAGE for start, _ in guards)
    space.guards.counts.extend((end - start) // PAGE for start, end in guards)
    vdso.describe([vma.mapping for vma in found if vma.mapping.name in vdso.NAMES], vdso.host(), space)
    pages = Ranges(pid, [], [], walk)
    for vma in found:
        if (mapping := names.lasting(pid, vma.mapping)) is not vma.mapping:
            vma = vma._replace(mapping=mapping)  # noqa: PLW2901  the same one, by another name
        if not vmas.is_special(vma.mapping):
            kind = _describe_vma(vma, space.vmas.add(), files, shared)
            bounds = (vma.mapping.start, vma.mapping.end)
            if kind in vmas.PRIVATE and vm_flags.DROPPABLE not in vma.flags:
                pages.private.append(bounds)
            if kind in (pb.Vma.FILE_PRIVATE, pb.Vma.MEMORY_PRIVATE):
                pages.backed.append(bounds)
            if kind == pb.Vma.ANONYMOUS and vmas.was_file(vma):
                end = _end_of_file(pid, vma.mapping, guards)
                if end < vma.mapping.end:
                    _cut(space, end, shared.empty())
                pages.whole += subtract([(vma.mapping.start, end)], guards)
    return pages


def _end_of_file(pid: int, mapping: procfs.Mapping, guards: Sequence[Range]) -> int:
    """Where the pages of a private mapping end, as its file does. A guard page looks like the end, too."""
    for start, end in reversed(subtract([(mapping.start, mapping.end)], guards)):
        if (readable := memory.readable_end(pid, start, end)) > start:
            return readable
    return mapping.start


def _cut(space: pb.AddressSpace, end: int, empty: int) -> None:
    """From `end` on, make the last mapping of an image one of the shared memory `empty`, which has no pages."""
    behind = pb.Vma()
    behind.CopyFrom(space.vmas[-1])
    behind.kind, behind.shared, behind.start = pb.Vma.MEMORY_PRIVATE, empty, end
    if end == space.vmas[-1].start:
        del space.vmas[-1]
    else:
        space.vmas[-1].end = end
    space.vmas.append(behind)


_MCL_FUTURE, _MCL_ONFAULT = 2, 4


def future_lock(pid: int, before: Mapping[bytes, bytes], scratch: int) -> int:
    """How a process locks its future mappings (mlockall(2)), which only a new mapping shows.

    Args:
        pid: a frozen process.
        before: its status before a scratch mapping was mapped into it.
        scratch: the scratch mapping's address.
    """
    status = procfs.status(procfs.read(f"/proc/{pid}/status"))
    if status[b"VmLck"] == before[b"VmLck"]:
        return 0
    flags = next(v.flags for v in procfs.flagged_mappings(pid) if v.mapping.start <= scratch < v.mapping.end)
    return _MCL_FUTURE | (_MCL_ONFAULT if vm_flags.is_locked_on_fault(flags) else 0)


def _describe_bounds(pid: int, space: pb.AddressSpace) -> None:
    fields = procfs.stat(pid).fields
    space.start_code, space.end_code, space.start_stack = (int(fields[k - 1]) for k in (26, 27, 28))
    space.start_data, space.end_data, space.start_brk = (int(fields[k - 1]) for k in (45, 46, 47))
    space.arg_start, space.arg_end, space.env_start, space.env_end = (int(fields[k - 1]) for k in (48, 49, 50, 51))
    space.auxv = procfs.read(f"/proc/{pid}/auxv")


def _describe_vma(vma: FlaggedMapping, out: pb.Vma, files: MappedFiles, shared: SharedMemory) -> int:
    mapping = vma.mapping
    out.start, out.end, out.prot = mapping.start, mapping.end, vmas.protection(mapping)
    out.grows_down = vm_flags.GROWS_DOWN in vma.flags
    out.noreserve = vm_flags.NORESERVE in vma.flags
    out.locked = vm_flags.LOCKED in vma.flags
    out.locked_on_fault = vm_flags.is_locked_on_fault(vma.flags)
    out.droppable = vm_flags.DROPPABLE in vma.flags
    out.advice.extend(vm_flags.ADVICE[flag] for flag in vma.flags if flag in vm_flags.ADVICE)
    out.name = vmas.anonymous_name(mapping)
    if shared_memory.is_memory(mapping):
        out.kind = pb.Vma.SHARED
        out.shared = shared.segments[shared_memory.key_of(mapping)].index
        out.offset = mapping.offset
        out.may_write = vm_flags.MAY_WRITE in vma.flags
        return out.kind
    if (segment := shared.behind(mapping)) is not None:
        out.kind, out.shared, out.offset = pb.Vma.MEMORY_PRIVATE, segment.index, mapping.offset
        return out.kind
    if vm_flags.HUGETLB in vma.flags:
        out.kind, out.huge_page = pb.Vma.ANONYMOUS, vma.page_size
        return out.kind
    index = None if vmas.is_anonymous(mapping) else files.index(mapping)
    if index is not None:
        out.kind = pb.Vma.FILE_SHARED if mapping.shared else pb.Vma.FILE_PRIVATE
        out.file, out.offset = index, mapping.offset
        out.may_write = mapping.shared and vm_flags.MAY_WRITE in vma.flags
    elif mapping.shared:
        raise CheckpointFailed(
            f"{os.fsdecode(mapping.name)}, which is mapped shared at {mapping.start:#x}, was replaced by another file"
        )
    else:
        out.kind = pb.Vma.ANONYMOUS
    return out.kind
