"""dump(restore(image)) = image: compare the image of a tree with an image of the same tree after a restore.

Messages are compared field by field. A difference that is not listed in `torpor.restorer.expected_differences`, with
its reason, is a bug in the engine. Lists without a defined order are sorted first, and adjacent mappings with equal
attributes are merged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, Final

from google.protobuf.message import Message

from torpor.image import image_pb2 as pb
from torpor.restorer.expected_differences import ALLOWED, At, Parents

_KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "processes": lambda one: one.pid,
    "processes.fds": lambda one: one.fd,
    "processes.pending": lambda one: one,
    "processes.threads": lambda one: one.tid,
    "processes.threads.pending": lambda one: one,
    "processes.memory.vmas": lambda one: one.end,
    "descriptions.epoll.watches": lambda one: (one.fd, one.description),
    "descriptions.inotify.watches": lambda one: one.number,
}
"""The sort keys of lists whose order is up to the kernel."""
_SHOWN: Final = 160
"""The most characters of a value that a message shows."""
_STATUS: Final = {getattr(os, name): name for name in ("O_APPEND", "O_NONBLOCK", "O_DIRECT", "O_NOATIME", "O_PATH")}
_STATUS_MASK: Final = sum(_STATUS)
_LARGE_FILE: Final = 0o100000  # every open(2) of a 64-bit program sets it
_ACCESS: Final = ("O_RDONLY", "O_WRONLY", "O_RDWR", "access mode 3")
_GIVEN: Final = (1 << 32) - 1
"""Replaces the index of a description that the restorer gave: its own standard input, output or error."""


def differences(before: pb.Tree, after: pb.Tree, *, built: bool = False) -> list[str]:
    """Find the differences between two images of a tree that are not allowed.

    Args:
        before: the tree before the restore.
        after: the same tree after it.
        built: whether the tree was only built, and has not run.

    Returns:
        A sentence for each difference: ``process 12 (python): descriptor 5: flags are O_RDWR, were ...``
    """
    return list(_Comparison(_numbered(before), _numbered(after), built=built).run())


class _Comparison:
    """Compares two images with equally numbered descriptions."""

    def __init__(self, before: pb.Tree, after: pb.Tree, *, built: bool) -> None:
        self._before = before
        self._after = after
        at: tuple[At, ...] = ("both", "building") if built else ("both", "saves")
        self._allowed: dict[str, list[Parents]] = {}
        for one in ALLOWED:
            if one.at in at:
                self._allowed.setdefault(one.path, []).append(one.when)
        self._holders: dict[int, str] = {}
        for process in before.processes:
            for entry in process.fds:
                self._holders.setdefault(entry.description, f"{_process(process)}: descriptor {entry.fd}")

    def run(self) -> Iterator[str]:
        yield from self._messages(self._before, self._after, "", "", "")

    def _free(self, path: str, before: Any, after: Any) -> bool:
        return any(when(before, after) for when in self._allowed.get(path, ()))

    def _messages(self, before: Message, after: Message, who: str, where: str, path: str) -> Iterator[str]:
        """Compare two messages.

        Args:
            before: the message before the restore.
            after: the same message after it.
            who: the object that they describe, for the sentence.
            where: the part of that object, followed by a dot unless empty.
            path: the path of the messages without indexes, followed by a dot unless empty.
        """
        if before == after:
            return
        for field in before.DESCRIPTOR.fields:
            one, other = getattr(before, field.name), getattr(after, field.name)
            plain = f"{path}{field.name}"
            if one == other or self._free(plain, before, after):
                continue
            if hasattr(one, "append"):
                yield from self._lists(_in_order(plain, one), _in_order(plain, other), who, where + field.name, plain)
            elif field.message_type is not None:
                yield from self._messages(one, other, who, f"{where}{field.name}.", f"{plain}.")
            else:
                yield _sentence(who, where + field.name, _value(plain, other), _value(plain, one))

    def _lists(self, before: list[Any], after: list[Any], who: str, where: str, path: str) -> Iterator[str]:
        if key := _KEYS.get(path):
            pairs: Iterable[tuple[Any, Any]] = _paired(before, after, key)
        elif len(before) == len(after):
            pairs = zip(before, after, strict=True)
        else:
            first, second = next((a, b) for a, b in zip_longest(before, after) if a != b)
            yield (
                f"{_about(who)}there are {len(after)} {_spoken(where)}, were {len(before)}; "
                f"first {_value(path, second)}, was {_value(path, first)}"
            )
            return
        for number, (one, other) in enumerate(pairs):
            if one == other or (one is not None and other is not None and self._free(f"{path}[]", one, other)):
                continue
            if one is None or other is None:
                there = one if other is None else other
                words = "is not there" if other is None else "was not there"
                name = self._name(path, number, there, who) or f"{_about(who)}{_spoken(where)} {_value(path, there)}"
                yield f"{name} {words}"
            elif isinstance(one, Message):
                name = self._name(path, number, one, who)
                yield from self._messages(one, other, name or who, "" if name else f"{where}[{number}].", f"{path}.")
            else:
                yield _sentence(who, f"{where}[{number}]", _value(path, other), _value(path, one))

    def _name(self, path: str, number: int, one: Any, who: str) -> str:
        """Name an element of a list for the sentence; empty if it has no name of its own."""
        match path:
            case "processes":
                return _process(one)
            case "processes.threads":
                return f"{who}: thread {one.tid}"
            case "processes.fds":
                return f"{who}: descriptor {one.fd}"
            case "processes.memory.vmas":
                return f"{who}: memory {one.start:#x}-{one.end:#x}"
            case "processes.actions":
                return f"{who}: action of signal {one.signal}"
            case "descriptions":
                return self._holders.get(number, f"description {number}, in a socket's queue")
            case "shared":
                return f"shared memory {number} ({os.fsdecode(one.name) or 'without a name'})"
            case "files":
                return f"mapped file {os.fsdecode(one.path)}"
            case "ptys":
                return f"terminal /dev/pts/{one.number}"
        return ""


def is_given(one: pb.Description, tree: pb.Tree) -> bool:
    """Return whether the restorer provides a description: standard input, output, error, or the terminal, if any."""
    return one.HasField("outside") or (one.HasField("pty") and tree.ptys[one.pty.pty].outside)


def _numbered(tree: pb.Tree) -> pb.Tree:
    """Return a copy in which descriptions are numbered in the order of processes and their descriptors.

    Descriptions that the restorer provides (standard input, output and error) are left out, and so is a session's
    terminal outside of the tree: the restorer has others, or none.
    """
    out = pb.Tree()
    out.CopyFrom(tree)
    order: dict[int, int] = {}
    given = {k for k, one in enumerate(tree.descriptions) if is_given(one, tree)}
    for process in sorted(out.processes, key=lambda one: one.pid):
        for entry in sorted(process.fds, key=lambda one: one.fd):
            if entry.description not in given:
                order.setdefault(entry.description, len(order))
    for k in range(len(tree.descriptions)):
        if k not in given:
            order.setdefault(k, len(order))
    new = order | dict.fromkeys(given, _GIVEN)
    ptys = [k for k, pty in enumerate(tree.ptys) if not pty.outside]
    terminals = {k: number for number, k in enumerate(ptys)}
    out.ClearField("descriptions")
    out.descriptions.extend(tree.descriptions[k] for k in sorted(order, key=order.__getitem__))
    for process in out.processes:
        for entry in process.fds:
            entry.description = new[entry.description]
    for one in out.descriptions:
        _renumber(one, new, terminals)
    lost = {session.sid for session in tree.sessions if tree.ptys[session.terminal].outside}
    for process in out.processes:
        process.no_terminal = process.no_terminal and process.sid not in lost
    out.ClearField("ptys")
    out.ptys.extend(tree.ptys[k] for k in ptys)
    out.ClearField("sessions")
    for session in tree.sessions:
        if session.sid not in lost:
            kept = out.sessions.add()
            kept.CopyFrom(session)
            kept.terminal = terminals[session.terminal]
    return out


def _renumber(one: pb.Description, new: Mapping[int, int], terminals: Mapping[int, int]) -> None:
    """Renumber what a description refers to."""
    match one.WhichOneof("kind"):
        case "epoll":
            for watch in one.epoll.watches:
                watch.description = new[watch.description]
        case "inotify":
            for place in one.inotify.watches:
                place.held = new[place.held - 1] + 1 if place.held else 0
        case "tcp" if one.tcp.state == pb.TcpSocket.INSIDE:
            one.tcp.peer = new[one.tcp.peer]
        case "pty":
            one.pty.pty = terminals.get(one.pty.pty, _GIVEN)
        case "unix":
            if one.unix.has_peer:
                one.unix.peer = new[one.unix.peer]
            one.unix.pending[:] = [new[k] for k in one.unix.pending]
            for under_way in one.unix.under_way:
                under_way.descriptions[:] = [new[k] for k in under_way.descriptions]


def _paired(before: list[Any], after: list[Any], key: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Pair the elements of two sorted lists by key; None stands for a missing one."""
    one, other = iter(before), iter(after)
    a, b = next(one, None), next(other, None)
    while a is not None or b is not None:
        left = a is not None and (b is None or key(a) <= key(b))
        right = b is not None and (a is None or key(b) <= key(a))
        yield a if left else None, b if right else None
        a = next(one, None) if left else a
        b = next(other, None) if right else b


