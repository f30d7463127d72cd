"""UDP sockets (udp(7)): their addresses and options.

Kept: whom it is bound and connected to, and options. Refused: datagrams that wait to be read, which come from addresses
that only their senders can send from, and a socket that is shut down. Not kept: memberships of multicast groups, which
the kernel shows to nobody.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree, UdpSocket
from torpor.objects import sockets
from torpor.objects.description import Describing, GrabbedDescriptors, Held, Kind, Opening, Problem, Seen, borrowed
from torpor.objects.sockets import Address, SocketState

UDP_ENCAP = 100
BEFORE_BIND = frozenset(
    {
        (socket.SOL_SOCKET, socket.SO_REUSEADDR),
        (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        (socket.SOL_SOCKET, socket.SO_BINDTODEVICE),
        (socket.IPPROTO_IP, 15),  # IP_FREEBIND
        (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    }
)
OPTIONS4 = {**sockets.GENERAL, **sockets.UDP}
OPTIONS6 = {**OPTIONS4, **sockets.TCP6, **sockets.UDP6}


@dataclass
class UdpState:
    """A UDP socket as it was."""

    socket: SocketState
    local: bytes
    """struct sockaddr."""
    remote: bytes
    """Empty when it is not connected."""
    encapsulates: bool
    """It carries IPsec or tunnels for the kernel."""


class Udp(Kind[UdpState]):
    """A UDP socket."""

    field = "udp"

    def matches(self, seen: Seen) -> bool:
        """By its family and protocol."""
        family = seen.family
        return (
            family is not None
            and family.family in (socket.AF_INET, socket.AF_INET6)
            and (family.type, family.protocol) == (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        )

    def grab(self, held: Held[UdpState], pidfd: int, *, content: bool) -> UdpState:
        """Addresses and options."""
        with borrowed(pidfd, held.holders[0].fd) as copy:
            family = sockets.number(copy, socket.SOL_SOCKET, socket.SO_DOMAIN)
            encapsulation = sockets.if_known(copy, socket.IPPROTO_UDP, UDP_ENCAP, 4)
            return UdpState(
                sockets.look(copy, _options(family), listening=False),
                sockets.local_name(copy),
                sockets.peer_name(copy),
                any(encapsulation or b""),
            )

    def judge(self, held: Held[UdpState], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """Nothing waits in it."""
        state = held.state
        yield from sockets.judge(state.socket, held.holders[0].pid)
        if state.socket.events & select.POLLIN and not state.socket.events & select.POLLRDHUP:
            yield Problem(
                "datagrams wait in it that were not read, and cannot be kept", "read them, or try again", passing=True
            )
        if state.socket.events & (select.POLLRDHUP | select.POLLHUP):
            yield Problem("it is shut down, which is not kept", "close it")
        if state.encapsulates:
            yield Problem("it carries packets for the kernel (UDP_ENCAP)", "close it")

    def describe(self, held: Held[UdpState], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Addresses and options."""
        state = held.state
        out.udp.family, out.udp.local, out.udp.remote = state.socket.family.family, state.local, state.remote
        wanted = _options(state.socket.family.family)
        out.udp.options.extend(sockets.kept(state.socket.family, state.socket.options, wanted))

    def check(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The addresses can be had."""
        for description in mine.values():
            udp = description.udp
            if udp.family not in (socket.AF_INET, socket.AF_INET6):
                yield Reason("the image", f"it has a UDP socket of family {udp.family}")
                continue
            yield from sockets.check_options(udp.options, "a UDP socket")
            try:
                where = _address(udp.local)
                _address(udp.remote)
            except ValueError as error:
                yield Reason("the image", f"it has a UDP socket with {error}")
                continue
            try:
                _make(udp).close()
            except OSError as error:
                yield _refused(where, error)

    def make(self, description: Description, opening: Opening) -> int:
        """Bound and connected as it was."""
        sock = _make(description.udp)
        with sock:
            sockets.set_options(sock, description.udp.options, _options(description.udp.family), BEFORE_BIND)
            return sock.detach()


def _options(family: int) -> dict[sockets.Key, int]:
    return OPTIONS6 if family == socket.AF_INET6 else OPTIONS4


def _address(name: bytes) -> Address | None:
    """What a struct sockaddr of a UDP socket says; None for nothing at all."""
    return sockets.address(name) if name else None


def _make(udp: UdpSocket) -> socket.socket:
    sock = socket.socket(udp.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        for option in udp.options:
            if (option.level, option.name) in BEFORE_BIND:
                sockets.set_option(sock, (option.level, option.name), option.value)
        if (where := _address(udp.local)) is not None and where.port:
            sock.bind(sockets.for_python(where, udp.family))
        if (there := _address(udp.remote)) is not None:
            sock.connect(sockets.for_python(there, udp.family))
    except BaseException:
        sock.close()
        raise
    return sock


def _refused(where: Address | None, error: OSError) -> Reason:
    subject = f"the UDP socket at {where}"
    if error.errno == errno.EADDRINUSE:
        return Reason(subject, "the port is taken", "end who has it: it may be the program itself, which still runs")
    if error.errno == errno.EADDRNOTAVAIL:
        return Reason(subject, "this host does not have the address", "restore on the host that has it")
    return Reason(subject, f"it cannot be made here: {error.strerror}")
