"""Credentials of processes and threads.

Kept: the four user and group ids, supplementary groups, capability sets, securebits. An image grants nothing: ids must
be the restoring user's own, and only capabilities that the restorer has are restored.

Refused: processes of several users in one tree, unless root restores them.

Documented in: credentials(7), capabilities(7), proc_pid_status(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.part import Answers, ProcessPart, Stage, Step, ThreadAnswers, ThreadPart
from torpor.objects.process.texts import Texts
from torpor.remote.batch import Batch, Call

PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28
PR_CAPBSET_DROP = 24
PR_SET_KEEPCAPS = 8
SECBIT_KEEP_CAPS = 1 << 4
PR_CAP_AMBIENT = 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_IDS = 4
"""Real, effective, saved, and file system id."""


@dataclass(frozen=True)
class Rights:
    """What the restorer may give to processes."""

    keep: bool
    """Whether to set the image's ids and capabilities, which only root does. Otherwise all capabilities are dropped."""
    last_capability: int
    capabilities: int
    """The restorer's permitted capabilities, a bit mask."""


class Ids(ProcessPart[None, None]):
    """User and group ids, supplementary groups and capability sets, which all threads of a process share."""

    def preflight(self, pid: int, status: Mapping[bytes, bytes]) -> Iterator[tuple[str, str]]:
        """Ids of another user."""
        uids = set(map(int, status[b"Uid"].split()))
        if not procfs.is_root() and uids != {os.geteuid()}:
            users = ", ".join(map(str, sorted(uids)))
            yield f"it runs with the user ids {users}", "only root can keep such a tree"

    def ask(self, batch: Batch, texts: Texts) -> None:
        """No calls: /proc/PID/status has them."""

    def describe(self, asked: None, answers: Answers, out: pb.Process) -> None:
        """From /proc/PID/status."""
        described, status = out.credentials, answers.texts.status
        described.uids.extend(map(int, status[b"Uid"].split()))
        described.gids.extend(map(int, status[b"Gid"].split()))
        described.groups.extend(map(int, status[b"Groups"].split()))
        described.cap_inheritable = int(status[b"CapInh"], 16)
        described.cap_permitted = int(status[b"CapPrm"], 16)
        described.cap_effective = int(status[b"CapEff"], 16)
        described.cap_bounding = int(status[b"CapBnd"], 16)
        described.cap_ambient = int(status[b"CapAmb"], 16)

    def validate_form(self, process: pb.Process) -> Iterator[str]:
        """Incomplete ids."""
        if not len(process.credentials.uids) == len(process.credentials.gids) == _IDS:
            yield "its user and group ids are not complete"

    def validate(self, name: str, process: pb.Process) -> Iterator[Reason]:
        """They must be the restorer's own, unless root restores."""
        if procfs.is_root():
            return
        if set(process.credentials.uids) != {os.geteuid()}:
            uids = ", ".join(map(str, sorted(set(process.credentials.uids))))
            yield Reason(
                name, f"it ran with the user ids {uids}, and you are {os.geteuid()}", "restore it as that user"
            )
        if set(process.credentials.gids) != {os.getegid()}:
            gids = ", ".join(map(str, sorted(set(process.credentials.gids))))
            yield Reason(name, f"it ran with the group ids {gids}, and yours is {os.getegid()}", "see newgrp(1)")

    def host(self) -> None:
        """The calls depend on nothing: each thread sets its credentials (`ThreadCredentials`)."""


class ThreadCredentials(ThreadPart[int, Rights]):
    """A thread's own securebits; and setting all credentials, which each thread must do itself."""

    def ask(self, batch: Batch) -> int:
        """Query the securebits, which /proc does not show."""
        return batch.add(NR.prctl, PR_GET_SECUREBITS)

    def describe(self, asked: int, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree) -> None:
        """Those of the first thread are stored as the process's; another thread's only if they differ."""
        securebits = answers.replies.result(asked)
        if out.tid == process.pid:
            process.credentials.securebits = securebits
        elif securebits != process.credentials.securebits:
            out.securebits = 1 + securebits

    def host(self) -> Rights:
        """What the restorer may give."""
        last = int(procfs.read("/proc/sys/kernel/cap_last_cap"))
        keep = procfs.is_root()
        status = procfs.status(procfs.read("/proc/self/status"))
        return Rights(keep, last, int(status[b"CapPrm"], 16) if keep else (2 << last) - 1)

    def calls(self, thread: pb.Thread, process: pb.Process, image: pb.Tree, host: Rights) -> Iterator[Step]:
        """The last calls that the thread makes with the restorer's credentials."""
        return (Step(Stage.CREDENTIALS, call) for call in set_credentials(process.credentials, thread, host))


def drop_bounding(keep: int, rights: Rights) -> Iterator[Call]:
    """Remove capabilities that are not in `keep` from the bounding set. Children inherit it."""
    for number in range(rights.last_capability + 1):
        if not keep >> number & 1:
            words = f"dropping capability {number} from the bounding set"
            yield Call(NR.prctl, (PR_CAPBSET_DROP, number, 0, 0, 0), 0, words)


def give_up() -> Iterator[Call]:
    """Drop every capability, including the ambient ones."""
    yield _set_capabilities(0, 0, 0, "giving up every capability")


def set_credentials(image: pb.Credentials, thread: pb.Thread, rights: Rights) -> Iterator[Call]:
    """The calls that set a thread's credentials."""
    securebits = thread.securebits - 1 if thread.securebits else image.securebits
    if not rights.keep:
        yield from give_up()
        if securebits & SECBIT_KEEP_CAPS:  # this takes no capability
            yield Call(NR.prctl, (PR_SET_KEEPCAPS, 1, 0, 0, 0), 0, "keeping capabilities when ids change")
        return
    inheritable = image.cap_inheritable & rights.capabilities
    own = rights.capabilities
    if inheritable & ~image.cap_bounding:  # it was inheritable before it was dropped (cap_capset())
        yield _set_capabilities(own, own, inheritable, "making capabilities inheritable")
    yield from drop_bounding(image.cap_bounding, rights)
    groups = struct.pack(f"<{len(image.groups)}I", *image.groups)
    yield Call(NR.prctl, (PR_SET_KEEPCAPS, 1, 0, 0, 0), 0, "keeping capabilities while ids change")
    yield Call(NR.setgroups, (len(image.groups), groups), 0, "setting supplementary groups")
    yield Call(NR.setresgid, tuple(image.gids[:3]), 0, "setting group ids")
    yield Call(NR.setfsgid, (image.gids[3],), None, "setting the file system's group id")
    yield Call(NR.setresuid, tuple(image.uids[:3]), 0, "setting user ids")
    yield Call(NR.setfsuid, (image.uids[3],), None, "setting the file system's user id")
    permitted = image.cap_permitted & rights.capabilities
    if securebits:
        # Needs CAP_SETPCAP, which the image's capabilities may lack: set it before they are.
        yield _set_capabilities(own, own, inheritable, "taking up own capabilities again")
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
