"""How much memory the control groups of a process leave it, and the host.

A page that is copied on write counts for the group of the process that writes. Where a limit is reached the kernel
takes back what it can, and then kills (memory.oom.group: everyone in the group). What a group has of files can be taken
back; what could be swapped out is not counted on.

A limit of a group that is not seen from here (above a container) is not known.

Documented in: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from torpor import procfs

_SPARE = 32 << 20
"""Bytes for page tables and for ourselves, who may be in the same group."""


class _Group(NamedTuple):
    """A control group, or the host as a whole."""

    name: str
    """For people."""
    room: int
    """Bytes that it may still get."""
    private: int
    """Bytes that are no file's and nobody else's, of all its processes; there cannot be more to copy."""


def shortage(private: Mapping[int, int]) -> str:
    """Why there may be no room for copies of all of some processes' private memory, in words; empty: there is.

    Args:
        private: bytes by PID.
    """
    needs: dict[_Group, int] = {}
    seen: dict[bytes, list[_Group]] = {}
    for pid, size in private.items():
        try:
            membership = procfs.read(f"/proc/{pid}/cgroup")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if membership not in seen:
            seen[membership] = [*_groups(membership), _host()]
        for group in seen[membership]:
            needs[group] = needs.get(group, 0) + size
    for group, total in needs.items():
        need = min(total, group.private)
        if need + need // 64 + _SPARE > group.room:
            return f"{group.name} has {_mib(group.room)} left, copies may take {_mib(need)}"
    return ""


def _mib(size: int) -> str:
    return f"{max(size, 0) >> 20} MiB"


def _host() -> _Group:
    lines = (line.split() for line in procfs.read("/proc/meminfo").splitlines())
    told = {words[0]: int(words[1]) << 10 for words in lines}
    room = told[b"MemAvailable:"] + told.get(b"SwapFree:", 0)
    return _Group("the host's memory", room, told[b"AnonPages:"])


def _groups(membership: bytes) -> Iterator[_Group]:
    """The groups that a process is in, from its /proc/PID/cgroup, as far up as they are seen."""
    for line in membership.splitlines():
        _, controllers, path = line.split(b":", 2)
        if controllers and b"memory" not in controllers.split(b","):
            continue
        place = _place(b"memory" if controllers else b"", path)
        if place is None:
            continue
        folder, top = place
        while True:
            name = f"the memory cgroup {os.path.relpath(folder, top) if folder != top else '/'}"
            with suppress(FileNotFoundError):  # the root has no limits, nor has a group without the controller
                yield from _unified(name, folder) if not controllers else _version_1(name, folder)
            if folder == top:
                break
            folder = os.path.dirname(folder)


def _place(controller: bytes, path: bytes) -> tuple[str, str] | None:
    """The folder of a group, and that of the topmost one that is seen; None: it is not seen."""
    kind = b"cgroup" if controller else b"cgroup2"
    for mount in procfs.mounts("self"):
        if mount.filesystem == kind and (not controller or controller in mount.options.split(b",")):
            within = os.path.relpath(path, mount.root)
            if within.split(b"/")[0] != b"..":
                return os.fsdecode(os.path.normpath(os.path.join(mount.point, within))), os.fsdecode(mount.point)
    return None


def _number(folder: str, name: str) -> int:
    """What a file of a group says; "max" is more than there can be."""
    text = procfs.read(f"{folder}/{name}").strip()
    return 1 << 63 if text == b"max" else int(text)


def _statistics(folder: str) -> dict[bytes, int]:
    lines = (line.split() for line in procfs.read(f"{folder}/memory.stat").splitlines())
    return {words[0]: int(words[1]) for words in lines}


def _unified(name: str, folder: str) -> Iterator[_Group]:
    limit = min(_number(folder, "memory.max"), _number(folder, "memory.high"))
    if limit < 1 << 62:
        told = _statistics(folder)
        files = told[b"inactive_file"] + told[b"active_file"]
        yield _Group(name, limit - _number(folder, "memory.current") + files, told[b"anon"])


def _version_1(name: str, folder: str) -> Iterator[_Group]:
    for which in ("memory", "memory.memsw"):  # the second, with what is swapped out, only where swap is accounted
        if not os.path.exists(f"{folder}/{which}.limit_in_bytes"):
            continue
        limit = _number(folder, f"{which}.limit_in_bytes")
        if limit < 1 << 62:
            told = _statistics(folder)
            files = told[b"total_inactive_file"] + told[b"total_active_file"]
            yield _Group(name, limit - _number(folder, f"{which}.usage_in_bytes") + files, told[b"total_rss"])
