"""Build the sockets of an image once before its tree is killed, in a network that nobody else sees.

No validation foresees which sockets the kernel makes beside each other, in which order and with which options. So they
are made: by the code of a restore, from the image as it was read back, in a child of this process with its own network
and directories (`torpor.dump.own_namespaces`). Other descriptions are replaced: they only lie in sockets' queues. What
was made is described by the code of a checkpoint, and compared with the image (`torpor.restorer.round_trip`).

Only what would fail again in the wake counts. Sockets that need what a new network does not have, such as another
device than the loopback, are not made. And nothing is made where this process may have no namespaces.

Documented in: socket(7), tcp(7), udp(7), unix(7), network_namespaces(7).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from torpor.dump.own_namespaces import Host, OwnNamespaces
from torpor.errors import CheckpointFailed, Reason, Refused, TorporError
from torpor.image import image_pb2 as pb
from torpor.objects.fds import descriptors
from torpor.objects.fds.eventfd import Eventfd
from torpor.objects.kind import Built, FdReference
from torpor.objects.opening import O_ASYNC
from torpor.objects.paths.opener import Openers, socket_path
from torpor.objects.sockets import addresses, common, tcp_ports, unix_names
from torpor.objects.sockets.addresses import Address
from torpor.probe import probe
from torpor.remote.children import forked_with_pipe, sleep_with
from torpor.restorer.round_trip import differences
from torpor.util import inherited

SECONDS = 6.0
"""How long it may take; then nothing is known. The longest wait of a builder, for a port, is 2 s."""
MOST = 1000
"""Sockets of a tree; more would take seconds of a grace time."""
_SOCKETS = ("tcp", "udp", "unix", "netlink")
_OF_FILES: Final = ("mode", "owner", "inode", "moved", "path", "directory", "connected_to", "closed_there", "senders")
"""Fields of a unix socket that depend on the directory tree, which is another one; so does a name that is a path."""
_MULTICAST_IF = (socket.IPPROTO_IP, socket.IP_MULTICAST_IF)
_BROADCAST = IPv4Address("255.255.255.255")
_NOT_ENOUGH = (errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EAGAIN, errno.EINTR)
"""Errors of a host, or of a new network's own limits, that say nothing of the image."""


class Found(NamedTuple):
    """What a trial has shown; nothing if all is well, or if it cannot be tried."""

    failures: list[Reason]
    """Why the sockets cannot be made again."""
    differences: list[str]
    """In what they would differ from those of the tree."""


def made(image: pb.Tree) -> Found:
    """Make the sockets of an image once."""
    if not 0 < sum(one.WhichOneof("kind") in _SOCKETS for one in image.descriptions) <= MOST:
        return Found([], [])
    try:
        pid, reader = forked_with_pipe(partial(_in_child, image))
    except OSError:  # at the limit of descriptors or processes
        return Found([], [])
    try:
        said = _read(reader)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
    reasons, differing = json.loads(said or "[[], []]")
    return Found([Reason(*one) for one in reasons], differing)


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
    reasons, differing = _build(image)
    said = json.dumps([[(one.subject, one.why, one.advice) for one in reasons], differing]).encode()
    while said:
        said = said[os.write(writer, said) :]


def _build(image: pb.Tree) -> Found:
    """Make all sockets that can be made in namespaces of our own."""
    tree = _only_sockets(image)
    probe()  # what it looks at is not in an empty directory tree
    here = OwnNamespaces()
    for kind in ("tcp", "udp"):
        _leave_out_of_devices(tree, kind)
        if not all(map(here.add, _hosts(tree, kind))):
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
                with descriptors.open_all(tree, lambda _: -1, (), openers=openers) as opened:
                    opened.built()
                    return Found([], _differences(tree, opened.slots))
            return Found(reasons, [])
    except (ImportError, MemoryError):
        return Found([], [])
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _NOT_ENOUGH:
            return Found([], [])
        if isinstance(error, TorporError):
            return Found([Reason("the tree", error.message, error.advice)], [])
        return Found([Reason("the tree", f"its sockets cannot be made again: {error}")], [])


def _differences(tree: pb.Tree, slots: Mapping[int, int]) -> list[str]:
    """Describe the sockets by the code of a checkpoint, in a process that has nothing else, and compare them."""
    if not (probe().kcmp and probe().pidfd_getfd):  # its own process would have to send its descriptors
        return []
    here = os.getpid()
    pid, reader = forked_with_pipe(lambda writer: _hold(slots.values(), here, writer))
    try:
        os.read(reader, 1)
        spared = {FdReference(pid, slots[index]) for index in descriptors.spared(tree)}
        grabbed = descriptors.grab([pid], stats={}, built=Built(set(), spared, {}))
        for counter in grabbed.of(Eventfd):
            counter.state.semaphore = False  # as `_replace` makes it: older kernels do not show it
        before, after = pb.Tree(descriptions=tree.descriptions), pb.Tree()
        before.processes.add(pid=pid).fds.extend(pb.Fd(fd=fd, description=index) for index, fd in slots.items())
        after.processes.add(pid=pid)
        descriptors.describe(grabbed, after, lambda *_: 0)
        for one in (*before.descriptions, *after.descriptions):
            if one.HasField("unix"):
                for name in _OF_FILES:
                    one.unix.ClearField(name)
                if not one.unix.name.startswith(b"\0"):
                    one.unix.ClearField("name")
        return differences(before, after, built=True)
    except (Refused, CheckpointFailed, OSError) as error:
        return [f"they cannot be described: {error}"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def _hold(slots: Iterable[int], parent: int, writer: int) -> None:
    """Close all others, the pipe at last: its reader then comes to the end."""
    begin = 0
    for kept in sorted((*slots, writer)):
        os.closerange(begin, kept)
        begin = kept + 1
    os.closerange(begin, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.close(writer)
    sleep_with(parent)


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
        copy = tree.descriptions.add(flags=one.flags & ~O_ASYNC)  # set with the owner of its signals, a process
        getattr(copy, kind).CopyFrom(getattr(one, kind))
        if kind == "tcp" and copy.tcp.kept:
            for field in ("kept", "shut_read", "shut_write"):
                copy.tcp.ClearField(field)
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


def _leave_out_of_devices(tree: pb.Tree, kind: str) -> None:
    """Leave out what needs a device or a scope that a new network does not have, and what has to do with it.

    Those are the sockets at the same ports: a listener and its connections, both ends of a connection, and who has a
    port together with it.
    """
    mine = [one for one in tree.descriptions if one.WhichOneof("kind") == kind]
    apart = [one for one in mine if _devices(one) - {"lo"} or any(place.scope for place in _places(one))]
    ports: set[int] = set()
    while more := {port for one in apart for port in _ports(one)} - ports:
        ports |= more
        apart = [one for one in mine if one in apart or not _ports(one).isdisjoint(ports)]
    for one in apart:
        _replace(one)


def _ports(one: pb.Description) -> set[int]:
    """Return the ports of a socket and of its other end."""
    names = [one.udp.local, one.udp.remote] if one.HasField("udp") else [one.tcp.local, one.tcp.remote]
    return {addresses.address(name).port for name in names if name} - {0}


def _hosts(tree: pb.Tree, kind: str) -> set[Host]:
    """Return the addresses that sockets of a kind need."""
    mine = (one for one in tree.descriptions if one.WhichOneof("kind") == kind)
    hosts = {place.host for one in mine for place in _places(one)}
    return {host for host in hosts if not (host.is_unspecified or host.is_multicast)} - {_BROADCAST}


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
