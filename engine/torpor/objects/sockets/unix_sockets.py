"""Unix sockets: pairs, connections, listeners, and data in flight between them.

Kept: type, receive queues with message boundaries and the descriptors that come with messages (SCM_RIGHTS; see
`torpor.objects.sockets.unix_queues`), shutdown of either side, options, names (see
`torpor.objects.sockets.unix_names`), connections that a listener has not accepted yet, unread datagrams of a bound
socket, and an end whose other end is closed already.

Refused: connections to sockets outside of the tree (except standard input, output and error, and datagram sockets that
are connected by name), unless they should come back as closed by the peer (`torpor checkpoint --outside=reset`); data
on a connection that was not accepted, which nobody can read without accepting it; messages with the credentials of
their senders (SO_PASSCRED), which only the senders could send again; datagrams whose sender's name nobody in the tree
has; descriptors in flight of a kind that a process itself must make (pidfd, file of /proc/PID, POSIX message queue), or
that no process has otherwise (files in memory, inotify, epoll, signalfd).

Not kept: SO_PEERCRED, which names the restoring process, and a name to which the connecting end had bound itself.

sock_diag(7) shows the connections, in one dump for the whole tree (`torpor.objects.sockets.unix_diag`).
"""

from __future__ import annotations

import os
import select
import socket
import stat
import termios
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from torpor import procfs
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.fds.pidfd import Pidfd
from torpor.objects.fds.posix_queues import MessageQueue
from torpor.objects.fds.proc_files import ProcFile
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    InFlight,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    descriptor_name,
    first_few,
)
from torpor.objects.opening import Opening, naming
from torpor.objects.paths import inode_search
from torpor.objects.paths.inode_search import Key
from torpor.objects.paths.opener import Openers
from torpor.objects.sockets import addresses, common, unix_names, unix_paths, unix_queues
from torpor.objects.sockets.common import SocketState
from torpor.objects.sockets.sock_diag import RCV_SHUTDOWN, SEND_SHUTDOWN
from torpor.objects.sockets.tcp_states import State
from torpor.objects.sockets.unix_diag import Diagnosis, Known
from torpor.objects.sockets.unix_queues import PATH, Queue

OPTIONS = unix_names.OPTIONS
_gone: set[Key] = set()
"""Files of sockets that were searched for and not found: most were removed."""
OPENED_BY_PROCESSES = (Pidfd.field, ProcFile.field, MessageQueue.field)
"""Kinds that a restorer does not have itself, and so cannot send."""


@dataclass
class UnixState:
    """A unix socket as it was."""

    socket: SocketState
    peer_name: bytes
    outgoing: int
    """Bytes that were sent and not received, overhead included."""
    queue: Queue = field(default_factory=Queue)
    known: Known | None = None
    peer: OpenFile[UnixState] | None = None
    """The other end, if it is in the tree."""
    waits_at: OpenFile[UnixState] | None = None
    """The listener of the tree that has not accepted its connection yet."""
    clients: list[OpenFile[UnixState] | None] = field(default_factory=list)
    """For a listener: the ends that it has not accepted, in order; None for one that is not in the tree."""
    diagnosis: Diagnosis | None = None
    names: set[bytes] | None = None
    """The names of all bound sockets of the tree; None until the other ends and names have been looked up."""
    bound_path: bytes = b""
    """The kernel's name for the file that it is bound to, which only root gets."""
    place: unix_paths.Place | None = None
    """Where the file of its name is; None if it is not bound to a file."""

    @property
    def listening(self) -> bool:
        """Whether it listens."""
        return self.known is not None and self.known.state == State.LISTEN  # of TCP's, as the kernel has it

    @property
    def sends_to_name(self) -> bool:
        """Whether it is a datagram socket that is connected to another by name, and not one of a pair."""
        mutual = self.peer is not None and self.peer.state.peer is not None and self.peer.state.peer.state is self
        by_names = bool(self.peer_name) and (not mutual or (self.known is not None and bool(self.known.name)))
        return self.socket.family.type == socket.SOCK_DGRAM and by_names

    @property
    def bound(self) -> bool:
        """Whether its name is its own; an accepted end shows its listener's."""
        known = self.known
        alone = self.sends_to_name or (known is not None and known.peer is None)
        return known is not None and bool(known.name) and (alone or self.listening)


