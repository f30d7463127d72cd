"""UDP sockets (udp(7)): their addresses, their options, and unread datagrams.

Kept: the addresses that it is bound and connected to, options, memberships in multicast groups (see
`torpor.objects.sockets.multicast`), and unread datagrams, each with its sender. A restore sends these again from their
address: from the tree's own socket there, or from a temporary one. Refused: datagrams from an address that another
program has, or that is not this host's; datagrams that the kernel has merged (UDP_GRO), or that are behind an error.
Not kept: that a socket without a port is shut down for writing only, which nothing shows (of one with a port,
sock_diag(7) tells); what comes with a datagram besides its sender (time, TTL, ...); an error without datagrams (ICMP),
as if it had been lost in the network; and an outgoing multicast device that was set only by its number.

The kernel may not show empty datagrams that it has shown to an earlier checkpoint (`torpor.objects.sockets.peeking`).
The result then says so; a job is not refused for that, since datagrams get lost in a network, too.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import termios
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Membership, Tree, UdpSocket
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    descriptor_name,
    first_few,
)
from torpor.objects.opening import Opening, naming
from torpor.objects.sockets import addresses, buffers, common, multicast, peeking
from torpor.objects.sockets.addresses import Address
from torpor.objects.sockets.common import SocketState
from torpor.objects.sockets.sock_diag import SEND_SHUTDOWN, shut_udp

UDP_ENCAP = 100
UDP_GRO = (socket.IPPROTO_UDP, 104)
LONGEST = 1 << 16
"""In bytes; a datagram is smaller."""
PATIENCE = 2.0
"""How long a datagram may take to arrive on this host, in seconds."""
FIXED = frozenset({(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)})
"""Options that cannot be changed once a socket has an address."""
REUSES = ((socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.SOL_SOCKET, socket.SO_REUSEPORT))
BEFORE_BIND = FIXED | {
    *REUSES,
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE),
    (socket.IPPROTO_IP, 15),  # IP_FREEBIND
    (socket.IPPROTO_IP, socket.IP_TRANSPARENT),
}
OPTIONS4 = {**common.GENERAL, **common.UDP, **common.FILTERS}
OPTIONS6 = {**common.TCP6, **common.UDP6, **OPTIONS4}


Bound = dict[int, set[Address]]
"""The addresses of bound sockets, by port."""


@dataclass
class UdpState:
    """A UDP socket as it was."""

    socket: SocketState
    local: bytes
    """struct sockaddr."""
    remote: bytes
    """Empty if it is not connected."""
    encapsulates: bool
    """Whether it carries IPsec or tunnels for the kernel."""
    memberships: list[Membership]
    """Memberships in multicast groups."""
    unsent: int = 0
    """The bytes that were written and have not left the host. If they stay, they are held back (UDP_CORK, MSG_MORE)."""
    messages: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Unread datagrams, each with its sender's struct sockaddr."""
    may_lack: bool = False
    """Whether empty datagrams may be missing in these."""
    shut: int = 0
    """Which sides the kernel says were shut down (RCV_SHUTDOWN, SEND_SHUTDOWN); 0 also if it says nothing."""
    ours: Bound = field(default_factory=dict)
    """The addresses of all sockets of the tree."""

    @property
    def shut_read(self) -> bool:
        """Whether it is shut down for reading."""
        return bool(self.socket.events & select.POLLRDHUP)

    @property
    def shut_write(self) -> bool:
        """Whether it is shut down for writing; poll() shows it only if it is shut down for both."""
        return bool(self.shut & SEND_SHUTDOWN or self.socket.events & select.POLLHUP)

    @property
    def failed(self) -> bool:
        """Whether it has a pending error, which reading its queue would consume."""
        return bool(self.socket.events & select.POLLERR)


