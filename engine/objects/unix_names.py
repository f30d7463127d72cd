"""Unix sockets with a name: who listens, who is bound, and datagram sockets that know each other by name (unix(7)).

A path must lead to the socket when the snapshot is taken. At the restore its file may be there still, as the program
left it: it is removed if it is a socket of this user's and nobody is behind it. Abstract names must be free.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects import sockets, unix_queues
from torpor.objects.description import Opening, Problem, naming
from torpor.objects.opener import Opener, Openers
from torpor.remote.x86_64 import NR

OPTIONS = {**sockets.GENERAL, **sockets.UNIX}
LONGEST = 108
"""sizeof(sun_path)."""
PATIENCE = 2.0
"""Seconds in which the tree's own listener must take a connection."""
UCRED = struct.Struct("=iII")


def of(raw: bytes) -> bytes:
    """A name as bind() takes it: the zero byte that ends a path is no part of it, an abstract one begins with one."""
    return raw if raw.startswith(b"\0") else raw.rstrip(b"\0")


def printable(name: bytes) -> str:
    """A name as people write it: an abstract one begins with @."""
    text = os.fsdecode(name.rstrip(b"\0"))
    return "@" + text[1:] if text.startswith("\0") else text


def judge(name: bytes, inode: int | None) -> Iterator[Problem]:
    """Say why a socket cannot have its name again.

    Args:
        name: as `of` gives it.
        inode: the lower half of the number of its file; None for an abstract name.
    """
    if name.startswith(b"\0"):
        return
    words = printable(name)
    if not name.startswith(b"/"):
        yield Problem(f"its name {words} is not a full path, and from which directory is not known", "use a full path")
        return
    try:
        found = os.lstat(name)
    except OSError as error:
        yield Problem(f"its name {words} does not lead to it: {error.strerror}", "close it")
        return
    if not stat.S_ISSOCK(found.st_mode) or inode is None or found.st_ino & 0xFFFFFFFF != inode:
        yield Problem(f"its name {words} leads to another file", "close it")


def owns(unix: UnixMessage) -> bool:
    """Whether a socket is bound itself: an accepted one only shows its listener's name."""
    return bool(unix.name) and not unix.has_peer and not unix.peer_gone


def check(mine: dict[int, Description], openers: Openers) -> Iterator[Reason]:
    """Say which names cannot be had here."""
    names = {unix.name for unix in (description.unix for description in mine.values()) if owns(unix)}
    for index, description in mine.items():
        unix, opener = description.unix, openers.description(index)
        for name in (unix.name, unix.connected_to):
            if (
                len(name) > LONGEST
                or (name and name[:1] not in (b"/", b"\0"))
                or b"\0" in name[1:-1] * (name[:1] == b"/")
            ):
                yield Reason("the image", "it has a unix socket with a name that cannot be")
                return
        if owns(unix) and (why := _why_not_here(unix.name, opener)):
            yield Reason(f"the unix socket {printable(unix.name)}", *why)
        if unix.connected_to and unix.connected_to not in names and (error := _cannot_connect(unix, opener)):
            yield Reason(f"the unix socket {printable(unix.connected_to)}", f"the program sends to it, and {error}")


def _why_not_here(name: bytes, opener: Opener) -> tuple[str, str] | None:
    """Why the name of a socket cannot be had by its user, and what to do."""
    if name.startswith(b"\0"):
        return None
    if not opener.may_write_in(os.path.dirname(name)):
        return "its directory is not there, or this user may not write to it", "make it again"
    try:
        status = opener.lstat(name)
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid not in opener.users:
        return "something else has its name", "move it away"
    return None


def check_free(mine: dict[int, Description], openers: Openers) -> Iterator[Reason]:
    """Say which names somebody has."""
    for index, description in mine.items():
        unix = description.unix
        if owns(unix) and (why := _why_taken(unix, openers.description(index))):
            yield Reason(f"the unix socket {printable(unix.name)}", *why)


def _why_taken(unix: UnixMessage, opener: Opener) -> tuple[str, str] | None:
    """Why the name of a socket is not free, and what to do."""
    advice = "end who has it: it may be the program itself, which still runs"
    with socket.socket(socket.AF_UNIX, unix.type) as probe:
        if unix.name.startswith(b"\0"):
            try:
                probe.bind(unix.name)
            except OSError as error:
                return f"the name cannot be had: {error.strerror}", advice
        elif _is_there(unix.name, opener) and _lives(probe, unix.name, opener):
            return "somebody has the name", advice
    return None


def _is_there(name: bytes, opener: Opener) -> bool:
    try:
        opener.lstat(name)
    except FileNotFoundError:
        return False
    return True


