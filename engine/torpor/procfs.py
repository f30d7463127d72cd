"""Read /proc: raw text while a tree is frozen, to be parsed once it runs again."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from signal import SIGKILL
from typing import NamedTuple

from torpor.errors import about

_SIGNALS = 31  # field of proc_pid_stat(5): pending signals; SIGKILL is among them if the thread is being killed
_NEWLINE = b"\\012"
_MOST_NEWLINES = 8
"""The most occurrences of this escape in a name that are disambiguated; with more, all count as newlines."""
_ESCAPED = re.compile(rb"\\([0-7]{3})")
PAGE = os.sysconf("SC_PAGESIZE")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def page_up(size: int) -> int:
    """Round a size or an address up to whole pages."""
    return (size + PAGE - 1) & -PAGE


def read(path: str) -> bytes:
    """Read a whole /proc file. One read(2) is not enough for files over a page."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        with about(path):
            while piece := os.read(fd, 1 << 20):
                pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def lines(text: bytes) -> list[bytes]:
    """Split a /proc file into lines; bytes.splitlines() would also split at carriage returns within names."""
    return text.removesuffix(b"\n").split(b"\n") if text else []


@cache
def in_initial_user_namespace() -> bool:
    """Return whether this process is in the initial user namespace, where every id maps to itself."""
    return read("/proc/self/uid_map").split() == [b"0", b"0", b"4294967295"]


def is_root() -> bool:
    """Return whether this process is root in the initial user namespace (user_namespaces(7)).

    In another one, as in a rootless container or under ``unshare -Ur``, uid 0 has only the rights of an ordinary user
    of the host: it cannot raise limits and priorities, or change other users' files.
    """
    return os.geteuid() == 0 and in_initial_user_namespace()


class Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    perms: bytes
    offset: int
    device: bytes
    inode: int
    name: bytes
    """Path, ``[name]`` or empty; the path of a removed file ends in `` (deleted)``."""

    @property
    def shared(self) -> bool:
        """Whether the mapping is MAP_SHARED."""
        return self.perms[3:4] == b"s"

    @property
    def writable(self) -> bool:
        """Whether the mapping has PROT_WRITE now."""
        return self.perms[1:2] == b"w"


@lru_cache(1 << 16)
def parse_mapping(line: bytes) -> Mapping:
    """Parse one line of maps or one heading of smaps.

    Cached, since most lines do not change between checkpoints, and maps and smaps are read in turn: room for as many
    mappings as a process may have, unless vm.max_map_count was raised.
    """
    fields = line.split(None, 5)
    start, _, end = fields[0].partition(b"-")
    inode = int(fields[4])
    name = _unescaped(fields[5], inode) if len(fields) > 5 else b""
    return Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[3], inode, name)


def _unescaped(name: bytes, inode: int) -> bytes:
    """Undo the escaping of newlines in a name.

    The kernel writes a newline as the four characters ``\\012``, but does not escape these four characters themselves
    (fs/seq_file.c, seq_file_path). The inode of the file shows which of the possible names is right.
    """
    if _NEWLINE not in name:
        return name
    parts = name.split(_NEWLINE)
    if 1 < len(parts) <= _MOST_NEWLINES:
        for between in product((b"\n", _NEWLINE), repeat=len(parts) - 1):
            candidate = parts[0] + b"".join(map(bytes.__add__, between, parts[1:]))
            with suppress(OSError):
                if os.lstat(candidate).st_ino == inode:
                    return candidate
    return b"\n".join(parts)


def mappings(pid: int) -> list[Mapping]:
    """Return the mappings of a process, sorted by address."""
    return [parse_mapping(line) for line in lines(read(f"/proc/{pid}/maps"))]


class FlaggedMapping(NamedTuple):
    """A mapping with additional fields from smaps."""

    mapping: Mapping
    flags: tuple[bytes, ...]
    """Two-letter VmFlags (Documentation/filesystems/proc.rst)."""
    page_size: int
    """The size of its pages, bytes; larger than PAGE in hugetlbfs."""
    protection_key: int
    """0 if the processor has no protection keys."""


_SMAPS = re.compile(
    rb"^([0-9a-f]+-.*)\n(?:[A-Z].*\n)*?KernelPageSize: *(\d+) kB\n"
    rb"(?:[A-Z].*\n)*?(?:ProtectionKey: *(\d+)\n)?VmFlags:(.*)$",
    re.MULTILINE,
)
"""A mapping in smaps: the heading, the only line that begins with a hexadecimal number, and the fields used."""


def flagged_mappings(pid: int) -> list[FlaggedMapping]:
    """Read the mappings of a process with their flags from smaps, for which the kernel walks the page tables."""
    return parse_smaps(read(f"/proc/{pid}/smaps"))


def parse_smaps(text: bytes) -> list[FlaggedMapping]:
    """Parse the text of an smaps file."""
    return [
        FlaggedMapping(parse_mapping(heading), _words(flags), int(size) << 10, int(key or 0))
        for heading, size, key, flags in _SMAPS.findall(text)
    ]


@lru_cache(1 << 8)
def _words(flags: bytes) -> tuple[bytes, ...]:
    """Split VmFlags. Cached, since there are few combinations."""
    return tuple(flags.split())


