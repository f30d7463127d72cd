"""Describe the content of a snapshot of a process tree as plain values, for `torpor show`."""

from __future__ import annotations

import os
import socket
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torpor.cli.common import printable

if TYPE_CHECKING:
    from torpor.image.image_pb2 import Description, FileRef, PageTable, Process, TcpSocket, Tree

ACCESS = {os.O_RDONLY: "read", os.O_WRONLY: "write", os.O_RDWR: "read and write"}


def describe(tree: Tree) -> dict[str, Any]:
    """Return everything that a user or a program may want to know before a restore of `tree`."""
    return {
        "taken": {
            "host": printable(tree.host.hostname),
            "kernel": printable(tree.host.kernel_release),
            "pause_ns": tree.timing.pause_ns,
            "total_ns": tree.timing.total_ns,
        },
        "processes": [_process(process, tree) for process in tree.processes],
        "shared_memory": [
            {
                "kind": _enum_name(shared, "kind"),
                "name": printable(shared.name),
                "size": shared.size,
                "stored": _stored(shared.pages, tree),
            }
            for shared in tree.shared
        ],
        "needs": _needs(tree),
    }


def _enum_name(message: Any, field: str) -> str:
    """Return the name of an enum field's value; a number stands for one that only newer versions know."""
    number = getattr(message, field)
    value = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number.get(number)
    return value.name.lower() if value else f"kind {number}"


def _stored(pages: PageTable, tree: Tree) -> int:
    return sum(pages.counts) * tree.host.page_size


def _process(process: Process, tree: Tree) -> dict[str, Any]:
    files = tree.files
    exe = process.memory.exe
    return {
        "pid": process.pid,
        "parent": process.ppid,
        "group": process.pgid,
        "session": process.sid,
        "state": "ended" if process.zombie else "stopped" if process.stopped else "running",
        "name": printable(process.threads[0].name) if process.threads else "",
        "program": printable(files[exe].path) if exe < len(files) and not process.zombie else "",
        "directory": printable(process.cwd),
        "threads": [{"tid": thread.tid, "name": printable(thread.name)} for thread in process.threads],
        "memory": _memory(process, tree.host.page_size),
        "descriptors": [
            {
                "fd": fd.fd,
                "close_on_exec": fd.cloexec,
                **describe_description(tree.descriptions[fd.description], tree),
            }
            for fd in process.fds
            if fd.description < len(tree.descriptions)
        ],
    }


def _memory(process: Process, page_size: int) -> dict[str, dict[str, int]]:
    """Return the bytes mapped and the bytes stored, by kind of mapping."""
    mapped: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    vmas = process.memory.vmas
    starts = [vma.start for vma in vmas]
    kinds = [_enum_name(vma, "kind") for vma in vmas]
    for vma, kind in zip(vmas, kinds, strict=True):
        mapped[kind] += vma.end - vma.start
    pages = process.memory.pages
    for start, count in zip(pages.starts, pages.counts, strict=False):
        first, last = start * page_size, (start + count) * page_size
        index = max(bisect_right(starts, first) - 1, 0)
        while index < len(vmas) and vmas[index].start < last:
            overlap = min(last, vmas[index].end) - max(first, vmas[index].start)
            stored[kinds[index]] += max(overlap, 0)
            index += 1
    return {kind: {"mapped": mapped[kind], "stored": stored[kind]} for kind in sorted(mapped)}


def describe_description(description: Description, tree: Tree) -> dict[str, Any]:
    """Return an open file description's kind, what it leads to in words, and its access mode."""
    kind = description.WhichOneof("kind") or "unknown"
    access = ACCESS.get(description.flags & os.O_ACCMODE, "")
    return {"kind": kind, "what": _what(description, kind, access, tree), "access": access}