def _in_order(path: str, values: Any) -> list[Any]:
    if path == "processes.memory.vmas":
        return _joined(values)
    return sorted(values, key=_KEYS[path]) if path in _KEYS else list(values)


def _joined(vmas: Any) -> list[pb.Vma]:
    """Merge adjacent mappings with equal attributes, since the kernel may merge and split them."""
    joined: list[pb.Vma] = []
    for vma in vmas:
        last = joined[-1] if joined else None
        if last is not None and last.end == vma.start and _alike(last, vma):
            last.end = vma.end
        else:
            joined.append(pb.Vma.FromString(vma.SerializeToString()))
    return joined


def _alike(one: pb.Vma, other: pb.Vma) -> bool:
    follows = one.offset + one.end - one.start
    both = [pb.Vma.FromString(vma.SerializeToString()) for vma in (one, other)]
    if one.kind != pb.Vma.ANONYMOUS and follows != other.offset:
        return False
    for vma in both:
        vma.start = vma.end = vma.offset = 0
    return both[0] == both[1]


def _process(process: pb.Process) -> str:
    name = process.threads[0].name.decode(errors="replace") if process.threads else ""
    return f"process {process.pid} ({name})"


def _about(who: str) -> str:
    return f"{who}: " if who else ""


def _spoken(where: str) -> str:
    return where.replace("_", " ").replace(".", " ")


def _sentence(who: str, where: str, now: str, was: str) -> str:
    verbs = ("are", "were") if where.endswith("s") and not where.endswith("ss") else ("is", "was")
    return f"{_about(who)}{_spoken(where)} {verbs[0]} {now}, {verbs[1]} {was}"


def _value(path: str, value: object) -> str:
    """Format a value for the sentence."""
    if path == "descriptions.flags" and isinstance(value, int):
        rest = value & ~_STATUS_MASK & ~os.O_ACCMODE & ~_LARGE_FILE
        names = [_ACCESS[value & os.O_ACCMODE], *(name for bit, name in _STATUS.items() if value & bit == bit)]
        return "|".join([*names, *([f"{rest:#o}"] if rest else [])])
    if path == "processes.umask":
        return f"{value:03o}"
    if path == "processes.memory.vmas.prot" and isinstance(value, int):
        return "".join(letter if value >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
    if isinstance(value, bytes):
        text = repr(value.decode()) if value.isascii() and value.decode().isprintable() else value.hex()
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
