"""Build the sockets of an image once before its tree is killed, in a network that nobody else sees.

No validation foresees which sockets the kernel makes beside each other, in which order and with which options. So they
are made: by the code of a restore, from the image as it was read back, in a child of this process with its own network
and directories (`torpor.dump.own_namespaces`). Other descriptions are replaced: they only lie in sockets' queues.

Only what would fail again in the wake counts. Sockets that need what a new network does not have, such as another
device than the loopback, are not made. And nothing is made where this process may have no namespaces.

Documented in: socket(7), tcp(7), udp(7), unix(7), network_namespaces(7).
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address

from torpor.dump.own_namespaces import Host, OwnNamespaces
from torpor.errors import Reason, TorporError
from torpor.image import image_pb2 as pb
from torpor.objects.fds import descriptors
from torpor.objects.paths.opener import Openers, socket_path
from torpor.objects.sockets import addresses, common, tcp_ports, unix_names
from torpor.objects.sockets.addresses import Address
from torpor.remote.children import forked_with_pipe
from torpor.util import inherited

SECONDS = 6.0
"""How long it may take; then nothing is known. The longest wait of a builder, for a port, is 2 s."""
MOST = 1000
"""Sockets of a tree; more would take seconds of a grace time."""
_SOCKETS = ("tcp", "udp", "unix", "netlink")
_MULTICAST_IF = (socket.IPPROTO_IP, socket.IP_MULTICAST_IF)
_BROADCAST = IPv4Address("255.255.255.255")
_NOT_ENOUGH = (errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EAGAIN, errno.EINTR)
"""Errors of a host, or of a new network's own limits, that say nothing of the image."""


def failures(image: pb.Tree) -> list[Reason]:
    """Say why the sockets of an image cannot be made again; nothing if they can be, or if that cannot be tried."""
    if not 0 < sum(one.WhichOneof("kind") in _SOCKETS for one in image.descriptions) <= MOST:
        return []
    try:
        pid, reader = forked_with_pipe(partial(_in_child, image))
    except OSError:  # at the limit of descriptors or processes
        return []
    try:
        said = _read(reader)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
    return [Reason(*one) for one in json.loads(said or "[]")]


def _read(reader: int) -> bytes:
    """Read what the child says until its end; nothing if it takes too long."""
    deadline, found, poll = time.monotonic() + SECONDS, b"", select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        if not (part := os.read(reader, 1 << 16)):
            return found
        found += part
    return b""


def _in_child(image: pb.Tree, writer: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # its signals are meant for the parent
    said = json.dumps([(one.subject, one.why, one.advice) for one in _build(image)]).encode()
    while said:
        said = said[os.write(writer, said) :]


def _build(image: pb.Tree) -> list[Reason]:
    """Make all sockets that can be made in namespaces of our own; return why that fails."""
    tree = _only_sockets(image)
    here = OwnNamespaces()
    for kind, hosts in _hosts(tree).items():
        if hosts is None or not all(map(here.add, hosts)):
            _leave_out(tree, kind)
    try:
        here.enter_empty(_directories(tree))
    except OSError:
        _leave_out(tree, "unix")
    here.give_up()
    common.defaults.cache_clear()  # a new socket's options are those of its network
    try:
        with inherited.raised_limits(), Openers(tree) as openers:
            if not (reasons := descriptors.validate(tree, ())):
                descriptors.open_all(tree, lambda _: -1, (), openers=openers)
            return reasons
    except (ImportError, MemoryError):
        return []
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _NOT_ENOUGH:
            return []
        if isinstance(error, TorporError):
            return [Reason("the tree", error.message, error.advice)]
        return [Reason("the tree", f"its sockets cannot be made again: {error}")]


def _only_sockets(image: pb.Tree) -> pb.Tree:
    """Copy the sockets of a tree and their holders. Connections to the outside are those that end at the wake."""
    tree = pb.Tree()
    for process in image.processes:
        tree.processes.add(pid=process.pid, zombie=process.zombie, credentials=process.credentials, fds=process.fds)
        for entry in tree.processes[-1].fds:
            entry.ClearField("locks")
    names = {one.unix.name for one in image.descriptions if one.HasField("unix") and unix_names.owns(one.unix)}
    for one in image.descriptions:
        kind = one.WhichOneof("kind")
        if kind not in _SOCKETS:
            _replace(tree.descriptions.add())
            continue
        copy = tree.descriptions.add(flags=one.flags)
        getattr(copy, kind).CopyFrom(getattr(one, kind))
        if kind == "tcp":
            copy.tcp.kept = ""
        elif kind == "unix" and not one.unix.closed_there and one.unix.connected_to not in names:
            # Validation has tried it with the socket of that name.
            copy.unix.connected_to = b""
    return tree


def _leave_out(tree: pb.Tree, kind: str) -> None:
    for one in tree.descriptions:
        if one.WhichOneof("kind") == kind:
            _replace(one)


def _replace(one: pb.Description) -> None:
    one.Clear()
    one.flags = os.O_RDWR
    one.eventfd.SetInParent()


def _hosts(tree: pb.Tree) -> dict[str, set[Host] | None]:
    """Return the addresses that sockets of each kind need; None if they need what a new network does not have."""
    found: dict[str, set[Host] | None] = {}
    for kind in ("tcp", "udp"):
        mine = [one for one in tree.descriptions if one.WhichOneof("kind") == kind]
        places = [place for one in mine for place in _places(one)]
        if any(place.scope for place in places) or any(_devices(one) - {"lo"} for one in mine):
            found[kind] = None
        else:
            hosts = {place.host for place in places}
            found[kind] = {host for host in hosts if not (host.is_unspecified or host.is_multicast)} - {_BROADCAST}
    return found


def _places(one: pb.Description) -> Iterator[Address]:
    """Yield the addresses that a socket needs on its host."""
    if one.HasField("udp"):
        names = [one.udp.local, *one.udp.senders]
        for option in one.udp.options:
            if (option.level, option.name) == _MULTICAST_IF:
                yield Address(IPv4Address(option.value), 0, 0)
    elif one.tcp.state in tcp_ports.CONNECTING:
        names = [one.tcp.local, one.tcp.remote]
    else:
        names = [one.tcp.local] if one.tcp.state in tcp_ports.BOUND else []
    yield from (addresses.address(name) for name in names if name)


def _devices(one: pb.Description) -> set[str]:
    """Return the network devices that a socket needs."""
    options = one.udp.options if one.HasField("udp") else one.tcp.options
    found = {option.value for option in options if (option.level, option.name) == tcp_ports.DEVICE}
    return {os.fsdecode(name.rstrip(b"\0")) for name in found} | {member.device for member in one.udp.memberships}


def _directories(tree: pb.Tree) -> Iterator[bytes]:
    """Yield the directories in which the files of unix sockets are made."""
    yield os.fsencode(tempfile.gettempdir())
    for one in tree.descriptions:
        if one.HasField("unix") and one.unix.name[:1] not in (b"", b"\0"):
            path = socket_path(one.unix)
            home = one.unix.directory or os.path.dirname(path)
            yield from filter(None, (os.path.dirname(path), home, os.path.dirname(os.path.join(home, one.unix.name))))
