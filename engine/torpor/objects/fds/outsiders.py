"""Objects that processes outside of a tree have open or mapped too, because they inherited or were passed them.

Kept: the woken tree gets a new object, and the outside process goes on with the old one. The checkpoint says so.

Refused: a tree that is to be killed, if such a process has something that can exist only once (a port, a socket's name,
a lock): the tree could not be woken beside it. If the tree runs on, the checkpoint only warns.

Not looked for: standard input, output and error, which the restorer replaces; files and devices that are opened again
by their names; what processes of other users have.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Set
from contextlib import suppress
from typing import Any, NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.objects.fds import locks
from torpor.objects.kind import GrabbedDescriptors, OpenFile, descriptor_name, first_few
from torpor.objects.paths.file_names import DELETED
from torpor.probe import probe
from torpor.remote.naming import describe_process
from torpor.remote.sys import try_syscall

_KCMP_FILE = 0
_ONE_OBJECT = ("pipe:[", "socket:[")
"""How links in /proc/PID/fd begin that identify one object. Other links without a path name only its kind."""


class Shared(NamedTuple):
    """What a process outside of the tree has too."""

    outsider: int
    """Its PID."""
    what: str
    """For messages: ``process 4711 (python), fd 5 (pipe:[815])``."""
    only_one: str = ""
    """What of it can exist only once, for messages: ``its port``. Empty if nothing."""


def find(tree: GrabbedDescriptors, memory: Collection[tuple[int, int]] = ()) -> list[Shared]:
    """Look through the processes of this host that this user may see.

    Args:
        tree: the descriptors of a tree, which may run again: processes born in it meanwhile are not outside of it.
        memory: the device and inode of each piece of the tree's shared memory that has no name.
    """
    of_tree = {*tree.pids, *tree.stand_ins.values()}
    found: dict[tuple[int, str], Shared] = {}
    wanted: dict[str, list[OpenFile[Any]]] = {}
    for open_file in tree.open_files:
        if _is_looked_for(open_file, tree):
            wanted.setdefault(open_file.link, []).append(open_file)
    if wanted:
        for pid, fd, link in procfs.open_descriptors({*of_tree, os.getpid()}):
            for open_file in wanted.get(link, ()):
                if _is_same(open_file, pid, fd):
                    what = f"{descriptor_name(open_file.references[0])} ({open_file.link})"
                    found.setdefault((pid, what), Shared(pid, what, _only_one(open_file, tree)))
    for pid in _mapping(memory, {*of_tree, os.getpid()}) if memory else ():
        found.setdefault((pid, ""), Shared(pid, "shared memory"))
    outside = {pid for pid in {one.outsider for one in found.values()} if _is_outside(pid, of_tree)}
    return [one for one in found.values() if one.outsider in outside]


def reasons(found: Collection[Shared]) -> list[Reason]:
    """Why the tree could not be woken while the outsiders live."""
    return [
        Reason(
            one.what,
            f"{describe_process(one.outsider)}, outside of the tree, has it open too, and keeps {one.only_one}",
            "end that one first, or save without ending the tree",
        )
        for one in found
        if one.only_one
    ]


def notices(found: Collection[Shared]) -> Iterator[str]:
    """What will differ after a wake: a sentence for each outsider."""
    for outsider in sorted({one.outsider for one in found}):
        mine = [one for one in found if one.outsider == outsider]
        who = f"{describe_process(outsider)}, outside of the tree,"
        what = first_few([one.what for one in mine], 5)
        yield f"{who} has these open or mapped too, and will not share them with the woken program: {what}"
        if kept := [f"{one.only_one} of {one.what}" for one in mine if one.only_one]:
            yield f"a wake is refused while {who} keeps {first_few(kept)}"


def unread_input(tree: GrabbedDescriptors) -> Iterator[str]:
    """Say what standard input the tree has received from outside but not read: a sentence for each description."""
    for open_file in tree.open_files:
        if tree.stdio(open_file, open_file.references[0].fd) is not None and (size := open_file.kind.unread(open_file)):
            where = f"{descriptor_name(open_file.references[0])} ({open_file.link})"
            yield f"{size} bytes of input that the program has not read are not kept: {where}"


def _is_outside(pid: int, of_tree: Set[int]) -> bool:
    """Whether a process is alive, and was not born in the tree meanwhile."""
    # In this order: if it ends before the first look, its ancestry is not known, and the second look shows the end.
    return of_tree.isdisjoint(procfs.ancestry(pid)) and not procfs.is_ending(pid, pid)


def _is_looked_for(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> bool:
    if open_file.under_way_to is not None or open_file.kind.stands_for(open_file, tree):
        return False
    if open_file.link.startswith((*_ONE_OBJECT, "anon_inode:")):
        return True
    if stat.S_ISREG(open_file.stat.st_mode):
        return open_file.link.endswith(DELETED) or bool(_locks(open_file, tree))
    return open_file.kind.field == "pty"


def _locks(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> list[bytes]:
    """The lines of its locks that belong to the description, and not to a process."""
    return _of_description(tree.locked.get(open_file.references[0], ()))


def _of_description(lines: Iterable[bytes]) -> list[bytes]:
    return [line for line in lines if b" FLOCK " in line or b" OFDLCK " in line]


def _only_one(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> str:
    return "its lock" if _locks(open_file, tree) else open_file.kind.only_one(open_file)


def _is_same(open_file: OpenFile[Any], pid: int, fd: int) -> bool:
    """Whether a descriptor with the same link refers to the same object."""
    if open_file.link.startswith(_ONE_OBJECT):
        return True
    with suppress(OSError):  # closed meanwhile
        status = os.stat(f"/proc/{pid}/fd/{fd}")
        if (status.st_dev, status.st_ino, status.st_rdev) != (
            open_file.stat.st_dev,
            open_file.stat.st_ino,
            open_file.stat.st_rdev,
        ):
            return False
        if open_file.link.endswith(DELETED) or open_file.link.startswith("/dev/pts/"):
            return True
        holder = open_file.references[0]
        if not probe().kcmp:  # the kernel shows such a lock only at the descriptors of its description
            return bool(_of_description(locks.lines(procfs.read(f"/proc/{pid}/fdinfo/{fd}"))))
        return try_syscall(NR.kcmp, pid, holder.pid, _KCMP_FILE, fd, holder.fd) == 0
    return False


def _mapping(memory: Collection[tuple[int, int]], but: Collection[int]) -> Iterator[int]:
    """The processes that have any of this memory mapped."""
    places = [b" %02x:%02x %d " % (os.major(device), os.minor(device), inode) for device, inode in memory]
    for pid in procfs.pids():
        with suppress(OSError):  # it has ended, or belongs to another user
            if pid not in but and any(map(procfs.read(f"/proc/{pid}/maps").__contains__, places)):
                yield pid
