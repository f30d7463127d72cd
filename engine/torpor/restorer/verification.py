"""dump(restore(image)) = image: a restore compares the tree that it has built with the image, before anything runs.

The same code describes a tree at a checkpoint (`torpor.dump.tree_dump`). All threads are stopped as after a freeze,
with their final registers; the scratch mapping is unmapped, and init and the stand-ins have dropped everything of the
tree. The description changes threads; `Builder.release` sets their state again.

Some things can be compared only when the tree is saved again (`torpor.restorer.round_trip`, as the tests do): the
content of files, which is not read here, and a pending SIGSTOP, which is sent as a thread is released. A tree with TCP
connections that continue (`torpor.objects.sockets.tcp_repair`) is not described, since they are in repair mode until
the release.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torpor import procfs
from torpor.dump.tree_dump import TreeDump
from torpor.errors import CheckpointFailed, Refused, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.objects.fds import descriptors
from torpor.objects.kind import Built, FdReference
from torpor.objects.memory import vmas
from torpor.objects.opening import O_ASYNC
from torpor.objects.paths import bundle
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.remote.freeze import Process
from torpor.remote.waits import Waits
from torpor.restorer.round_trip import differences, is_given
from torpor.store import SnapshotReader

_RSEQ = 32
"""Bytes of a struct rseq, which the kernel writes as a thread runs (include/uapi/linux/rseq.h)."""
_CAUGHT = 2
"""Stands for any handler of the program."""
_FLAGS = re.compile(rb"^flags:\t(\d+)", re.M)
_MASKS = re.compile(rb"^(SigIgn|SigCgt):\t(\w+)", re.M)
_SHOWN = 8
"""The most differences that an error lists."""


def prove(image: pb.Tree, standing: Mapping[int, Process]) -> None:
    """Describe a tree that was built, and compare it with its image.

    Args:
        image: the image of the tree.
        standing: the built tree by PID in this process's PID namespace, in the order of the image. Its threads are
            stopped as after a freeze, and need their state set again afterwards.

    Raises:
        RestoreFailed: the tree differs from the image.
    """
    if any(one.tcp.kept for one in image.descriptions):
        return
    found = list(differences(image, _describe(image, standing), built=True))
    if found:
        raise failed(found)


def failed(found: list[str]) -> RestoreFailed:
    """Make the error that lists differences."""
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return RestoreFailed(
        f"the restored tree differs from the snapshot: {'; '.join(found[:_SHOWN])}{more}",
        advice="nothing has run, and the snapshot is unchanged: please report this",
    )


def _describe(image: pb.Tree, standing: Mapping[int, Process]) -> pb.Tree:
    bundles = bundle.by_path(image)
    in_memory = {bundle.name_in_maps(bundles[file.path]): file for file in image.files if file.path in bundles}
    built, spared = Built(set(), set(), in_memory), descriptors.spared(image)
    for pid, process in zip(standing, image.processes, strict=True):
        for entry in process.fds:
            if is_given(image.descriptions[entry.description], image):
                built.given.add(FdReference(pid, entry.fd))
            elif entry.description in spared:
                built.spared.add(FdReference(pid, entry.fd))
    with TreeDump(standing, _NoWaits(), None, "it must not run yet", again=False, built=built) as taken:
        try:
            taken.grab(reset_outside=False, stdio=None)
            found, _ = taken.describe()
        except (Refused, CheckpointFailed) as error:
            raise failed([error.message]) from error
    for was, now in zip(image.processes, found.processes, strict=True):
        kept = [vma for vma in now.memory.vmas if not _is_vdso(was, vma.start)]
        now.memory.ClearField("vmas")
        now.memory.vmas.extend(kept)
    return found


def _is_vdso(process: pb.Process, address: int) -> bool:
    """Return whether the address is in the old kernel's vDSO, which forwards to this kernel's: no program mapping."""
    return process.memory.vdso <= address < process.memory.vdso_end


class _NoWaits(Waits):
    """Waits of threads that have not run yet: the remaining time of their calls is in the image unchanged."""

    def waited(self, pid: int, tid: int, stopped_ns: int) -> int | None:
        """Return None: unknown."""
        return None


def contents(image: pb.Tree, reader: SnapshotReader, pids: Mapping[int, int], shared: Mapping[int, int]) -> None:
    """Read all memory that was built, and compare it with the blocks of the snapshot.

    System V segments, which have no descriptor, and files of /dev/shm, which others may write, are not read.

    Args:
        image: the image of the tree.
        reader: reads its snapshot.
        pids: the PIDs in this process's PID namespace, by PID in the image.
        shared: descriptors of the shared memory, by index in the image.

    Raises:
        RestoreFailed: memory differs from the snapshot.
        ImageDamaged, StoreError: the snapshot cannot be read.
    """
    found: list[str] = []
    for process in image.processes:
        if not process.zombie:
            name = f"process {process.pid} ({process.threads[0].name.decode(errors='replace')})"
            found += (f"{name}: {words}" for words in _private(process, reader, pids[process.pid]))
    for index, one in enumerate(image.shared):
        if index in shared and one.kind != pb.SharedMemory.TMPFS:
            if (size := os.fstat(shared[index]).st_size) != one.size:
                found.append(f"shared memory {index}: size is {size}, was {one.size}")
            for page, wanted in _runs(one.pages, reader):
                if os.pread(shared[index], len(wanted), page * PAGE) != wanted[: max(one.size - page * PAGE, 0)]:
                    found.append(f"shared memory {index} from {page * PAGE:#x} on is not what was saved")
    if found:
        raise failed(found)


def _private(process: pb.Process, reader: SnapshotReader, pid: int) -> Iterator[str]:
    for page, wanted in _runs(process.memory.pages, reader):
        start = page * PAGE
        there = bytearray(len(wanted))
        memory.read_quietly(pid, [(start, len(there))], memoryview(there))
        if there == wanted:
            continue
        for thread in process.threads:
            at = thread.rseq.pointer - start
            if thread.rseq.pointer and 0 <= at < len(there):
                there[at : at + _RSEQ] = wanted[at : at + _RSEQ]
        if there != wanted:
            first = next(k for k, (one, other) in enumerate(zip(there, wanted, strict=True)) if one != other)
            yield f"memory at {start + first:#x} is {there[first]:#x}, was {wanted[first]:#x}"


def _runs(table: pb.PageTable, reader: SnapshotReader) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of pages of a table: the first page's number, and their content."""
    for page, count, block, skip in pieces(table):
        yield page, reader.read_block(block)[skip * PAGE : (skip + count) * PAGE]