def _lives(probe: socket.socket, name: bytes, opener: Opener) -> bool:
    """Whether a socket is behind a path."""
    probe.setblocking(False)
    try:
        _connect(probe, name, opener)
    except OSError as error:
        return error.errno != errno.ECONNREFUSED
    return True


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
    """The named sockets of an image while they are made. A context manager: on an error, no name is left."""

    opening: Opening
    _listeners: dict[bytes, socket.socket] = field(default_factory=dict)
    _made: list[tuple[Opener, bytes]] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Named:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
        if kind is not None:
            for opener, name in self._made:
                with suppress(FileNotFoundError):
                    opener.unlink(name)

    def bind_all(self, mine: dict[int, Description]) -> None:
        """Make all that are bound or know another by name; who listens does so from now on.

        What waited at a name is sent again later, and only then whom they know by name is made known to them: one that
        is connected hears nobody else.
        """
        alone = {i: d for i, d in mine.items() if owns(d.unix) or d.unix.connected_to}
        made: dict[int, socket.socket] = {}
        for index, description in alone.items():
            with naming(description):
                made[index] = self._bind(index, description.unix, self.opening.openers.description(index))
        self.opening.later.append(partial(self._deliver, alone, made))

    def _deliver(self, alone: dict[int, Description], made: dict[int, socket.socket]) -> None:
        owners = {description.unix.name: made[index] for index, description in alone.items() if description.unix.name}
        for description in alone.values():
            unix = description.unix
            with naming(description):
                for number, sender in enumerate(unix.senders):
                    with self._sender(owners, of(sender)) as sock:
                        unix_queues.fill(sock, unix, self.opening.slots, [number], unix.name)
        for index, description in alone.items():
            with naming(description):
                sockets.set_options(made[index], description.unix.options, OPTIONS)  # buffers may have grown
                if description.unix.connected_to:
                    _connect(made[index], description.unix.connected_to, self.opening.openers.description(index))

    @contextmanager
    def _sender(self, owners: dict[bytes, socket.socket], name: bytes) -> Iterator[socket.socket]:
        """A datagram socket with this name: the tree's own; without one, any."""
        if not name:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
                yield nobody
        elif name in owners:
            yield owners[name]
        else:
            raise RestoreFailed(f"datagrams came from {printable(name)}, which is not in the image")

    def queue_up(self, mine: dict[int, Description]) -> None:
        """Connect those who wait to be accepted, in their order. Nothing may be accepted from then on."""
        for listener in mine.values():
            for index in listener.unix.pending:
                unix = mine[index].unix
                client = socket.socket(socket.AF_UNIX, unix.type)
                with naming(mine[index]), client:
                    client.settimeout(PATIENCE)
                    client.connect(listener.unix.name)
                    client.settimeout(None)
                    sockets.set_options(client, unix.options, OPTIONS)
                    if unix.shut_read:
                        client.shutdown(socket.SHUT_RD)
                    if unix.shut_write:
                        client.shutdown(socket.SHUT_WR)
                    self.opening.place(index, client.dup().detach())

    def _bind(self, index: int, unix: UnixMessage, opener: Opener) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, unix.type))
        if unix.name:
            if not unix.name.startswith(b"\0"):
                _clear(unix, opener)
            opener.call(NR.bind, sock.fileno(), *_address(unix.name))
            if not unix.name.startswith(b"\0"):
                self._made.append((opener, unix.name))
                opener.chmod(unix.name, unix.mode & 0o777)
        sockets.set_options(sock, unix.options, OPTIONS)
        if unix.listening:
            sock.listen(unix.backlog)
            self._listeners[unix.name] = sock
        self.opening.place(index, sock.dup().detach())
        return sock

    def pair(self, one: UnixMessage, other: UnixMessage) -> tuple[socket.socket, socket.socket]:
        """Two ends of a connection, through the tree's own listener where it was made so."""
        if (listener := self._listeners.get(other.name)) is not None and other.name:
            return self._connect(listener, one, other.name)
        if (listener := self._listeners.get(one.name)) is not None and one.name:
            far, near = self._connect(listener, one, one.name)
            return near, far
        return socket.socketpair(socket.AF_UNIX, one.type)

    def _connect(self, listener: socket.socket, unix: UnixMessage, name: bytes) -> tuple[socket.socket, socket.socket]:
        client = socket.socket(socket.AF_UNIX, unix.type)
        try:
            client.settimeout(PATIENCE)
            client.connect(name)
            client.settimeout(None)
            while True:  # whoever came before us from outside is turned away, as when the program was gone
                server, _ = listener.accept()
                pid, _, _ = UCRED.unpack(server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
                if pid == os.getpid():
                    server.setblocking(True)
                    return client, server
                server.close()
        except BaseException:
            client.close()
            raise


def _address(name: bytes) -> tuple[bytes, int]:
    """struct sockaddr_un and its length."""
    address = struct.pack("=H", socket.AF_UNIX) + (name if name.startswith(b"\0") else name + b"\0")
    return address, len(address)


def _connect(sock: socket.socket, name: bytes, opener: Opener) -> None:
    opener.call(NR.connect, sock.fileno(), *_address(name))


def _clear(unix: UnixMessage, opener: Opener) -> None:
    """Remove the file that the program left, if nobody is behind it.

    Raises:
        RestoreFailed: somebody is.
    """
    if (why := _why_not_here(unix.name, opener) or _why_taken(unix, opener)) is not None:
        raise RestoreFailed(f"the unix socket {printable(unix.name)} cannot be made again: {why[0]}", advice=why[1])
    with suppress(FileNotFoundError):
        opener.unlink(unix.name)