class Unix(Kind[UnixState]):
    """A unix socket."""

    field = "unix"
    may_be_under_way = True
    may_be_reset = True

    def matches(self, seen: Seen) -> bool:
        """By its address family."""
        return seen.family is not None and seen.family.family == socket.AF_UNIX

    def grab(self, open_file: OpenFile[UnixState], pidfd: int, *, content: bool) -> UnixState:
        """Read options and the queue."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            listening = bool(common.number(copy, socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            name = unix_paths.of(addresses.peer_name(copy)[PATH:])
            outgoing = 0 if listening else common.queued(copy, termios.TIOCOUTQ)
            state = UnixState(common.look(copy, OPTIONS, listening=listening), name, outgoing)
            if content and procfs.is_root():
                state.bound_path = unix_paths.bound_path(copy)
            if content and not listening and state.socket.peek_offset < 0:
                state.queue = unix_queues.peek(copy, state.socket)
        return state

    def under_way(self, open_file: OpenFile[UnixState]) -> list[InFlight]:
        """The descriptors that come with the content of its queue."""
        return [one for message in open_file.state.queue.messages for one in message.rights]

    def finish(self, mine: list[OpenFile[UnixState]], tree: GrabbedDescriptors) -> None:
        """Query the connections between sockets."""
        if mine:
            diagnosis = Diagnosis()
            for open_file in mine:
                open_file.state.diagnosis = diagnosis

    def outside(self, open_file: OpenFile[UnixState], tree: GrabbedDescriptors) -> str:
        """The other end, if it is open and not in the tree."""
        _pair(tree)
        known = open_file.state.known
        if known is None or known.peer is None or open_file.state.peer is not None or _peer_is_closed(open_file.state):
            return ""
        if open_file.state.sends_to_name or open_file.state.waits_at is not None:
            return ""
        return f"the unix socket {unix_paths.printable(open_file.state.peer_name) or known.peer}"

    def unsupported(self, open_file: OpenFile[UnixState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its name and its other end must be known, and its queue must have been read completely."""
        _pair(tree)
        state = open_file.state
        yield from common.unsupported(state.socket, tree.asked(open_file.references[0].pid))
        if state.diagnosis and state.diagnosis.unavailable:
            yield Unsupported(
                f"the kernel does not tell who it is connected to: {state.diagnosis.unavailable}",
                "have the kernel module unix_diag loaded",
            )
        elif state.known is None:
            # Before the freeze it may just have been closed.
            yield Unsupported("the kernel does not know it in this network namespace", passing=not tree.content)
        elif state.bound:
            yield from _unsupported_clients(state, tree)
            yield from _unsupported_senders(state)
        elif state.known.name and (state.socket.family.type == socket.SOCK_DGRAM or state.waits_at is not None):
            yield Unsupported(
                "it has a name, and its other end is closed, has none, or has not accepted it yet", "close it"
            )
        elif state.peer is not None and state.peer.state.peer is not open_file and not state.sends_to_name:
            yield Unsupported("its other end is connected to another socket, which is not kept")
        elif state.queue.messages and (state.sends_to_name or (state.known.peer is None and not state.bound)):
            yield Unsupported("messages wait in it that nobody could send again", "receive them", passing=True)
        if state.queue.lost:
            yield Unsupported(state.queue.lost, "try again when the program has received what was sent", passing=True)
        for one in self.under_way(open_file):
            if one.open_file is not None and one.open_file.kind.field in OPENED_BY_PROCESSES:
                names = {Pidfd.field: "a pidfd", MessageQueue.field: "a POSIX message queue"}
                what = names.get(one.open_file.kind.field, one.open_file.link)
                yield Unsupported(
                    f"{what} is on its way to it, which only a process can open", "try again", passing=True
                )

    def unread(self, open_file: OpenFile[UnixState]) -> int:
        """Its receive queue."""
        return sum(len(message.content) for message in open_file.state.queue.messages)

    def only_one(self, open_file: OpenFile[UnixState]) -> str:
        """Its name, if it is bound to one."""
        return "its name" if open_file.state.bound else ""

    def describe(
        self, open_file: OpenFile[UnixState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its type, its other end, and its queue."""
        state = open_file.state
        assert state.known
        out.unix.type = state.socket.family.type
        out.unix.messages.extend(message.content for message in state.queue.messages)
        for number, message in enumerate(state.queue.messages):
            if message.rights:
                rights = [
                    image.index_of(one.open_file, one.open_file.references[0].fd)
                    for one in message.rights
                    if one.open_file
                ]
                out.unix.under_way.add(message=number, descriptions=rights)
        out.unix.shut_read = bool(state.known.shutdown & RCV_SHUTDOWN)
        out.unix.shut_write = bool(state.known.shutdown & SEND_SHUTDOWN)
        out.unix.options.extend(common.non_default_options(state.socket.family, state.socket.options, OPTIONS))
        out.unix.reset = bool(state.socket.events & select.POLLERR)
        out.unix.name = state.known.name
        if state.bound:
            out.unix.listening, out.unix.backlog = state.listening, state.known.backlog if state.listening else 0
            if state.place:
                _describe_file(state.known.name, state.place, out.unix)
            out.unix.pending.extend(image.index_of(one, one.references[0].fd) for one in state.clients if one)
            if state.socket.family.type == socket.SOCK_DGRAM:
                out.unix.senders.extend(message.sender for message in state.queue.messages)
        out.unix.is_pending = state.waits_at is not None
        if state.sends_to_name:
            out.unix.connected_to = state.peer_name
            out.unix.closed_there = state.known is not None and state.known.peer == 0
        elif state.peer is not None:
            out.unix.has_peer = True
            out.unix.peer = image.index_of(state.peer, state.peer.references[0].fd)
        else:
            out.unix.peer_gone = _peer_is_closed(state) or bool(self.outside(open_file, tree))

    def notices(self, mine: Sequence[OpenFile[UnixState]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Connections to others that the woken program will see closed."""
        lost = [
            f"{descriptor_name(open_file.references[0])}, to {words}"
            for open_file in mine
            if not self.stands_for(open_file, tree) and (words := self.outside(open_file, tree))
        ]
        if lost:
            yield f"the woken program will see unix connections to others closed: {first_few(lost)}"
        nowhere = [
            f"{descriptor_name(open_file.references[0])}, {unix_paths.printable(open_file.state.known.name)}"
            for open_file in mine
            if open_file.state.place and open_file.state.known and not open_file.state.place.path
            if not procfs.is_root()
        ]
        if nowhere:
            yield f"the files of unix sockets are not found, and will not be there: {first_few(nowhere)}"

    def spared(self, description: Description) -> bool:
        """If an empty message is not the first: the kernel would not show it to the next checkpoint."""
        unix = description.unix
        return b"" in unix.messages[1:] and not unix.under_way

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The image must be consistent, and its names available."""
        found = list(_validate_ends(mine, image))
        yield from found or unix_names.validate(mine, Openers(image))

    def validate_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """The names must be free."""
        return unix_names.validate_free(mine, Openers(image))

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make named sockets first, then pairs, then unaccepted connections. Their queues are filled later."""
        named = opening.stack.enter_context(unix_names.Named(opening))
        named.bind_all(mine)
        for index, description in mine.items():
            if index not in opening.slots and not description.unix.is_pending:
                _open(index, description, opening, named)
        named.queue_up(mine)


def _validate_ends(mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
    for index, description in mine.items():
        unix = description.unix
        if unix.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            yield Reason("the image", f"it has a unix socket of type {unix.type}, which does not exist")
        if unix.has_peer:
            other = mine.get(unix.peer)
            if other is None or not other.unix.has_peer or other.unix.peer != index or unix.peer == index:
                yield Reason("the image", f"the unix socket {index} and its other end do not fit together")
        yield from _validate_queue(index, unix, mine, image)
        yield from common.validate_options(unix.options, "a unix socket")


def _validate_queue(index: int, unix: UnixMessage, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
    clients = [mine[client].unix for client in unix.pending if client in mine]
    fits = all(client.is_pending and client.type == unix.type for client in clients)
    waiting = len(set(unix.pending)) == len(unix.pending) == len(clients) and (unix.listening or not clients)
    bound = unix_names.owns(unix) or not unix.listening  # listen(2) on a unix socket without a name: EINVAL
    senders = not unix.senders or (len(unix.senders) == len(unix.messages) and unix_names.owns(unix))
    known = [one.WhichOneof("kind") not in OPENED_BY_PROCESSES for one in image.descriptions]
    rights = all(
        one.message < len(unix.messages) and all(index < len(known) and known[index] for index in one.descriptions)
        for one in unix.under_way
    )
    if not (fits and waiting and bound and senders and rights):
        yield Reason("the image", f"the queue of the unix socket {index} is not consistent")
    if unix.is_pending and (
        sum(index in other.unix.pending for other in mine.values()) != 1
        or unix.name
        or unix.has_peer
        or unix.peer_gone
        or unix.messages
        or unix.connected_to
    ):
        yield Reason("the image", f"the unix socket {index} waits to be accepted, which the rest contradicts")


def _open(index: int, description: Description, opening: Opening, named: unix_names.Named) -> None:
    unix = description.unix
    with naming(description):
        if unix.has_peer:
            _open_pair(opening, index, unix.peer, named)
        elif unix.peer_gone:
            _open_without_peer(opening, index, named)
        else:
            alone = socket.socket(socket.AF_UNIX, unix.type)
            common.set_options(alone, unix.options, OPTIONS)
            opening.place(index, alone.detach())


def may_hold_descriptors(open_file: OpenFile[UnixState]) -> bool:
    """Whether its queue has content, and so may have descriptors."""
    return bool(open_file.state.socket.events & select.POLLIN)


def _pair(tree: GrabbedDescriptors) -> None:
    """Note the kernel's data on every socket, once; not done under the freeze."""
    mine = tree.of(Unix)
    if not mine or mine[0].state.names is not None:
        return
    names: set[bytes] = set()
    by_inode = {open_file.stat.st_ino: open_file for open_file in mine}
    for open_file in mine:  # also those that the kernel does not know: they were closed meanwhile
        assert open_file.state.diagnosis
        open_file.state.names = names
        known = open_file.state.known = open_file.state.diagnosis.sockets.get(open_file.stat.st_ino)
        if known and known.peer:
            open_file.state.peer = by_inode.get(known.peer)
        for inode in known.clients if known else ():
            client = by_inode.get(inode)
            open_file.state.clients.append(client)
            if client is not None:
                client.state.waits_at = open_file
    for open_file in mine:
        open_file.state.place = _find_file(open_file, tree)
        if open_file.state.known and open_file.state.bound:
            names.add(open_file.state.known.name)
    if not procfs.is_root():  # root knows already
        _search_files(mine, tree)


def _unsupported_clients(state: UnixState, tree: GrabbedDescriptors) -> Iterator[Unsupported]:
    """A restore must be able to make the listener's unaccepted connections again."""
    for client in state.clients:
        if client is None:
            if not tree.reset_outside:
                yield Unsupported(
                    "a connection to it was not accepted yet whose other end is closed or outside of the tree",
                    "try again when it was accepted",
                    passing=True,
                )
        elif client.state.outgoing:
            yield Unsupported(
                "data was sent on a connection to it that was not accepted yet, and cannot be read before",
                "try again when it was accepted",
                passing=True,
            )


def _unsupported_senders(state: UnixState) -> Iterator[Unsupported]:
    """The senders of unread datagrams must be in the tree, to send them again."""
    if state.socket.family.type != socket.SOCK_DGRAM or not state.queue.messages:
        return
    for sender in dict.fromkeys(unix_paths.of(message.sender) for message in state.queue.messages):
        if sender and sender not in (state.names or ()):
            yield Unsupported(
                f"datagrams from {unix_paths.printable(sender)} wait in it, and nobody in the tree has that name",
                "try again when they were received",
                passing=True,
            )


def _describe_file(name: bytes, place: unix_paths.Place, out: UnixMessage) -> None:
    """Write where the file of a socket is, and its owner."""
    path = place.path
    with suppress(FileNotFoundError):  # it was removed just now
        found = os.lstat(path)
        out.mode, out.inode = stat.S_IMODE(found.st_mode), found.st_ino
        out.owner.uid, out.owner.gid = found.st_uid, found.st_gid
    if path != name:
        out.moved, out.path, out.directory = True, path, place.directory


def _find_file(open_file: OpenFile[UnixState], tree: GrabbedDescriptors) -> unix_paths.Place | None:
    known = open_file.state.known
    if known is None or known.name.startswith(b"\0") or not open_file.state.bound:
        return None
    pids = dict.fromkeys(map(tree.asked, [one.pid for one in open_file.references] + tree.pids))
    return unix_paths.find(known.name, known.inode, unix_paths.directories(pids), open_file.state.bound_path)


def _search_files(mine: list[OpenFile[UnixState]], tree: GrabbedDescriptors) -> None:
    """Search for the files of sockets that are in no directory where they may have been made, once for each."""
    lost: dict[Key, list[OpenFile[UnixState]]] = defaultdict(list)
    for open_file in mine:
        known, place = open_file.state.known, open_file.state.place
        if known and known.inode and place and not place.path and (key := (known.device, known.inode)) not in _gone:
            lost[key].append(open_file)
    found = inode_search.find(lost, tree) if lost else {}
    for key, path in found.items():
        for open_file in lost[key]:
            if open_file.state.place and stat.S_ISSOCK(os.lstat(path).st_mode):
                open_file.state.place = open_file.state.place._replace(path=os.fsencode(path))
    _gone.update(lost.keys() - found.keys())


def _peer_is_closed(state: UnixState) -> bool:
    """Whether the other end is closed. One that was not accepted yet has no inode either."""
    if state.known is None or state.known.peer != 0:
        return False
    datagrams = state.socket.family.type == socket.SOCK_DGRAM
    return datagrams or state.known.shutdown == RCV_SHUTDOWN | SEND_SHUTDOWN


def _open_pair(opening: Opening, first: int, second: int, named: unix_names.Named) -> None:
    one, other = opening.image.descriptions[first].unix, opening.image.descriptions[second].unix
    near, far = named.pair(first, one, other)
    opening.place(first, near.detach())
    opening.place(second, far.detach())
    opening.later.append(partial(_finish_pair, opening, first, second))


def _finish_pair(opening: Opening, first: int, second: int) -> None:
    """Fill both queues, then shut down what was shut down."""
    one, other = opening.image.descriptions[first].unix, opening.image.descriptions[second].unix
    with opening.socket(first) as near, opening.socket(second) as far:
        unix_queues.fill(far, one, opening.slots)
        unix_queues.fill(near, other, opening.slots)
        common.set_options(near, one.options, OPTIONS)
        common.set_options(far, other.options, OPTIONS)
        unix_names.shut(near, one)
        unix_names.shut(far, other)


def _open_without_peer(opening: Opening, index: int, named: unix_names.Named) -> None:
    """Make a socket whose other end is closed."""
    unix = opening.image.descriptions[index].unix
    near, far = named.pair(index, unix, UnixMessage(type=unix.type))
    opening.stack.enter_context(far)
    opening.place(index, near.detach())
    opening.later.append(partial(_finish_without_peer, opening, index, far))


def _finish_without_peer(opening: Opening, index: int, far: socket.socket) -> None:
    """Fill its queue, then close the other end."""
    unix = opening.image.descriptions[index].unix
    with far, opening.socket(index) as near:
        unix_queues.fill(far, unix, opening.slots)
        if unix.reset:  # net/unix/af_unix.c: closing an end with unread data resets the other
            near.send(b"x")  # before SO_PASSCRED, with which a socket that has no name gets one when it sends
        common.set_options(near, unix.options, OPTIONS)
        if unix.type == socket.SOCK_DGRAM:  # closing shuts down other types
            unix_names.shut(near, unix)
