"""The list of allowed differences between the image of a tree and a later image of the same tree after a restore.

Each entry has its reason, and names the row of docs/objects.md that documents it for users.

An entry whose reason begins with "known fault" is a bug in the engine that must be fixed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torpor.image import image_pb2 as pb
from torpor.objects.paths.file_names import is_makeshift
from torpor.objects.paths.opener import O_TMPFILE
from torpor.objects.process.birth_order import OUTSIDE
from torpor.objects.sockets import addresses, common
from torpor.objects.sockets.tcp_connections import BEFORE_MPTCP_CONNECTS
from torpor.objects.sockets.tcp_ports import IPPROTO_MPTCP

Parents: TypeAlias = Callable[[Any, Any], Any]
"""Decides whether a difference is allowed, given the two messages that hold the field."""


At: TypeAlias = Literal["both", "saves", "building"]
"""When a difference is allowed: between two saves with a wake between them ("saves"), in the check of a restore before
anything runs ("building"), or both."""


class Allowed(NamedTuple):
    """A field that may differ, and why."""

    path: str
    """The path of the field without indexes; it covers all fields below. With [] it covers an element of a list."""
    why: str
    row: str
    """The beginning of the row of docs/objects.md that documents it."""
    when: Parents = lambda *_: True
    at: At = "both"


_RAN = "the tree ran between the two saves: a system call was restarted, or the kernel wrote there"
_TIME = "time passes"
_NEW = "the restore creates an object without a lasting name anew: its inode or number is another one"
_PROC = "a capsule has its own mount of /proc"
_AGAIN = "anonymous shared memory and a program whose file was removed come back as memfds"
_LATER = "only a save reads it; the check of a restore does not"
_JUDGED = "it may differ on another host; validation accepted the difference before the restore began"
_WARNED = "the restoring user may not set the old value; a warning says so"
_SHOWN = "the file was removed and another file has its name now; a warning says so"
_APART = "its System V objects come back in a new IPC namespace"
_UNSEEN_FLAGS: Final = 0o100000 | os.O_NOFOLLOW
"""O_LARGEFILE, which every open(2) of a 64-bit program sets, and flags that matter only during open(2)."""
_TEMPORARY: Final = O_TMPFILE | os.O_DIRECTORY  # older kernels see O_DIRECTORY only, and fail
_SI_TIMER: Final = -2
_SI_KERNEL: Final = 0x80
_V6ONLY: Final = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
_ALARMS: Final = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
_TERMINAL_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def _below_init(before: Any, _: Any) -> bool:
    return bool(before.ppid in OUTSIDE)


def _has_lower_limit(before: Any, after: Any) -> bool:
    return bool(after.hard < before.hard and after.soft == min(before.soft, after.hard))


def _was_unknown(field: str, before: Any, _: Any) -> bool:
    return bool(getattr(before, field) == 0)


def _has_new_name(before: Any, after: Any) -> bool:
    return bool(before.moved and is_makeshift(after.name))


def _is_apart_since(before: Any, after: Any) -> bool:
    return bool(after.own_ipc_namespace and not before.own_ipc_namespace)


def _cwd_elsewhere(before: Any, after: Any) -> bool:
    return bool(before.cwd_inode.removed and after.cwd_inode.removed and is_makeshift(after.cwd))


def _elsewhere(before: Any, after: Any) -> bool:
    return bool(before.inode.removed and after.inode.removed and is_makeshift(after.path))


def _removed(before: Any, after: Any) -> bool:
    return bool(before.path.endswith(b" (deleted)") and after.path.endswith(b" (deleted)"))


def _in_memory(_: Any, after: Any) -> bool:
    return bool(after.path.startswith(b"/memfd:") and after.path.endswith(b" (deleted)"))


def _removed_inode(before: Any, after: Any) -> bool:
    return bool(before.inode.removed and after.inode.removed)


def _without_name(before: Any, after: Any) -> bool:
    kinds = (pb.SharedMemory.ANONYMOUS, pb.SharedMemory.UNLINKED, pb.SharedMemory.MEMFD)
    return before.kind in kinds and after.kind in kinds


def _is_over(before: Any, after: Any) -> bool:
    over = (pb.TcpSocket.OUTSIDE, pb.TcpSocket.ENDED)
    return before.state in over and after.state in over


def _has_no_name(before: Any, after: Any) -> bool:
    return bool(before.released and not addresses.address(after.local).port)


def _but_for_timers(before: Any, after: Any) -> bool:
    one, other = (
        sorted(_shown(info) for info in process.pending if not _is_of_timer(info)) for process in (before, after)
    )
    return one == other


def _shown(info: bytes) -> bytes:
    """Return what the receiver can see of a signal: for SIGSTOP, that is only the stop itself."""
    return info[:4] if _signal(info)[0] == signal.SIGSTOP else info


def _but_for_fired(before: Any, after: Any) -> bool:
    were, left = ({(one.which, one.interval_us) for one in process.interval_timers} for process in (before, after))
    return left <= were and not any(interval for _, interval in were - left)


def _is_of_timer(info: bytes) -> bool:
    number, _, code = _signal(info)
    return code == _SI_TIMER or (code == _SI_KERNEL and number in _ALARMS)


def _but_for_late(before: Any, after: Any) -> bool:
    kept = (info for info in before.pending if _signal(info)[0] != signal.SIGSTOP)
    return sorted(info for info in kept if not _is_of_timer(info)) == sorted(
        info for info in after.pending if not _is_of_timer(info)
    )


def _signal(info: bytes) -> tuple[int, int, int]:
    return struct.unpack_from("<3i", info.ljust(12, b"\0"))


def _in_proc(before: Any, after: Any) -> bool:
    return bool(before.path.startswith(b"/proc/") and after.path == before.path)


def _only_v6only_more(before: Any, after: Any) -> bool:
    return _only_these_more(before, after, {_V6ONLY})


def _as_mptcp_connects(before: Any, after: Any) -> bool:
    connected = before.state not in (pb.TcpSocket.LISTEN, pb.TcpSocket.CLOSED)
    stays = {_V6ONLY, (socket.SOL_SOCKET, socket.SO_SNDBUF), *BEFORE_MPTCP_CONNECTS}
    return before.protocol == IPPROTO_MPTCP and connected and _only_these_more(before, after, stays)


def _only_these_more(before: Any, after: Any, keys: Collection[tuple[int, int]]) -> bool:
    were = {(option.level, option.name): option.value for option in before.options}
    left = {(option.level, option.name): option.value for option in after.options}
    for key in common.BUFFERS:
        if key in were and key in left and int.from_bytes(left[key], "little") < int.from_bytes(were[key], "little"):
            left[key] = were[key]  # raised as far as this user may; a warning says so
    kept = [(key, value) for key, value in left.items() if key not in keys or were.get(key) == value]
    return kept == list(were.items())


def _smaller_buffers(before: Any, after: Any) -> bool:
    return _only_these_more(before, after, ())


def _other_kernel(before: Any, after: Any) -> bool:
    return bool(before.vdso_content != after.vdso_content)


def _fewer(name: str) -> Parents:
    """Return a check that a mask has no bits that it did not have before."""
    return lambda before, after: not getattr(after, name) & ~getattr(before, name)


def _more(name: str) -> Parents:
    return lambda before, after: bool(getattr(after, name) > getattr(before, name))


def _closed(name: str) -> Parents:
    return lambda before, after: bool(before.peer_gone and after.peer_gone and getattr(after, name))


_CLOCKS: Final = "CLOCK_MONOTONIC"
_REGISTERS: Final = "General registers"
_TIMERS: Final = "Interval timers"
_QUEUED: Final = "Queued signals"
_CAPABILITIES: Final = "Capabilities"
_SHARED: Final = "Shared anonymous memory"
_FILES: Final = "Files: position"
_MAPPED: Final = "Private mappings of files, written"
_REMOVED_PROGRAM: Final = "Program that was deleted"
_TCP: Final = "TCP listeners"
_RELEASED: Final = "TCP sockets whose address names a port"
_OPTIONS: Final = "Options of sockets of MPTCP"
_UNIX: Final = "Unix sockets"
_UNIX_DATAGRAMS: Final = "Messages that wait in unix sockets"
_BUFFERS: Final = "Sizes of sockets' buffers"
_UDP: Final = "UDP's datagrams that were not read"
_TIMERFD: Final = "eventfd"
_DIRECTORIES: Final = "Directories"
_FIFOS: Final = "FIFOs"
_OWN_FILES: Final = "Small files that the job made"
_OWN_PLACES: Final = "Directories, FIFOs and watched files"
_VDSO: Final = "vDSO, also moved"

ALLOWED: Final = (
    Allowed("timing", "each save takes its own time", _CLOCKS),
    Allowed("host.realtime_ns", _TIME, _CLOCKS),
    Allowed("host.monotonic_ns", _TIME, _CLOCKS),
    Allowed("host.boottime_ns", _TIME, _CLOCKS),
    Allowed("host", _JUDGED, _REGISTERS, at="building"),
    Allowed("own_ipc_namespace", _APART, "System V shared memory that is attached", _is_apart_since),
    Allowed("mounts", "it is shown to users only", "The mount that a path lies on", at="building"),
    Allowed(
        "processes.ppid",
        "no process can be created as a child of the host's init",
        "PID, parent, process group",
        _below_init,
    ),
    Allowed("processes.threads.registers", _RAN, _REGISTERS, at="saves"),
    Allowed("processes.threads.xstate", _RAN, _REGISTERS, at="saves"),
    Allowed("processes.threads.below", _RAN, "Interrupted system calls"),
    Allowed("processes.threads.below_address", _RAN, "Interrupted system calls"),
    Allowed("processes.memory.pages", _RAN, "Private anonymous memory", at="saves"),
    Allowed(
        "processes.memory.pages", "it is read by `verification.contents`", "Private anonymous memory", at="building"
    ),
    Allowed(
        "processes.memory.vmas.start",
        "the stack grew: the thread ran between the two saves, or a call that describes it needed room on its stack",
        "Stacks that grow",
        lambda before, _: before.grows_down,
    ),
    Allowed(
        "processes.memory.vmas.droppable",
        "this kernel cannot drop memory (before 6.11)",
        "Droppable memory",
        lambda before, after: before.droppable and not after.droppable,
    ),
    Allowed("processes.posix_timers.value_ns", _TIME, _TIMERS),
    Allowed("processes.posix_timers.overrun", _TIME, _TIMERS),
    Allowed("processes.interval_timers.value_us", _TIME, _TIMERS),
    Allowed("processes.interval_timers", "a timer that fires only once has fired", _TIMERS, _but_for_fired),
    Allowed("processes.pending", f"{_TIME}; no process can see who sent a SIGSTOP", _QUEUED, _but_for_timers),
    Allowed("processes.threads.pending", _TIME, _QUEUED, _but_for_timers),
    *(
        Allowed(
            f"{path}.pending",
            "the restore sends SIGSTOP last, when it lets the process go",
            _QUEUED,
            _but_for_late,
            at="building",
        )
        for path in ("processes", "processes.threads")
    ),
    *(
        Allowed(f"processes.memory.{field}", "another kernel has another vDSO", _VDSO, _other_kernel, at="building")
        for field in ("vdso", "vdso_content", "vdso_end", "vvar", "vdso_holes")
    ),
    Allowed(
        "processes.stop_signal",
        "the process group is orphaned now, and the terminal cannot stop it",
        "Stopped by job control",
        lambda before, after: before.stop_signal in _TERMINAL_STOPS and after.stop_signal == signal.SIGSTOP,
    ),
    Allowed(
        "processes.dumpable",
        "prctl(PR_SET_DUMPABLE) does not accept 2",
        "Dumpable",
        lambda a, b: (a.dumpable, b.dumpable) == (2, 0),
    ),
    Allowed("processes.oom_score_adj", _WARNED, "OOM score adjustment", _more("oom_score_adj"), at="building"),
    Allowed("processes.limits.soft", _WARNED, "Core dump filter, resource limits", _has_lower_limit, at="building"),
    Allowed("processes.limits.hard", _WARNED, "Core dump filter, resource limits", _has_lower_limit, at="building"),
    Allowed("processes.threads.nice", _WARNED, "Nice value", _more("nice"), at="building"),
    *(
        Allowed(
            f"processes.{field}",
            "0 is one outside of the PID namespace, which cannot be joined; with --detach the restore makes one",
            "PID, parent, process group, session",
            partial(_was_unknown, field),
        )
        for field in ("pgid", "sid")
    ),
    Allowed(
        "processes.autogroup_nice",
        "a session that the tree joins keeps its own value; if the user may not lower the value, a warning says so",
        "The nice value of a session as a whole",
        lambda before, after: before.sid in OUTSIDE or after.autogroup_nice > before.autogroup_nice,
        at="building",
    ),
    Allowed(
        "processes.threads.slice_ns",
        "a thread that may not leave SCHED_IDLE shows no time slice; a warning says so",
        "Utilization clamps",
        lambda _, after: after.scheduler == os.SCHED_IDLE,
        at="building",
    ),
    Allowed("processes.threads.affinity", _WARNED, "Affinity", at="building"),
    Allowed("processes.threads.no_new_privs", _WARNED, "no_new_privs", at="building"),
    *(
        Allowed(f"processes.threads.{field}", _WARNED, row, at="building")
        for field, row in (
            ("scheduler", "`SCHED_FIFO`"),
            ("rt_priority", "`SCHED_FIFO`"),
            ("io_priority", "I/O priority"),
            ("memory_policy", "Memory policy"),
            ("memory_nodes", "Memory policy"),
            ("speculation", "Mitigations of speculation"),
        )
    ),
    *(Allowed(f"processes.{field}", _JUDGED, "Current directory", at="building") for field in ("cwd_inode",)),
    Allowed("processes.root_inode", _JUDGED, "Root directory other", at="building"),
    Allowed(
        "processes.cwd_inode",
        _NEW,
        "Current directory",
        lambda before, after: before.cwd_inode.removed and after.cwd_inode.removed,
    ),
    Allowed("processes.cwd", _SHOWN, "Current directory", _cwd_elsewhere),
    *(
        Allowed(f"processes.credentials.cap_{field}", _WARNED, _CAPABILITIES, _fewer(f"cap_{field}"), at="building")
        for field in ("inheritable", "permitted", "effective", "bounding", "ambient")
    ),
    Allowed(
        "processes.credentials.cap_bounding",
        "a user's tree gets the bounding set of the user who wakes it; in a capsule execve must not gain a capability",
        _CAPABILITIES,
        lambda _, after: not after.cap_permitted and 0 not in after.uids,
    ),
    Allowed("keyrings.serial", _NEW, "Keyrings of a session or process"),
    Allowed("keyrings.keys.seconds", _TIME, "Keyrings of a session or process"),
    Allowed("bundles", _LATER, _OWN_FILES, at="building"),
    Allowed("folders", _LATER, _OWN_PLACES, at="building"),
    Allowed("fifos", _LATER, _OWN_PLACES, at="building"),
    Allowed("bundles.pages", "blocks are numbered in the order in which they are stored", _OWN_FILES, at="saves"),
    *(
        Allowed(
            f"{kind}.mtime_ns", "the restore fills a pipe, and makes files without names in directories", _OWN_PLACES
        )
        for kind in ("folders", "fifos")
    ),
    Allowed("folders.lacks", "others, and the restored program, make and remove files", _OWN_PLACES),
    Allowed("bundles[]", _AGAIN, _REMOVED_PROGRAM, _removed),
    Allowed("files[]", _AGAIN, _REMOVED_PROGRAM, _removed),
    Allowed("files[]", "a bundled file that is gone comes back in memory", _MAPPED, _in_memory),
    *(
        Allowed(f"files.{field}", _JUDGED, _MAPPED, at="building")
        for field in ("size", "mtime_ns", "ctime_ns", "dev", "ino", "mode", "content")
    ),
    Allowed("shared.dev", _NEW, _SHARED),
    Allowed("shared.ino", _NEW, _SHARED),
    Allowed("shared.kind", _AGAIN, _SHARED, _without_name),
    Allowed("shared.name", _AGAIN, _SHARED, _without_name),
    Allowed(
        "shared.size",
        "it is mapped beyond its end, which only an access shows: `verification.contents` checks its descriptor",
        _SHARED,
        _more("size"),
        at="building",
    ),
    *(
        Allowed(f"shared.{field}", _WARNED, "Attributes of files without a name", at="building")
        for field in ("uid", "gid", "mode", "inode_flags", "attributes")
    ),
    Allowed("shared.atime_ns", "reading or mapping it is an access", _SHARED),
    Allowed("shared.pages", _RAN, _SHARED, at="saves"),
    Allowed("shared.pages", "it is read by `verification.contents`", _SHARED, at="building"),
    *(
        Allowed(f"descriptions.file.{field}", _JUDGED, _FILES, at="building")
        for field in ("size", "mtime_ns", "ctime_ns", "dev", "ino", "mode", "blocks", "content")
    ),
    *(
        Allowed(f"descriptions.file.{field}", _PROC, "Files and directories of /proc/PID", _in_proc)
        for field in ("dev", "ino", "mtime_ns", "ctime_ns")
    ),
    Allowed("descriptions.directory.inode", _JUDGED, _DIRECTORIES, at="building"),
    Allowed("descriptions.directory.inode.dev", _PROC, _DIRECTORIES),
    Allowed("descriptions.directory.inode", _NEW, _DIRECTORIES, _removed_inode),
    Allowed("descriptions.directory.path", _SHOWN, _DIRECTORIES, _elsewhere),
    Allowed("descriptions.fifo.path", _SHOWN, _FIFOS, _elsewhere),
    Allowed("descriptions.fifo.inode", _JUDGED, _FIFOS, at="building"),
    Allowed("descriptions.fifo.inode", _NEW, _FIFOS, _removed_inode),
    Allowed("descriptions.queue.inode", _NEW, "POSIX message queues (`"),
    Allowed("descriptions.unix.inode", _NEW, _UNIX),
    Allowed(
        "descriptions.unix.name",
        "without user namespaces, the accepted end of a connection whose listener was closed has another name if the"
        " old one is taken by now; a warning says so",
        _UNIX,
        lambda before, after: before.has_peer and after.has_peer,
    ),
    Allowed("descriptions.unix.name", _WARNED, _UNIX, _has_new_name),
    *(
        Allowed(f"descriptions.{kind}.options", _WARNED, _BUFFERS, _smaller_buffers)
        for kind in ("unix", "tcp", "udp", "netlink")
    ),
    Allowed(
        "descriptions.tcp.options",
        "bind() to an IPv6 address sets IPV6_V6ONLY (__inet6_bind())",
        _TCP,
        _only_v6only_more,
    ),
    Allowed(
        "descriptions.tcp.options",
        "an MPTCP connection keeps its enlarged send buffer, since MPTCP does not accept SO_BUF_LOCK"
        " (net/mptcp/sockopt.c). The options that decide how it connects have no effect any more",
        _OPTIONS,
        _as_mptcp_connects,
    ),
    Allowed("descriptions.tcp.local", "a connection that is over comes back between two ends of ours", _TCP, _is_over),
    Allowed("descriptions.tcp.remote", "a connection that is over comes back between two ends of ours", _TCP, _is_over),
    *(
        Allowed(
            f"descriptions.tcp.{name}",
            "the address of a socket that has released its port comes back if the kernel chooses that port again",
            _RELEASED,
            _has_no_name,
        )
        for name in ("local", "released")
    ),
    Allowed(
        "descriptions.udp.options",
        "bind() to an IPv6 address sets IPV6_V6ONLY (__inet6_bind())",
        "UDP, bound",
        _only_v6only_more,
    ),
    *(
        Allowed(
            f"descriptions.udp.{field}",
            "it is bound before the tree runs, and others may have sent messages to it already",
            _UDP,
            at="building",
        )
        for field in ("messages", "senders")
    ),
    *(
        Allowed(
            f"descriptions.unix.{field}",
            "peeking at it now would hide the empty messages after the first one from the next save",
            _UNIX_DATAGRAMS,
            lambda before, _: b"" in before.messages[1:],
            at="building",
        )
        for field in ("messages", "senders")
    ),
    *(
        Allowed(
            f"descriptions.unix.{field}",
            "a connection to outside the tree comes back as closed by the peer, which shuts down both directions",
            _UNIX,
            _closed(field),
        )
        for field in ("shut_read", "shut_write")
    ),
    Allowed("descriptions.timerfd.left_ns", _TIME, _TIMERFD),
    Allowed("descriptions.timerfd.moment_ns", _TIME, _TIMERFD),
    Allowed("descriptions.timerfd.ticks", _TIME, _TIMERFD),
    Allowed(
        "descriptions.flags",
        "these flags have no effect on an open file",
        _FILES,
        lambda before, after: not (before.flags ^ after.flags) & ~_UNSEEN_FLAGS,
    ),
    Allowed(
        "descriptions.flags",
        "it comes back in memory, where no file is created by O_TMPFILE",
        "Files without a name",
        lambda before, after: before.flags & ~after.flags == _TEMPORARY and not after.flags & ~before.flags,
    ),
    Allowed(
        "descriptions.epoll.watches.events",
        "epoll_ctl(2) adds EPOLLERR and EPOLLHUP, which an EPOLLONESHOT watch loses when it fires",
        "epoll",
        lambda before, after: before.events ^ after.events == select.EPOLLERR | select.EPOLLHUP,
    ),
    Allowed("ptys.number", _NEW, "Pseudo terminals"),
)
