"""The calls by which a process gets its descriptors: from the restorer's slots to their own numbers, and no others."""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict

from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Process
from torpor.objects.fds.descriptors import LAST_FD, Opened
from torpor.objects.fds.made_in_process import MadeInProcess
from torpor.remote.batch import Call


def placing(process: Process, own: MadeInProcess, opened: Opened) -> list[Call]:
    """The calls that move a process's descriptors from the slots to their numbers, which may be numbers of other slots.

    Args:
        process: of the image.
        own: what processes open themselves; its mailboxes are placed too.
        opened: the slots.
    """
    flags = {entry.fd: os.O_CLOEXEC if entry.cloexec else 0 for entry in process.fds}
    wanted = {one.fd: opened.slots[one.description] for one in process.fds if one.description not in own}
    wanted |= {number: opened.slots[index] for index, number in own.mailboxes(process).items()}
    flags |= dict.fromkeys(wanted.keys() - flags.keys(), 0)
    calls: list[Call] = []

    def place(slot: int, fd: int, words: str) -> None:
        calls.append(Call(NR.dup3, (slot, fd, flags.get(fd, 0)), fd, f"{words} descriptor {fd}"))

    for fd in [fd for fd, slot in wanted.items() if fd == slot]:
        calls.append(Call(NR.fcntl, (fd, fcntl.F_SETFD, int(bool(flags[fd]))), 0, f"keeping descriptor {fd}"))
        del wanted[fd]
    readers: dict[int, list[int]] = defaultdict(list)
    for fd, slot in wanted.items():
        readers[slot].append(fd)
    left = {slot: len(fds) for slot, fds in readers.items()}
    aside = max([*flags, *opened.slots.values()], default=0)
    free = [fd for fd in wanted if fd not in left]
    while wanted:
        if not free:  # the rest block each other in rings: move one aside
            fd = next(iter(wanted))
            aside += 1
            place(fd, aside, "putting aside, as")
            readers[aside], left[aside] = readers.pop(fd), left.pop(fd)
            wanted |= {reader: aside for reader in readers[aside] if reader in wanted}
            free.append(fd)
        fd = free.pop()
        slot = wanted.pop(fd)
        place(slot, fd, "placing")
        left[slot] -= 1
        if not left[slot]:
            del left[slot]
            if slot in wanted:
                free.append(slot)
            elif slot == aside:
                aside -= 1
    return calls


def closing(process: Process, own: MadeInProcess) -> list[Call]:
    """The calls that close all descriptors but the process's own and its mailboxes: slots, and inherited ones."""
    calls = []
    begin = 0
    for fd in [*sorted([*(entry.fd for entry in process.fds), *own.mailboxes(process).values()]), LAST_FD + 1]:
        if begin < fd:
            calls.append(Call(NR.close_range, (begin, fd - 1, 0), 0, f"closing the descriptors {begin} to {fd - 1}"))
        begin = fd + 1
    return calls
