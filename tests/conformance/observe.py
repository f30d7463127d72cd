"""What the kernel says of a tree of processes, so that before and after can be compared word for word.

Only /proc is read, from outside: the observed processes do nothing and cannot tell.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# Lines of /proc/PID/task/TID/status that must survive a checkpoint and a restore.
KEPT_STATUS = (
    "Name", "Umask", "Uid", "Gid", "Groups", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt",
    "CapInh", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed", "THP_enabled",
)  # fmt: skip
# smaps' "VmFlags" that say how a mapping was made; the others (accounted, soft-dirty, ...) are the kernel's own.
KEPT_FLAGS = frozenset(
    ["rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "gd", "lo", "dc", "nr", "dd", "wf", "hg", "nh", "mg", "io"]
)

# O_LARGEFILE, which means nothing on 64 bits; O_NOFOLLOW, O_DIRECTORY, O_TMPFILE, which only open() looks at.
SPENT_FLAGS = 0o100000 | 0o400000 | 0o200000 | 0o20000000
STACK_GROWTH = 64 << 10  # a signal frame with all registers in it makes a stack grow


@dataclass(frozen=True)
class Mapping:
    """A stretch of address space that looks the same throughout."""

    start: int
    end: int
    permissions: str
    offset: int
    name: str
    flags: frozenset[str]

    def __str__(self) -> str:
        flags = " ".join(sorted(self.flags))
        return f"{self.start:x}-{self.end:x} {self.permissions} {self.offset:x} {self.name} [{flags}]"


@dataclass
class Thread:
    """One thread as /proc shows it."""

    name: str
    status: dict[str, str]
    busy: bool = field(default=False, compare=False)
    """Whether it was running, waited for a processor or for a disk."""


@dataclass
class Process:
    """One process as /proc shows it; `pid`, `pgid` and `sid` are those of its own PID namespace."""

    pid: int
    pgid: int
    sid: int
    state: str
    exe: str
    cwd: str
    cmdline: bytes
    environ: bytes
    auxv: bytes
    limits: str
    elsewhere: tuple[str, ...] = ()
    """Which of its program, current and root directory lie on no mount that it sees."""
    children: tuple[int, ...] = ()
    mappings: tuple[str, ...] = ()
    descriptors: dict[int, str] = field(default_factory=dict)
    threads: dict[int, Thread] = field(default_factory=dict)


def status(pid: int, tid: int | None = None) -> dict[str, str]:
    """The lines of /proc/PID/status (or of one thread's), as a dictionary."""
    where = Path(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    lines = where.read_text(errors="surrogateescape").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def inner(lines: dict[str, str], what: str) -> int:
    """An id as the process's own PID namespace has it: the last number of an NSpid-like line."""
    return int(lines[what].split()[-1])


def children(pid: int) -> list[int]:
    """The children of every thread of `pid`, by the PIDs of the reader's namespace."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return sorted(found)


def descendants(pid: int) -> Iterator[int]:
    """`pid` and all below it, parents first."""
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for child in children(pid):
            yield from descendants(child)


def find(top: int, pid: int) -> int | None:
    """The process below (or at) `top` whose PID in its own namespace is `pid`."""
    for candidate in descendants(top):
        with suppress(FileNotFoundError, ProcessLookupError):
            if inner(status(candidate), "NSpid") == pid:
                return candidate
    return None


def mappings(pid: int) -> tuple[Mapping, ...]:
    """The address space, with neighbours joined that differ in nothing.

    Whether the kernel merges two equal neighbours depends on the order they were made in; no program can
    tell. Memory that is shared and has no name is shown without one: `/dev/zero (deleted)` or a memfd. A file that
    has lost the name by which it was mapped is shown by another one that it has.
    """
    found: list[Mapping] = []
    head = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ (\d+)\s*(.*)")
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="surrogateescape").split("\n"):  # names may hold "\r"
        if not line[:1].isupper() and (match := head.fullmatch(line)):
            start, end, offset = (int(match[k], 16) for k in (1, 2, 4))
            name = other_name(match[6], int(match[5]))
            nameless = name.endswith("(deleted)") or not name.startswith("/") or name == "/dev/zero"
            label = "" if nameless and not name.startswith("[") else name
            found.append(Mapping(start, end, match[3], 0 if nameless else offset, label, frozenset()))
        elif line.startswith("VmFlags:"):
            last = found.pop()
            flags = KEPT_FLAGS & frozenset(line.split()[1:])
            now = Mapping(last.start, last.end, last.permissions, last.offset, last.name, flags)
            before = found[-1] if found else None
            if before and before.end == now.start and _joins(before, now):
                found[-1] = Mapping(before.start, now.end, now.permissions, before.offset, now.name, now.flags)
            else:
                found.append(now)
    return tuple(found)


def other_name(name: str, inode: int) -> str:
    """Where a file is that is said to be deleted, if it has another name beside the old one or one level below."""
    folder = Path(name).parent
    if name.endswith(" (deleted)") and folder != Path("/") and folder.is_dir():
        for path in (*folder.iterdir(), *folder.glob("*/*")):
            with suppress(OSError):
                if path.lstat().st_ino == inode:
                    return str(path)
    return name


def _joins(before: Mapping, now: Mapping) -> bool:
    continues = not now.name.startswith("/") or before.offset + before.end - before.start == now.offset
    same = (before.permissions, before.name, before.flags) == (now.permissions, now.name, now.flags)
    return same and continues


def descriptors(pid: int) -> dict[int, str]:
    """Each descriptor: what it leads to (without inode numbers), its position, flags and details."""
    found = {}
    mounts = own_mounts(pid)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        # Others may have taken the number of a terminal meanwhile: it is kept where it is free.
        target = re.sub(r":\[\d+\]|(?<=^/dev/pts/)\d+", "", other_name(os.readlink(entry), entry.stat().st_ino))
        # A file that has no name any more, and lives on in memory or under another number, is as good.
        target = re.sub(r"^(?:/memfd:)?(/.*)/[^/]* \(deleted\)$", r"\1 (deleted)", target)
        info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
        kept = []
        for line in info:
            name, _, value = line.partition(":")
            if name == "flags":
                kept.append(f"flags={int(value, 8) & ~SPENT_FLAGS:o}")
            elif name in ("pos", "eventfd-count", "eventfd-semaphore"):
                kept.append(f"{name}={value.strip()}")
            elif name == "tfd":
                kept.append(watch(line))
        # A stream has no position; the kernel's number there means nothing.
        if target in ("pipe", "socket"):
            kept = [part for part in kept if not part.startswith("pos=")]
        if target.startswith("/") and not target.endswith("(deleted)") and not on_own_mount(str(entry), mounts):
            kept.append("on another mount")
        found[int(entry.name)] = " ".join([target, *sorted(kept)])
    return found


def own_mounts(pid: int) -> frozenset[str]:
    """The numbers of the mounts that a process sees."""
    try:
        text = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is ending, and has no mounts any more") from None
    return frozenset(line.split()[0] for line in text.splitlines())


def on_own_mount(link: str, mounts: frozenset[str]) -> bool:
    """Whether what a link of /proc/PID leads to lies on one of these mounts."""
    fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return any(line.split()[1] in mounts for line in lines if line.startswith("mnt_id"))


def directory(link: Path) -> str:
    """The path of a directory by a link of /proc/PID, or that it is longer than the kernel shows."""
    try:
        return os.readlink(link)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return "too long"


def watch(line: str) -> str:
    """A watch of an epoll set. The kernel adds EPOLLERR and EPOLLHUP to every one that is set."""
    _, number, _, events, _, data = line.split()[:6]
    return f"{number}: events {int(events, 16) & ~0x18:x} data {data}"


def observe(top: int) -> dict[int, Process]:
    """The tree below `top`, by the PIDs of its own namespace."""
    seen = {}
    for pid in descendants(top):
        base = Path(f"/proc/{pid}")
        lines = status(pid)
        threads = {}
        for task in (base / "task").iterdir():
            mine = status(pid, int(task.name))
            kept = {name: mine[name] for name in KEPT_STATUS if name in mine}
            for name in ("SigPnd", "ShdPnd"):  # one that is not blocked is about to be taken
                kept[name] = f"{int(mine[name], 16) & int(mine['SigBlk'], 16):016x}"
            threads[inner(mine, "NSpid")] = Thread(mine["Name"], kept, mine["State"][0] in "RD")
        process = Process(
            pid=inner(lines, "NSpid"),
            pgid=inner(lines, "NSpgid"),
            sid=inner(lines, "NSsid"),
            state="stopped" if lines["State"][0] == "T" else "zombie" if lines["State"][0] == "Z" else "alive",
            exe="",
            cwd="",
            cmdline=(base / "cmdline").read_bytes(),
            environ=b"",
            auxv=b"",
            limits="",
            children=tuple(sorted(inner(status(child), "NSpid") for child in children(pid))),
            threads=threads,
        )
        if process.state == "zombie":
            process.threads = {}  # it runs no more; what is left to tell is its parent's to ask
        else:
            # A program whose file is gone comes back in memory.
            process.exe = re.sub(r"^.*[/:]([^/:]*) \(deleted\)$", r"\1 (deleted)", os.readlink(base / "exe"))
            process.cwd = directory(base / "cwd")
            mounts = own_mounts(pid)
            links = ("cwd", "root") if process.exe.endswith(" (deleted)") else ("exe", "cwd", "root")
            process.elsewhere = tuple(name for name in links if not on_own_mount(f"{base}/{name}", mounts))
            process.environ = (base / "environ").read_bytes()
            process.auxv = (base / "auxv").read_bytes()
            process.limits = (base / "limits").read_text()
            process.mappings = tuple(map(str, mappings(pid)))
            process.descriptors = descriptors(pid)
        seen[process.pid] = process
    return seen


def busy(tree: dict[int, Process]) -> bool:
    """Whether any thread has something to do."""
    return any(thread.busy for process in tree.values() for thread in process.threads.values())


def shrunk(now: tuple[str, ...], before: tuple[str, ...]) -> tuple[str, ...]:
    """The mappings `now`, where a stack that has grown no more than a signal makes it grow is as it was `before`."""
    was = {tuple(line.partition("-")[2].split()): line for line in before if " [stack]" in line}

    def back(line: str) -> str:
        old = was.get(tuple(line.partition("-")[2].split()), line)
        grown = int(old.partition("-")[0], 16) - int(line.partition("-")[0], 16)
        return old if 0 <= grown <= STACK_GROWTH else line

    return tuple(map(back, now))


def differences(before: dict[int, Process], after: dict[int, Process]) -> list[str]:
    """Everything that is not as it was, one line each; empty when nothing changed."""
    told = [f"process {pid} is gone" for pid in before.keys() - after.keys()]
    told += [f"process {pid} is new" for pid in after.keys() - before.keys()]
    for pid in before.keys() & after.keys():
        was, now = vars(before[pid]), vars(after[pid])
        for name, value in was.items():
            if value == now[name]:
                continue
            if name == "mappings":
                now[name] = shrunk(now[name], value)
                told += [f"process {pid}: mapping gone: {line}" for line in value if line not in now[name]]
                told += [f"process {pid}: mapping new: {line}" for line in now[name] if line not in value]
            elif isinstance(value, dict):
                for key in value.keys() | now[name].keys():
                    if value.get(key) != now[name].get(key):
                        told.append(f"process {pid}: {name} {key}: {value.get(key)} -> {now[name].get(key)}")
            else:
                told.append(f"process {pid}: {name}: {value!r} -> {now[name]!r}")
    return told
