"""dump(restore(image)) = image: a restore describes what it has built, before it lets anything go, and compares.

It is described by the very code that describes a tree at a checkpoint (`torpor.dump.tree_dump`): all threads stand as a
freeze leaves them, with the registers they are to go on with; the window that built them is gone, init and the
stand-ins have let go of what they held. What is done to threads by the description, `Builder.release` undoes.

What cannot be seen there is compared when the tree is saved the next time (`torpor.restorer.round_trip`, as the tests
do): what files hold, which are not read again, and a SIGSTOP that waits, which is sent as a thread is let go. A tree
with TCP connections that go on (`torpor.objects.sockets.tcp_repair`) is not described: they are under repair until that
moment.
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
from torpor.objects.kind import O_ASYNC, FdReference
from torpor.objects.memory import vmas
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.remote.freeze import Process
from torpor.remote.waits import Waits
from torpor.restorer.round_trip import differences, is_given
from torpor.store import SnapshotReader

_RSEQ = 32
"""Bytes of a struct rseq, in which the kernel writes as a thread runs (include/uapi/linux/rseq.h)."""
_CAUGHT = 2
"""In the place of any handler of the program's own."""
_FLAGS = re.compile(rb"^flags:\t(\d+)", re.M)
_MASKS = re.compile(rb"^(SigIgn|SigCgt):\t(\w+)", re.M)
_SHOWN = 8
"""Differences that an error tells one by one."""


def prove(image: pb.Tree, standing: Mapping[int, Process]) -> None:
    """Describe a tree that was built, and compare it with its image.

    Args:
        image: the tree.
        standing: it as it was built, by PIDs as this process sees them, in the order of the image. Its threads stand as
            a freeze leaves them, and are to be given their states anew.

    Raises:
        RestoreFailed: it is not as it was.
    """
    if any(one.tcp.kept for one in image.descriptions):
        return
    found = list(differences(image, _describe(image, standing), built=True))
    if found:
        raise failed(found)


def failed(found: list[str]) -> RestoreFailed:
    """The error when something is not as it was."""
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return RestoreFailed(
        f"what was built is not what was saved: {'; '.join(found[:_SHOWN])}{more}",
        advice="nothing of it has run and the snapshot is as it was: please report this",
    )


def _describe(image: pb.Tree, standing: Mapping[int, Process]) -> pb.Tree:
    given = {
        FdReference(pid, entry.fd)
        for pid, process in zip(standing, image.processes, strict=True)
        for entry in process.fds
        if is_given(image.descriptions[entry.description], image)
    }
    with TreeDump(standing, _NoWaits(), None, "it is not to run yet", again=False, given=given) as taken:
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
    """Whether another kernel's vDSO lies there, which leads to this one's: not a mapping of the program."""
    return process.memory.vdso <= address < process.memory.vdso_end


class _NoWaits(Waits):
    """Of threads that were in no call yet: what is left of the time of theirs is in the image as it is."""

    def waited(self, pid: int, tid: int, stopped_ns: int) -> int | None:
        """Nobody can tell."""
        return None


def contents(image: pb.Tree, reader: SnapshotReader, pids: Mapping[int, int], shared: Mapping[int, int]) -> None:
    """Read all memory that was built, and compare it with the blocks of the snapshot.

    Not read are memory of System V, to which no descriptor leads, and files of /dev/shm, in which others may write.

    Args:
        image: the tree.
        reader: of its snapshot.
        pids: of its processes as this process sees them, by their own.
        shared: descriptors of its shared memory, by the index in the image.

    Raises:
        RestoreFailed: it is not as it was.
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
    """Pages of a table with what they hold."""
    for page, count, block in zip(table.starts, table.counts, table.blocks, strict=True):
        yield page, reader.read_block(block)[: count * PAGE]


# ------------------------------------------------------------------------------------- what is quickly seen


def look(image: pb.Tree, pids: Mapping[int, int]) -> None:
    """Compare what is quickly seen of a tree that was built: mappings, descriptors, threads and signal actions.

    Args:
        image: the tree.
        pids: of its processes as this process sees them, by their own.

    Raises:
        RestoreFailed: it is not as it was.
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
    """Of a process what is quickly seen."""

    threads: int
    ignored: int
    """Signals, bit 0 is number 1."""
    caught: int
    mappings: list[tuple[int, int, int]]
    """Start, end and protection; those that lie side by side and have the same one as one."""
    descriptors: list[tuple[int, int]]
    """Number and flags; of those that the restorer gave whether they are closed by execve() only."""


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
    for fd in sorted(map(int, os.listdir(f"{folder}/fd"))):
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
    """Put an outline into an image, to be compared and told as one."""
    told = out.processes.add(pid=process.pid)
    name = process.threads[0].name
    told.threads.extend(pb.Thread(tid=k, name=name) for k in range(outline.threads))
    for number in range(1, 65):
        if (outline.ignored | outline.caught) >> (number - 1) & 1:
            handler = _CAUGHT if outline.caught >> (number - 1) & 1 else int(signal.SIG_IGN)
            told.actions.add(signal=number, handler=handler)
    for start, end, protection in outline.mappings:
        told.memory.vmas.add(start=start, end=end, prot=protection)
    for fd, flags in outline.descriptors:
        told.fds.add(fd=fd, description=len(out.descriptions), cloexec=bool(flags & os.O_CLOEXEC))
        out.descriptions.add(flags=flags & ~os.O_CLOEXEC)
