"""The names of the files that a tree has mapped, if maps shows one that is gone.

"(deleted)" in maps means that one name is gone. A file with another name (a hard link) is mapped again by that: a copy
would not have what others write to the file, nor the file what the tree writes. A file without any name comes back as
a copy. Which of both it is, stat(2) tells of an open descriptor, or of the link in /proc/PID/map_files, for which the
kernel asks for CAP_CHECKPOINT_RESTORE. Without these, a file whose name is not found counts as gone, and a notice
says so.

Programs and libraries, which nobody writes, are searched for only in their directory: an upgrade removes many of them,
and a copy lasts longer than the name of an old version.

In maps, the device may be another one than in stat(2); a mapping that is treated here has that of stat(2), so that
mappings and descriptors of one file are known as such.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any

from torpor import procfs
from torpor.errors import Reason
from torpor.objects.kind import GrabbedDescriptors, OpenFile
from torpor.objects.paths import inode_search
from torpor.objects.paths.file_names import another_name, as_gone, is_gone, is_silly
from torpor.objects.paths.same_file import Key, device_of, is_mapped, key_of
from torpor.procfs import Mapping
from torpor.remote.naming import describe_process

_MADE_UP = (b"/memfd:", b"/dev/zero", b"/SYSV", b"/anon_hugepage", b"/secretmem")
"""How the names of objects that were never on a file system begin in maps."""
_SHM = b"/dev/shm/"
_MOST = 2000
"""The most names to look at for a file that perhaps has none: the tree stands still meanwhile."""

_PERHAPS = (
    "the file has lost this name, and no other was found near the tree: a copy comes back. If it does have another name"
)
_UNSHARED = {
    True: "what the job writes to it after a wake is not found there",
    False: "what others write to it after a wake is not seen",
}
"""What a copy of a file would lack, by whether it is mapped shared."""

_nowhere: set[Key] = set()
"""Files that were searched for in vain, not to be searched for again while a tree stands still."""


class MappedNames:
    """The names of the files that a tree has mapped, each searched for once."""

    def __init__(self, tree: GrabbedDescriptors) -> None:
        self._tree = tree
        self._found: dict[Key, tuple[bytes, bytes]] = {}
        """By device and inode of maps: the name, and the device to know it by."""
        self._code: dict[int, set[tuple[bytes, int]]] = {}
        """Device and inode, by maps, of what each process may execute."""
        self.reasons: list[Reason] = []
        """Files that cannot be mapped again by a name, though they have one."""
        self.notices: list[str] = []
        """Files that perhaps have another name."""

    def lasting(self, pid: int, mapping: Mapping) -> Mapping:
        """A mapping of a file that has lost its name, with another name of the file, if it has one.

        Args:
            pid: the process, frozen.
            mapping: one of its mappings.
        """
        if not mapping.inode:
            return mapping
        if is_silly(mapping.name):
            return mapping._replace(name=as_gone(mapping.name))
        if not is_gone(mapping.name, mapping.inode) or mapping.name.startswith(_MADE_UP):
            return mapping
        key = device_of(mapping), mapping.inode
        if key not in self._found:
            self._found[key] = self._sought(pid, mapping)
        name, device = self._found[key]
        return mapping._replace(name=name, device=device)

    def _sought(self, pid: int, mapping: Mapping) -> tuple[bytes, bytes]:
        status = self._status(pid, mapping)
        key = key_of(status) if status else (device_of(mapping), mapping.inode)
        device = b"%02x:%02x" % (os.major(key[0]), os.minor(key[0]))
        name = self._name(pid, mapping, key, status) if status is None or status.st_nlink else None
        if name is not None:
            return os.fsencode(name), device
        path = os.fsdecode(mapping.name)
        subject = f"{describe_process(pid)}, mapping {mapping.start:#x}-{mapping.end:#x} {path}"
        folder = os.path.dirname(path)
        if status and not status.st_nlink:
            pass
        elif not mapping.shared and (self._is_code(pid, mapping) or not os.access(folder, os.W_OK, effective_ids=True)):
            pass  # nobody writes to it
        elif status:
            why = "the file has lost this name, and none of its others was found in or near the directories of the tree"
            self.reasons.append(Reason(subject, why, "link it into the directory where it was"))
        elif os.path.isdir(folder) and not os.access(folder, os.R_OK, effective_ids=True):
            why = "the file has lost this name, and its directory, where it may have another, cannot be listed"
            self.reasons.append(Reason(subject, why, "let this user list the directory"))
        elif not mapping.name.startswith(_SHM):
            self.notices.append(f"{subject}: {_PERHAPS}, {_UNSHARED[mapping.shared]}")
        return mapping.name, device

    def _is_code(self, pid: int, mapping: Mapping) -> bool:
        """Whether a file is a program or a library: mapped privately, and somewhere to be executed."""
        if mapping.shared:
            return False
        if pid not in self._code:
            maps = procfs.mappings(pid)
            self._code[pid] = {(one.device, one.inode) for one in maps if one.inode and one.perms[2:3] == b"x"}
        return (mapping.device, mapping.inode) in self._code[pid]

    def _status(self, pid: int, mapping: Mapping) -> os.stat_result | None:
        """The status of a mapped file; None if no way leads to it."""
        with suppress(OSError):
            status = os.stat(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
            if status.st_ino == mapping.inode:
                return status
        return next((one.stat for one in self._tree.open_files if _is_file_of(one, mapping)), None)

    def _name(self, pid: int, mapping: Mapping, key: Key, status: os.stat_result | None) -> str | None:
        """Another name of a mapped file; None if none was found."""
        path = os.fsdecode(mapping.name)
        keys = [key]
        with suppress(OSError):  # as on btrfs, if only maps tells the device
            keys.append((os.stat(os.path.dirname(path)).st_dev, key[1]))
        found = next((name for one in dict.fromkeys(keys) if (name := another_name(path, *one))), None)
        if found is None and (status or (key not in _nowhere and not self._is_code(pid, mapping))):
            names = inode_search.find(keys, self._tree, most=None if status else _MOST)
            found = next(iter(names.values()), None)
            if found is None and not status:
                _nowhere.add(key)
        return found


def unsupported(tree: GrabbedDescriptors) -> list[Reason]:
    """Say which mapped files have lost their names, while the tree runs; the names that are found are found at once
    under the freeze."""
    names = MappedNames(tree)
    for pid in tree.pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for mapping in procfs.mappings(pid):
                names.lasting(pid, mapping)
    return names.reasons


def _is_file_of(open_file: OpenFile[Any], mapping: Mapping) -> bool:
    """Whether a description is of a mapped file."""
    if open_file.stat.st_ino != mapping.inode or not stat.S_ISREG(open_file.stat.st_mode):
        return False
    if open_file.stat.st_dev == device_of(mapping):
        return True
    if not open_file.references or not open_file.readable or open_file.leased:
        return False
    try:
        fd = os.open("/proc/{}/fd/{}".format(*open_file.references[0]), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_mapped(fd, mapping)
    finally:
        os.close(fd)
