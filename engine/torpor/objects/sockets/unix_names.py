"""Unix sockets with a name: listeners, bound sockets, and datagram sockets that are connected by name (unix(7)).

At a restore a socket's file may still exist, as the program left it: it is removed if it is a socket of this user's, or
exactly that file, and no process is bound to it. Abstract names must be free. `torpor.objects.sockets.unix_paths` finds
the files.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.opening import Opening, naming
from torpor.objects.paths import own_places
from torpor.objects.paths.opener import Opener, Openers, socket_path
from torpor.objects.sockets import common, unix_paths, unix_queues
from torpor.objects.sockets.unix_diag import Diagnosis
from torpor.objects.sockets.unix_paths import of, printable

OPTIONS = {**common.GENERAL, **common.UNIX}
PATIENCE = 2.0
"""How long the tree's own listener may take to accept a connection, in seconds."""
COLLECTED = 1.0
"""How long the kernel's collection of sockets that nobody can reach may take, in seconds."""
UCRED = struct.Struct("=iII")


def owns(unix: UnixMessage) -> bool:
    """Whether a socket itself is bound: an accepted one only shows its listener's name."""
    return bool(unix.name) and not unix.has_peer and not unix.peer_gone


def validate(mine: dict[int, Description], openers: Openers) -> Iterator[Reason]:
    """Say which names are not available here."""
    names = {unix.name for unix in (description.unix for description in mine.values()) if owns(unix)}
    for index, description in mine.items():
        unix, opener = description.unix, openers.description(index)
        abstract = [name for name in (unix.name, unix.connected_to) if name.startswith(b"\0")]
        paths = [name for name in (unix.name, unix.connected_to) if name not in abstract]
        full = [name for name in (unix.path, unix.directory) if name]
        if (
            any(len(name) > unix_paths.LONGEST for name in (*abstract, *paths))
            or any(b"\0" in name for name in (*paths, *full))
            or not all(name.startswith(b"/") for name in full)
            or (unix.moved and (not unix.name or unix.name in abstract))
        ):
            yield Reason("the image", "it has a unix socket with an invalid name")
            return
        if owns(unix) and (why := _no_home(unix, openers.image, opener) or _why_not_here(unix, opener)):
            yield Reason(f"the unix socket {printable(socket_path(unix) or unix.name)}", *why)
        elsewhere = unix.connected_to not in names and not unix.closed_there
        if unix.connected_to and elsewhere and (error := _cannot_connect(unix, opener)):
            yield Reason(f"the unix socket {printable(unix.connected_to)}", f"the program sends to it, and {error}")


def _no_home(unix: UnixMessage, image: Tree, opener: Opener) -> tuple[str, str] | None:
    """Why there is, and will be, no directory for a socket's file, and what to do; None if there is one."""
    home = os.path.dirname(socket_path(unix))
    if not home or opener.may_write_in(home):
        return None
    if not os.path.lexists(home):
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not own_places.why_missing(image, home, missing, opener):
            return None
    return "its directory is not there, or this user may not write to it", "make it again"


def _why_not_here(unix: UnixMessage, opener: Opener) -> tuple[str, str] | None:
    """Why a socket's user cannot make its file, and what to do; None if it can."""
    try:
        there = _at(unix, opener)
    except OSError as error:
        return f"its name cannot be looked up: {error.strerror}", "restore it where its file system takes the name"
    if there is None:
        return None
    own = there.st_uid in opener.users or (unix.inode and there.st_ino == unix.inode)
    if not stat.S_ISSOCK(there.st_mode) or not own:
        return "something else has its name", "move it away"
    return None


def validate_free(mine: dict[int, Description], openers: Openers) -> Iterator[Reason]:
    """Say which names other processes have, and still have after a moment.

    A tree that was killed may leave sockets that lie in each other's queues. These keep their names until the kernel's
    garbage collection, which is a work item of its own since Linux 6.9 (net/unix/garbage.c).
    """
    owned = {index: description.unix for index, description in mine.items() if owns(description.unix)}
    until = time.monotonic() + COLLECTED
    while True:
        taken = {index: why for index, unix in owned.items() if (why := _why_taken(unix, openers.description(index)))}
        if not taken or time.monotonic() > until:
            break
        time.sleep(COLLECTED / 100)
    for index, why in taken.items():
        yield Reason(f"the unix socket {printable(owned[index].name)}", *why)


def _why_taken(unix: UnixMessage, opener: Opener) -> tuple[str, str] | None:
    """Why the name of a socket is not free, and what to do; None if it is."""
    advice = "end the program that has it: it may be the saved program itself, which still runs"
    with socket.socket(socket.AF_UNIX, unix.type) as probe:
        if unix.name.startswith(b"\0"):
            try:
                probe.bind(unix.name)
            except OSError as error:
                return f"the name is not available: {error.strerror}", advice
        elif (there := _at(unix, opener)) and _lives(probe, socket_path(unix), there.st_ino, opener):
            return "another process has the name", advice
    return None


