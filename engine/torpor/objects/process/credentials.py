"""Credentials and limits of a process.

Kept: the four user and group ids, supplementary groups, capability sets, securebits, resource limits. An image grants
nothing: ids must be the restoring user's own, capabilities and limits are kept as far as the restorer has them.

Refused: processes of several users in one tree, unless root restores them; a Landlock domain, where it can be told.

Documented in: credentials(7), capabilities(7), proc_pid_status(5), getrlimit(2).
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.remote.batch import Batch, Call, Replies, Result

PR_GET_SECUREBITS = 27

# Names in /proc/PID/limits, in the order of the RLIMIT_ numbers (fs/proc/base.c, lnames).
LIMIT_NAMES = (
    b"Max cpu time", b"Max file size", b"Max data size", b"Max stack size", b"Max core file size",
    b"Max resident set", b"Max processes", b"Max open files", b"Max locked memory", b"Max address space",
    b"Max file locks", b"Max pending signals", b"Max msgqueue size", b"Max nice priority",
    b"Max realtime priority", b"Max realtime timeout",
)  # fmt: skip
UNLIMITED = (1 << 64) - 1


def ask(batch: Batch) -> int:
    """The entry that asks for the securebits, which /proc does not show."""
    return batch.add(NR.prctl, PR_GET_SECUREBITS)


KCMP_VM = 1


@lru_cache(maxsize=1)
def _own_status(_: int) -> Mapping[bytes, bytes]:
    return procfs.status(procfs.read("/proc/self/status"))


def ask_sandbox(batch: Batch, pid: int, status: Mapping[bytes, bytes]) -> int | None:
    """The entry by which a process tries to look at us, which Landlock forbids to those inside of a domain: there is
    no other sign of it. None where it might not look for other reasons: another user, another PID namespace.
    """
    mine = _own_status(os.getpid())
    alike = all(status[name].split() == mine[name].split() for name in (b"Uid", b"Gid"))
    if not alike or int(mine[b"CapPrm"], 16) or os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid"):
        return None
    return batch.add(NR.kcmp, Result(batch.add(NR.getpid)), os.getpid(), KCMP_VM, 0, 0)


def is_sandboxed(entry: int | None, replies: Replies) -> bool:
    """The answer to `ask_sandbox`."""
    return entry is not None and replies.result(entry) in (-errno.EPERM, -errno.EACCES)


def refuse(name: str, status: Mapping[bytes, bytes]) -> list[Reason]:
    """What of a process's credentials cannot be kept.

    Args:
        name: the process, for people.
        status: its /proc/PID/status.
    """
    reasons: list[Reason] = []
    uids = set(map(int, status[b"Uid"].split()))
    if not procfs.is_root() and uids != {os.geteuid()}:
        users = ", ".join(map(str, sorted(uids)))
        reasons.append(Reason(name, f"it runs with the user ids {users}", "only root can keep such a tree"))
    return reasons


OF_MEMORY = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK)


def describe(securebits: int, status: Mapping[bytes, bytes], limits: bytes, image: pb.Process) -> None:
    """Fill credentials, umask and limits of a process from its first thread's securebits and the texts of /proc."""
    told = image.credentials
    told.uids.extend(map(int, status[b"Uid"].split()))
    told.gids.extend(map(int, status[b"Gid"].split()))
    told.groups.extend(map(int, status[b"Groups"].split()))
    told.cap_inheritable = int(status[b"CapInh"], 16)
    told.cap_permitted = int(status[b"CapPrm"], 16)
    told.cap_effective = int(status[b"CapEff"], 16)
    told.cap_bounding = int(status[b"CapBnd"], 16)
    told.cap_ambient = int(status[b"CapAmb"], 16)
    told.securebits = securebits
    image.umask = int(status[b"Umask"], 8)
    for line in limits.splitlines()[1:]:
        number = next(k for k, name in enumerate(LIMIT_NAMES) if line.startswith(name))
        soft, hard = (_limit(word) for word in line[len(LIMIT_NAMES[number]) :].split()[:2])
        image.limits.add(resource=number, soft=soft, hard=hard)


def _limit(word: bytes) -> int:
    return UNLIMITED if word == b"unlimited" else int(word)


def describe_thread(securebits: int, image: pb.Credentials, thread: pb.Thread) -> None:
    """Note what a thread has of its own: all else is refused (`torpor.objects.process.tree`)."""
    if securebits != image.securebits:
        thread.securebits = 1 + securebits


# Restore

PR_SET_SECUREBITS = 28
PR_CAPBSET_DROP = 24
PR_SET_KEEPCAPS = 8
SECBIT_KEEP_CAPS = 1 << 4
PR_CAP_AMBIENT = 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
RLIMIT_NOFILE = 7


@dataclass(frozen=True)
class Rights:
    """What the restorer may give to processes."""

    keep: bool
    """Whether the image's ids and capabilities are set: by root only. Otherwise all capabilities are given up."""
    last_capability: int
    capabilities: int
    """The restorer's own permitted ones, a bit mask."""
    hard_limits: tuple[int, ...]
    """The restorer's own, by number."""


