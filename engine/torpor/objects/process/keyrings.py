"""Keyrings of sessions and processes, and the keys in them (keyrings(7)).

Kept: session keyrings that a process has joined or inherited, and process keyrings, with their keys of the types "user"
and "big_key": description, payload, permissions, and expiry (with the precision of /proc/keys, and only if the key is
visible to the user who saves). They come back as copies. If the tree has the session keyring that Torpor itself has
when it restores the tree, that one is used.

Refused: keys that cannot be read (of the type "logon"), nested keyrings, thread keyrings with keys, and a session
keyring that is shared in a way that inheritance cannot give. In Torpor's own session keyring, such as that of a login,
such keys are ignored: the user who restores the tree has a login too.

The user's keyring (@u) belongs to the user, not to a process.

Documented in: keyctl(2), add_key(2), session-keyring(7), process-keyring(7), user-keyring(7).
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.part import EnteredTree, Stage, Step, TreePart
from torpor.remote import ptrace
from torpor.remote.batch import Ask, Batch, Call, Out, Replies, Result
from torpor.remote.sys import try_syscall
from torpor.util.workers import Thread

_GET_KEYRING_ID, _JOIN_SESSION_KEYRING, _CHOWN, _SETPERM = 0, 1, 4, 5
_DESCRIBE, _LINK, _READ, _SET_TIMEOUT = 6, 8, 11, 15
_THREAD, _PROCESS, _SESSION, _USER = -1, -2, -3, -4
"""KEY_SPEC_*_KEYRING."""
_RING = b"keyring"
_READABLE = (b"user", b"big_key")
_SHARING_ALL = 0xF00
"""CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND: a cheap child, which keeps no resource of its parent alive."""
_ANONYMOUS = (b"_ses", b"_pid", b"_tid")
"""The kernel's names for keyrings without a name."""
_OF_USER = (b"_uid.", b"_uid_ses.", b"_persistent.")
"""Prefixes of the names of keyrings that belong to a user."""
_DEAD = (errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EKEYREJECTED)
_MOST_KEYS = 512
ADVICE = "have it leave the keyring (keyctl new_session), or remove the key (keyctl unlink)"
_LONGEST_NAME = 4096
"""KEY_MAX_DESC_SIZE (include/uapi/linux/keyctl.h), in bytes."""
_LONGEST_DESCRIPTION = _LONGEST_NAME + 64
"""Of KEYCTL_DESCRIBE, which has the type, the owner and the rights before the name."""
_LARGEST = 32 << 10
"""The maximal size of a payload in bytes, which is above that of the type "user"."""
_UNITS = {b"s": 1, b"m": 60, b"h": 3600, b"d": 86400, b"w": 7 * 86400}
_EXPIRING = re.compile(rb"^([0-9a-f]{8}) \S{7} +\d+ +(\d+)([smhdw]) [0-9a-f]{8} ", re.MULTILINE)
"""A line of /proc/keys whose key expires (security/keys/proc.c). The names at the ends of lines may hold line ends."""
_MOST_SECONDS = 1 << 31


class Questions(NamedTuple):
    """The entries of a thread's batch that query its keyrings."""

    session: int
    thread: int
    process: int


class Rings(NamedTuple):
    """The serial numbers of a process's or thread's keyrings; 0: none."""

    thread: int
    process: int
    session: int


def ask(batch: Batch) -> Questions:
    """Add calls to a batch, which must be empty, that query a thread's keyrings.

    If a thread without a session keyring asks for it, the kernel gives it that of its user
    (security/keys/process_keys.c, lookup_user_key()), and it keeps that one even when it changes its user. So a child
    asks, which has the same session keyring and then exits.
    """
    session = batch.add(NR.keyctl, _GET_KEYRING_ID, _SESSION, 0)
    batch.add(NR.exit, 0)
    batch.first = len(batch)
    child = batch.add(NR.clone, _SHARING_ALL, 0, 0, 0, 0, on_zero=session, on_error=batch.first + 2)
    batch.add(NR.wait4, Result(child), 0, ptrace.WALL, 0)
    return Questions(session, *(batch.add(NR.keyctl, _GET_KEYRING_ID, ring, 0) for ring in (_THREAD, _PROCESS)))


