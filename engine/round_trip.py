"""dump(restore(image)) = image: what differs between an image of a tree and one of the same tree when it was woken.

Compared message by message and field by field. A difference that is not in `ALLOWED`, each with its reason, is a fault
of the engine. What the kernel gives in an order of its own is compared in ours, and mappings that lie side by side and
are alike count as one.
"""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf.message import Message

from torpor.image import image_pb2 as pb

Parents: TypeAlias = Callable[[Any, Any], Any]
"""Whether a difference is allowed, by the two messages that hold the field."""


class Allowed(NamedTuple):
    """Why a field need not be the same."""

    path: str
    """Of the field, without indexes; what lies below it is meant as well. With [] it is one of a list that is meant."""
    why: str
    when: Parents = lambda *_: True


_RAN = "it ran in between: a call was taken up again, or the kernel has written what a thread finds there"
_TIME = "time goes on"
_NEW = "another inode or number: what has no name that lasts is made anew"
_PROC = "in a capsule /proc is a mount of its own"
_AGAIN = "memory without a name comes back as a memfd, and a program that was removed, too"
_UNSEEN_FLAGS: Final = 0o100000 | os.O_NOFOLLOW
"""O_LARGEFILE, which each open(2) of 64 bit programs sets, and flags that count while a file is opened only."""
_SI_TIMER: Final = -2
_SI_KERNEL: Final = 0x80


def _removed(before: Any, after: Any) -> bool:
    return bool(before.path.endswith(b" (deleted)") and after.path.endswith(b" (deleted)"))


def _without_name(before: Any, after: Any) -> bool:
    kinds = (pb.SharedMemory.ANONYMOUS, pb.SharedMemory.UNLINKED, pb.SharedMemory.MEMFD)
    return before.kind in kinds and after.kind in kinds


def _is_over(before: Any, after: Any) -> bool:
    over = (pb.TcpSocket.OUTSIDE, pb.TcpSocket.ENDED)
    return before.state in over and after.state in over


def _but_for_timers(before: Any, after: Any) -> bool:
    one, other = (sorted(info for info in process.pending if not _is_of_timer(info)) for process in (before, after))
    return one == other


def _is_of_timer(info: bytes) -> bool:
    number, _, code = struct.unpack_from("<3i", info.ljust(12, b"\0"))
    alarms = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
    return code == _SI_TIMER or (code == _SI_KERNEL and number in alarms)


def _in_proc(before: Any, after: Any) -> bool:
    return bool(before.path.startswith(b"/proc/") and after.path == before.path)


def _only_more(before: Any, after: Any) -> bool:
    return all(option in after.options for option in before.options)


