"""How much memory is left in the control groups of a process and on the host.

The kernel charges a page that is copied on write to the group of the process that writes. At a limit it first reclaims
what it can, then kills (with memory.oom.group: every process of the group). A group's page cache can be reclaimed, so
it counts as room; memory that could be swapped out does not.

Limits of groups that are not visible from here (above a container) are unknown.

Documented in: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from torpor import procfs
from torpor.util.sizes import readable

_SPARE = 32 << 20
"""Bytes for page tables and for this process, which may be in the same group."""


class _Group(NamedTuple):
    """A control group, or the host as a whole."""

    name: str
    """For messages."""
    room: int
    """Bytes that it can still be charged."""
    private: int
    """Bytes of anonymous memory of all its processes: an upper bound of what can be copied."""


def shortage(private: Mapping[int, int]) -> str:
    """Say why there may be no room to copy all private memory of some processes; empty if there is room.

    Args:
        private: bytes of private memory by PID.
    """
    needs: dict[_Group, int] = {}
    seen: dict[bytes, list[_Group]] = {}
    for pid, size in private.items():
        try:
            membership = procfs.read(f"/proc/{pid}/cgroup")
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
        if membership not in seen:
            seen[membership] = [*_groups(membership), _host()]
        for group in seen[membership]:
            needs[group] = needs.get(group, 0) + size
    for group, total in needs.items():
        need = min(total, group.private)
        if need + need // 64 + _SPARE > group.room:
            return f"{group.name} has {readable(max(group.room, 0))} left, copies may take {readable(need)}"
    return ""


def room() -> int:
    """How many bytes this process can still use."""
    return min(group.room for group in (*_groups(procfs.read("/proc/self/cgroup")), _host())) - _SPARE


def _host() -> _Group:
    lines = (line.split() for line in procfs.read("/proc/meminfo").splitlines())
    fields = {words[0]: int(words[1]) << 10 for words in lines}
    room = fields[b"MemAvailable:"] + fields.get(b"SwapFree:", 0)
    return _Group("the host's memory", room, fields[b"AnonPages:"])


def _groups(membership: bytes) -> Iterator[_Group]:
    """Parse /proc/PID/cgroup; yield the process's group and its ancestors, as far up as they are visible here."""
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
            with suppress(FileNotFoundError):  # the root group and groups without the controller have no limit files
                yield from _unified(name, folder) if not controllers else _version_1(name, folder)
            if folder == top:
                break
            folder = os.path.dirname(folder)


def _place(controller: bytes, path: bytes) -> tuple[str, str] | None:
    """Return the directory of a group and that of its topmost visible ancestor; None if the group is not visible."""
    kind = b"cgroup" if controller else b"cgroup2"
    for mount in procfs.mounts("self"):
        if mount.filesystem == kind and (not controller or controller in mount.options.split(b",")):
            within = os.path.relpath(path, mount.root)
            if within.split(b"/")[0] != b"..":
                return os.fsdecode(os.path.normpath(os.path.join(mount.point, within))), os.fsdecode(mount.point)
    return None


def _number(folder: str, name: str) -> int:
    """Read a number from a file of a group; "max" becomes 1 << 63."""
    text = procfs.read(f"{folder}/{name}").strip()
    return 1 << 63 if text == b"max" else int(text)


def _statistics(folder: str) -> dict[bytes, int]:
    lines = (line.split() for line in procfs.read(f"{folder}/memory.stat").splitlines())
    return {words[0]: int(words[1]) for words in lines}


def _unified(name: str, folder: str) -> Iterator[_Group]:
    limit = min(_number(folder, "memory.max"), _number(folder, "memory.high"))
    if limit < 1 << 62:
        fields = _statistics(folder)
        files = fields[b"inactive_file"] + fields[b"active_file"]
        yield _Group(name, limit - _number(folder, "memory.current") + files, fields[b"anon"])


def _version_1(name: str, folder: str) -> Iterator[_Group]:
    for which in ("memory", "memory.memsw"):  # memsw includes swap; it exists only if swap is accounted
        if not os.path.exists(f"{folder}/{which}.limit_in_bytes"):
            continue
        limit = _number(folder, f"{which}.limit_in_bytes")
        if limit < 1 << 62:
            fields = _statistics(folder)
            files = fields[b"total_inactive_file"] + fields[b"total_active_file"]
            yield _Group(name, limit - _number(folder, f"{which}.usage_in_bytes") + files, fields[b"total_rss"])