def answer(asked: Questions, replies: Replies, ask_again: Ask) -> Rings:
    """The result of `ask`. There are no keyrings if a filter or the kernel does not allow these calls.

    Args:
        asked: the result of `ask`.
        replies: of the thread.
        ask_again: lets the thread make calls, for the case that it could have no child, or that the child might not
            ask.
    """
    session = replies.result(asked.session)
    if session < 0:
        batch = Batch()
        entry = batch.add(NR.keyctl, _GET_KEYRING_ID, _SESSION, 0)
        session = ask_again(batch).result(entry)
    return Rings(*(max(found, 0) for found in (replies.result(asked.thread), replies.result(asked.process), session)))


def users() -> set[int] | None:
    """The users that have any keys; None if that is unknown."""
    try:
        return {int(line.split(b":")[0]) for line in procfs.read("/proc/key-users").splitlines()}
    except (OSError, ValueError):
        return None


def own_session() -> int:
    """The session keyring of this process, which saves or restores a tree; 0: none.

    A new thread asks, since asking may change a thread and its children (see `ask`). If there can be no thread, this
    one asks.
    """
    found: list[int] = []

    def look() -> None:
        found.append(max(try_syscall(NR.keyctl, _GET_KEYRING_ID, _SESSION, 0), 0))

    thread = Thread(look)
    if thread.start():
        thread.join()
    else:
        look()
    return found[0]


def users_own() -> int:
    """The user keyring of this user (@u); 0: none."""
    return max(try_syscall(NR.keyctl, _GET_KEYRING_ID, _USER, 0), 0)


def keys_of_user() -> int:
    """The number of keys in the user keyring."""
    return max(try_syscall(NR.keyctl, _READ, _USER, 0, 0), 0) // 4


class Described(NamedTuple):
    """The result of KEYCTL_DESCRIBE."""

    type: bytes
    uid: int
    gid: int
    rights: int
    description: bytes


@dataclass
class Ring:
    """A keyring as it was."""

    serial: int
    name: Described
    keys: list[tuple[int, Described, bytes]] = field(default_factory=list)
    """The serial number, description and payload of each key."""
    users: bool = False
    """The user's own keyring is linked to it."""


@dataclass
class Keys:
    """The keyrings of a tree."""

    rings: dict[int, Ring] = field(default_factory=dict)
    """By serial number; without those in which a process has nothing of its own."""
    session: dict[int, int] = field(default_factory=dict)
    """For each PID the serial number of its session keyring."""
    process: dict[int, int] = field(default_factory=dict)
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """Each with its PID."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The processes in messages, by PID."""


class Keyrings(TreePart[Questions, Keys, "Here"]):
    """The keyrings of a tree's processes and sessions."""

    def may_have(self, uids: frozenset[int]) -> bool:
        """Whether one of these users has keys."""
        having = users()
        return having is None or not having.isdisjoint(uids)

    def ask(self, batch: Batch) -> Questions:
        """Each thread is asked for its keyrings."""
        return ask(batch)

    def grab(self, tree: EnteredTree) -> Keys:
        """Read the keyrings that any process has, with their keys."""
        found: dict[int, tuple[list[Rings], Ask]] = {}
        for process in tree.processes:
            if (asked := process.asked(self)) is None:
                continue
            rings = [answer(asked, process.replies(tid), partial(process.ask, tid=tid)) for tid in process.tids]
            if any(map(any, rings)):
                found[process.pid] = rings, process.ask
        keys = grab(found, own_session()) if found else Keys()
        keys.names = {process.pid: process.name for process in tree.processes}
        return keys

    def unsupported(self, grabbed: Keys) -> Iterator[Reason]:
        """Keys that cannot be read, and keyrings of threads."""
        return (Reason(grabbed.names[pid], why, ADVICE) for pid, why in grabbed.reasons)

    def describe(self, grabbed: Keys, image: pb.Tree, own_pids: Mapping[int, int], root: int) -> None:
        """Write them to the image, and which process has which."""
        describe(grabbed, image, own_pids)

    def unsupported_relations(self, image: pb.Tree) -> Iterator[Reason]:
        """Session keyrings that inheritance cannot give."""
        return (Reason("the tree", why, ADVICE) for why in unsupported(image))

    def validate_form(self, image: pb.Tree) -> Iterator[str]:
        """What in them is invalid."""
        return validate_form(image)

    def host(self) -> Here:
        """The keyrings of the restorer."""
        return Here(own_session(), users_own(), procfs.boot_id())

    def by_init(self, image: pb.Tree, host: Here, *, owner: bool) -> Iterator[list[Call]]:
        """Join the session keyring that the tree started with: all processes inherit it."""
        if calls := for_all(image, host, owner=owner):
            yield calls

    def calls(self, process: pb.Process, image: pb.Tree, host: Here, *, owner: bool) -> Iterator[Step]:
        """Join or fill the keyrings that it did not inherit."""
        return (Step(Stage.BIRTH, call) for call in of_process(process, image, host, owner=owner))