# ------------------------------------------------------------------------------------- quick comparison


def look(image: pb.Tree, pids: Mapping[int, int]) -> None:
    """Compare what is quick to read of a built tree: mappings, descriptors, threads and signal actions.

    Args:
        image: the image of the tree.
        pids: the PIDs in this process's PID namespace, by PID in the image.

    Raises:
        RestoreFailed: the tree differs from the image.
    """
    was, there = pb.Tree(), pb.Tree()
    for process in image.processes:
        if not process.zombie:
            one, other = _saved(process, image), _built(pids[process.pid], process, image)
            if one != other:
                _tell(one, process, was)
                _tell(other, process, there)
    if found := differences(was, there, built=True):
        raise failed(found)


class _Outline(NamedTuple):
    """The state of a process that is quick to read."""

    threads: int
    ignored: int
    """A mask of signals; bit 0 is signal 1."""
    caught: int
    mappings: list[tuple[int, int, int]]
    """Start, end and protection; adjacent mappings with equal protection are merged."""
    descriptors: list[tuple[int, int]]
    """Number and flags; for descriptors that the restorer gave, only O_CLOEXEC."""


def _saved(process: pb.Process, image: pb.Tree) -> _Outline:
    ignored = caught = 0
    for action in process.actions:
        if action.handler == signal.SIG_IGN:
            ignored |= 1 << (action.signal - 1)
        elif action.handler:
            caught |= 1 << (action.signal - 1)
    descriptors = []
    for entry in process.fds:
        was = image.descriptions[entry.description]
        flags = 0 if was.HasField("outside") else was.flags & ~O_ASYNC
        descriptors.append((entry.fd, flags | (os.O_CLOEXEC if entry.cloexec else 0)))
    mappings = _joined((vma.start, vma.end, vma.prot) for vma in process.memory.vmas)
    return _Outline(len(process.threads), ignored, caught, mappings, sorted(descriptors))


def _built(pid: int, process: pb.Process, image: pb.Tree) -> _Outline:
    folder = f"/proc/{pid}"
    masks = dict(_MASKS.findall(procfs.read(f"{folder}/status")))
    given = {entry.fd for entry in process.fds if image.descriptions[entry.description].HasField("outside")}
    descriptors = []
    for fd in sorted(map(int, os.listdir(f"{folder}/fd"))) if not process.shares_fds else ():
        flags = int(_FLAGS.findall(procfs.read(f"{folder}/fdinfo/{fd}"))[0], 8) & ~O_ASYNC
        descriptors.append((fd, flags & os.O_CLOEXEC if fd in given else flags))
    mappings = _joined(
        (one.start, one.end, vmas.protection(one))
        for one in procfs.mappings(pid)
        if not vmas.is_special(one) and not _is_vdso(process, one.start)
    )
    threads = len(os.listdir(f"{folder}/task"))
    return _Outline(threads, int(masks[b"SigIgn"], 16), int(masks[b"SigCgt"], 16), mappings, descriptors)


def _joined(mappings: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for start, end, protection in mappings:
        if found and found[-1][1:] == (start, protection):
            found[-1] = found[-1][0], end, protection
        else:
            found.append((start, end, protection))
    return found


def _tell(outline: _Outline, process: pb.Process, out: pb.Tree) -> None:
    """Put an outline into an image, so that it can be compared like one."""
    process_out = out.processes.add(pid=process.pid)
    name = process.threads[0].name
    process_out.threads.extend(pb.Thread(tid=k, name=name) for k in range(outline.threads))
    for number in range(1, 65):
        if (outline.ignored | outline.caught) >> (number - 1) & 1:
            handler = _CAUGHT if outline.caught >> (number - 1) & 1 else int(signal.SIG_IGN)
            process_out.actions.add(signal=number, handler=handler)
    for start, end, protection in outline.mappings:
        process_out.memory.vmas.add(start=start, end=end, prot=protection)
    for fd, flags in outline.descriptors:
        process_out.fds.add(fd=fd, description=len(out.descriptions), cloexec=bool(flags & os.O_CLOEXEC))
        out.descriptions.add(flags=flags & ~os.O_CLOEXEC)