def drop_bounding(keep: int, rights: Rights) -> Iterator[Call]:
    """Take capabilities but those in `keep` out of the bounding set; what is born later inherits it."""
    for number in range(rights.last_capability + 1):
        if not keep >> number & 1:
            words = f"dropping capability {number} from the bounding set"
            yield Call(NR.prctl, (PR_CAPBSET_DROP, number, 0, 0, 0), 0, words)


def give_up() -> Iterator[Call]:
    """Give up every capability; the ambient ones go with them."""
    yield _set_capabilities(0, 0, 0, "giving up every capability")


def steps(image: pb.Credentials, thread: pb.Thread, rights: Rights) -> Iterator[Call]:
    """Set a thread's credentials: the last thing it does with those of the restorer."""
    securebits = thread.securebits - 1 if thread.securebits else image.securebits
    if not rights.keep:
        yield from give_up()
        if securebits & SECBIT_KEEP_CAPS:  # which takes no capability to be set
            yield Call(NR.prctl, (PR_SET_KEEPCAPS, 1, 0, 0, 0), 0, "keeping capabilities when ids change")
        return
    yield from drop_bounding(image.cap_bounding, rights)
    groups = struct.pack(f"<{len(image.groups)}I", *image.groups)
    yield Call(NR.prctl, (PR_SET_KEEPCAPS, 1, 0, 0, 0), 0, "keeping capabilities while ids change")
    yield Call(NR.setgroups, (len(image.groups), groups), 0, "setting supplementary groups")
    yield Call(NR.setresgid, tuple(image.gids[:3]), 0, "setting group ids")
    yield Call(NR.setfsgid, (image.gids[3],), None, "setting the file system's group id")
    yield Call(NR.setresuid, tuple(image.uids[:3]), 0, "setting user ids")
    yield Call(NR.setfsuid, (image.uids[3],), None, "setting the file system's user id")
    permitted = image.cap_permitted & rights.capabilities
    inheritable = image.cap_inheritable & rights.capabilities
    if securebits:
        # Needs CAP_SETPCAP, which the image may not have: it is asked for before that goes.
        yield _set_capabilities(rights.capabilities, rights.capabilities, 0, "taking up own capabilities again")
        yield Call(NR.prctl, (PR_SET_SECUREBITS, securebits, 0, 0, 0), 0, "setting securebits")
    else:
        yield Call(NR.prctl, (PR_SET_KEEPCAPS, 0, 0, 0, 0), 0, "no longer keeping capabilities")
    effective = image.cap_effective & permitted
    yield _set_capabilities(effective, permitted, inheritable, "setting capabilities")
    for number in range(rights.last_capability + 1):
        if image.cap_ambient & permitted & inheritable & 1 << number:
            words = f"making capability {number} ambient"
            yield Call(NR.prctl, (PR_CAP_AMBIENT, _AMBIENT_RAISE, number, 0, 0), 0, words)


def _set_capabilities(effective: int, permitted: int, inheritable: int, words: str) -> Call:
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    halves = [value >> shift & 0xFFFFFFFF for shift in (0, 32) for value in (effective, permitted, inheritable)]
    return Call(NR.capset, (header, struct.pack("<6I", *halves)), 0, words)


def widening(rights: Rights) -> Iterator[Call]:
    """Raise the limits of memory as far as the restorer may, until `limit_steps` sets the process's own: with the
    restorer's it might not be built."""
    for number in OF_MEMORY:
        content = struct.pack("<QQ", rights.hard_limits[number], rights.hard_limits[number])
        words = f"widening the limit {LIMIT_NAMES[number].decode()}"
        yield Call(NR.prlimit64, (0, number, content, 0), 0, words)


def limit_steps(process: pb.Process, rights: Rights) -> Iterator[Call]:
    """Set resource limits, none above the restorer's own."""
    for limit in process.limits:
        hard = min(limit.hard, rights.hard_limits[limit.resource])
        content = struct.pack("<QQ", min(limit.soft, hard), hard)
        words = f"setting the limit {LIMIT_NAMES[limit.resource].decode()}"
        yield Call(NR.prlimit64, (0, limit.resource, content, 0), 0, words)


def warnings(name: str, process: pb.Process, rights: Rights) -> Iterator[str]:
    """What is not as before, in words."""
    for limit in process.limits:
        if limit.soft > rights.hard_limits[limit.resource]:
            what = LIMIT_NAMES[limit.resource].decode().removeprefix("Max ")
            yield f"{name}: its limit of {what} is lower than it was: yours is {rights.hard_limits[limit.resource]}"


def check(name: str, image: pb.Credentials) -> Iterator[Reason]:
    """The ids must be the restorer's own, unless root restores."""
    if procfs.is_root():
        return
    if set(image.uids) != {os.geteuid()}:
        uids = ", ".join(map(str, sorted(set(image.uids))))
        yield Reason(name, f"it ran with the user ids {uids}, and you are {os.geteuid()}", "restore it as that user")
    if set(image.gids) != {os.getegid()}:
        gids = ", ".join(map(str, sorted(set(image.gids))))
        yield Reason(name, f"it ran with the group ids {gids}, and yours is {os.getegid()}", "see newgrp(1)")
