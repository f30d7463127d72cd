"""Netlink sockets (netlink(7)), by which programs follow changes of routes, addresses and devices.

Kept: sockets for routes, socket diagnosis and device events: port, groups, options, packet filter. Refused: sockets
with unread messages, connected to another program, or with other protocols, whose numbers are only valid until the next
boot. Not kept: messages that would have come while the tree was not running.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.image.image_pb2 import Netlink as NetlinkMessage
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import Opening
from torpor.objects.sockets import addresses, common
from torpor.objects.sockets.common import SocketState

ROUTE, DIAGNOSIS, EVENTS = 0, 4, 15
PROTOCOLS: Final = {ROUTE: "routes", DIAGNOSIS: "socket diagnosis", EVENTS: "device events"}
SOL_NETLINK = 270
_ADD_MEMBERSHIP, _LIST_MEMBERSHIPS = 1, 9
_MOST_GROUPS = 1024
_NAME = struct.Struct("=HxxII")
"""struct sockaddr_nl: family, port, groups."""
OPTIONS = {
    **common.GENERAL,
    (socket.SOL_SOCKET, socket.SO_PASSCRED): 4,
    **dict.fromkeys(common.NETLINK, 4),
    **common.FILTERS,
}


@dataclass
class NetlinkState:
    """A netlink socket as it was."""

    socket: SocketState
    port: int
    """0 if it is not bound."""
    peer: int
    """The port that it sends to; 0 is the kernel."""
    groups: list[int]


class Netlink(Kind[NetlinkState]):
    """A netlink socket."""

    field = "netlink"

    def matches(self, seen: Seen) -> bool:
        """By family and protocol."""
        return seen.family is not None and seen.family.family == socket.AF_NETLINK and seen.family.protocol in PROTOCOLS

    def grab(self, open_file: OpenFile[NetlinkState], pidfd: int, *, content: bool) -> NetlinkState:
        """Read addresses, options and groups."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            _, port, _ = _NAME.unpack(addresses.local_name(copy))
            _, peer, groups = _NAME.unpack(addresses.peer_name(copy))
            state = common.look(copy, OPTIONS, listening=True)
            return NetlinkState(state, port, peer or groups, _groups(copy))

    def unsupported(self, open_file: OpenFile[NetlinkState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It must be idle, and may be connected only to the kernel."""
        state = open_file.state
        yield from common.unsupported(state.socket, open_file.references[0].pid)
        if state.socket.events & (select.POLLIN | select.POLLERR):
            yield Unsupported(
                "messages of the kernel wait in it that were not read", "read them, or try again", passing=True
            )
        if state.peer:
            yield Unsupported("it is connected to a group or another program", "close it before the checkpoint")

    def describe(
        self, open_file: OpenFile[NetlinkState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write all of it."""
        state = open_file.state
        out.netlink.type, out.netlink.protocol = state.socket.family.type, state.socket.family.protocol
        out.netlink.port = state.port
        out.netlink.groups.extend(state.groups)
        out.netlink.options.extend(common.non_default_options(state.socket.family, state.socket.options, OPTIONS))

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """A kernel must be able to have such sockets."""
        for description in mine.values():
            netlink = description.netlink
            known = netlink.protocol in PROTOCOLS and netlink.type in (socket.SOCK_RAW, socket.SOCK_DGRAM)
            if not known or any(not 0 < group <= _MOST_GROUPS for group in netlink.groups):
                yield Reason("the image", "it has an invalid netlink socket")
            yield from common.validate_options(netlink.options, "a netlink socket")

    def validate_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """Their ports must be free."""
        for description in mine.values():
            netlink = description.netlink
            try:
                _bound(netlink).close()
            except OSError as error:
                why = f"it cannot have its port {netlink.port} again: {error.strerror}"
                advice = "end the program that has it" if error.errno == errno.EADDRINUSE else ""
                yield Reason(f"a netlink socket ({PROTOCOLS[netlink.protocol]})", why, advice)

    def make(self, description: Description, opening: Opening) -> int:
        """Make a new socket."""
        with _bound(description.netlink) as sock:
            for group in description.netlink.groups:
                sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, group)
            common.set_options(sock, description.netlink.options, OPTIONS)
            return sock.detach()


def _bound(netlink: NetlinkMessage) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, netlink.type, netlink.protocol)
    try:
        if netlink.port:
            sock.bind((netlink.port, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _groups(fd: int) -> list[int]:
    mask = int.from_bytes(common.getsockopt(fd, SOL_NETLINK, _LIST_MEMBERSHIPS, _MOST_GROUPS // 8), "little")
    return [bit + 1 for bit in range(mask.bit_length()) if mask >> bit & 1]
