"""Delivering a peer's FIN to a connection in repair mode, which repair mode itself cannot do.

The kernel learns of the FIN from a segment of the peer, as before the checkpoint. Such a segment is made here and sent
to this host by a raw socket (raw(7), CAP_NET_RAW): it goes over the loopback, and never leaves the host. It has the
sequence number that the kernel expects, and acknowledges nothing new. The peer has sent its FIN, so it sends no data
that could interfere.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address

from torpor.errors import RestoreFailed
from torpor.objects.sockets import common
from torpor.objects.sockets.addresses import Address
from torpor.objects.sockets.tcp_states import State

FIN_ACK = 0x11
PATIENCE = 2.0
"""How long the kernel may take to accept the segment, in seconds."""
_SEGMENT = struct.Struct(">HHIIBBHHH")  # struct tcphdr
_HEADER4 = struct.Struct(">BBHHHBBH4s4s")  # struct iphdr
_HEADER6 = struct.Struct(">IHBB16s16s")  # struct ipv6hdr
_HOPS = 64


def tell(sock: socket.socket, here: Address, there: Address, sequence: int, acknowledged: int, window: int) -> None:
    """Deliver the peer's FIN to a connection.

    Args:
        sock: in repair mode, without a filter.
        here: its address.
        there: its peer's address.
        sequence: the next sequence number that it expects.
        acknowledged: the number up to which the peer has received everything.
        window: of the peer, as in its segments.

    Raises:
        OSError: a raw socket cannot be made, or cannot send.
        RestoreFailed: the kernel did not accept the segment.
    """
    segment = _segment(here, there, sequence, acknowledged, window)
    packet = _packet(here, there, segment)
    family = socket.AF_INET if here.host.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (str(here.host), 0))
    deadline = time.monotonic() + PATIENCE
    while common.getsockopt(sock.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != State.CLOSE_WAIT:
        if time.monotonic() > deadline:
            raise RestoreFailed(f"the kernel did not accept the peer's FIN on the TCP connection to {there}")
        os.sched_yield()


def _segment(here: Address, there: Address, sequence: int, acknowledged: int, window: int) -> bytes:
    def packed(checksum: int) -> bytes:
        numbers = sequence & 0xFFFFFFFF, acknowledged & 0xFFFFFFFF
        return _SEGMENT.pack(there.port, here.port, *numbers, 5 << 4, FIN_ACK, window, checksum, 0)

    pseudo = there.host.packed + here.host.packed + struct.pack(">II", _SEGMENT.size, socket.IPPROTO_TCP)
    return packed(_checksum(pseudo + packed(0)))


def _packet(here: Address, there: Address, segment: bytes) -> bytes:
    if isinstance(here.host, IPv6Address) or isinstance(there.host, IPv6Address):
        head = _HEADER6.pack(6 << 28, len(segment), socket.IPPROTO_TCP, _HOPS, there.host.packed, here.host.packed)
        return head + segment
    assert isinstance(there.host, IPv4Address)
    size = _HEADER4.size + len(segment)
    # The kernel fills in the checksum (raw(7)).
    return (
        _HEADER4.pack(0x45, 0, size, 0, 0, _HOPS, socket.IPPROTO_TCP, 0, there.host.packed, here.host.packed) + segment
    )


def _checksum(content: bytes) -> int:
    """The internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(word for (word,) in struct.iter_unpack(">H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
