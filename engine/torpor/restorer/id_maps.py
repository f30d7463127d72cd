"""The id maps of a user namespace: the user's own ids and those of /etc/subuid and /etc/subgid, mapped one to one.

The kernel lets a user map only the user's own ids. newuidmap(1) and newgidmap(1) map what an administrator has granted:
ranges of unused ids and, with a line ``user:GID:1`` in /etc/subgid, the groups that a user is in. If they fail, the own
ids can still be mapped without them.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from torpor import procfs

Kind = Literal["uid", "gid"]
KINDS: Final[tuple[Kind, Kind]] = ("uid", "gid")
GRANTS: Final[dict[Kind, Path]] = {"uid": Path("/etc/subuid"), "gid": Path("/etc/subgid")}
HELPERS: Final[dict[Kind, str]] = {"uid": "newuidmap", "gid": "newgidmap"}
SECONDS: Final = 3.0
"""How long both helpers together may take. They take milliseconds, unless the user database does not answer."""
MOST: Final = 120
"""Most ranges in a map: its text must be below a page (map_write(), kernel/user_namespace.c), a line has 33 bytes."""
_SAID: Final = 400
"""The most bytes of a helper's output that a message repeats."""
END: Final = 2**32 - 1
"""(uid_t) -1, which is not a valid id."""


@dataclass(frozen=True)
class Mapped:
    """The ids that exist in a user namespace, mapped one to one."""

    uids: tuple[range, ...]
    gids: tuple[range, ...]
    why: str = ""
    """Why granted groups are missing."""

    def without(self, groups: Iterable[int]) -> list[int]:
        """Return those of the given groups that do not exist in the namespace."""
        return [gid for gid in groups if not any(gid in one for one in self.gids)]


def wanted() -> dict[Kind, list[range]]:
    """Return the granted ids and the user's own one, by kind; a kind is left out if nothing is granted."""
    needed: dict[Kind, Collection[int]] = {"uid": (), "gid": os.getgroups()}
    asked = {kind: (_own(kind), _granted(kind)) for kind in KINDS}
    return {kind: arrange(own, granted, needed[kind]) for kind, (own, granted) in asked.items() if granted}


def _own(kind: Kind) -> int:
    return os.geteuid() if kind == "uid" else os.getegid()


def _granted(kind: Kind) -> list[range]:
    try:
        text = GRANTS[kind].read_text(errors="replace")
        owners = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
    except (OSError, KeyError):  # the file is missing, or the user has no account, which the helpers require
        return []
    # Not uid 0: no job needs it, and a setuid program that is root only in part may do harm.
    return list(parse(text, owners, 1 if kind == "uid" else 0))


def parse(text: str, owners: Collection[str], first: int = 0) -> Iterator[range]:
    """Parse subuid(5) or subgid(5); yield the ranges of some owners and skip malformed lines.

    Args:
        text: lines ``owner:first id:count``.
        owners: user names, and uids as text.
        first: the lowest id to yield.
    """
    for line in text.splitlines():
        owner, *numbers = line.strip().split(":")
        if owner in owners and len(numbers) == 2 and all(number.isascii() and number.isdigit() for number in numbers):
            start, count = map(int, numbers)
            if one := range(max(start, first), min(start + count, END)):
                yield one


def arrange(own: int, granted: Iterable[range], needed: Collection[int] = ()) -> list[range]:
    """Merge ranges for a map. If there are too many, keep the own id and those that are needed first."""
    ranges: list[range] = []
    for one in sorted(granted, key=lambda one: one.start):
        if ranges and one.start <= ranges[-1].stop:
            ranges[-1] = range(ranges[-1].start, max(ranges[-1].stop, one.stop))
        else:
            ranges.append(one)
    if not any(own in one for one in ranges):
        # A range of its own, even next to another: otherwise the helpers do not recognize the user's own id.
        ranges.append(range(own, own + 1))
    ranges.sort(key=lambda one: (own not in one, not any(id in one for id in needed)))
    return sorted(ranges[:MOST], key=lambda one: one.start)


def own(why: str = "") -> Mapped:
    """Return only this user's own ids, which need no helper."""
    uid, gid = map(_own, KINDS)
    return Mapped((range(uid, uid + 1),), (range(gid, gid + 1),), why)


def write(pid: int, asked: Mapping[Kind, list[range]]) -> Mapped | None:
    """Let the helpers write the id maps of a process that has just made a user namespace.

    Args:
        pid: the process, a child of this one. If no helper has written a map, it maps its own id itself.
        asked: what `wanted` returned.

    Returns:
        The ids that then exist in the namespace. None if a map is not one to one or lacks the own id; the kernel does
        not allow to write a map twice.
    """
    until = time.monotonic() + SECONDS
    with ExitStack() as stack:
        helpers = {kind: stack.enter_context(_Helper(HELPERS[kind], pid, ranges)) for kind, ranges in asked.items()}
        trouble = {kind: helper.wait(until) for kind, helper in helpers.items()}
    uids, gids = (_read(pid, kind) for kind in KINDS)
    return Mapped(uids, gids, trouble.get("gid", "")) if uids and gids else None


def _read(pid: int, kind: Kind) -> tuple[range, ...]:
    """Read a map's ranges: the own id if the map is empty; none if it is not one to one or lacks the own id."""
    lines = [tuple(map(int, line.split())) for line in procfs.read(f"/proc/{pid}/{kind}_map").splitlines()]
    ranges = tuple(range(inside, inside + count) for inside, _, count in lines)
    own = _own(kind)
    if not ranges:
        return (range(own, own + 1),)
    right = all(inside == outside for inside, outside, _ in lines) and any(own in one for one in ranges)
    return ranges if right else ()


class _Helper:
    """A running helper. A context manager: leaving it kills the helper."""

    def __init__(self, name: str, pid: int, ranges: Iterable[range]) -> None:
        words = [str(number) for one in ranges for number in (one.start, one.start, len(one))]
        self._name = name
        self._failure = ""
        self._process: subprocess.Popen[bytes] | None = None
        # A pipe that never blocks a helper that prints much, or us if a helper leaves a process behind.
        self._said, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._process = subprocess.Popen(
                [name, str(pid), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writer,
                start_new_session=True,
            )
        except OSError as error:
            self._failure = f"{name}: {error.strerror}"
        finally:
            os.close(writer)

    def wait(self, until: float) -> str:
        """Wait for its end; return what went wrong, empty if nothing.

        Args:
            until: the deadline, in seconds of time.monotonic().
        """
        if self._process is None:
            return self._failure
        try:
            code = self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"{self._name}: it took longer than {SECONDS:g} s"
        return f"{self._name}: {self._words() or f'it ended with {code}'}" if code else ""

    def _words(self) -> str:
        with suppress(BlockingIOError):
            words = " ".join(os.read(self._said, _SAID).decode(errors="replace").split())
            return words.removeprefix(f"{self._name}: ")
        return ""

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._said)
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # kill(2) allows it for setuid programs of this user too
            self._process.wait()
