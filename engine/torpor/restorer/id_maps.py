"""Which ids a user namespace has: those of /etc/subuid and /etc/subgid besides one's own, each as itself.

The kernel lets a user map no id but the own one. newuidmap(1) and newgidmap(1) map what an administrator has granted:
ranges of numbers that nobody has, and, with a line ``user:GID:1`` in /etc/subgid, the groups that a user is in.
Whatever comes of them, the own ids can be mapped without.
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
"""How long both helpers may take. They take milliseconds, unless the directory of users does not answer."""
MOST: Final = 120
"""Ranges of a map: its text is less than a page (map_write() in kernel/user_namespace.c), and a line up to 33 bytes."""
_SAID: Final = 400
"""Bytes that are repeated of what a helper says."""
END: Final = 2**32 - 1
"""No id: (uid_t) -1."""


@dataclass(frozen=True)
class Mapped:
    """The ids of a user namespace, each as itself."""

    uids: tuple[range, ...]
    gids: tuple[range, ...]
    why: str = ""
    """Why groups that are granted are not among them."""

    def without(self, groups: Iterable[int]) -> list[int]:
        """Those of some groups that do not exist in it."""
        return [gid for gid in groups if not any(gid in one for one in self.gids)]


def wanted() -> dict[Kind, list[range]]:
    """What this user is granted, with the own id. A kind of which nothing but that is granted is not among them."""
    needed: dict[Kind, Collection[int]] = {"uid": (), "gid": os.getgroups()}
    asked = {kind: (_own(kind), _granted(kind)) for kind in KINDS}
    return {kind: arrange(own, granted, needed[kind]) for kind, (own, granted) in asked.items() if granted}


def _own(kind: Kind) -> int:
    return os.geteuid() if kind == "uid" else os.getegid()


def _granted(kind: Kind) -> list[range]:
    try:
        text = GRANTS[kind].read_text(errors="replace")
        owners = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
    except (OSError, KeyError):  # no such file; a user without an account, for whom the helpers do nothing
        return []
    # To be root's is nothing that a job needs, and a setuid program that is half of root does harm.
    return list(parse(text, owners, 1 if kind == "uid" else 0))


def parse(text: str, owners: Collection[str], first: int = 0) -> Iterator[range]:
    """The ranges of some owners in the text of such a file (subuid(5)); lines that are no such are not.

    Args:
        text: lines ``owner:first id:count``.
        owners: names, and numbers as text.
        first: the lowest id that is given.
    """
    for line in text.splitlines():
        owner, *numbers = line.strip().split(":")
        if owner in owners and len(numbers) == 2 and all(number.isascii() and number.isdigit() for number in numbers):
            start, count = map(int, numbers)
            if one := range(max(start, first), min(start + count, END)):
                yield one


def arrange(own: int, granted: Iterable[range], needed: Collection[int] = ()) -> list[range]:
    """The ranges of a map: none twice, and where they are too many, the own id and those that are needed."""
    ranges: list[range] = []
    for one in sorted(granted, key=lambda one: one.start):
        if ranges and one.start <= ranges[-1].stop:
            ranges[-1] = range(ranges[-1].start, max(ranges[-1].stop, one.stop))
        else:
            ranges.append(one)
    if not any(own in one for one in ranges):
        # Alone, even where a range begins right after it: the helpers know it as the user's own by that.
        ranges.append(range(own, own + 1))
    ranges.sort(key=lambda one: (own not in one, not any(id in one for id in needed)))
    return sorted(ranges[:MOST], key=lambda one: one.start)


def own(why: str = "") -> Mapped:
    """Nothing but this user's own ids, which take no helper."""
    uid, gid = map(_own, KINDS)
    return Mapped((range(uid, uid + 1),), (range(gid, gid + 1),), why)


def write(pid: int, asked: Mapping[Kind, list[range]]) -> Mapped | None:
    """Have the helpers write the maps of a process that has made a user namespace, and has none yet.

    Args:
        pid: it, a child of this process. It maps its own id where no helper has mapped any.
        asked: as `wanted` has it.

    Returns:
        The ids that exist in it then. None: a helper has mapped others than as themselves, or not the own one, and no
        map can be written twice.
    """
    until = time.monotonic() + SECONDS
    with ExitStack() as stack:
        helpers = {kind: stack.enter_context(_Helper(HELPERS[kind], pid, ranges)) for kind, ranges in asked.items()}
        trouble = {kind: helper.wait(until) for kind, helper in helpers.items()}
    uids, gids = (_read(pid, kind) for kind in KINDS)
    return Mapped(uids, gids, trouble.get("gid", "")) if uids and gids else None


def _read(pid: int, kind: Kind) -> tuple[range, ...]:
    """The ranges of a map, the own id for an empty one; none where ids are not themselves."""
    lines = [tuple(map(int, line.split())) for line in procfs.read(f"/proc/{pid}/{kind}_map").splitlines()]
    ranges = tuple(range(inside, inside + count) for inside, _, count in lines)
    own = _own(kind)
    if not ranges:
        return (range(own, own + 1),)
    right = all(inside == outside for inside, outside, _ in lines) and any(own in one for one in ranges)
    return ranges if right else ()


class _Helper:
    """One that runs. A context manager: leaving it ends it."""

    def __init__(self, name: str, pid: int, ranges: Iterable[range]) -> None:
        words = [str(number) for one in ranges for number in (one.start, one.start, len(one))]
        self._name = name
        self._failure = ""
        self._process: subprocess.Popen[bytes] | None = None
        # Nobody waits at it: not a helper that says much, and not we for what a helper leaves running.
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
        """Wait for its end; what went wrong, in words.

        Args:
            until: a time of the monotonic clock.
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
                os.killpg(self._process.pid, signal.SIGKILL)  # setuid or not, it is this user's (kill(2))
            self._process.wait()