def _at(unix: UnixMessage, opener: Opener) -> os.stat_result | None:
    """The file at a socket's path, if there is one."""
    path = socket_path(unix)
    try:
        return opener.lstat(path) if path else None
    except FileNotFoundError:
        return None


def _lives(probe: socket.socket, name: bytes, inode: int, opener: Opener) -> bool:
    """Whether a process is bound to the socket at a path."""
    probe.setblocking(False)
    try:
        _connect(probe, name, opener)
    except PermissionError:  # its mode forbids connecting: the kernel knows who is bound to it
        return any(known.inode == inode & 0xFFFFFFFF for known in Diagnosis().sockets.values())
    except OSError as error:
        return error.errno != errno.ECONNREFUSED
    return True


def _connect(sock: socket.socket, name: bytes, opener: Opener) -> None:
    if len(name) < unix_paths.LONGEST or name.startswith(b"\0"):
        opener.call(NR.connect, sock.fileno(), *unix_paths.address(name))
        return
    found = opener.lookup(name)
    try:
        opener.call(NR.connect, sock.fileno(), *unix_paths.address(b"/proc/self/fd/%d" % found))
    finally:
        os.close(found)


def _cannot_connect(unix: UnixMessage, opener: Opener) -> str:
    with socket.socket(socket.AF_UNIX, unix.type) as probe:
        try:
            _connect(probe, unix.connected_to, opener)
        except OSError as error:
            return f"it cannot be reached here: {error.strerror}"
    return ""


# --------------------------------------------------------------------------------------------------- restore