def grab(found: Mapping[int, tuple[Collection[Rings], Ask]], own: int) -> Keys:
    """Read the keyrings of a tree.

    Args:
        found: for each PID the keyrings of its threads, the first thread's first, and how to let it make calls.
        own: our own session keyring.
    """
    keys = Keys()
    seen: dict[int, Ring | None] = {}
    for pid, (threads, asks) in found.items():
        serials = [{rings[which] for rings in threads} - {0} for which in range(3)]
        for serial in set().union(*serials) - seen.keys():
            seen[serial] = _take(serial, asks, keys.reasons, pid, lenient=serial == own)
        full = [{serial for serial in of_kind if seen[serial]} for of_kind in serials]
        if full[0]:
            keys.reasons.append((pid, "a thread has keys of its own (its thread keyring), which are not kept"))
        for kind, into, words in ((1, keys.process, "process"), (2, keys.session, "session")):
            if len(full[kind]) > 1 or (full[kind] and kind == 2 and len(serials[kind]) > 1):
                keys.reasons.append((pid, f"its threads have different {words} keyrings, which is not kept"))
            elif full[kind]:
                into[pid] = full[kind].pop()
    keys.rings = {serial: ring for serial, ring in seen.items() if ring is not None}
    return keys


def _take(serial: int, ask: Ask, reasons: list[tuple[int, str]], pid: int, *, lenient: bool) -> Ring | None:
    """Read a keyring; None if nothing in it must be kept."""
    batch = Batch()
    name = batch.add(NR.keyctl, _DESCRIBE, serial, Out(_LONGEST_DESCRIPTION), _LONGEST_DESCRIPTION)
    listed = batch.add(NR.keyctl, _READ, serial, Out(4 * _MOST_KEYS), 4 * _MOST_KEYS)
    replies = ask(batch)
    ring = Ring(serial, _described(replies, name))
    if ring.name.description.startswith(_OF_USER) or -replies.result(name) in _DEAD:
        return None
    if not 0 < replies.result(name) <= _LONGEST_DESCRIPTION:
        reasons.append((pid, f"its keyring {serial:#x} may not be viewed"))
        return None
    words = f"its keyring {ring.name.description.decode(errors='replace')!r}"
    size = replies.result(listed)
    if not 0 <= size <= 4 * _MOST_KEYS:
        reasons.append((pid, f"{words} cannot be read" if size < 0 else f"{words} has more than {_MOST_KEYS} keys"))
        return None
    for (key,) in struct.iter_unpack("<i", replies.output(listed, 2)[:size]):
        why = _take_key(key, ask, ring)
        if why and not lenient:
            reasons.append((pid, f"{words} holds {why}"))
    return ring if ring.keys or ring.name.description not in _ANONYMOUS else None


