"""Shared memory seen through a mapping of it: where it has pages, and their content.

A mapping is all that is left where no process has a descriptor, and no name leads to the memory.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason, Refused
from torpor.objects.fds.memfd import memfd_device
from torpor.procfs import PAGE, Mapping
from torpor.remote import memory
from torpor.remote.batch import Ask, Batch, Out
from torpor.remote.naming import describe_process
from torpor.util.ranges import Range

_ASKED_AT_ONCE = 32 << 10
"""Pages that are asked for in one batch; the answer has a byte for each."""
_MOST_QUERIES = 256
"""The most mappings in one batch."""
_THERE = re.compile(rb"[^\0]+")


def tmpfs(pid: int) -> set[int]:
    """The devices of file systems in memory, as a process sees them, and the kernel's own."""
    return {memfd_device(), *(mount.device for mount in procfs.mounts(pid) if mount.filesystem == b"tmpfs")}


def is_swapping() -> bool:
    """Whether anything on this host is swapped out: mincore(2) does not report swapped pages of shared memory."""
    lines = (line.split() for line in procfs.read("/proc/meminfo").splitlines())
    fields = {words[0]: words[1] for words in lines}
    return fields[b"SwapTotal:"] != fields[b"SwapFree:"]


def pages_there(mappings: Sequence[Mapping], ask: Ask) -> list[list[Range]]:
    """For each mapping the offsets at which its memory has pages, created by any process; all offsets if in doubt."""
    found: list[list[Range]] = [[] for _ in mappings]
    for pieces in _batches(mappings):
        batch = Batch()
        entries = [batch.add(NR.mincore, start, end - start, Out((end - start) // PAGE)) for _, start, end in pieces]
        replies = ask(batch)
        for entry, (number, start, end) in zip(entries, pieces, strict=True):
            offset = mappings[number].offset + start - mappings[number].start
            if replies.result(entry):
                found[number].append((offset, offset + end - start))
                continue
            for run in _THERE.finditer(replies.output(entry, 2)):
                found[number].append((offset + run.start() * PAGE, offset + run.end() * PAGE))
    return found


def _batches(mappings: Sequence[Mapping]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut mappings into pieces, and these into lists that can be asked for at once.

    A piece is the number of its mapping, its start and its end.
    """
    batch: list[tuple[int, int, int]] = []
    room = _ASKED_AT_ONCE * PAGE
    for number, mapping in enumerate(mappings):
        start = mapping.start
        while start < mapping.end:
            end = min(start + room, mapping.end)
            batch.append((number, start, end))
            room -= end - start
            start = end
            if not room or len(batch) == _MOST_QUERIES:
                yield batch
                batch, room = [], _ASKED_AT_ONCE * PAGE
    if batch:
        yield batch


def guarded(name: str, pid: int, bounds: Sequence[Range]) -> list[Reason]:
    """Say which guard regions lie in mappings of shared memory: what is there cannot be read through these.

    Args:
        name: the process, for messages.
        pid: the process to read from.
        bounds: addresses of mappings.
    """
    why = "it is a guard region (MADV_GUARD_INSTALL) in shared memory, which is not kept"
    return [Reason(f"{name}, memory {start:#x}-{end:#x}", why) for start, end in memory.guard_pages(pid, bounds)]


def read(pid: int, mapping: Mapping, runs: Sequence[Range], view: memoryview) -> bool:
    """Read ranges of offsets of a mapping.

    Returns:
        Whether all of them are before the end of its file. Behind it a touch gives the tree SIGBUS.

    Raises:
        Refused: it has guard regions.
    """
    places = [(mapping.start + start - mapping.offset, end - start) for start, end in runs]
    for attempt in (memory.read_ranges, memory.read_quietly):  # the process itself may not be allowed to read it
        try:
            attempt(pid, places, view)
            return True
        except OSError as error:
            if error.errno not in (errno.EFAULT, errno.EIO):
                raise
    name = describe_process(pid)
    if reasons := guarded(name, pid, [(mapping.start, mapping.end)]):  # since the preflight
        raise Refused(f"{name} cannot be kept", reasons)
    end = memory.readable_end(pid, mapping.start, mapping.end)
    position = 0
    for address, size in places:
        upto = min(address + size, end) - address
        if upto > 0:
            memory.read_quietly(pid, [(address, upto)], view[position : position + upto])
        position += size
    return False