ALLOWED: Final = (
    Allowed("timing", "each save takes its own time"),
    Allowed("host.realtime_ns", _TIME),
    Allowed("host.monotonic_ns", _TIME),
    Allowed("host.boottime_ns", _TIME),
    Allowed("processes.threads.registers", _RAN),
    Allowed("processes.threads.xstate", _RAN),
    Allowed("processes.threads.below", _RAN),
    Allowed("processes.threads.below_address", _RAN),
    Allowed("processes.memory.pages", _RAN),
    Allowed("processes.memory.vmas.start", "the stack grew: " + _RAN, lambda before, _: before.grows_down),
    Allowed("processes.posix_timers.value_ns", _TIME),
    Allowed("processes.posix_timers.overrun", _TIME),
    Allowed("processes.interval_timers.value_us", _TIME),
    Allowed("processes.pending", _TIME, _but_for_timers),
    Allowed("processes.threads.pending", _TIME, _but_for_timers),
    Allowed(
        "processes.memory.vmas",
        "known fault: a locked mapping with guard regions in it is not locked as a whole any more",
        lambda before, after: before.guards.starts and before.guards == after.guards,
    ),
    Allowed("processes.cwd_inode", _NEW, lambda before, after: before.cwd_inode.removed and after.cwd_inode.removed),
    Allowed("descriptions.directory.inode.dev", _PROC),
    Allowed("descriptions.directory.inode", _NEW, lambda before, after: before.inode.removed and after.inode.removed),
    Allowed(
        "descriptions.tcp.options",
        "known fault: options that a restore binds with stay set where the program had not set them",
        _only_more,
    ),
    Allowed("descriptions.udp.options", "bind() to an address of IPv6 sets IPV6_V6ONLY (__inet6_bind())", _only_more),
    Allowed("bundles", "known fault: a woken tree's save has fewer of the small files: they are older than it is"),
    Allowed("descriptions.timerfd.left_ns", _TIME),
    Allowed("descriptions.timerfd.moment_ns", _TIME),
    Allowed("descriptions.timerfd.ticks", _TIME),
    Allowed(
        "processes.credentials.cap_bounding",
        "in a capsule of a user none may be won by executing a program",
        lambda _, after: after.cap_bounding == 0,
    ),
    Allowed("keyrings.serial", _NEW),
    Allowed("keyrings.keys.seconds", _TIME),
    Allowed("shared.dev", _NEW),
    Allowed("shared.ino", _NEW),
    Allowed("shared.kind", _AGAIN, _without_name),
    Allowed("shared.name", _AGAIN, _without_name),
    Allowed("shared.atime_ns", "reading and mapping it is an access"),
    Allowed("shared.pages", _RAN),
    Allowed("files[]", _AGAIN, _removed),
    Allowed("bundles[]", _AGAIN, _removed),
    Allowed("descriptions.queue.inode", _NEW),
    Allowed("descriptions.unix.inode", _NEW),
    Allowed("descriptions.fifo.inode", _NEW, lambda before, after: before.inode.removed and after.inode.removed),
    *(Allowed(f"descriptions.file.{field}", _PROC, _in_proc) for field in ("dev", "ino", "mtime_ns", "ctime_ns")),
    Allowed(
        "descriptions.flags",
        "it says nothing of an open file",
        lambda before, after: not (before.flags ^ after.flags) & ~_UNSEEN_FLAGS,
    ),
    Allowed(
        "descriptions.epoll.watches.events",
        "epoll_ctl(2) adds EPOLLERR and EPOLLHUP, which one that has fired once (EPOLLONESHOT) had not",
        lambda before, after: before.events ^ after.events == select.EPOLLERR | select.EPOLLHUP,
    ),
    Allowed("ptys.number", _NEW),
    Allowed("descriptions.tcp.local", "a connection that is over comes back between two ends of ours", _is_over),
    Allowed("descriptions.tcp.remote", "a connection that is over comes back between two ends of ours", _is_over),
    Allowed(
        "descriptions.unix.name",
        "known fault: the accepted end of a connection whose listener was closed shows another name, or none, where the"
        " listener's file is still there; a warning says so",
        lambda before, after: before.has_peer and after.has_peer,
    ),
)
_KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "processes": lambda one: one.pid,
    "processes.fds": lambda one: one.fd,
    "processes.pending": lambda one: one,
    "processes.threads": lambda one: one.tid,
    "processes.threads.pending": lambda one: one,
    "descriptions.epoll.watches": lambda one: (one.fd, one.description),
    "descriptions.inotify.watches": lambda one: one.number,
}
"""By what those are sorted that the kernel gives in an order of its own."""
_SHOWN: Final = 160
"""Characters of a value that a difference shows."""


def differences(before: pb.Tree, after: pb.Tree) -> list[str]:
    """Say what is not the same in two images of a tree, and is on no list: each by its path, with both values."""
    return list(_compare(before, after, "", ""))


def _compare(before: Message, after: Message, where: str, path: str) -> Iterator[str]:
    for field in before.DESCRIPTOR.fields:
        plain = f"{path}{field.name}"
        if any(plain == one.path and one.when(before, after) for one in ALLOWED):
            continue
        here, one, other = f"{where}{field.name}", getattr(before, field.name), getattr(after, field.name)
        if hasattr(one, "append"):
            yield from _compare_lists(_in_order(plain, one), _in_order(plain, other), here, plain)
        elif field.message_type is not None:
            yield from _compare(one, other, f"{here}.", f"{plain}.")
        elif one != other:
            yield f"{here}: {_words(one)} became {_words(other)}"


def _compare_lists(before: list[Any], after: list[Any], where: str, path: str) -> Iterator[str]:
    if len(before) != len(after):
        first = next((one, other) for one, other in zip_longest(before, after) if one != other)
        yield f"{where}: {len(before)} of them became {len(after)}, first of all {' became '.join(map(_words, first))}"
        return
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        here = f"{where}[{number}]"
        if isinstance(one, Message):
            if not any(f"{path}[]" == known.path and known.when(one, other) for known in ALLOWED):
                yield from _compare(one, other, f"{here}.", f"{path}.")
        elif one != other:
            yield f"{here}: {_words(one)} became {_words(other)}"


def _in_order(path: str, values: Any) -> list[Any]:
    if path == "processes.memory.vmas":
        return _joined(values)
    return sorted(values, key=_KEYS[path]) if path in _KEYS else list(values)


def _joined(vmas: Any) -> list[pb.Vma]:
    """Mappings, those that lie side by side and are alike as one: the kernel joins and splits as it likes."""
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


def _words(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) and not value.isascii() else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