def _take_key(serial: int, ask: Ask, ring: Ring) -> str:
    """Read a key into `ring`. Returns why that is impossible, "" if it is not."""
    batch = Batch()
    name = batch.add(NR.keyctl, _DESCRIBE, serial, Out(_LONGEST_DESCRIPTION), _LONGEST_DESCRIPTION)
    content = batch.add(NR.keyctl, _READ, serial, Out(_LARGEST), _LARGEST)
    replies = ask(batch)
    size = replies.result(content)
    if -replies.result(name) in _DEAD or -size in _DEAD:
        return ""
    found = _described(replies, name)
    if found.type == _RING and found.description.startswith(_OF_USER):
        ring.users = ring.users or found.description.startswith(_OF_USER[0])
        return ""
    words = f"the key {found.description.decode(errors='replace')!r}"
    if replies.result(name) < 0:
        return f"the key {serial}, which may not be viewed"
    if found.type not in _READABLE:
        return f"{words} of the type {found.type.decode(errors='replace')}, which is not kept"
    if not 0 <= size <= _LARGEST:
        return f"{words}, which may not be read" if size < 0 else f"{words}, which has {size} bytes"
    ring.keys.append((serial, found, replies.output(content, 2)[:size]))
    return ""


def _described(replies: Replies, entry: int) -> Described:
    text = replies.output(entry, 2)[: max(replies.result(entry), 0)].rstrip(b"\0")
    kind, uid, gid, rights, description = text.split(b";", 4) if text.count(b";") >= 4 else (b"", 0, 0, b"0", b"")
    return Described(kind, int(uid), int(gid), int(rights, 16), description)


def describe(keys: Keys, image: pb.Tree, pids: Mapping[int, int]) -> None:
    """Write keyrings to the image, and which process has which.

    Args:
        keys: what was read.
        image: has the processes already.
        pids: maps PIDs in our namespace to those in the image.
    """
    left = _times_left() if any(ring.keys for ring in keys.rings.values()) else {}
    index: dict[int, int] = {}
    for serial in dict.fromkeys([*keys.session.values(), *keys.process.values()]):
        ring = keys.rings[serial]
        index[serial] = len(image.keyrings) + 1
        kind, uid, gid, rights, name = ring.name
        out = image.keyrings.add(serial=serial, name=name, uid=uid, gid=gid, rights=rights, users=ring.users)
        for key, (kind, uid, gid, rights, name), payload in sorted(ring.keys, key=lambda one: one[1]):
            one = out.keys.add(type=kind, description=name, payload=payload, uid=uid, gid=gid, rights=rights)
            one.seconds = left.get(key, 0)
    processes = {process.pid: process for process in image.processes}
    for pid, serial in keys.session.items():
        processes[pids[pid]].session_keyring = index[serial]
    for pid, serial in keys.process.items():
        processes[pids[pid]].process_keyring = index[serial]


def _times_left() -> dict[int, int]:
    """The seconds until keys expire, by serial number: of those that are visible and do expire."""
    found = {}
    with suppress(FileNotFoundError, PermissionError):  # the host does not show it
        for serial, left, unit in _EXPIRING.findall(procfs.read("/proc/keys")):
            found[int(serial, 16)] = int(left) * _UNITS[unit] or 1
    return found


def unsupported(image: pb.Tree) -> Iterator[str]:
    """Why a restore cannot give session keyrings to these processes.

    A process inherits one at birth, or joins it: so all that have it must descend from one process. Only the keyring of
    the root may be anywhere, since it comes from above the tree.
    """
    given = given_to_all(image)
    by_pid = {process.pid: process for process in image.processes if not process.zombie}
    tops: dict[int, int] = {}
    for process in by_pid.values():
        mine = process.session_keyring
        parent = by_pid.get(process.ppid)
        inherited = parent.session_keyring if parent is not None else given
        if mine == inherited:
            continue
        if not mine or mine == given or mine in tops:
            yield f"process {process.pid} has no session keyring that it could have inherited from its parent"
        tops[mine] = process.pid