@dataclass
class Named:
    """The named sockets of an image while they are made. A context manager: after an error it leaves no name."""

    opening: Opening
    _listeners: dict[bytes, tuple[socket.socket, bytes]] = field(default_factory=dict)
    """Listeners by the names that they were bound to, with the names by which they can be reached for now."""
    _at: dict[int, bytes] = field(default_factory=dict)
    """For each bound socket, by index, the name by which it can be reached for now."""
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._bound = unix_paths.Bound(self.opening.warnings)

    def __enter__(self) -> Named:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
        if kind is not None:
            self._bound.remove()

    def bind_all(self, mine: dict[int, Description]) -> None:
        """Make all sockets that are bound or connected by name; listeners listen from now on.

        Unread datagrams are sent again later, and sockets are connected by name only after that: a connected socket
        receives from its peer only.
        """
        alone = {i: d for i, d in mine.items() if _stands_alone(d.unix)}
        made: dict[int, socket.socket] = {}
        # Sockets whose name now belongs to another file come first: that may be another socket of the tree.
        for index, description in sorted(alone.items(), key=lambda one: not one[1].unix.moved):
            with naming(description):
                made[index] = self._bind(index, description.unix, self.opening.openers.description(index))
        self.opening.later.append(partial(self._deliver, alone, made))

    def _deliver(self, alone: dict[int, Description], made: dict[int, socket.socket]) -> None:
        owners = {description.unix.name: made[index] for index, description in alone.items() if description.unix.name}
        at = {description.unix.name: self._at[index] for index, description in alone.items() if description.unix.name}
        for index, description in alone.items():
            unix = description.unix
            with naming(description):
                for number, sender in enumerate(unix.senders):
                    with self._sender(owners, of(sender)) as sock:
                        unix_queues.fill(sock, unix, self.opening.slots, [number], self._at[index])
        for index, description in alone.items():
            with naming(description):
                if there := description.unix.connected_to:
                    if description.unix.closed_there:
                        self._connect_to_closed(index, made[index], there)
                    elif there in at:
                        unix_paths.connect(made[index], at[there])
                    else:
                        _connect(made[index], there, self.opening.openers.description(index))
                # With SO_PASSCRED one that has no name would get one when it connects; and buffers may have grown.
                common.set_options(made[index], description.unix.options, OPTIONS)
        for index, description in alone.items():
            if _is_shut(description.unix) and _hears_by_name(description.unix):
                with naming(description):
                    shut(made[index], description.unix)
        self._bound.settle()

    def _connect_to_closed(self, index: int, sock: socket.socket, name: bytes) -> None:
        """Connect a datagram socket to one that had this name and is closed."""
        unix = UnixMessage(name=name, type=socket.SOCK_DGRAM, moved=not name.startswith(b"\0"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            try:
                at = self._bound.bind(there, unix, self.opening.openers.description(index))
            except OSError:  # another process has the abstract name by now
                self.opening.warnings.append(
                    f"a unix socket was connected to {printable(name)}, which is closed, and shows another name"
                )
                there.bind("")  # the kernel chooses a name
                at = there.getsockname()
            unix_paths.connect(sock, at)

    @contextmanager
    def _sender(self, owners: dict[bytes, socket.socket], name: bytes) -> Iterator[socket.socket]:
        """A datagram socket with this name: the tree's own; without a name, any."""
        if not name:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
                yield nobody
        elif name in owners:
            yield owners[name]
        else:
            raise RestoreFailed(f"datagrams came from {printable(name)}, which is not in the image")

    def queue_up(self, mine: dict[int, Description]) -> None:
        """Connect unaccepted sockets, in their order; then shut down sockets that are not a connection's end.

        Datagram sockets that must send or receive first are shut down later. From now on nothing may be accepted.
        """
        for number, listener in mine.items():
            for index in listener.unix.pending:
                unix = mine[index].unix
                client = socket.socket(socket.AF_UNIX, unix.type)
                with naming(mine[index]), client:
                    client.settimeout(PATIENCE)
                    unix_paths.connect(client, self._at[number])
                    client.settimeout(None)
                    common.set_options(client, unix.options, OPTIONS)
                    shut(client, unix)
                    self.opening.place(index, client.dup().detach())
        for index, description in mine.items():
            if _is_shut(description.unix) and not _hears_by_name(description.unix):
                with self.opening.socket(index) as sock:
                    shut(sock, description.unix)

    def _bind(self, index: int, unix: UnixMessage, opener: Opener) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, unix.type))
        if unix.name:
            if socket_path(unix):
                _clear(unix, opener)
            self._at[index] = self._bound.bind(sock, unix, opener)
            self.opening.bound[socket_path(unix)] = self._at[index]
            common.set_options(sock, unix.options, OPTIONS)
        if unix.listening:
            sock.listen(unix.backlog)
            self._listeners[unix.name] = sock, self._at[index]
        self.opening.place(index, sock.dup().detach())
        return sock

    def pair(self, index: int, one: UnixMessage, other: UnixMessage) -> tuple[socket.socket, socket.socket]:
        """Make two ends of a connection, through the tree's own listener if it was made so.

        Args:
            index: of a description; its holders' credentials are used.
            one: the first end.
            other: the second.
        """
        for name in filter(None, {one.name, other.name} - self._listeners.keys()):
            if one.type != socket.SOCK_DGRAM:
                self._listen_for_now(index, name, one.type)
        if (found := self._listeners.get(other.name)) is not None and other.name:
            return self._connect(*found, one)
        if (found := self._listeners.get(one.name)) is not None and one.name:
            far, near = self._connect(*found, one)
            return near, far
        return socket.socketpair(socket.AF_UNIX, one.type)

    def _listen_for_now(self, index: int, name: bytes, kind: int) -> None:
        """Make a temporary listener in place of a closed one: an accepted end shows its name (getsockname)."""
        unix = UnixMessage(name=name, type=kind, moved=not name.startswith(b"\0"))
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            at = self._bound.bind(sock, unix, self.opening.openers.description(index))
            sock.listen()
        except OSError:  # another process has the abstract name: the end comes back without it
            sock.close()
            return
        self._listeners[name] = self._stack.enter_context(sock), at

    def _connect(self, listener: socket.socket, at: bytes, unix: UnixMessage) -> tuple[socket.socket, socket.socket]:
        client = socket.socket(socket.AF_UNIX, unix.type)
        try:
            client.settimeout(PATIENCE)
            unix_paths.connect(client, at)
            client.settimeout(None)
            while True:  # connections from outside that came first are closed, as if the program were gone
                server, _ = listener.accept()
                pid, _, _ = UCRED.unpack(server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
                if pid == os.getpid():
                    server.setblocking(True)
                    return client, server
                server.close()
        except BaseException:
            client.close()
            raise


def _clear(unix: UnixMessage, opener: Opener) -> None:
    """Remove the file that the program left, if no process is bound to it.

    Raises:
        RestoreFailed: a process is.
    """
    if (why := _why_not_here(unix, opener) or _why_taken(unix, opener)) is not None:
        raise RestoreFailed(f"the unix socket {printable(unix.name)} cannot be made again: {why[0]}", advice=why[1])
    with suppress(FileNotFoundError):
        opener.unlink(socket_path(unix))


def _stands_alone(unix: UnixMessage) -> bool:
    """Whether it is bound, or connected by name."""
    return owns(unix) or bool(unix.connected_to)


def _hears_by_name(unix: UnixMessage) -> bool:
    """Whether its datagrams, or others from it, are sent again by name: then it may not be shut down yet."""
    return unix.type == socket.SOCK_DGRAM and _stands_alone(unix)


def _is_shut(unix: UnixMessage) -> bool:
    """Whether it is shut down, and not an end of a connection."""
    return (unix.shut_read or unix.shut_write) and not (unix.has_peer or unix.peer_gone or unix.is_pending)


def shut(sock: socket.socket, unix: UnixMessage) -> None:
    """Shut down the directions that were shut down."""
    if unix.shut_read:
        sock.shutdown(socket.SHUT_RD)
    if unix.shut_write:
        sock.shutdown(socket.SHUT_WR)