def _what(description: Description, kind: str, access: str, tree: Tree) -> str:
    """Describe one descriptor in words."""
    match kind:
        case "file":
            return f"{printable(description.file.path)} at {description.file.position}"
        case "directory":
            return printable(description.directory.path)
        case "device":
            return printable(description.device.path)
        case "name":
            return printable(description.name.path)
        case "proc":
            return f"{printable(description.proc.path)} at {description.proc.position}"
        case "pty":
            side = "master" if description.pty.master else "slave"
            return f"terminal {description.pty.pty}, {side} side"
        case "pipe":
            return f"pipe {description.pipe.pipe}, {access} end" + _waiting(description.pipe.pipe, tree)
        case "fifo":
            return f"{printable(description.fifo.path)}, {access} end" + _waiting(description.fifo.pipe, tree)
        case "eventfd":
            return f"count {description.eventfd.count}"
        case "timerfd":
            timer = description.timerfd
            return f"{timer.ticks} ticks not read" + ("" if timer.left_ns or timer.moment_ns else ", disarmed")
        case "signalfd":
            caught = (number for number in range(1, 65) if description.signalfd.mask >> (number - 1) & 1)
            return "signals " + " ".join(map(str, caught))
        case "pidfd":
            return f"process {description.pidfd.pid}"
        case "epoll":
            return f"watches {len(description.epoll.watches)}"
        case "inotify":
            return "watches " + ", ".join(printable(watch.path) for watch in description.inotify.watches)
        case "queue":
            return f"message queue /{printable(description.queue.name)}, at most {description.queue.most} messages"
        case "unix":
            peer = description.unix
            waiting = sum(map(len, peer.messages))
            end = f"paired with descriptor {peer.peer}" if peer.has_peer else "its peer is gone"
            return end + (f", {waiting} bytes in it" if waiting else "")
        case "tcp":
            return _tcp(description.tcp)
        case "udp":
            local, remote = address(description.udp.local), address(description.udp.remote)
            waiting = len(description.udp.messages)
            ends = " to ".join(filter(None, (local, remote))) or "not bound"
            return ends + (f", {waiting} datagrams in it" if waiting else "")
        case "netlink":
            return f"netlink socket of protocol {description.netlink.protocol}"
        case "memfd":
            return f"shared memory {description.memfd.shared}"
        case "outside":
            stream = ("input", "output", "error")[min(description.outside.stdio, 2)]
            return f"standard {stream}, was {printable(description.outside.was)}"
    return "of a kind that this version does not know"


def _waiting(pipe: int, tree: Tree) -> str:
    """Say how many bytes are in a pipe; empty if none."""
    size = len(tree.pipes[pipe].content) if pipe < len(tree.pipes) else 0
    return f", {size} bytes in it" if size else ""


def _tcp(tcp: TcpSocket) -> str:
    state = _enum_name(tcp, "state")
    local, remote = address(tcp.local), address(tcp.remote)
    match state:
        case "listen":
            return f"listens on {local}"
        case "inside":
            return f"{local} to {remote}, within the tree"
        case "pending":
            return f"{local} to {remote}, within the tree, not accepted yet"
        case "outside":
            return f"{local} to {remote}, will be reset"
    return state + (f" {local}" if local else "")


def address(raw: bytes) -> str:
    """Format a struct sockaddr (ip(7), ipv6(7)); empty if there is none."""
    if len(raw) < 8:
        return ""
    family = int.from_bytes(raw[:2], "little")
    port = int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(socket.AF_INET, raw[4:8])}:{port}"
    if family == socket.AF_INET6 and len(raw) >= 24:
        return f"[{socket.inet_ntop(socket.AF_INET6, raw[8:24])}]:{port}"
    return f"address family {family}"


def _needs(tree: Tree) -> dict[str, Any]:
    """Return what a host needs to restore the tree."""
    from torpor.objects.process import host_requirements

    level, more = host_requirements.beyond(tree)
    descriptions = tree.descriptions
    opened = (d.file.path for d in descriptions if d.WhichOneof("kind") == "file")
    listening = (d.tcp.local for d in descriptions if d.tcp.state == d.tcp.LISTEN)
    return {
        "architecture": printable(tree.host.architecture),
        "page_size": tree.host.page_size,
        "xsave_size": tree.host.xsave_size,
        "xfeatures": tree.host.xfeatures,
        "register_sets": host_requirements.register_sets(tree),
        "level": level,
        "beyond_level": more,
        "portable": host_requirements.portable(tree),
        "users": sorted({uid for process in tree.processes for uid in process.credentials.uids}),
        "pids": sorted({thread.tid for process in tree.processes for thread in process.threads}),
        "ports": sorted({address(local) for local in listening}),
        "own_filters": len(tree.filters),
        "shared_filters": tree.host.filters,
        "mapped_files": [_mapped_file(file) for file in tree.files],
        "open_files": _sorted_names(opened),
        "directories": _sorted_names(process.cwd for process in tree.processes),
    }


def _sorted_names(names: Iterable[bytes]) -> list[str]:
    return sorted({printable(name) for name in names})


def _mapped_file(file: FileRef) -> dict[str, Any]:
    return {"path": printable(file.path), "size": file.size, "build_id": file.build_id.hex()}