def given_to_all(image: pb.Tree) -> int:
    """1 + the index of the session keyring that the tree started with; 0: none."""
    return image.processes[0].session_keyring


# Restore


@dataclass(frozen=True)
class Here:
    """The keyrings of the process that restores a tree."""

    session: int
    user: int
    boot_id: str
    """Serial numbers are valid on one boot of one host."""


def validate_form(image: pb.Tree) -> Iterator[str]:
    """What in an image's keyrings is invalid."""
    for ring in image.keyrings:
        if not ring.name or b"\0" in ring.name or len(ring.name) >= _LONGEST_NAME:
            yield "it has a keyring without a name"
        for key in ring.keys:
            if key.type not in _READABLE or b"\0" in key.description or not key.description:
                yield f"it has a key of the type {key.type!r}"
            elif len(key.payload) > _LARGEST or len(key.description) >= _LONGEST_NAME or key.seconds > _MOST_SECONDS:
                yield "it has an invalid key"
    for process in image.processes:
        if max(process.session_keyring, process.process_keyring) > len(image.keyrings):
            yield f"process {process.pid} has a keyring that is not in it"


def for_all(image: pb.Tree, here: Here, *, owner: bool) -> list[Call]:
    """The calls that init makes before any process is born, so that all inherit the tree's session keyring."""
    number = given_to_all(image)
    return list(_session(number, image, here, owner=owner)) if number else []


def of_process(process: pb.Process, image: pb.Tree, here: Here, *, owner: bool) -> Iterator[Call]:
    """The first calls of a process, before it has children.

    Args:
        process: of the image.
        image: the tree.
        here: the keyrings of the restorer.
        owner: whether the image's user ids are set.
    """
    parent = next((one for one in image.processes if one.pid == process.ppid and not one.zombie), None)
    inherited = parent.session_keyring if parent is not None else given_to_all(image)
    calls: list[Call] = []
    if process.session_keyring and process.session_keyring != inherited:
        calls += _session(process.session_keyring, image, here, owner=owner)
    if process.process_keyring:
        calls += _fill(image.keyrings[process.process_keyring - 1], _PROCESS, here, len(calls), owner=owner)
    yield from calls


def _session(number: int, image: pb.Tree, here: Here, *, owner: bool) -> Iterator[Call]:
    ring = image.keyrings[number - 1]
    if ring.serial == here.session and here.boot_id == image.host.boot_id:
        return
    name = 0 if ring.name in _ANONYMOUS else ring.name + b"\0"
    yield Call(NR.keyctl, (_JOIN_SESSION_KEYRING, name), None, f"joining the session keyring {_text(ring.name)}")
    yield from _fill(ring, _SESSION, here, 1, owner=owner)


def _fill(ring: pb.Keyring, where: int, here: Here, first: int, *, owner: bool) -> Iterator[Call]:
    """Add keys to a keyring. `first` is the index of the first of these calls in its table."""
    place = first
    for key in ring.keys:
        words = f"the key {_text(key.description)}"
        args = (key.type + b"\0", key.description + b"\0", key.payload, len(key.payload), where)
        made = [Call(NR.add_key, args, None, f"adding {words}")]
        it = Result(place)
        if key.seconds:
            made.append(Call(NR.keyctl, (_SET_TIMEOUT, it, key.seconds), 0, f"setting the expiry of {words}"))
        if owner:
            made.append(Call(NR.keyctl, (_CHOWN, it, key.uid, key.gid), 0, f"giving {words} to its owner"))
        made.append(Call(NR.keyctl, (_SETPERM, it, key.rights), 0, f"setting the rights of {words}"))
        place += len(made)
        yield from made
    if ring.users and here.user:
        yield Call(NR.keyctl, (_LINK, here.user, where), 0, "linking the user's keyring to it")
    words = f"the keyring {_text(ring.name)}"
    if owner:
        yield Call(NR.keyctl, (_CHOWN, where, ring.uid, ring.gid), 0, f"giving {words} to its owner")
    yield Call(NR.keyctl, (_SETPERM, where, ring.rights), 0, f"setting the rights of {words}")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