class Udp(Kind[UdpState]):
    """A UDP socket."""

    field = "udp"
    may_be_under_way = True

    def matches(self, seen: Seen) -> bool:
        """By family, type and protocol."""
        family = seen.family
        return (
            family is not None
            and family.family in (socket.AF_INET, socket.AF_INET6)
            and (family.type, family.protocol) == (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        )

    def grab(self, open_file: OpenFile[UdpState], pidfd: int, *, content: bool) -> UdpState:
        """Read addresses, options and the queue."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            family = common.number(copy, socket.SOL_SOCKET, socket.SO_DOMAIN)
            encapsulation = common.if_known(copy, socket.IPPROTO_UDP, UDP_ENCAP, 4)
            state = UdpState(
                common.look(copy, _options(family), listening=False),
                addresses.local_name(copy),
                addresses.peer_name(copy),
                any(encapsulation or b""),
                multicast.memberships(copy, family, multicast.groups()),
                common.queued(copy, termios.TIOCOUTQ),
            )
            if content and state.socket.may_hold_messages and not state.failed and state.socket.peek_offset < 0:
                _peek(copy, state)
        return state

    def finish(self, mine: list[OpenFile[UdpState]], tree: GrabbedDescriptors) -> None:
        """Ask the kernel which sides were shut down."""
        with_port = [open_file for open_file in mine if _has_port(open_file.state)] if tree.content else []
        shut: dict[int, int] = {}
        for family in {open_file.state.socket.family.family for open_file in with_port}:
            shut |= shut_udp(family)
        for open_file in with_port:
            open_file.state.shut = shut.get(open_file.stat.st_ino, 0)
        ours = _by_port(addresses.address(open_file.state.local) for open_file in mine)
        for open_file in mine:
            open_file.state.ours = ours

    def unsupported(self, open_file: OpenFile[UdpState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """A restore must be able to send its unread datagrams again."""
        state = open_file.state
        yield from common.unsupported(state.socket, tree.asked(open_file.references[0].pid))
        if state.failed and not state.shut_read and state.socket.events & select.POLLIN:
            why = "datagrams wait in it behind an error (ICMP), which reading them would consume"
            yield Unsupported(why, "read the error, or try again", passing=True)
        if state.messages and any(state.socket.options.get(UDP_GRO, b"")):
            yield Unsupported(
                "datagrams wait in it that the kernel may have joined (UDP_GRO)", "try again", passing=True
            )
        for sender in dict.fromkeys(addresses.address(sender) for _, sender in state.messages):
            if not _can_send_from(state.ours, sender) and (why := _why_not_ours(sender)):
                yield Unsupported(
                    f"datagrams from {sender} wait in it, and nothing in the tree has that address to send them again:"
                    f" {why}",
                    "read them, or try again",
                    passing=True,
                )
        if state.unsent:
            why = "it holds back what was written to it (UDP_CORK, MSG_MORE), which nobody can read"
            yield Unsupported(why, "try again when the program has sent the rest of the datagram", passing=True)
        if state.encapsulates:
            yield Unsupported("it carries packets for the kernel (UDP_ENCAP)", "close it")

    def only_one(self, open_file: OpenFile[UdpState]) -> str:
        """The port, if it has one."""
        where = _address(open_file.state.local)
        return "its port" if where and where.port else ""

    def describe(
        self, open_file: OpenFile[UdpState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write addresses and options."""
        state = open_file.state
        out.udp.family, out.udp.local, out.udp.remote = state.socket.family.family, state.local, state.remote
        wanted = _options(state.socket.family.family)
        out.udp.options.extend(common.non_default_options(state.socket.family, state.socket.options, wanted))
        out.udp.shut_read, out.udp.shut_write = state.shut_read, state.shut_write
        out.udp.memberships.extend(state.memberships)
        out.udp.messages.extend(message for message, _ in state.messages)
        out.udp.senders.extend(sender for _, sender in state.messages)

    def notices(self, mine: Sequence[OpenFile[UdpState]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Empty datagrams that only an earlier checkpoint was shown."""
        if lacking := [descriptor_name(open_file.references[0]) for open_file in mine if open_file.state.may_lack]:
            why = "the kernel has shown them to an earlier checkpoint only"
            what = "empty datagrams that wait in UDP sockets may be missing in the snapshot"
            yield f"{what}, as {why}: {first_few(lacking)}"

    def spared(self, description: Description) -> bool:
        """Always: once it has its address, other programs may have sent datagrams to it."""
        return True

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The addresses must be valid."""
        for description in mine.values():
            udp = description.udp
            if udp.family not in (socket.AF_INET, socket.AF_INET6):
                yield Reason("the image", f"it has a UDP socket of family {udp.family}")
                continue
            yield from common.validate_options(udp.options, "a UDP socket")
            yield from multicast.validate(udp.memberships)
            try:
                where = _address(udp.local)
                _address(udp.remote)
                for sender in udp.senders:
                    addresses.address(sender)
                if len(udp.messages) != len(udp.senders) or (udp.messages and not (where and where.port)):
                    raise ValueError("datagrams that come from nowhere or lead nowhere")
            except ValueError as error:
                yield Reason("the image", f"it has a UDP socket with {error}")

    def validate_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """The addresses must be available here, also those of unread datagrams."""
        ours = _by_port(where for one in mine.values() if (where := _address(one.udp.local)))
        senders: dict[Address, None] = {}
        for description in mine.values():
            where = _address(description.udp.local)
            senders |= dict.fromkeys(map(addresses.address, description.udp.senders))
            try:
                _make(description.udp).close()
            except OSError as error:
                yield _refused(where, error)
        for sender in senders:
            if not _can_send_from(ours, sender) and (why := _why_not_ours(sender)):
                yield Reason(
                    f"the address {sender}",
                    f"datagrams that were not read came from it, and {why}",
                    "end the program that has it",
                )

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Bind all sockets, send the unread datagrams, then connect."""
        unlike = _unlike(description.udp for description in mine.values())
        with ExitStack() as stack:
            made: dict[int, socket.socket] = {}
            for index, description in mine.items():
                with naming(description):
                    share = _port(description.udp) in unlike
                    made[index] = stack.enter_context(_bound(description.udp, share=share))
            for index, description in mine.items():
                with naming(description):
                    _fill(made[index], description.udp, list(made.values()))
            for index, description in mine.items():
                udp, sock = description.udp, made[index]
                with naming(description):
                    if udp.remote:
                        sock.connect(addresses.for_python(addresses.address(udp.remote), udp.family))
                    common.set_options(sock, udp.options, _options(udp.family), FIXED)
                    multicast.join(sock, udp.memberships)
                    _shut(sock, udp)
                    opening.place(index, sock.dup().detach())


def _options(family: int) -> dict[common.Key, int]:
    return OPTIONS6 if family == socket.AF_INET6 else OPTIONS4


def _address(name: bytes) -> Address | None:
    """The address in a struct sockaddr of a UDP socket; None if it is empty."""
    return addresses.address(name) if name else None


def _has_port(state: UdpState) -> bool:
    where = _address(state.local)
    return where is not None and where.port != 0


def _make(udp: UdpSocket) -> socket.socket:
    sock = _bound(udp)
    try:
        if (there := _address(udp.remote)) is not None:
            sock.connect(addresses.for_python(there, udp.family))
    except BaseException:
        sock.close()
        raise
    return sock


def _port(udp: UdpSocket) -> int:
    where = _address(udp.local)
    return where.port if where else 0


def _unlike(mine: Iterable[UdpSocket]) -> set[int]:
    """The ports that several sockets have, and no option that all of these have by now lets them."""
    found: dict[int, list[set[common.Key]]] = defaultdict(list)
    for udp in mine:
        found[_port(udp)].append({(one.level, one.name) for one in udp.options if any(one.value)})
    shared = {port: options for port, options in found.items() if port and len(options) > 1}
    return {port for port, options in shared.items() if not set(REUSES).intersection(*options)}


def _bound(udp: UdpSocket, *, share: bool = False) -> socket.socket:
    """A socket that is bound as it was. `share`: others have its port, too, and it must be allowed for now."""
    sock = socket.socket(udp.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        for option in udp.options:
            if (option.level, option.name) in BEFORE_BIND:
                common.set_option(sock, (option.level, option.name), option.value)
        if share:
            for key in REUSES:
                sock.setsockopt(*key, 1)
        if (where := _address(udp.local)) is not None and where.port:
            sock.bind(addresses.for_python(where, udp.family))
    except BaseException:
        sock.close()
        raise
    return sock


def _shut(sock: socket.socket, udp: UdpSocket) -> None:
    for side, how in ((udp.shut_read, socket.SHUT_RD), (udp.shut_write, socket.SHUT_WR)):
        if side:
            try:
                sock.shutdown(how)
            except OSError as error:  # the kernel returns an error for an unconnected socket, but shuts it down
                if error.errno != errno.ENOTCONN:
                    raise


def _peek(copy: int, state: UdpState) -> None:
    """Read the unread datagrams, each with its sender."""

    def ends(seen: peeking.Peeked) -> bool:
        return not seen.name  # the end of a socket that is shut down: datagrams have a sender

    with peeking.Look(copy, state.socket.peek_offset, LONGEST, ends=ends) as look:
        state.messages = [(seen.content, seen.name) for seen in look]
        state.may_lack = look.may_have_missed


def _by_port(ours: Iterable[Address]) -> Bound:
    found: Bound = defaultdict(set)
    for own in ours:
        found[own.port].add(own)
    return found


def _can_send_from(ours: Bound, sender: Address) -> bool:
    """Whether one of these sockets can send from an address."""
    return any(_is_at(own, sender) for own in ours.get(sender.port, ()))


def _is_at(own: Address, sender: Address) -> bool:
    """Whether a socket at `own` can send from an address."""
    return own.port == sender.port and (own.host == sender.host or own.host.is_unspecified)


def _why_not_ours(sender: Address) -> str:
    """Why a temporary socket cannot have an address; empty if it can."""
    try:
        _at(sender).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _at(where: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET if where.host.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        sock.bind(addresses.for_python(where, sock.family))
    except BaseException:
        sock.close()
        raise
    return sock


def _fill(receiver: socket.socket, udp: UdpSocket, made: Sequence[socket.socket]) -> None:
    """Send a socket's unread datagrams again. Meanwhile it is connected to the sender, to receive no others."""
    if not udp.messages:
        return
    size = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    buffers.enlarge(receiver, socket.SO_RCVBUF)
    family = addresses.address(udp.senders[0]).host.version
    for message, origin in zip(udp.messages, udp.senders, strict=True):
        there = addresses.address(origin)
        if there.host.version != family:  # connected to an IPv4 address, an IPv6 socket takes no IPv6 one
            common.disconnect(receiver.fileno())
            family = there.host.version
        receiver.connect(addresses.for_python(there, receiver.family))
        with _sender(there, made) as sender:
            here = addresses.address(addresses.local_name(receiver.fileno()))
            before = common.used_memory(receiver.fileno())
            sender.sendto(message, addresses.for_python(here, sender.family))
            deadline = time.monotonic() + PATIENCE
            while common.used_memory(receiver.fileno()) <= before:
                if time.monotonic() > deadline:
                    raise RestoreFailed(f"a datagram from {there} to {here} that was not read does not arrive again")
                os.sched_yield()
    common.disconnect(receiver.fileno())
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)  # the kernel doubles it
    buffers.let_go_of_size(receiver)


@contextmanager
def _sender(there: Address, made: Sequence[socket.socket]) -> Iterator[socket.socket]:
    """A socket at an address: the tree's own, else a temporary one."""
    for sock in made:
        where = addresses.address(addresses.local_name(sock.fileno()))
        if _is_at(where, there) and (sock.family == socket.AF_INET6 or there.host.version == 4):
            yield sock
            return
    with _at(there) as sock:
        yield sock


def _refused(where: Address | None, error: OSError) -> Reason:
    subject = f"the UDP socket at {where}"
    if error.errno == errno.EADDRINUSE:
        advice = "end the program that has it: it may be the saved program itself, which still runs"
        return Reason(subject, "the port is taken", advice)
    if error.errno == errno.EADDRNOTAVAIL:
        return Reason(subject, "this host does not have the address", "restore on the host that has it")
    return Reason(subject, f"it cannot be made here: {error.strerror}")