class Mount(NamedTuple):
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    device: int
    """st_dev of the file system."""
    root: bytes
    point: bytes
    filesystem: bytes
    source: bytes
    """As the kernel writes it, still escaped."""
    options: bytes
    """The options of the file system, not of the mount."""


def mounts(pid: int | str) -> Iterator[Mount]:
    """Yield the mounts that a process sees; a mount comes after those that it may cover."""
    for line in lines(read(f"/proc/{pid}/mountinfo")):
        mount, _, of_filesystem = line.partition(b" - ")
        _, _, device, root, point = mount.split(b" ")[:5]
        major, minor = map(int, device.split(b":"))
        path = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), point)
        yield Mount(os.makedev(major, minor), root, path, *of_filesystem.split(b" ", 2))


def status(text: bytes) -> dict[bytes, bytes]:
    """Parse the fields of /proc/PID/status."""
    fields: dict[bytes, bytes] = {}
    for line in lines(text):
        key, _, value = line.partition(b":")
        fields[key] = value.strip()
    return fields


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that Torpor uses; proc_pid_stat(5) numbers them from 1."""

    comm: bytes
    state: str
    ppid: int
    pgrp: int
    session: int
    tty: int
    flags: int
    start_time: int
    """Clock ticks after boot. Together with the PID it identifies a process."""
    fields: tuple[bytes, ...]
    """All fields; ``fields[n - 1]`` is field n."""

    @property
    def began_ns(self) -> int:
        """When it started, in nanoseconds of CLOCK_REALTIME."""
        return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.start_time * _TICK_NS

    @property
    def cpu_ticks(self) -> int:
        """The clock ticks for which it had a processor (utime and stime)."""
        return int(self.fields[13]) + int(self.fields[14])


def parse_stat(text: bytes) -> Stat:
    """Parse /proc/PID/stat; the name may contain blanks and parentheses."""
    opening, closing = text.index(b"("), text.rindex(b")")
    rest = text[closing + 2 :].split()
    fields = (text[: opening - 1], text[opening + 1 : closing], *rest)
    return Stat(
        comm=fields[1],
        state=fields[2].decode(),
        ppid=int(fields[3]),
        pgrp=int(fields[4]),
        session=int(fields[5]),
        tty=int(fields[6]),
        flags=int(fields[8]),
        start_time=int(fields[21]),
        fields=fields,
    )


def stat(pid: int) -> Stat:
    """Read and parse /proc/PID/stat."""
    return parse_stat(read(f"/proc/{pid}/stat"))


PF_EXITING = 0x4
"""A flag of a task that is exiting (include/linux/sched.h)."""


def command_line(pid: int) -> list[bytes]:
    """Return the words of a process's command line; none of one that has ended, or that may not be looked at."""
    try:
        return read(f"/proc/{pid}/cmdline").removesuffix(b"\0").split(b"\0")
    except OSError:
        return []


def is_leaderless(pid: int) -> bool:
    """Return whether the main thread of a process has ended while others run that are not about to end too."""
    return any(not is_ending(pid, tid) for tid in threads(pid)[1:]) and is_ending(pid, pid)


def is_ending(pid: int, tid: int) -> bool:
    """Return whether a thread has ended, or is about to end."""
    try:
        stat = parse_stat(read(f"/proc/{pid}/task/{tid}/stat"))
        return bool(stat.flags & PF_EXITING or int(stat.fields[_SIGNALS - 1]) >> (SIGKILL - 1) & 1)
    except (FileNotFoundError, ProcessLookupError):
        return True


def threads(pid: int) -> list[int]:
    """Return the thread ids of a process, main thread first."""
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))


def ancestry(pid: int) -> Iterator[int]:
    """Yield a process and its ancestors, as far as they are visible."""
    while pid:
        yield pid
        try:
            pid = stat(pid).ppid
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return  # the process has ended, or /proc hides it (hidepid)


def children(pid: int, tids: list[int]) -> list[int]:
    """Return the children of all threads of a process (needs CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for tid in tids:
        try:
            found += map(int, read(f"/proc/{pid}/task/{tid}/children").split())
        except ProcessLookupError:  # the thread ended
            continue
        except FileNotFoundError:
            if os.path.exists(f"/proc/{pid}/task/{tid}/stat"):
                raise
    return found


def pids() -> Iterator[int]:
    """Return the PIDs of this host's processes, as far as they are visible."""
    return map(int, filter(str.isdecimal, os.listdir("/proc")))


def open_descriptors(but: Collection[int] = ()) -> Iterator[tuple[int, int, str]]:
    """Yield the descriptors that this user may see: the PID, the number, and the target of the link.

    Args:
        but: PIDs that are left out.
    """
    for pid in pids():
        if pid in but:
            continue
        with suppress(OSError):  # it has ended, or belongs to another user
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):  # closed meanwhile
                    yield pid, int(name), os.readlink(f"/proc/{pid}/fd/{name}")


def boot_id() -> str:
    """Which boot of which host this is."""
    return read("/proc/sys/kernel/random/boot_id").strip().decode()
